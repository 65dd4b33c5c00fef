"""Programs as their user runs them, each a process of its own that starts at once.

A server imports once what all of them import, and forks itself for each: an import takes seconds,
and most of what the tests start is done in less. `tests/scripts/test_scripts.py` starts every
script anew, too.
"""

import atexit
import contextlib
import functools
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ROOT / "scripts"
MESSAGE_BYTES = 2**20
# two rollouts of a second in all
TINY = ["task=quadratic", "task.total_steps=60", "env.runner=looped", "agent.num_envs=2"]
TINY += ["agent.total_steps=58", "agent.algorithm.n_steps=29", "agent.algorithm.batch_size=58"]
TINY += ["show_progress=false", "logger=csv"]

NO_USER_WARNING = "import warnings; warnings.simplefilter('error', UserWarning)"


class Program:
    """A process that runs a Python file, with the methods of `subprocess.Popen` that are used."""

    def __init__(self, request: dict[str, Any]) -> None:
        ends = [os.pipe() for _ in range(2)]
        self.pid: int = _ask(request, [write for _, write in ends])
        self.returncode: int | None = None
        self._outputs = ["", ""]
        self._readers = [
            threading.Thread(target=self._read, args=(i, read), daemon=True)
            for i, (read, _) in enumerate(ends)
        ]
        for (_, write), reader in zip(ends, self._readers, strict=True):
            os.close(write)
            reader.start()

    def _read(self, i: int, end: int) -> None:
        with os.fdopen(end, errors="replace") as pipe:
            for line in pipe:
                self._outputs[i] += line

    def errors(self) -> str:
        """What it has said so far to its standard error."""
        return self._outputs[1]

    def poll(self) -> int | None:
        """The exit code, negative for a signal, or None while it runs."""
        if self.returncode is None:
            self.returncode = _ask({"poll": self.pid})
        return self.returncode

    def communicate(self, timeout: float = 300.0) -> tuple[str, str]:
        """Wait for the end; returns both outputs."""
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > deadline:
                self.kill()
                raise TimeoutError(f"a program has not ended after {timeout} s")
            time.sleep(0.01)
        for reader in self._readers:
            reader.join(max(0.0, deadline - time.monotonic()))
        out, err = self._outputs
        return out, err

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it at once."""
        self.send_signal(signal.SIGKILL)


def start(
    path: Path | str,
    *arguments: Any,
    cwd: Path,
    before: str = "",
    start_new_session: bool = False,
    environment: Mapping[str, str] = MappingProxyType({}),
) -> Program:
    """Start `python path arguments...`; a script is found by its name alone.

    Args:
        path: the Python file.
        *arguments: of its command line.
        cwd: the folder to be in.
        before: Python to run first.
        start_new_session: whether signals to this process's group do not reach it.
        environment: variables to set, beside those of this process.
    """
    return Program(
        {
            "argv": [str(SCRIPTS / path), *map(str, arguments)],
            "cwd": str(cwd),
            "before": before,
            "start_new_session": start_new_session,
            "environment": {
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "LRPILOT_CACHE": os.environ.get("LRPILOT_CACHE", str(cwd)),
                **environment,
            },
        }
    )


def run(path: Path | str, *arguments: Any, **options: Any) -> tuple[int, str, str]:
    """The exit code and both outputs of a program; the arguments are those of `start`."""
    program = start(path, *arguments, **options)
    out, err = program.communicate()
    assert program.returncode is not None
    return program.returncode, out, err


def run_scripts(
    commands: Sequence[Sequence[Any]], cwd: Path, **options: Any
) -> list[tuple[int, str, str]]:
    """The same of several, each a script and its arguments, one after the other."""
    return [run(*command, cwd=cwd, **options) for command in commands]


@functools.cache
def _server(process: int) -> socket.socket:
    """The connection to the server of this process."""
    mine, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.programs", str(other.fileno())],
        cwd=ROOT,
        pass_fds=[other.fileno()],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    other.close()
    atexit.register(_end, mine, server)
    return mine


def _end(connection: socket.socket, server: subprocess.Popen[bytes]) -> None:
    connection.close()
    server.wait()


def _ask(request: dict[str, Any], outputs: Sequence[int] = ()) -> Any:
    server = _server(os.getpid())
    socket.send_fds(server, [json.dumps(request).encode()], outputs)
    return json.loads(server.recv(MESSAGE_BYTES))


def _serve(connection: socket.socket) -> None:
    """Answer each message; at their end, end what still runs."""
    running = set()
    while True:
        message, outputs, _, _ = socket.recv_fds(connection, MESSAGE_BYTES, 2)
        if not message:
            break
        request = json.loads(message)
        if "poll" in request:
            ended, status = os.waitpid(request["poll"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if ended else None
            running.discard(ended)
        else:
            answer = os.fork()
            if not answer:
                _become(request, outputs)
            running.add(answer)
        for output in outputs:
            os.close(output)
        connection.send(json.dumps(answer).encode())
    for program in running:
        os.kill(program, signal.SIGKILL)


def import_what_scripts_use() -> None:
    """Import it here, for all forks; torch's optimizers import `_dynamo` at their first step."""
    import matplotlib.pyplot  # noqa: F401
    import torch._dynamo
    import torch.utils.tensorboard  # noqa: F401

    for path in sorted(SCRIPTS.glob("*.py")):
        importlib.import_module(f"scripts.{path.stem}")


def _become(request: dict[str, Any], outputs: Sequence[int]) -> None:
    """Be the program that is asked for, to its end."""
    if request["start_new_session"]:
        os.setsid()
    # who runs the tests in the background has it ignored
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, output in zip((1, 2), outputs, strict=True):
        os.dup2(output, number)
    os.closerange(3, 256)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv = request["argv"]
    sys.path[0] = str(Path(sys.argv[0]).parent)
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[1:1] = [path for path in paths if path and path not in sys.path]
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1) for number in (1, 2))
    code = 1
    try:
        exec(request["before"], {})
        runpy.run_path(sys.argv[0], run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except KeyboardInterrupt:
        traceback.print_exc()
        code = 130
    except BaseException:
        traceback.print_exc()
    with contextlib.suppress(BaseException):
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    import_what_scripts_use()
    _serve(socket.socket(fileno=int(sys.argv[1])))
