import math
from collections import Counter
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from lrpilot.tasks.small_trainings.batch import BatchedSmallTrainings
from lrpilot.tasks.small_trainings.data import draw_text, manual
from lrpilot.tasks.small_trainings.families import SIZES
from lrpilot.tasks.small_trainings.optimizer import KINDS, OptimizerDraws
from lrpilot.tasks.small_trainings.task import SmallTrainingTask
from tests.running import check_batched_environments, check_batched_runs, through_file

FAMILIES = ("mlp", "cnn", "transformer", "rnn", "gpt", "lenet")
NUM_RUNS = 12
SEEDS = list(range(NUM_RUNS))
EVERYONE = torch.ones(NUM_RUNS, dtype=torch.bool)
LRS = 0.1 * torch.linspace(0.5, 1.5, NUM_RUNS, dtype=torch.float64)
make_task = partial(
    SmallTrainingTask,
    name="small_trainings",
    base_lr=0.1,
    total_steps=40,
    num_setups=6,
    num_privileged=32,
    dtype="float64",
    calibrate=False,
)


def started(task: SmallTrainingTask) -> BatchedSmallTrainings:
    runs = task.start_batch(NUM_RUNS)
    runs.reset(SEEDS, SEEDS)
    return runs


@pytest.mark.slow
@pytest.mark.parametrize("setup_seed", [0, 1])
@pytest.mark.parametrize("family", FAMILIES)
def test_batched_runs_equal_single_runs(family: str, setup_seed: int) -> None:
    task = make_task(families=(family,), setup_seed=setup_seed)
    check_batched_runs(task, SEEDS, num_steps=50)


@pytest.mark.parametrize("kind", KINDS)
def test_batched_runs_of_every_optimizer_equal_single_runs(kind: str) -> None:
    task = make_task(optimizer=OptimizerDraws(kinds=(kind,)), families=("mlp",), num_setups=2)
    check_batched_runs(task, SEEDS[:4], num_steps=20)


@pytest.mark.slow
def test_instances_equal_single_environments_through_their_resets() -> None:
    check_batched_environments(make_task(total_steps=24), 6)


@pytest.mark.slow
def test_state_through_a_file_continues_bit_identically_through_resets() -> None:
    task = make_task(num_setups=8)
    first, second = started(task), started(task)
    first.reset([0, 3, 5], [70, 71, 72])
    for _ in range(3):
        first.step(LRS, EVERYONE)
    second.load_state_dict(through_file(first.state_dict()))
    for step in range(8):
        if step == 5:
            for runs in (first, second):
                runs.reset([1, 2, 3], [80, 81, 82])
        assert torch.equal(first.step(LRS, EVERYONE), second.step(LRS, EVERYONE))
    assert torch.equal(first.weights(), second.weights())
    assert torch.equal(first.privileged_losses(), second.privileged_losses())


@pytest.mark.parametrize("family", FAMILIES)
def test_state_of_a_single_run_through_a_file_continues_bit_identically(family: str) -> None:
    task = make_task(families=(family,), num_setups=1)
    run, resumed = task.start(3), task.start(3)
    for _ in range(5):
        run.step(0.05)
    resumed.load_state_dict(through_file(run.state_dict()))
    assert [float(run.step()) for _ in range(8)] == [float(resumed.step()) for _ in range(8)]
    assert run.evaluate() == resumed.evaluate()


def test_state_of_a_run_of_another_seed_is_refused() -> None:
    task = make_task()
    with pytest.raises(ValueError, match=r"`state` must be of a run of seed 4, .* got seed 3"):
        task.start(4).load_state_dict(task.start(3).state_dict())


def test_a_loss_that_is_asked_for_again_is_the_same_and_leaves_statistics_and_dropout() -> None:
    task = make_task(families=("mlp",), num_setups=30)
    seeds = (s for s in range(200) if task.start(s).instance.setup.has_dropout)
    seed = next(s for s in seeds if list(task.start(s).instance.network.buffers()))
    run = task.start(seed)
    loss = run.step(0.0)
    before = [buffer.clone() for buffer in run.instance.network.buffers()]
    assert torch.equal(run.repeat_loss().detach(), loss)
    assert all(map(torch.equal, before, run.instance.network.buffers()))


def test_dropout_differs_from_step_to_step() -> None:
    task = make_task(families=("mlp",), num_setups=30)
    setup = next(setup for setup in task.setups if setup.has_dropout)
    rate = torch.tensor([[0.2]])
    masks = [setup.masks(torch.tensor([[5.0]]), torch.tensor([[t]]), rate) for t in (0.0, 1.0)]
    assert not torch.equal(*masks)
    assert float(masks[0].mean()) == pytest.approx(1.0, abs=0.15)


def test_everything_that_may_be_drawn_is_drawn() -> None:
    task = make_task(num_setups=40 * len(FAMILIES))
    setups = task.setups
    assert Counter(type(s.family).__name__.lower() for s in setups) == dict.fromkeys(FAMILIES, 40)
    assert {s.ends.kind for s in setups} == {"vectors", "images", "patches", "symbols", "text"}
    assert {s.ends.loss for s in setups} == {"classes", "values", "next"}
    assert {s.has_dropout for s in setups} == {True, False}
    drawn = Counter(getattr(s.family, "normalization", "") for s in setups)
    assert {"none", "layer", "batch", "group"} <= set(drawn)
    for name, names in (("activation", "relu tanh gelu"), ("cell", "tanh gru lstm")):
        assert set(names.split()) <= {getattr(s.family, name, "") for s in setups}


def test_weights_of_gpts_begin_small_and_their_biases_at_zero() -> None:
    run = make_task(families=("gpt",), num_setups=1).start(0)
    parameters = [value.detach() for value in run.parameters]
    weights = [float(value.std()) for value in parameters if value.dim() > 1]
    others = {x for value in parameters if value.dim() == 1 for x in value.tolist()}

    # times the scale of a run's initial weights
    assert all(0.5 * 0.02 * 0.8 < std < 2 * 0.02 * 1.2 for std in weights)
    assert others == {0.0, 1.0}


def test_texts_of_the_splits_come_from_parts_of_their_own() -> None:
    sizes, length = (300, 100, 100), 200
    text = draw_text(sizes, length, 256, torch.Generator().manual_seed(0))
    whole = bytes(manual().tolist())
    parts = [[bytes(piece.tolist()) for piece in part] for part in text.split(sizes)]
    # some passages of the manual stand in it twice
    train, held_out, test = (
        [whole.index(piece) for piece in part if whole.index(piece) == whole.rindex(piece)]
        for part in parts
    )
    assert min(map(len, (train, held_out, test))) > 20
    assert max(train) + length <= min(held_out)
    assert max(held_out) + length <= min(test)


def test_rare_characters_of_a_text_are_one_symbol() -> None:
    few, all_ = (
        draw_text((50, 5, 5), 9, count, torch.Generator().manual_seed(0)) for count in (32, 256)
    )
    assert torch.equal(few, all_.clamp(max=31))
    assert int(all_.max()) > 31


def test_setups_are_small() -> None:
    for setup in make_task(num_setups=100, num_train_range=(300, 400)).setups:
        assert 500 <= setup.blueprint.num_parameters <= 10_000 * setup.family.size_factor
        assert 8 <= setup.batch_size <= 256
        assert 300 <= setup.num_train <= 400


def test_half_of_each_familys_setups_are_wide_where_both_sizes_are_asked_for() -> None:
    setups = make_task(sizes=("small", "wide"), num_setups=24).setups
    small, wide = SIZES["small"].num_parameters, SIZES["wide"].num_parameters
    for k, setup in enumerate(setups):
        fewest, most = small if k % 12 < 6 else wide
        assert fewest <= setup.blueprint.num_parameters <= most * setup.family.size_factor
    families = [type(setup.family) for setup in setups[:12]]
    assert families[:6] == families[6:]


def test_small_setups_are_the_same_without_wide_ones() -> None:
    assert make_task(sizes=("small",)).setups == make_task().setups


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_batched_runs_of_wide_networks_equal_single_runs(family: str) -> None:
    task = make_task(families=(family,), sizes=("wide",), num_setups=2)
    check_batched_runs(task, SEEDS[:4], num_steps=10)


def test_families_can_be_left_out() -> None:
    names = {type(setup.family).__name__ for setup in make_task(families=("cnn", "rnn")).setups}
    assert names == {"CNN", "RNN"}


def test_another_setup_seed_gives_other_setups() -> None:
    assert not set(make_task(setup_seed=0).setups) & set(make_task(setup_seed=1).setups)


def test_every_optimizer_is_drawn_with_its_usual_learning_rate() -> None:
    task = make_task(num_setups=2, base_lr=0.2, families=("mlp",))
    drawn = [task.start(seed) for seed in range(80)]
    names = Counter(type(run.optimizer).__name__ for run in drawn)
    assert set(names) == {"SGD", "Adam", "AdamW", "RMSprop"}
    usual = {"Adam": 0.003, "AdamW": 0.003, "RMSprop": 0.002}
    for run in drawn:
        group = run.optimizer.param_groups[0]
        momentum = group.get("momentum", 0.0)
        expected = 0.4 * (1 - momentum) if momentum else 0.2
        name = type(run.optimizer).__name__
        assert group["lr"] == pytest.approx(usual.get(name, expected))


def test_an_optimizer_that_is_given_trains_every_run_at_the_given_learning_rate() -> None:
    task = replace(make_task(), optimizer=torch.optim.AdamW, base_lr=0.02)
    for seed in range(4):
        optimizer = task.start(seed).optimizer
        assert isinstance(optimizer, torch.optim.AdamW)
        assert optimizer.param_groups[0]["lr"] == 0.02


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_most_trainings_can_be_learned(family: str) -> None:
    task = make_task(
        families=(family,), num_setups=4, dtype="float32", num_privileged=256, base_lr=0.2
    )
    runs = task.start_batch(16)
    runs.reset(list(range(16)), list(range(16)))
    before = runs.privileged_losses()
    for step in range(200):
        lrs = torch.full((16,), 0.2 * (1 - step / 200), dtype=torch.float64)
        runs.step(lrs, torch.ones(16, dtype=torch.bool))
    assert int((runs.privileged_losses() < 0.9 * before).sum()) >= 10


def test_runs_leave_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    started(make_task()).step(LRS, EVERYONE)
    make_task().start(0).step(0.1)
    assert torch.equal(torch.get_rng_state(), before)


def test_reward_scales_are_those_of_the_setups() -> None:
    task = make_task(
        calibrate=True, reward_scale=5.0, families=("mlp",), num_setups=2, dtype="float32"
    )
    found = {
        (task.draw_setup(torch.Generator().manual_seed(seed)), task.reward_scale_of(seed))
        for seed in SEEDS
    }
    assert len(found) == 2
    assert all(1.0 <= scale <= 25.0 for _, scale in found)


def test_rewards_without_calibration_are_scaled_alike() -> None:
    assert {make_task(reward_scale=5.0).reward_scale_of(seed) for seed in SEEDS} == {5.0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"families": ("mlp", "gnn")}, r"`families` must be some of .* got \('mlp', 'gnn'\)"),
        ({"families": ()}, r"`families` must be some of .* got \(\)"),
        ({"sizes": ("large",)}, r"`sizes` must be some of .* got \('large',\)"),
        ({"num_setups": 0}, "`num_setups` must be at least 1, got 0"),
        ({"num_privileged": 0}, "`num_privileged` must be at least 1, got 0"),
        ({"dtype": "half"}, "`dtype` must be float32 or float64, got 'half'"),
    ],
)
def test_what_is_out_of_range_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_task(**change)


@pytest.mark.parametrize("kinds", [(), ("lion",)])
def test_an_unknown_kind_of_optimizer_is_refused(kinds: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="`kinds` must be some of"):
        OptimizerDraws(kinds=kinds)


def test_gradients_are_clipped_in_some_runs() -> None:
    norms = Counter(make_task().start(seed).instance.max_gradient_norm for seed in range(40))
    assert set(norms) == {1.0, math.inf}
