"""Ctrl-C and SIGTERM as a flag, so that a training can still be saved."""

import signal
from types import FrameType, TracebackType
from typing import Self


class StopSignal:
    """Turns the first Ctrl-C or SIGTERM into a flag; the second acts as usual."""

    def __init__(self) -> None:
        self.received: str | None = None

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number).name
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def __enter__(self) -> Self:
        self._previous = {
            number: signal.signal(number, self._receive)
            for number in (signal.SIGINT, signal.SIGTERM)
        }
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._restore()
