"""What a policy file says of its policy, in a few readable lines."""

from collections.abc import Mapping
from typing import Any

from lrpilot.policy.actor import SHIPPED, Policy

NOT_RECORDED = "not recorded"
PACKAGE_LICENCE = "Apache-2.0"
# what an environment's `reward` measures
JUDGES = {
    "privileged": "the task's held-out or noise-free loss, which the policy does not see",
    "training": "the training loss",
}


def list_lines() -> list[str]:
    """One line for each policy that ships with the package."""
    names = sorted(path.stem for path in SHIPPED.glob("*.safetensors"))
    return [f"{name:16}{_trained_on(Policy.load(name).card)}" for name in names]


def card_lines(name: str) -> list[str]:
    """Ten lines on a policy; what its file does not record is said to be so.

    Args:
        name: as for `Policy.load`.
    """
    policy = Policy.load(name)
    card, action, (shortest, longest) = policy.card, policy.action, policy.clock.horizon_range
    unit = "the cap" if action.unit == "cap" else "the given learning rate"
    decisions = f"{policy.clock.num_decisions} decisions per run"
    lines = {
        "policy": f"{name} ({policy.fingerprint[:12]})",
        "what it does": f"{action.kind} on a {action.anchor} anchor, {decisions}, from "
        f"{', '.join(policy.observation.groups)}",
        "trained on": _trained_on(card),
        "for": _budget(card),
        "horizons": f"{shortest} to {longest} optimizer steps",
        "judged by": JUDGES.get(_get(card, "env", "reward"), NOT_RECORDED),
        "box": f"{action.min_factor:g} to {action.max_factor:g} times {unit}, first "
        f"{action.start_factor:g}",
        "date": _get(card, "date"),
        "commit": _get(card, "commit"),
        "licence": _licence(name, card),
    }
    return [f"{key:14}{value}" for key, value in lines.items()]


def _get(card: Mapping[str, Any], *keys: str) -> str:
    value: Any = card
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return NOT_RECORDED if value is None else str(value)


def _trained_on(card: Mapping[str, Any]) -> str:
    began = _get(card, "agent", "init_from")
    start = "" if began == NOT_RECORDED else f", going on from {began}"
    return f"{_get(card, 'task', 'name')}, with {_get(card, 'algorithm')}{start}"


def _budget(card: Mapping[str, Any]) -> str:
    counts = card.get("num_env_steps"), card.get("num_inner_steps")
    if not all(isinstance(count, int) for count in counts):
        return NOT_RECORDED
    return f"{counts[0]:,} decisions, {counts[1]:,} optimizer steps"


def _licence(name: str, card: Mapping[str, Any]) -> str:
    if (SHIPPED / f"{name}.safetensors").is_file():
        return f"{PACKAGE_LICENCE}, as the package that it ships in"
    return _get(card, "licence")
