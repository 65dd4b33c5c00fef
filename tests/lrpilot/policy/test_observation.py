import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lrpilot.policy.observation import FEATURE_LIMIT, FEATURES, ObservationSpec
from tests.observing import Script, loss_features, loss_observer, named, observe, observer_of

INF, NAN = math.inf, math.nan
ANY_LOSS = st.one_of(
    st.sampled_from([NAN, INF, -INF, 1e308, -1e308, 0.0, -0.0, -1.0, 5e-324, -5e-324]),
    st.floats(),
)
ANY_WEIGHTS = st.lists(
    st.one_of(st.sampled_from([NAN, INF, -INF, 0.0, 3e38, -3e38, 1e-45]), st.floats(width=32)),
    min_size=3,
    max_size=3,
)
POSITIVE = st.floats(min_value=0.0, exclude_min=True, allow_infinity=False)


# ---- the specification


def test_the_default_specification_has_every_group_in_the_documented_order() -> None:
    assert ObservationSpec().names == tuple(name for names in FEATURES.values() for name in names)


def test_names_follow_the_order_of_the_groups() -> None:
    assert ObservationSpec(groups=("lr", "progress")).names == (
        "log_lr",
        "previous_action",
        "progress",
    )


def test_the_specification_survives_its_dictionary() -> None:
    spec = ObservationSpec(groups=("movement", "loss"), num_entries=7)
    assert ObservationSpec.from_dict(spec.to_dict()) == spec


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"groups": ()}, r"`groups` must name each group once, got \[\]"),
        ({"groups": ("loss", "loss")}, "`groups` must name each group once"),
        ({"groups": ("loss", "luck")}, "`groups` must be among .* got 'luck'"),
        ({"num_entries": 0}, "`num_entries` must be at least 1, got 0"),
    ],
)
def test_a_wrong_specification_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ObservationSpec(**arguments)


# ---- every feature is bounded


@settings(deadline=None, max_examples=200)
@given(
    first=POSITIVE,
    intervals=st.lists(
        st.tuples(st.lists(ANY_LOSS, max_size=4), ANY_WEIGHTS, ANY_WEIGHTS), max_size=6
    ),
    start=ANY_WEIGHTS,
    progress=st.floats(0.0, 1e9),
    factor=st.floats(0.0, 1e300),
    action=st.floats(-1.0, 1.0),
)
def test_every_feature_is_finite_and_bounded_whatever_the_run_does(
    first: float,
    intervals: list[tuple[list[float], list[float], list[float]]],
    start: list[float],
    progress: float,
    factor: float,
    action: float,
) -> None:
    weights = torch.tensor(start)
    observer = observer_of(ObservationSpec(), [weights])
    observer.add_loss(first)
    for losses, values, gradient in intervals:
        for loss in losses:
            observer.add_loss(loss)
        weights.copy_(torch.tensor(values))
        weights.grad = torch.tensor(gradient)
        features = observe(observer, progress=progress, factor=factor, previous_action=action)
        assert features.dtype == np.float32
        assert features.shape == (len(observer.spec.names),)
        assert np.isfinite(features).all()
        assert np.abs(features).max() <= FEATURE_LIMIT


@pytest.mark.parametrize("first", [NAN, INF, 0.0])
def test_features_are_finite_when_no_loss_was_ever_positive(first: float) -> None:
    observer = loss_observer(first, first)
    assert np.isfinite([observe(observer), observe(observer)]).all()


def test_a_diverged_loss_looks_like_ten_thousand_times_the_first() -> None:
    observer = loss_observer(2.0)
    observe(observer)
    observer.add_loss(NAN)
    assert named(observer)["log_loss"] == pytest.approx(math.log(1e4) / 2)


def test_interval_loss_is_the_mean_over_the_first_loss() -> None:
    assert loss_observer(2.0, 1.0, 3.0).interval_loss == 1.0


def test_interval_loss_is_the_last_mean_while_the_interval_is_empty() -> None:
    observer = loss_observer(2.0, 1.0)
    observe(observer)
    assert observer.interval_loss == 0.75


# ---- scale


@settings(deadline=None, max_examples=100)
@given(
    intervals=st.lists(
        st.lists(st.floats(1e-100, 1e100), min_size=1, max_size=4), min_size=1, max_size=5
    ),
    exponent=st.integers(-300, 300),
)
def test_features_are_unchanged_when_losses_are_scaled_by_a_power_of_two(
    intervals: list[list[float]], exponent: int
) -> None:
    scaled = [[math.ldexp(loss, exponent) for loss in losses] for losses in intervals]
    assert np.array_equal(loss_features(scaled), loss_features(intervals))


@settings(deadline=None, max_examples=100)
@given(
    intervals=st.lists(
        st.lists(st.floats(2.0**-10, 2.0**10, width=16), min_size=1, max_size=4),
        min_size=1,
        max_size=5,
    ),
    scale=st.floats(1e-30, 1e30),
)
def test_features_are_the_same_to_four_digits_under_any_scale_of_the_loss(
    intervals: list[list[float]], scale: float
) -> None:
    scaled = [[scale * loss for loss in losses] for losses in intervals]
    np.testing.assert_allclose(loss_features(scaled), loss_features(intervals), rtol=0.0, atol=1e-4)


# ---- groups


@pytest.mark.parametrize("group", FEATURES)
def test_the_other_features_keep_their_values_without(group: str) -> None:
    full, rest = Script(), Script(tuple(g for g in FEATURES if g != group))
    keep = [name not in FEATURES[group] for name in full.observer.spec.names]
    for k in range(4):
        assert np.array_equal(full.interval(k)[keep], rest.interval(k))


@pytest.mark.parametrize("group", FEATURES)
def test_a_group_alone_has_the_values_it_has_among_all(group: str) -> None:
    full, alone = Script(), Script((group,))
    keep = [name in FEATURES[group] for name in full.observer.spec.names]
    for k in range(4):
        assert np.array_equal(full.interval(k)[keep], alone.interval(k))


def test_without_the_gradient_group_no_gradient_is_needed() -> None:
    observer = observer_of(ObservationSpec(("movement",)), [torch.ones(3)])
    assert np.isfinite(observe(observer)).all()


# ---- the formulas


@pytest.mark.parametrize(
    ("progress", "feature"), [(0.0, -1.0), (0.25, -0.5), (1.0, 1.0), (3.0, 1.0)]
)
def test_progress_goes_from_minus_one_to_one_and_stays(progress: float, feature: float) -> None:
    observer = observer_of(ObservationSpec(("progress",)), [])
    assert observe(observer, progress=progress).tolist() == [feature]


def test_lr_features_are_half_the_decades_and_the_previous_action() -> None:
    observer = observer_of(ObservationSpec(("lr",)), [])
    assert observe(observer, factor=0.01, previous_action=-0.25).tolist() == [-1.0, -0.25]


def test_loss_features_of_a_first_interval_equal_the_hand_computation() -> None:
    # ratios 1 and 0.5: mean 0.75, variance 0.125, squared standard error 0.0625
    slope = math.log(0.75)
    assert named(loss_observer(2.0, 1.0)) == pytest.approx(
        {
            "log_loss": slope / 2,
            "short_slope": math.asinh(10 * slope) / 2,
            "long_slope": math.asinh(10 * slope) / 2,
            "slope_significance": math.asinh(-1.0) / 2,
            "relative_noise": 1 + math.log10(math.sqrt(0.125) / 0.75 + 1e-4) / 2,
        },
        abs=1e-6,
    )


def test_slopes_of_a_second_interval_equal_the_hand_computation() -> None:
    observer = loss_observer(2.0, 1.0)
    observe(observer)
    observer.add_loss(0.5)
    observer.add_loss(0.25)
    first, second = math.log(0.75), math.log(0.1875 / 0.75)
    features = named(observer)
    assert features["short_slope"] == pytest.approx(math.asinh(10 * second) / 2, abs=1e-6)
    average = 0.8 * first + 0.2 * second
    assert features["long_slope"] == pytest.approx(math.asinh(10 * average) / 2, abs=1e-6)


def test_the_noise_is_an_exponential_average_of_the_variances() -> None:
    # variances 0.125 and 0 (ratios 1, 0.5 and then 0.5, 0.5), each of two losses
    observer = loss_observer(2.0, 1.0)
    observe(observer)
    observer.add_loss(1.0)
    observer.add_loss(1.0)
    features = named(observer)
    variance = 0.7 * 0.125
    error = math.sqrt(variance / 2 + 0.125 / 2)
    assert features["relative_noise"] == pytest.approx(
        1 + math.log10(math.sqrt(variance) / 0.5 + 1e-4) / 2, abs=1e-6
    )
    assert features["slope_significance"] == pytest.approx(
        math.asinh((0.5 - 0.75) / error) / 2, abs=1e-6
    )


def test_with_one_loss_an_interval_the_noise_comes_from_the_change() -> None:
    observer = loss_observer(2.0)
    observe(observer)
    observer.add_loss(1.0)
    # the first interval has no change; half the squared change of the second enters at 0.3
    noise = math.sqrt(0.3 * 0.5**2 / 2) / 0.5
    expected = 1 + math.log10(noise + 1e-4) / 2
    assert named(observer)["relative_noise"] == pytest.approx(expected, abs=1e-6)


def test_an_interval_without_losses_has_no_slope() -> None:
    observer = loss_observer(2.0, 1.0)
    before = named(observer)
    after = named(observer)
    assert after["short_slope"] == 0.0
    assert after["log_loss"] == before["log_loss"]


def test_constant_losses_have_no_slope_and_the_least_noise() -> None:
    features = named(loss_observer(3.0, 3.0, 3.0))
    assert features == {
        "log_loss": 0.0,
        "short_slope": 0.0,
        "long_slope": 0.0,
        "slope_significance": 0.0,
        "relative_noise": -1.0,
    }


def movement(*points: Sequence[float]) -> list[dict[str, float]]:
    weights = torch.tensor(points[0])
    observer = observer_of(ObservationSpec(("movement",)), [weights])
    rows = []
    for point in points[1:]:
        weights.copy_(torch.tensor(point))
        rows.append(named(observer))
    return rows


def test_movement_of_a_first_interval_equals_the_hand_computation() -> None:
    (row,) = movement([3.0, 4.0], [6.0, 8.0])
    assert row == pytest.approx(
        {
            "displacement": 2 + math.log10(5 / 10),
            "displacement_cosine": 0.0,
            "weight_growth": math.asinh(10 * math.log(2)) / 2,
        },
        abs=1e-6,
    )


def test_the_cosine_is_plus_one_on_a_straight_line() -> None:
    rows = movement([3.0, 4.0], [6.0, 8.0], [12.0, 16.0])
    assert rows[1]["displacement_cosine"] == pytest.approx(1.0, abs=1e-6)


def test_the_cosine_is_minus_one_in_an_oscillation() -> None:
    rows = movement([3.0, 4.0], [6.0, 8.0], [3.0, 4.0])
    assert rows[1]["displacement_cosine"] == pytest.approx(-1.0, abs=1e-6)


def test_the_cosine_is_zero_for_a_right_angle() -> None:
    assert movement([0.0, 1.0], [1.0, 1.0], [1.0, 2.0])[1]["displacement_cosine"] == 0.0


def test_weights_that_shrink_have_negative_growth() -> None:
    (row,) = movement([6.0, 8.0], [3.0, 4.0])
    assert row["weight_growth"] == pytest.approx(-math.asinh(10 * math.log(2)) / 2, abs=1e-6)


def test_weights_that_stand_still_have_the_least_displacement() -> None:
    (row,) = movement([3.0, 4.0], [3.0, 4.0])
    assert row == {"displacement": -5.0, "displacement_cosine": 0.0, "weight_growth": 0.0}


@pytest.mark.parametrize("bad", [NAN, INF])
def test_weights_that_broke_have_the_largest_displacement(bad: float) -> None:
    (row,) = movement([3.0, 4.0], [bad, 4.0])
    assert row["displacement"] == FEATURE_LIMIT


def test_movement_recovers_after_weights_that_broke() -> None:
    rows = movement([3.0, 4.0], [NAN, 4.0], [3.0, 4.0], [6.0, 8.0], [12.0, 16.0])
    assert rows[3] == pytest.approx(
        {
            "displacement": 2 + math.log10(10 / 20),
            "displacement_cosine": 1.0,
            "weight_growth": math.asinh(10 * math.log(2)) / 2,
        },
        abs=1e-6,
    )


@pytest.mark.parametrize("scale", [2.0**-20, 2.0**20])
def test_movement_is_unchanged_when_all_weights_are_scaled(scale: float) -> None:
    points = [[3.0, 4.0], [5.0, 7.0], [4.0, 9.0]]
    scaled = [[scale * x for x in point] for point in points]
    assert movement(*scaled) == movement(*points)


def test_gradient_growth_is_half_the_log_of_the_ratio_of_norms() -> None:
    weights = torch.ones(2)
    observer = observer_of(ObservationSpec(("gradient",)), [weights])
    weights.grad = torch.tensor([3.0, 4.0])
    assert observe(observer).tolist() == [0.0]
    weights.grad = torch.tensor([6.0, 8.0])
    assert observe(observer).tolist() == pytest.approx([math.log(2) / 2])


def test_a_missing_gradient_names_the_cure() -> None:
    observer = observer_of(ObservationSpec(("gradient",)), [torch.ones(2)])
    with pytest.raises(RuntimeError, match=r"`scheduler\.step\(loss\)` before `optimizer\.zero_gr"):
        observe(observer)


def test_one_missing_gradient_among_several_counts_as_zero() -> None:
    def features(*, missing: bool) -> list[float]:
        first, second = torch.ones(2), torch.ones(3)
        observer = observer_of(ObservationSpec(("gradient",)), [first, second])
        rows = []
        for scale in (1.0, 2.5):
            first.grad = scale * torch.tensor([3.0, 4.0])
            second.grad = None if missing else torch.zeros(3)
            rows.extend(observe(observer).tolist())
        return rows

    assert features(missing=True) == features(missing=False)


@pytest.mark.parametrize(
    "build",
    [
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        lambda p: torch.optim.AdamW(p, lr=0.01),
        lambda p: torch.optim.Adagrad(p, lr=0.1),
        lambda p: torch.optim.RMSprop(p, lr=0.01),
    ],
    ids=["SGD", "AdamW", "Adagrad", "RMSprop"],
)
def test_features_are_the_same_whoever_writes_the_parameters(
    build: Callable[[list[Tensor]], torch.optim.Optimizer],
) -> None:
    spec = ObservationSpec(("movement", "gradient"), num_entries=8)
    written = [torch.linspace(-1, 1, 6).requires_grad_(), torch.ones(4).requires_grad_()]
    copied = [parameter.detach().clone() for parameter in written]
    optimizer = build(list(written))
    first, second = observer_of(spec, written), observer_of(spec, copied)
    for _ in range(5):
        optimizer.zero_grad()
        torch.stack([((parameter - 0.3) ** 2).sum() for parameter in written]).sum().backward()
        optimizer.step()
        for target, source in zip(copied, written, strict=True):
            target.copy_(source.detach())
            assert source.grad is not None
            target.grad = source.grad.clone()
        assert np.array_equal(observe(first), observe(second))
