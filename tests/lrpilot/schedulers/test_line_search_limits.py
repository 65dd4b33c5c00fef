import gc
import io
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LinearLR, SequentialLR

from lrpilot.schedulers.line_search.scheduler import RESETS, LineSearchLR
from tests.lrpilot.schedulers.line_searches import (
    EIGENVALUES,
    INF,
    NAN,
    grad_of,
    image_batches,
    loss_of,
    quadratic,
    small_cnn,
    squared_norm,
    start_quadratic,
    train,
)
from tests.running import through_file

# ---- groups, bounds, log


def test_groups_keep_their_ratios_and_a_group_at_zero_stays() -> None:
    ws = [torch.ones(2, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    groups = [{"params": [w], "lr": lr} for w, lr in zip(ws, (0.5, 8.0, 0.0), strict=True)]
    optimizer = torch.optim.SGD(groups, lr=1.0)
    scheduler = LineSearchLR(optimizer, None, batches_per_epoch=4)

    def closure() -> Tensor:
        return torch.stack([k * w.square().sum() for k, w in enumerate(ws, 1)]).sum()

    for _ in range(20):
        loss = scheduler.search(closure).item()
        lrs = scheduler.current_lrs()
        slope = sum(lr * squared_norm([w]) for lr, w in zip(lrs, ws, strict=True))
        optimizer.step()
        scheduler.step()
        assert lrs[1] == pytest.approx(16 * lrs[0], rel=1e-15)
        assert lrs[2] == 0.0
        assert closure().item() <= loss - 0.1 * slope


def test_no_trial_exceeds_the_cap() -> None:
    w, optimizer, scheduler = start_quadratic(3.0, cap=lambda: (0.05, "estimate"))
    seen = [optimizer.param_groups[0]["lr"], *train(scheduler, [lambda: quadratic(w)] * 5)]
    assert seen == [0.05] * 6
    assert scheduler.bound_by == "estimate"


def test_no_rounding_exceeds_the_cap() -> None:
    rng = np.random.default_rng(0)
    for lr, cap in rng.uniform(0.01, 1.0, (200, 2)).tolist():
        curve = (lambda lr: -lr, 1.0)
        settings = {"condition": "goldstein", "cap": lambda cap=cap: (cap, "estimate")}
        assert max(LineSearchLR.simulate([curve] * 2, initial_lr=lr, **settings)) <= cap


def test_the_cap_is_asked_once_per_search() -> None:
    asked = []

    def cap() -> tuple[float, str]:
        asked.append(1)
        return 0.05, "estimate"

    w, _, scheduler = start_quadratic(3.0, cap=cap)
    asked.clear()
    train(scheduler, [lambda: quadratic(w)] * 5)
    assert len(asked) == 5


def test_giving_up_respects_a_tiny_cap() -> None:
    w, _, scheduler = start_quadratic(1.0, cap=lambda: (1e-9, "estimate"), max_trials=2)
    train(scheduler, [lambda: quadratic(w) * (1.0 if torch.is_grad_enabled() else 2.0)])
    assert scheduler.get_last_lr() == [1e-9]


def test_max_factor_bounds_the_growth() -> None:
    w, _, scheduler = start_quadratic(1e-3, batches_per_epoch=1, max_factor=3.0)
    assert train(scheduler, [lambda: quadratic(w)] * 4) == [1e-3, 2e-3, 3e-3, 3e-3]
    assert [(d.rule, d.bound_by) for d in scheduler.log] == [
        ("accepted", ""),
        ("accepted", "max_factor"),
    ]


def test_the_log_explains_every_change() -> None:
    w, optimizer, scheduler = start_quadratic(4.0)
    loss = scheduler.search(lambda: quadratic(w)).item()
    (entry,) = scheduler.log
    lr, slope = optimizer.param_groups[0]["lr"], squared_norm([w])
    optimizer.step()
    assert (entry.step, entry.old_lr, entry.new_lr) == (0, 4.0, lr)
    assert (entry.rule, entry.bound_by) == ("backtracked", "")
    assert entry.signal == loss - quadratic(w).item()
    assert entry.threshold == pytest.approx(0.1 * lr * slope, rel=1e-14)


# ---- giving up and losses that are no numbers


@pytest.mark.parametrize("trial_loss", [NAN, INF, -INF, 1e30])
def test_bad_trial_losses_are_rejected_until_the_search_gives_up(trial_loss: float) -> None:
    w, _, scheduler = start_quadratic(2.0, max_trials=5, reset="keep", backtrack=0.5)

    def closure() -> Tensor:
        return quadratic(w) if torch.is_grad_enabled() else torch.tensor(trial_loss)

    assert train(scheduler, [closure]) == [2e-6]
    assert (scheduler.log[0].rule, scheduler.num_trials) == ("gave up", 5)
    # the next search begins where this one ended, at 2 / 2^4
    scheduler.search(lambda: quadratic(w))
    assert scheduler.current_lrs() == [2.0 / 16]


def test_after_giving_up_again_and_again_the_search_begins_at_the_fallback() -> None:
    w, _, scheduler = start_quadratic(1.0, max_trials=20, reset="keep", backtrack=0.1)

    def rising() -> Tensor:
        return quadratic(w) if torch.is_grad_enabled() else torch.tensor(INF)

    assert train(scheduler, [rising] * 3) == [1e-6] * 3
    assert train(scheduler, [lambda: quadratic(w)]) == [1e-6]
    assert scheduler.num_trials == 1


def test_after_giving_up_on_a_flat_loss_the_next_search_begins_where_this_one_did() -> None:
    w, _, scheduler = start_quadratic(0.125, max_trials=5, reset="keep")
    constant = quadratic(w).detach()

    def flat() -> Tensor:
        return quadratic(w) if torch.is_grad_enabled() else constant

    assert train(scheduler, [flat]) == [0.125e-6]
    assert train(scheduler, [lambda: quadratic(w)]) == [0.125]


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_a_loss_that_is_no_number_keeps_the_lr_without_a_trial(bad: float) -> None:
    w, _, scheduler = start_quadratic(4.0)
    train(scheduler, [lambda: quadratic(w)])
    before, weights = scheduler.current_lrs(), w.detach().clone()
    scheduler.search(lambda: quadratic(w) + bad)
    scheduler.step()
    assert scheduler.current_lrs() == before
    assert (scheduler.num_trials, scheduler.log[-1].rule) == (0, "kept")
    assert torch.equal(w.detach(), weights)


@pytest.mark.parametrize("factor", [0.0, NAN, INF])
def test_a_slope_that_is_no_positive_number_keeps_the_lr(factor: float) -> None:
    w, _, scheduler = start_quadratic(4.0)
    w.register_hook(lambda gradient: gradient * factor)
    scheduler.search(lambda: quadratic(w))
    assert scheduler.current_lrs() == [4.0]
    assert (scheduler.num_trials, scheduler.log[-1].rule) == (0, "kept")


@pytest.mark.parametrize("scale", [1e30, 1e-30, -1.0])
def test_the_scale_and_sign_of_the_loss_are_free(scale: float) -> None:
    w, optimizer, scheduler = start_quadratic(1.0 / abs(scale))
    shift = -10.0 * abs(scale)
    first = last = scheduler.search(lambda: quadratic(w) * abs(scale) + shift).item()
    for _ in range(20):
        optimizer.step()
        scheduler.step()
        last = scheduler.search(lambda: quadratic(w) * abs(scale) + shift).item()
    assert last < first


def test_a_loss_of_one_element_is_a_loss() -> None:
    w, _, scheduler = start_quadratic(4.0)
    scheduler.search(lambda: quadratic(w).reshape(1, 1))
    assert scheduler.num_trials > 1


def test_parameters_without_a_gradient_are_left_out() -> None:
    used, unused = (torch.ones(2, requires_grad=True) for _ in range(2))
    optimizer = torch.optim.SGD([{"params": [used]}, {"params": [unused]}], lr=4.0)
    scheduler = LineSearchLR(optimizer, None)
    train(scheduler, [lambda: used.square().sum()])
    assert unused.tolist() == [1.0, 1.0]
    assert used.square().sum() < 2.0


# ---- torch's conventions


@pytest.mark.parametrize("load_optimizer_first", [False, True])
@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("optimizer_class", [torch.optim.SGD, torch.optim.Adam])
def test_a_loaded_run_continues_bit_identically(
    optimizer_class: Any, reset: str, load_optimizer_first: bool
) -> None:
    def start() -> tuple[nn.Module, Optimizer, LineSearchLR]:
        model = small_cnn()
        optimizer = optimizer_class(model.parameters(), lr=0.3)
        return model, optimizer, LineSearchLR(optimizer, model, reset=reset, batches_per_epoch=5)

    def run(model: nn.Module, scheduler: LineSearchLR, seed: int) -> list[float]:
        torch.manual_seed(seed)
        batches = image_batches(6)
        return train(scheduler, [partial(loss_of, model, batch) for batch in batches])

    model, optimizer, scheduler = start()
    run(model, scheduler, 0)
    file = io.BytesIO()
    states = [x.state_dict() for x in (model, optimizer, scheduler)]
    torch.save(states, file)
    expected = run(model, scheduler, 1)
    file.seek(0)
    loaded = start()
    parts: list[Any] = list(zip(loaded, torch.load(file, weights_only=True), strict=True))
    for part, state in parts if load_optimizer_first else reversed(parts):
        part.load_state_dict(state)
    assert run(loaded[0], loaded[2], 1) == expected
    assert loaded[2].state_dict() == scheduler.state_dict()
    for mine, other in zip(model.parameters(), loaded[0].parameters(), strict=True):
        assert torch.equal(mine, other)


def test_a_state_with_numpy_settings_and_lrs_loads_with_weights_only() -> None:
    w, _, scheduler = start_quadratic(np.float64(4.0), c=np.float32(0.25), gamma=np.float64(3.0))
    train(scheduler, [lambda: quadratic(w)] * 3)
    assert through_file(scheduler.state_dict()) == scheduler.state_dict()


def test_a_state_of_other_settings_is_refused() -> None:
    state = start_quadratic(reset="keep")[2].state_dict()
    with pytest.raises(ValueError, match="`reset` = 'grow' like this scheduler, got 'keep'"):
        start_quadratic()[2].load_state_dict(state)


def shifted(w: Tensor, offset: float) -> Tensor:
    return quadratic(w) + offset


def test_in_a_sequence_the_search_begins_at_the_milestone_from_the_initial_lr() -> None:
    w, optimizer, scheduler = start_quadratic(0.4)
    warmup = LinearLR(optimizer, start_factor=0.5, total_iters=4)
    composed = SequentialLR(optimizer, [warmup, scheduler], milestones=[4])
    lrs = []
    for step in range(8):
        scheduler.search(partial(shifted, w, NAN if step == 2 else 0.0))
        assert scheduler.num_trials == 0 or step >= 4
        lrs += scheduler.current_lrs()
        optimizer.step()
        composed.step()
    assert lrs[:4] == pytest.approx([0.2, 0.25, 0.3, 0.35])
    assert lrs[4] == 0.4
    assert len(scheduler.log) == sum(a != b for a, b in pairwise(lrs[4:]))


def test_before_the_milestone_search_computes_the_gradients() -> None:
    w, optimizer, scheduler = start_quadratic(0.4)
    SequentialLR(optimizer, [LinearLR(optimizer), scheduler], milestones=[4])
    assert scheduler.search(lambda: quadratic(w)).item() == quadratic(w).item()
    assert torch.equal(grad_of(w), EIGENVALUES * w.detach())


def test_a_tensor_lr_is_filled_not_replaced() -> None:
    lr = torch.tensor(4.0)
    w = torch.ones(4, requires_grad=True)
    optimizer = torch.optim.Adam([w], lr=lr, capturable=False, foreach=False)
    scheduler = LineSearchLR(optimizer, None)
    train(scheduler, [lambda: quadratic(w)] * 3)
    assert optimizer.param_groups[0]["lr"] is lr
    assert 0.0 < lr.item() < 4.0


def test_a_step_without_a_search_is_named_with_its_cure() -> None:
    _, optimizer, scheduler = start_quadratic()
    optimizer.step()
    with pytest.raises(RuntimeError, match=r"call `search\(closure\)` before every step"):
        scheduler.step()


def test_get_last_lr_is_the_lr_found() -> None:
    w, _, scheduler = start_quadratic(4.0)
    scheduler.search(lambda: quadratic(w))
    assert scheduler.get_last_lr() == scheduler.current_lrs() != [4.0]


def test_simulate_gives_the_lrs_of_training() -> None:
    w, optimizer, scheduler = start_quadratic(4.0, batches_per_epoch=2)
    curves: list[Any] = []
    lrs = []
    for _ in range(10):
        scheduler.search(lambda: quadratic(w))
        at, gradient = w.detach().clone(), grad_of(w).clone()
        curves.append(
            (lambda lr, w=at, g=gradient: quadratic(w.add(g, alpha=-lr)), squared_norm([w]))
        )
        lrs += scheduler.current_lrs()
        optimizer.step()
        scheduler.step()
    simulated = LineSearchLR.simulate(curves, initial_lr=4.0, batches_per_epoch=2)
    assert simulated == [4.0, *lrs]


# ---- errors


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"condition": "wolfe"}, "`condition` must be one of"),
        ({"reset": 1}, "`reset` must be one of"),
        ({"c": 0.0}, r"`c` must be in \(0, 1\), got 0.0"),
        ({"c": 0.5, "condition": "goldstein"}, r"`c` must be in \(0, 0.5\), got 0.5"),
        ({"backtrack": 1.0}, r"`backtrack` must be in \(0, 1\), got 1.0"),
        ({"gamma": 1.0}, r"`gamma` must be in \(1, inf\), got 1.0"),
        ({"fallback_factor": NAN}, r"`fallback_factor` must be in \(0, 1\), got nan"),
        ({"batches_per_epoch": 0}, r"`batches_per_epoch` must be in \[1, inf\], got 0"),
        ({"max_trials": 0}, r"`max_trials` must be in \[1, inf\), got 0"),
        ({"max_factor": 0.5}, r"`max_factor` must be in \[1, inf\), got 0.5"),
        ({"max_factor": INF}, r"`max_factor` must be in \[1, inf\), got inf"),
    ],
)
def test_a_bad_argument_is_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        start_quadratic(**settings)


def test_other_optimizers_are_refused() -> None:
    with pytest.raises(TypeError, match="must be torch's SGD, Adam or AdamW, got RMSprop"):
        start_quadratic(optimizer_class=torch.optim.RMSprop)


def test_maximising_optimizers_are_refused() -> None:
    optimizer = torch.optim.SGD([torch.ones(1, requires_grad=True)], lr=0.1, maximize=True)
    with pytest.raises(ValueError, match="`optimizer` must have maximize=False, got True"):
        LineSearchLR(optimizer, None)


def test_a_model_that_is_no_module_is_refused() -> None:
    optimizer = torch.optim.SGD([torch.ones(1, requires_grad=True)], lr=0.1)
    with pytest.raises(TypeError, match="`model` must be a Module or None, got list"):
        LineSearchLR(optimizer, cast(Any, []))


def test_sparse_gradients_are_refused() -> None:
    model = nn.Embedding(3, 2, sparse=True)
    scheduler = LineSearchLR(torch.optim.SGD(model.parameters(), lr=0.1), model)
    with pytest.raises(ValueError, match="must have dense gradients, got a sparse one"):
        scheduler.search(lambda: model(torch.tensor([0])).sum())


@pytest.mark.parametrize("loss", [None, "0.5", 0.5])
def test_a_loss_that_is_no_tensor_is_refused(loss: Any) -> None:
    scheduler = start_quadratic()[2]
    with pytest.raises(TypeError, match="`closure` must return a tensor of one element, got"):
        scheduler.search(lambda: loss)


def test_a_loss_of_several_elements_is_refused() -> None:
    w, _, scheduler = start_quadratic()
    with pytest.raises(ValueError, match=r"`loss` must have one element, got shape \(4,\)"):
        scheduler.search(lambda: w.square())


# ---- processes


def train_rank(rank: int, folder: str) -> None:
    layers = [*small_cnn().children()][:4]
    model = DistributedDataParallel(nn.Sequential(*layers, nn.Linear(144, 3)))
    scheduler = LineSearchLR(torch.optim.SGD(model.parameters(), lr=30.0), model)
    batches = image_batches(12)[rank::2]
    lrs = train(scheduler, [partial(loss_of, model, batch) for batch in batches])
    torch.save((lrs, scheduler.total_trials), f"{folder}/{rank}.pt")


def run_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
    )
    train_rank(rank, folder)
    gc.collect()  # a DDP model that outlives its gloo group can hang or abort at exit
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_processes_of_a_data_parallel_model_choose_the_same_lrs(tmp_path: Path) -> None:
    spawn(run_rank, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert first == second
    assert first[1] > 6
