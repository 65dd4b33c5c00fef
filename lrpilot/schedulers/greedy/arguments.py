"""The arguments of GreedyLR: defaults of each semantics, and what is refused."""

import math
from collections.abc import Mapping
from typing import Any

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
CHOICES = {"mode": ("min", "max"), "threshold_mode": ("rel", "abs")}
LEAST = {"patience": 0, "cooldown": 0, "warmup": 0, "window_size": 1, "reset_start": 1, "eps": 0}


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
    if semantics not in DEFAULTS:
        raise ValueError(f"`semantics` must be one of {tuple(DEFAULTS)}, got {semantics!r}")
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
        if arguments[name] not in choices:
            raise ValueError(f"`{name}` must be one of {choices}, got {arguments[name]!r}")
    if arguments["factor"] >= 1.0:
        raise ValueError(f"`factor` must be below 1, got {arguments['factor']}")
    if semantics != "transformers":
        _check_ranges(arguments)
    if semantics == "robust":
        _check_robust(arguments)
    return arguments


def _check_ranges(arguments: Mapping[str, Any]) -> None:
    if not arguments["factor"] > 0.0:
        raise ValueError(f"`factor` must be positive, got {arguments['factor']}")
    for name, least in LEAST.items():
        if name in arguments and not arguments[name] >= least:
            raise ValueError(f"`{name}` must be at least {least}, got {arguments[name]}")
    if not 0.0 <= arguments["threshold"] < math.inf:
        raise ValueError(
            f"`threshold` must be finite and not negative, got {arguments['threshold']}"
        )


def _check_robust(arguments: Mapping[str, Any]) -> None:
    low, high = arguments["min_factor"], arguments["max_factor"]
    if not 0.0 < low <= 1.0:
        raise ValueError(f"`min_factor` must be in (0, 1], got {low}")
    if not 1.0 <= high < math.inf:
        raise ValueError(f"`max_factor` must be finite and at least 1, got {high}")
    for name in ("cooldown", "warmup", "window_size"):
        if arguments[name] % 1 != 0:  # a NaN for infinity
            raise ValueError(f"`{name}` must be a whole number, got {arguments[name]}")
    size, significance = arguments["window_size"], arguments["significance"]
    if not significance > 0.0:
        raise ValueError(f"`significance` must be positive, got {significance}")
    most = largest_z(split_window(size)[1])
    if not significance < most:
        raise ValueError(
            f"`significance` must be below {most:.2f}, the most standard errors that a slope over "
            f"`window_size` = {size} calls can have, got {significance}"
        )
