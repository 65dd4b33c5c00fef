"""The arguments of GreedyLR: defaults of each semantics, and what is refused."""

import math
from collections.abc import Mapping
from typing import Any

from lrpilot.arguments import require_choice, require_within
from lrpilot.schedulers.greedy.trend import largest_z, split_window

# what is allowed, if anything is checked; the defaults of "robust" and of the other semantics,
# None where they have no such argument
_TABLE: dict[str, tuple[str | tuple[str, ...] | None, Any, Any]] = {
    "mode": (("min", "max"), "min", "min"),
    "factor": ("(0, 1)", 0.9, 0.95),
    "patience": ("[0, inf]", 20, 10),
    "threshold": ("[0, inf)", 1e-6, 1e-6),
    "threshold_mode": (("rel", "abs"), "rel", "abs"),
    "cooldown": ("[0, inf]", 0, 0),
    "warmup": ("[0, inf]", 0, 0),
    "window_size": ("[1, inf]", 40, 50),
    "reset_start": ("[1, inf]", math.inf, 500),
    "significance": ("(0, inf]", 4.0, None),
    "min_factor": ("(0, 1]", 0.01, None),
    "max_factor": ("[1, inf)", 10.0, None),
    "min_lr": (None, None, 1e-3),
    "max_lr": (None, None, 1.0),
    "eps": ("[0, inf]", None, 1e-8),
    "smooth": (None, None, False),
}
ARGUMENTS = tuple(_TABLE)
_ROBUST, _OTHERS = (
    {name: row[column] for name, row in _TABLE.items() if row[column] is not None}
    for column in (1, 2)
)
DEFAULTS = {"robust": _ROBUST, "transformers": _OTHERS, "paper": _OTHERS}


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
    for name in arguments:
        if isinstance(choices := _TABLE[name][0], tuple):
            require_choice(name, arguments[name], choices)
    if arguments["factor"] >= 1.0:
        raise ValueError(f"`factor` must be below 1, got {arguments['factor']}")
    for name, value in arguments.items():
        if semantics != "transformers" and isinstance(interval := _TABLE[name][0], str):
            require_within(name, value, interval)
    if semantics == "robust":
        _check_robust(arguments)
    return arguments


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
