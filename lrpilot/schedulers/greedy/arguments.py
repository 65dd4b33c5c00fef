"""The arguments of GreedyLR: defaults of each semantics, and what is refused."""

import math
from collections.abc import Mapping
from typing import Any

from lrpilot.arguments import require_choice, require_within
from lrpilot.schedulers.greedy.trend import largest_z, split_window

HUGGING_FACE_DEFAULTS: dict[str, Any] = {
    "mode": "min",
    "factor": 0.95,
    "patience": 10,
    "threshold": 1e-6,
    "threshold_mode": "abs",
    "cooldown": 0,
    "warmup": 0,
    "min_lr": 1e-3,
    "max_lr": 1.0,
    "eps": 1e-8,
    "smooth": False,
    "window_size": 50,
    "reset_start": 500,
}
DEFAULTS: dict[str, dict[str, Any]] = {
    "robust": {
        "mode": "min",
        "factor": 0.9,
        "patience": 20,
        "threshold": 1e-6,
        "threshold_mode": "rel",
        "cooldown": 0,
        "warmup": 0,
        "window_size": 40,
        "reset_start": math.inf,
        "significance": 4.0,
        "min_factor": 0.01,
        "max_factor": 10.0,
    },
    "transformers": HUGGING_FACE_DEFAULTS,
    "paper": HUGGING_FACE_DEFAULTS,
}
ARGUMENTS = {name for names in DEFAULTS.values() for name in names}
CHOICES = {"mode": ("min", "max"), "threshold_mode": ("rel", "abs")}
INTERVALS = {
    "factor": "(0, 1)",
    "patience": "[0, inf]",
    "cooldown": "[0, inf]",
    "warmup": "[0, inf]",
    "window_size": "[1, inf]",
    "reset_start": "[1, inf]",
    "eps": "[0, inf]",
    "threshold": "[0, inf)",
    "significance": "(0, inf]",
    "min_factor": "(0, 1]",
    "max_factor": "[1, inf)",
}


def resolve_arguments(semantics: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a semantics, those that are None by its defaults.

    With "transformers" only what Hugging Face's class refuses is refused.

    Raises:
        ValueError: if an argument is out of range, or belongs to another semantics.

    >>> given = {"factor": 0.5, "min_lr": None, "max_factor": None}
    >>> resolved = resolve_arguments("robust", given)
    >>> resolved["factor"], resolved["max_factor"], "min_lr" in resolved
    (0.5, 10.0, False)
    """
    require_choice("semantics", semantics, tuple(DEFAULTS))
    defaults = DEFAULTS[semantics]
    for name, value in given.items():
        if value is not None and name not in defaults:
            owners = " and ".join(f"'{key}'" for key, names in DEFAULTS.items() if name in names)
            bounds = [key for key in defaults if key.startswith(("min_", "max_"))]
            raise ValueError(
                f"`{name}` must be left out with semantics {semantics!r}, which has "
                f"`{bounds[0]}` and `{bounds[1]}`: it belongs to {owners}; got {value!r}"
            )
    chosen = {name: value for name, value in given.items() if value is not None}
    arguments = {**defaults, **chosen}
    for name, choices in CHOICES.items():
        require_choice(name, arguments[name], choices)
    if arguments["factor"] >= 1.0:
        raise ValueError(f"`factor` must be below 1, got {arguments['factor']}")
    if semantics != "transformers":
        _check_ranges(arguments)
    if semantics == "robust":
        _check_robust(arguments)
    return arguments


def _check_ranges(arguments: Mapping[str, Any]) -> None:
    for name, interval in INTERVALS.items():
        if name in arguments:
            require_within(name, arguments[name], interval)


def _check_robust(arguments: Mapping[str, Any]) -> None:
    for name in ("cooldown", "warmup", "window_size"):
        if arguments[name] % 1 != 0:  # a NaN for infinity
            raise ValueError(f"`{name}` must be a whole number, got {arguments[name]}")
    size, significance = arguments["window_size"], arguments["significance"]
    most = largest_z(split_window(size)[1])
    if not significance < most:
        raise ValueError(
            f"`significance` must be below {most:.2f}, the most standard errors that a slope over "
            f"`window_size` = {size} calls can have, got {significance}"
        )
