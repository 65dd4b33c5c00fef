import copy
import math
import operator
import pickle
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from lrpilot.policy.observation import FEATURE_LIMIT, FEATURES, ObservationSpec, Observer
from lrpilot.policy.parameter_sample import ParameterSample
from tests.running import through_file

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


def observe(observer: Observer, **changes: float) -> NDArray[np.float32]:
    arguments = {"progress": 0.5, "factor": 1.0, "previous_action": 0.0, **changes}
    return observer.observe(**arguments)


def loss_observer(*losses: float) -> Observer:
    observer = Observer(ObservationSpec(groups=("loss",)), [])
    for loss in losses:
        observer.update(loss)
    return observer


def named(observer: Observer, **changes: float) -> dict[str, float]:
    values = observe(observer, **changes).tolist()
    return dict(zip(observer.spec.names, values, strict=True))


def loss_features(intervals: Sequence[Sequence[float]]) -> NDArray[np.float32]:
    observer = loss_observer()
    rows = []
    for losses in intervals:
        for loss in losses:
            observer.update(loss)
        rows.append(observe(observer))
    return np.stack(rows)


class Script:
    """A run whose losses, weights and gradients are written down."""

    def __init__(self, groups: tuple[str, ...] = tuple(FEATURES), num_entries: int = 20) -> None:
        self.parameters = [torch.ones(4, 5), torch.ones(7)]
        self.observer = Observer(ObservationSpec(groups, num_entries), self.parameters)

    def interval(self, k: int, num_losses: int = 3) -> NDArray[np.float32]:
        for i in range(num_losses):
            self.update(k, i)
        return self.close(k)

    def update(self, k: int, i: int) -> None:
        self.observer.update(2.0 + math.sin(1.0 + 3 * k + i))

    def close(self, k: int) -> NDArray[np.float32]:
        generator = torch.Generator().manual_seed(k)
        for parameter in self.parameters:
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        return observe(self.observer, progress=k / 10, factor=1.5**k, previous_action=0.1 * k)


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
    observer = Observer(ObservationSpec(), [weights])
    observer.update(first)
    for losses, values, gradient in intervals:
        for loss in losses:
            observer.update(loss)
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
    observer.update(NAN)
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
    observer = Observer(ObservationSpec(("movement",)), [torch.ones(3)])
    assert np.isfinite(observe(observer)).all()


# ---- the formulas


@pytest.mark.parametrize(
    ("progress", "feature"), [(0.0, -1.0), (0.25, -0.5), (1.0, 1.0), (3.0, 1.0)]
)
def test_progress_goes_from_minus_one_to_one_and_stays(progress: float, feature: float) -> None:
    observer = Observer(ObservationSpec(("progress",)), [])
    assert observe(observer, progress=progress).tolist() == [feature]


def test_lr_features_are_half_the_decades_and_the_previous_action() -> None:
    observer = Observer(ObservationSpec(("lr",)), [])
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
    observer.update(0.5)
    observer.update(0.25)
    first, second = math.log(0.75), math.log(0.1875 / 0.75)
    features = named(observer)
    assert features["short_slope"] == pytest.approx(math.asinh(10 * second) / 2, abs=1e-6)
    average = 0.8 * first + 0.2 * second
    assert features["long_slope"] == pytest.approx(math.asinh(10 * average) / 2, abs=1e-6)


def test_the_noise_is_an_exponential_average_of_the_variances() -> None:
    # variances 0.125 and 0 (ratios 1, 0.5 and then 0.5, 0.5), each of two losses
    observer = loss_observer(2.0, 1.0)
    observe(observer)
    observer.update(1.0)
    observer.update(1.0)
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
    observer.update(1.0)
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
    observer = Observer(ObservationSpec(("movement",)), [weights])
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
    observer = Observer(ObservationSpec(("gradient",)), [weights])
    weights.grad = torch.tensor([3.0, 4.0])
    assert observe(observer).tolist() == [0.0]
    weights.grad = torch.tensor([6.0, 8.0])
    assert observe(observer).tolist() == pytest.approx([math.log(2) / 2])


def test_a_missing_gradient_names_the_cure() -> None:
    observer = Observer(ObservationSpec(("gradient",)), [torch.ones(2)])
    with pytest.raises(RuntimeError, match=r"`scheduler\.step\(loss\)` before `optimizer\.zero_gr"):
        observe(observer)


def test_one_missing_gradient_among_several_counts_as_zero() -> None:
    def features(*, missing: bool) -> list[float]:
        first, second = torch.ones(2), torch.ones(3)
        observer = Observer(ObservationSpec(("gradient",)), [first, second])
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
    first, second = Observer(spec, written), Observer(spec, copied)
    for _ in range(5):
        optimizer.zero_grad()
        sum(((parameter - 0.3) ** 2).sum() for parameter in written).backward()
        optimizer.step()
        for target, source in zip(copied, written, strict=True):
            target.copy_(source.detach())
            target.grad = source.grad.clone()
        assert np.array_equal(observe(first), observe(second))


# ---- the sample of the parameters


def numbered(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Parameters whose entries are their own positions in the model."""
    parts, start = [], 0
    for shape in shapes:
        size = math.prod(shape)
        parts.append(torch.arange(start, start + size).reshape(shape).to(dtype))
        start += size
    return parts


def test_positions_are_the_same_for_two_models_of_the_same_sizes() -> None:
    shapes = [(30, 20), (20,), (500,)]
    first = ParameterSample(numbered(*shapes), 100).values()
    assert torch.equal(first, ParameterSample(numbered(*shapes), 100).values())


def test_positions_do_not_depend_on_the_values_of_the_parameters() -> None:
    parameters = [torch.randn(30, 20), torch.randn(20)]
    sample = ParameterSample(parameters, 100)
    for parameter, position in zip(parameters, numbered((30, 20), (20,)), strict=True):
        parameter.copy_(position)
    assert torch.equal(sample.values(), ParameterSample(numbered((30, 20), (20,)), 100).values())


def test_positions_do_not_depend_on_shapes_and_kinds_of_the_parameters() -> None:
    flat = ParameterSample(numbered((600,), (20,)), 100).values()
    shaped = ParameterSample(numbered((5, 4, 30), (4, 5), dtype=torch.float64), 100).values()
    assert torch.equal(flat, shaped)


def test_drawing_the_positions_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    ParameterSample(numbered((1000,)), 10)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("num_entries", [13, 26, 1000])
def test_a_small_model_is_read_whole(num_entries: int) -> None:
    sample = ParameterSample(numbered((4, 5), (6,)), num_entries)
    assert torch.equal(sample.values(), torch.arange(26.0))


@settings(deadline=None, max_examples=50)
@given(sizes=st.lists(st.integers(0, 50), min_size=1, max_size=6), num_entries=st.integers(1, 120))
def test_a_sample_of_a_larger_model_has_num_entries_and_stays_inside_the_model(
    sizes: list[int], num_entries: int
) -> None:
    values = ParameterSample(numbered(*((size,) for size in sizes)), num_entries).values()
    assert len(values) == (sum(sizes) if sum(sizes) <= 2 * num_entries else num_entries)
    assert ((values >= 0) & (values < sum(sizes))).all()


def test_a_sample_of_a_transposed_parameter_reads_its_logical_entries() -> None:
    (weight,) = numbered((30, 20))
    transposed = weight.T.contiguous().T
    assert torch.equal(
        ParameterSample([transposed], 50).values(), ParameterSample([weight], 50).values()
    )


@pytest.mark.parametrize("num_entries", [2, 100])
def test_sampled_values_do_not_alias_the_parameter(num_entries: int) -> None:
    parameter = torch.ones(5)
    values = ParameterSample([parameter], num_entries).values()
    parameter.zero_()
    assert torch.equal(values, torch.ones(min(5, num_entries)))


def test_half_precision_parameters_are_read_as_float32() -> None:
    assert ParameterSample([torch.ones(3, dtype=torch.bfloat16)], 5).values().dtype == torch.float32


# ---- what counts as a loss


@pytest.mark.parametrize(
    "loss",
    [
        1.5,
        torch.tensor(1.5),
        torch.tensor([1.5]),
        torch.tensor([[1.5]], dtype=torch.float64),
        torch.tensor(1.5, dtype=torch.bfloat16),
        torch.tensor(1.5, requires_grad=True),
        np.float32(1.5),
        np.float64(1.5),
        np.array(1.5),
    ],
    ids=repr,
)
def test_every_kind_of_number_is_the_same_loss(loss: Any) -> None:
    observer = loss_observer(3.0)
    observer.update(loss)
    assert np.array_equal(observe(observer), observe(loss_observer(3.0, 1.5)))


def test_a_whole_number_is_a_loss() -> None:
    assert np.array_equal(observe(loss_observer(2, 1)), observe(loss_observer(2.0, 1.0)))


def test_a_negative_first_loss_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`loss` must be positive at the start.* got -1\.0"):
        loss_observer(-1.0)


def test_a_negative_later_loss_is_observed() -> None:
    assert loss_observer(1.0, -3.0).interval_loss == -1.0


@pytest.mark.parametrize("loss", [None, "1.5", [1.0], {}, object], ids=repr)
def test_what_is_not_a_number_is_refused(loss: Any) -> None:
    with pytest.raises(TypeError, match="`loss` must be a number or a tensor of one element, got"):
        loss_observer(loss)


@pytest.mark.parametrize("shape", [(2,), (0,), (2, 3)])
def test_a_tensor_of_several_elements_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"`loss` must have one element, got shape \("):
        loss_observer(torch.ones(shape))  # type: ignore[arg-type]


@pytest.mark.parametrize("loss", [None, -1.0, torch.ones(2)], ids=["None", "negative", "vector"])
def test_a_refused_loss_leaves_the_state_as_it_was(loss: Any) -> None:
    observer = loss_observer()
    before = observer.state_dict()
    with pytest.raises((TypeError, ValueError)):
        observer.update(loss)
    assert observer.state_dict() == before


def test_nonfinite_losses_are_counted() -> None:
    assert loss_observer(1.0, NAN, INF, 2.0, -INF).num_nonfinite == 3


def test_the_first_positive_loss_is_the_reference() -> None:
    assert loss_observer(NAN, 0.0, 4.0, 2.0).initial_loss == 4.0


# ---- state


def size_of(state: Any) -> int:
    return len(pickle.dumps(state))


def test_the_state_does_not_grow_with_the_number_of_updates() -> None:
    script = Script()
    script.interval(0)
    script.interval(1, num_losses=10)
    small, small_state = size_of(script.observer), size_of(script.observer.state_dict())
    for k in range(2, 50):
        script.interval(k, num_losses=100)
    script.update(50, 0)
    # integers take a few more bytes
    assert size_of(script.observer.state_dict()) <= small_state + 32
    assert size_of(script.observer) <= small + 32


def test_updates_of_one_long_interval_do_not_grow_the_state() -> None:
    script = Script()
    script.interval(0)
    script.update(1, 0)
    small = size_of(script.observer)
    for i in range(1, 20_000):
        script.update(1, i)
    assert size_of(script.observer) <= small + 32


def test_the_size_of_the_state_follows_num_entries_and_not_the_model() -> None:
    def state_numbers(model_size: int) -> int:
        observer = Observer(ObservationSpec(num_entries=10), [torch.ones(model_size)])
        return sum(v.numel() for v in observer.state_dict().values() if isinstance(v, Tensor))

    assert state_numbers(100) == state_numbers(100_000)


def through_torch_save(state: dict[str, Any]) -> dict[str, Any]:
    return through_file(state)  # type: ignore[no-any-return]


@pytest.mark.parametrize("copied", [through_torch_save, copy.deepcopy, dict])
@pytest.mark.parametrize("num_intervals", [0, 1, 3])
def test_a_state_taken_inside_an_interval_continues_bit_identically(
    copied: Callable[[dict[str, Any]], dict[str, Any]], num_intervals: int
) -> None:
    whole = Script()
    for k in range(num_intervals):
        whole.interval(k)
    whole.update(num_intervals, 0)
    whole.update(num_intervals, 1)
    resumed = Script()
    resumed.observer.load_state_dict(copied(whole.observer.state_dict()))
    for script in (whole, resumed):
        script.update(num_intervals, 2)
    assert np.array_equal(whole.close(num_intervals), resumed.close(num_intervals))
    for k in range(num_intervals + 1, num_intervals + 4):
        assert np.array_equal(whole.interval(k), resumed.interval(k))


def test_a_state_is_not_changed_by_the_run_that_goes_on() -> None:
    script = Script()
    script.interval(0)
    script.interval(1)
    state = script.observer.state_dict()
    before = copy.deepcopy(state)
    script.interval(2)
    assert state.keys() == before.keys()
    for name, value in before.items():
        same = torch.equal if isinstance(value, Tensor) else operator.eq
        assert same(state[name], value), name


def test_a_run_is_not_changed_by_writing_into_its_state() -> None:
    first, second = Script(), Script()
    for script in (first, second):
        script.interval(0)
        script.interval(1)
    for value in first.observer.state_dict().values():
        if isinstance(value, Tensor):
            value.fill_(NAN)
    assert np.array_equal(first.interval(2), second.interval(2))


def test_a_run_is_not_changed_by_writing_into_the_state_it_loaded() -> None:
    first, second = Script(), Script()
    for script in (first, second):
        script.interval(0)
        script.interval(1)
    state = first.observer.state_dict()
    first.observer.load_state_dict(state)
    for value in state.values():
        if isinstance(value, Tensor):
            value.fill_(NAN)
    assert np.array_equal(first.interval(2), second.interval(2))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_state_loaded_on_the_cpu_continues_on_the_device_of_the_parameters() -> None:
    parameter = torch.ones(5, device="cuda")
    observer = Observer(ObservationSpec(("movement",)), [parameter])
    state = {k: v.cpu() if isinstance(v, Tensor) else v for k, v in observer.state_dict().items()}
    observer.load_state_dict(state)
    parameter.mul_(2.0)
    assert np.isfinite(observe(observer)).all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_losses_on_a_device_give_the_features_of_the_same_losses_on_the_cpu() -> None:
    losses = torch.tensor([2.0, 1.0, NAN, 0.5], dtype=torch.float64)
    cpu, device = loss_observer(), loss_observer()
    for loss in losses:
        cpu.update(loss)
        device.update(loss.cuda())
    assert np.array_equal(observe(cpu), observe(device))
