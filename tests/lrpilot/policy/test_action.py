import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrpilot.policy.action import ANCHORS, KINDS, ActionSpec, anchor_factor
from tests.scheduling import plain_action


@st.composite
def specs(draw: st.DrawFn) -> ActionSpec:
    low, start, high = sorted(draw(st.lists(st.floats(1e-6, 1e6), min_size=3, max_size=3)))
    return plain_action(
        kind=draw(st.sampled_from(KINDS)),
        anchor=draw(st.sampled_from(ANCHORS)),
        max_log_change=draw(st.floats(1e-3, 19.9)),
        min_factor=low,
        max_factor=high,
        start_factor=start,
    )


ACTIONS = st.floats(-1.0, 1.0)
PROGRESS = st.floats(0.0, 1.0)


@given(spec=specs(), decisions=st.lists(st.tuples(ACTIONS, PROGRESS), max_size=20))
def test_the_factor_never_leaves_the_box(
    spec: ActionSpec, decisions: list[tuple[float, float]]
) -> None:
    multiplier = spec.start_factor
    for action, progress in decisions:
        factor, multiplier = spec.apply(action, multiplier=multiplier, progress=progress)
        assert spec.min_factor <= factor <= spec.max_factor
        assert spec.min_factor <= multiplier <= spec.max_factor


@given(spec=specs(), first=ACTIONS, second=ACTIONS, progress=PROGRESS)
def test_the_factor_is_monotone_in_the_action(
    spec: ActionSpec, first: float, second: float, progress: float
) -> None:
    low, high = sorted((first, second))
    factors = [
        spec.apply(action, multiplier=spec.start_factor, progress=progress)[0]
        for action in (low, high)
    ]
    assert factors[0] <= factors[1]


@given(spec=specs(), progress=PROGRESS)
def test_a_zero_action_keeps_the_multiplier(spec: ActionSpec, progress: float) -> None:
    assert spec.apply(0.0, multiplier=spec.start_factor, progress=progress)[1] == spec.start_factor


def test_a_multiplier_accumulates() -> None:
    spec = plain_action(max_log_change=math.log(2))
    factor, multiplier = 1.0, 1.0
    for _ in range(3):
        factor, multiplier = spec.apply(1.0, multiplier=multiplier, progress=0.5)
    assert (factor, multiplier) == pytest.approx((8.0, 8.0), rel=1e-15)


def test_a_multiplier_rides_on_its_anchor() -> None:
    spec = plain_action(anchor="linear", max_log_change=math.log(2))
    factor, multiplier = spec.apply(1.0, multiplier=3.0, progress=0.75)
    assert (factor, multiplier) == pytest.approx((0.25 * 6.0, 6.0), rel=1e-15)


def test_a_residual_forgets_the_last_action() -> None:
    spec = plain_action(kind="residual", anchor="cosine", max_log_change=math.log(4))
    factor, multiplier = spec.apply(0.5, multiplier=1.0, progress=0.5)
    assert factor == pytest.approx(0.5 * 2.0, rel=1e-15)
    assert multiplier == 1.0


def test_a_multiplier_at_the_edge_of_the_box_does_not_wind_up() -> None:
    spec = plain_action(max_log_change=1.0, max_factor=2.0)
    multiplier = 1.0
    for _ in range(50):
        factor, multiplier = spec.apply(1.0, multiplier=multiplier, progress=0.5)
    assert (factor, multiplier) == (2.0, 2.0)
    assert spec.apply(-1.0, multiplier=multiplier, progress=0.5)[0] == 2.0 * math.exp(-1.0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("anchor", ["linear", "cosine"])
def test_an_anchor_that_reached_zero_leaves_the_lower_end_of_the_box(
    kind: str, anchor: str
) -> None:
    spec = plain_action(kind=kind, anchor=anchor, min_factor=0.01)
    assert spec.apply(1.0, multiplier=1.0, progress=1.0)[0] == 0.01


@pytest.mark.parametrize(
    ("anchor", "values"),
    [
        ("constant", [1.0, 1.0, 1.0, 1.0]),
        ("linear", [1.0, 0.75, 0.5, 0.0]),
        ("cosine", [1.0, (1 + math.sqrt(0.5)) / 2, 0.5, 0.0]),
    ],
)
def test_anchors_equal_their_formulas(anchor: str, values: list[float]) -> None:
    points = [anchor_factor(anchor, p) for p in (0.0, 0.25, 0.5, 1.0)]
    assert points == pytest.approx(values, abs=1e-15)


@given(anchor=st.sampled_from(ANCHORS), progress=PROGRESS)
def test_anchors_lie_between_zero_and_one(anchor: str, progress: float) -> None:
    assert 0.0 <= anchor_factor(anchor, progress) <= 1.0


@pytest.mark.parametrize(("anchor", "needed"), [("constant", False), ("linear", True)])
def test_only_a_moving_anchor_needs_progress(anchor: str, needed: bool) -> None:
    assert plain_action(anchor=anchor).needs_progress is needed


@given(spec=specs())
def test_the_specification_survives_its_dictionary(spec: ActionSpec) -> None:
    assert ActionSpec.from_dict(spec.to_dict()) == spec


@pytest.mark.parametrize("action", [1.0000001, -1.1, math.nan, math.inf])
def test_an_action_outside_its_range_is_refused(action: float) -> None:
    with pytest.raises(ValueError, match=r"`action` must be in \[-1, 1\], got"):
        plain_action().apply(action, multiplier=1.0, progress=0.0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "raw"}, "`kind` must be one of .* got 'raw'"),
        ({"anchor": "step"}, "`anchor` must be one of .* got 'step'"),
        ({"max_log_change": 0.0}, r"`max_log_change` must be in \(0, 20\), got 0\.0"),
        ({"max_log_change": 20.0}, r"`max_log_change` must be in \(0, 20\), got 20\.0"),
        ({"max_log_change": math.nan}, "`max_log_change` must be in .* got nan"),
        ({"min_factor": 0.0}, r"`min_factor` must be positive, got 0\.0"),
        ({"min_factor": -1.0}, r"`min_factor` must be positive, got -1\.0"),
        ({"min_factor": math.nan}, "`min_factor` must be positive, got nan"),
        ({"min_factor": 2.0, "max_factor": 1.0}, r"`min_factor` must not exceed .* got 2\.0 and"),
        ({"max_factor": math.nan}, "`max_factor`.* nan"),
        ({"max_factor": math.inf}, "`max_factor`.* inf"),
        ({"start_factor": 1e4}, r"`start_factor` must be in \[0\.001, 1000\.0\], got 10000\.0"),
        ({"start_factor": math.nan}, "`start_factor` must be in .* got nan"),
    ],
)
def test_a_wrong_specification_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plain_action(**arguments)
