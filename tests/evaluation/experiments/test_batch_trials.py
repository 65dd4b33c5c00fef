import numpy as np
import pytest
import torch

from lrpilot import ClockSpec, ObservationSpec, Policy, PolicyLR
from lrpilot.evaluation.experiments.nmf.trials import PolicyControl, run_trial
from lrpilot.tasks.nmf.task import NMFTask
from tests.scheduling import plain_action


def test_trials_of_a_recurrent_policy_equal_policy_lr_with_a_memory_per_run() -> None:
    task = NMFTask(
        name="nmf",
        optimizer=torch.optim.SGD,
        base_lr=0.01,
        total_steps=40,
        shape=(12, 8),
        rank=3,
        batch_size=4,
        noise="gaussian",
    )
    rng = np.random.default_rng(0)
    shapes = [(7 + 4, 16), (16,), (4, 1), (1,)]
    arrays = [rng.normal(0, 0.5, shape).astype(np.float32) for shape in shapes]
    policy = Policy(
        [(arrays[2], arrays[3])],
        ObservationSpec(("loss", "lr")),
        plain_action(max_log_change=0.5, max_factor=2.0),
        ClockSpec(num_decisions=10),
        lstm=(arrays[0], arrays[1]),
    )
    control = PolicyControl(policy, initial_lr=task.base_lr)
    trial = run_trial(task, control, seeds=range(3), needs_cap=False)
    for seed in range(3):
        run = task.start(seed)
        scheduler = PolicyLR(run.optimizer, policy, total_steps=40)
        for _ in range(40):
            scheduler.step(run.step())
        actions = [entry.signal for entry in scheduler.log]
        assert actions[:9] == pytest.approx(trial.decided[:, 1, seed], abs=1e-4)
        assert np.ptp(actions) > 0.01
