import math

import pytest
import torch
from torch import Tensor

from lrpilot.tasks.nmf.caps import block_cap, joint_ball_cap, segment_cap
from lrpilot.tasks.nmf.draws import DRAWN_STEPS
from lrpilot.tasks.nmf.problem import NOISES
from tests.tasks.nmf.builders import (
    exact_gradients,
    factors,
    make_task,
    objective,
    padded_run,
    padded_task,
    size_of,
    valid_block,
)


@pytest.mark.parametrize("cap_kind", [None, "ball"])
@pytest.mark.parametrize("noise", NOISES)
def test_zero_padding_stays_zero(noise: str, cap_kind: str | None) -> None:
    run = padded_run(noise=noise, cap_kind=cap_kind)
    m, n, r = size_of(run)
    for _ in range(40):
        run.step(0.02)

    assert float(run.w[:m, :r].detach().sum()) > 0.0
    for padding in (run.w[m:], run.w[:, r:], run.h[r:], run.h[:, n:]):
        assert not bool(padding.any())


def test_v_is_zero_in_the_padding_alone() -> None:
    run = padded_run(data_noise=0.0)
    m, n, _ = size_of(run)

    assert not bool(run.matrix[m:].any())
    assert not bool(run.matrix[:, n:].any())
    assert bool((run.matrix[:m, :n] > 0).all())


def test_padded_sizes_and_ranks_take_every_value_of_their_ranges() -> None:
    task = padded_task()
    sizes = [size_of(task.start(seed)) for seed in range(150)]
    rows, columns, ranks = map(set, zip(*sizes, strict=True))

    assert rows == set(range(6, 13))
    assert columns == set(range(5, 9))
    assert ranks == {1, 2, 3}


def test_without_ranges_every_run_has_the_largest_size() -> None:
    assert {size_of(make_task().start(seed)) for seed in range(5)} == {(12, 8, 3)}


def test_a_padded_run_equals_gradient_descent_on_its_valid_block() -> None:
    run = padded_run(noise="none")
    w, h, v = valid_block(run)
    for _ in range(60):
        residual = w @ h - v
        loss = float(run.step(0.02))
        assert loss == pytest.approx(float(residual.square().sum() / 2), rel=1e-5)
        w, h = (
            (w - 0.02 * residual @ h.mT).clamp(min=0.0),
            (h - 0.02 * w.mT @ residual).clamp(min=0.0),
        )

    torch.testing.assert_close(valid_block(run)[:2], (w, h), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cap_kind", ["segment", "ball", "block"])
def test_the_cap_of_a_padded_run_is_that_of_its_valid_block(cap_kind: str) -> None:
    update = "alternating" if cap_kind == "block" else "simultaneous"
    run = padded_run(noise="none", cap_kind=cap_kind, update=update)
    w, h, v = valid_block(run)
    radius = (1.2 * math.sqrt(w.shape[1]) * v.norm()).sqrt()
    expected = {
        "segment": lambda: segment_cap(w, h, exact_gradients(w, h, v), objective(w, h, v), c=1.9),
        "ball": lambda: joint_ball_cap(v, radius, radius, c=1.9),
        "block": lambda: block_cap(h, c=1.9),
    }[cap_kind]()

    assert run.cap()[0] == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("with_replacement", [False, True])
@pytest.mark.parametrize("block", ["w", "h"])
def test_a_padded_minibatch_never_has_a_column_or_row_of_the_padding(
    block: str, with_replacement: bool
) -> None:
    run = padded_run(noise="minibatch", with_replacement=with_replacement)
    m, n, _ = size_of(run)
    state = run.state_dict()
    # W's gradient is from columns, H's from rows
    padding = (
        state["instance"]["matrix"][:, n:] if block == "w" else state["instance"]["matrix"][m:]
    )
    padding.fill_(math.nan)
    for position in range(DRAWN_STEPS):
        run.load_state_dict({**state, "position": position})
        run.step(0.0)
        gradient = getattr(run, block).grad
        assert bool(gradient.isfinite().all())


def test_v_has_the_scale_as_its_mean_and_is_non_negative() -> None:
    run = make_task(data_noise=2.0, scale_range=(7.0, 7.0)).start(0)

    assert float(run.matrix.mean()) == pytest.approx(7.0, rel=1e-5)
    assert float(run.matrix.min()) == 0.0


def test_scales_are_log_uniform_in_their_range() -> None:
    task = make_task(scale_range=(0.01, 100.0))
    logs = torch.tensor([float(task.start(s).matrix.mean()) for s in range(400)]).log10()

    assert float(logs.abs().max()) <= 2 + 1e-5
    # quarters of equal probability; 4 standard errors are 35 draws
    counts = torch.histc(logs, bins=4, min=-2, max=2)
    assert float((counts - 100).abs().max()) <= 35


def test_noise_levels_are_log_uniform_in_their_range() -> None:
    task = make_task(noise="gaussian", noise_range=(0.1, 10.0))
    logs = torch.tensor([float(task.start(s).objective.noise_level) for s in range(400)]).log10()

    assert float(logs.abs().max()) <= 1 + 1e-5
    counts = torch.histc(logs, bins=4, min=-1, max=1)
    assert float((counts - 100).abs().max()) <= 35


def test_the_drawn_scale_is_the_mean_of_the_valid_block_of_a_padded_run() -> None:
    run = padded_run(scale_range=(7.0, 7.0))

    assert float(valid_block(run)[2].mean()) == pytest.approx(7.0, rel=1e-5)


def decay(condition_range: tuple[float, float], seed: int) -> Tensor:
    """Scales of the columns of W*, relative to the largest.

    With V0 = W H of condition 1 and V = W D H of the same seed, V0^+ V = H^+ D H.
    """
    task = make_task(data_noise=0.0, shape=(30, 30))
    plain = task.start(seed).matrix.double()
    task = make_task(data_noise=0.0, shape=(30, 30), condition_range=condition_range)
    product = torch.linalg.pinv(plain, rtol=1e-5) @ task.start(seed).matrix.double()
    top = torch.linalg.eigvals(product).real.sort(descending=True).values[:3]
    scales: Tensor = top / top[0]
    return scales


def test_the_columns_of_w_decay_geometrically_by_the_condition() -> None:
    expected = torch.tensor([1.0, 0.25, 0.0625], dtype=torch.float64)

    torch.testing.assert_close(decay((16.0, 16.0), 0), expected, rtol=1e-3, atol=0)


def test_conditions_lie_in_their_range_and_differ() -> None:
    conditions = [1 / float(decay((2.0, 50.0), seed)[2]) for seed in range(20)]

    assert all(2.0 * 0.999 <= condition <= 50.0 * 1.001 for condition in conditions)
    assert max(conditions) > 3 * min(conditions)


def test_zeros_in_the_factors_have_a_share_in_the_range_of_sparsities() -> None:
    # of rank 1, a row of V is zero where W* is
    task = make_task(shape=(400, 400), rank=1, data_noise=0.0, sparsity_range=(0.2, 0.6))
    shares = []
    for seed in range(20):
        zero = task.start(seed).matrix == 0
        rows, columns = (float(zero.all(dim).double().mean()) for dim in (1, 0))
        # two shares of 400 draws each
        assert abs(rows - columns) < 4 * math.sqrt(2 * 0.25 / 400)
        shares.append(rows)

    slack = 4 * math.sqrt(0.25 / 400)
    assert 0.2 - slack <= min(shares) < 0.35
    assert 0.45 < max(shares) <= 0.6 + slack


def test_without_sparsity_no_entry_of_v_is_zero() -> None:
    assert bool((make_task(data_noise=0.0).start(0).matrix > 0).all())


def test_very_sparse_instances_have_a_finite_matrix() -> None:
    task = make_task(shape=(6, 6), rank=1, sparsity_range=(0.9, 0.9))

    assert all(bool(task.start(seed).matrix.isfinite().all()) for seed in range(20))


def test_the_start_has_the_scale_of_the_matrix() -> None:
    task = make_task(shape=(40, 40), rank=5, scale_range=(0.01, 100.0))
    ratios = []
    for seed in range(50):
        run = task.start(seed)
        ratios.append(float((run.w @ run.h).detach().mean() / run.matrix.mean()))

    assert sum(ratios) / 50 == pytest.approx(1.0, abs=0.05)


def test_a_start_of_another_scale_is_the_same_start_times_the_scale() -> None:
    run, smaller = make_task().start(0), make_task(start_scale=0.25).start(0)

    assert torch.equal(smaller.matrix, run.matrix)
    for x, y in zip(factors(smaller), factors(run), strict=True):
        assert torch.equal(x, 0.25 * y)


def test_without_data_noise_the_matrix_has_the_rank_of_the_factors() -> None:
    run = make_task(data_noise=0.0, rank=2).start(0)

    assert int(torch.linalg.matrix_rank(run.matrix, rtol=1e-5)) == 2


def test_every_seed_is_a_new_matrix() -> None:
    task = make_task()

    assert not torch.equal(task.start(0).matrix, task.start(1).matrix)


def test_a_real_matrix_sets_the_shape_and_is_every_runs() -> None:
    task = make_task(matrix="digits", scale_range=(0.25, 0.25))
    first, second = task.start(0), task.start(1)

    assert tuple(task.shape) == (61, 1797)
    assert torch.equal(first.matrix, second.matrix)
    assert float(first.matrix.mean()) == pytest.approx(0.25, rel=1e-5)
    assert not torch.equal(first.w, second.w)
