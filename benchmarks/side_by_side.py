"""What all benchmarks do: read options, say where they run, and time contenders in turns.

Times are processor seconds of this process, which other processes on a shared machine disturb
little; with several threads they add up.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from lrpilot.evaluation.runs.provenance import provenance_line

Action = Callable[[], object]


def read_options(doc: str | None, **defaults: Any) -> argparse.Namespace:
    """The command line's options, by name with their defaults; a list takes several values.

    `--num-threads`, 1 by default, is set for torch.
    """
    parser = argparse.ArgumentParser(description=doc)
    for name, default in {"num_threads": 1, **defaults}.items():
        example = default[0] if isinstance(default, list) else default
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            type=type(example),
            default=default,
            nargs="+" if isinstance(default, list) else None,
            help="default: %(default)s",
        )
    options = parser.parse_args()
    torch.set_num_threads(options.num_threads)
    return options


def print_origin(note: str) -> None:
    """Machine, load, versions and commit, and what the figures below them are."""
    print(f"{provenance_line()}, load {os.getloadavg()[0]:.1f}; {note}\n", flush=True)


def seconds_of(action: Action, count: int = 1) -> float:
    """Processor seconds of so many calls."""
    start = time.process_time()
    for _ in range(count):
        action()
    return time.process_time() - start


def take_turns(
    actions: Mapping[str, Action], *, num_calls: int, num_rounds: int
) -> dict[str, list[float]]:
    """Seconds per call of each action in every round; in a round each is called so many times."""
    times: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(num_rounds):
        for name, action in actions.items():
            times[name].append(seconds_of(action, num_calls) / num_calls)
    return times


def compare_with(
    bare: Action,
    contenders: Mapping[str, Action],
    *,
    num_calls: int,
    num_rounds: int,
    steps_per_call: int = 1,
) -> tuple[float, dict[str, list[float]]]:
    """Seconds of a bare step, and by contender its ratios to the bare steps around it.

    In every round each contender has a turn between two of the bare steps, since the load of a
    shared machine changes within seconds.

    Args:
        bare: one bare step.
        contenders: what is compared with it, by name.
        num_calls: calls of a contender in a turn.
        num_rounds: turns of each contender.
        steps_per_call: steps that a call makes.
    """
    num_steps = num_calls * steps_per_call
    bare_seconds: list[float] = []
    ratios: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(num_rounds):
        for name, contender in contenders.items():
            before = seconds_of(bare, num_steps)
            seconds = seconds_of(contender, num_calls)
            bare_seconds.append((before + seconds_of(bare, num_steps)) / 2)
            ratios[name].append(seconds / bare_seconds[-1])
    return statistics.median(bare_seconds) / num_steps, ratios


def medians(ratios: Mapping[str, list[float]]) -> list[str]:
    """The median of each contender's ratios, as cells of a table."""
    return [f"{statistics.median(values):.3f}" for values in ratios.values()]
