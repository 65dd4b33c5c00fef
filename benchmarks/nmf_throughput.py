"""Inner steps per second of NMF training with PPO included, batched and one run at a time.

`python benchmarks/nmf_throughput.py --num-threads 2`. Every row trains a PPO agent on the task of
`conf/experiment/iclr2023_nmf.yaml` at 40 x 40, rank 5, under its certified cap, for a few
seconds; import and construction are not counted. Memory is the growth of the resident set.
"""

import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv

from benchmarks.side_by_side import Action, print_origin, read_options, take_turns
from lrpilot import ActionSpec
from lrpilot.envs import LRControlEnv, LRControlVecEnv
from lrpilot.evaluation.report import format_table
from lrpilot.tasks.nmf.caps import segment_cap
from lrpilot.tasks.nmf.task import NMFTask

TASK = partial(
    NMFTask,
    name="nmf",
    optimizer=torch.optim.SGD,
    base_lr=0.01,
    total_steps=300,
    noise="gaussian",
    noise_range=(0.03, 1.0),
    cap_kind="segment",
)
ARGUMENTS: dict[str, Any] = {
    "action": ActionSpec(anchor="constant", unit="cap", max_factor=1.0, start_factor=1.0)
}


def make_single() -> LRControlEnv:
    """One environment, in a worker with one thread."""
    torch.set_num_threads(1)
    return LRControlEnv(TASK(), **ARGUMENTS)


def resident_mebibytes() -> float:
    """Resident set of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def measure(make_env: Callable[[], VecEnv], num_rollouts: int) -> tuple[float, float, float]:
    """Inner steps per second with PPO, without PPO, and MiB of the environments."""
    before = resident_mebibytes()
    env = make_env()
    env.seed(0)
    env.reset()
    memory = resident_mebibytes() - before
    rollout = 29 * env.num_envs
    model = PPO(
        "MlpPolicy",
        env,
        n_steps=29,
        batch_size=rollout // 4 if rollout % 4 == 0 else rollout,
        n_epochs=6,
        gamma=1.0,
        seed=0,
        device="cpu",
        policy_kwargs={"net_arch": [64, 64]},
    )
    model.learn(rollout)
    start = time.perf_counter()
    model.learn(num_rollouts * rollout, reset_num_timesteps=False)
    with_ppo = num_rollouts * rollout * 10 / (time.perf_counter() - start)
    actions = torch.zeros(env.num_envs, 1).numpy()
    start = time.perf_counter()
    for _ in range(29):
        env.step(actions)
    alone = rollout * 10 / (time.perf_counter() - start)
    env.close()
    return with_ppo, alone, memory


def measure_cap(num_runs: int, num_steps: int) -> tuple[float, dict[str, float]]:
    """Milliseconds of an inner step of all runs, and the share of it that a cap costs by bound.

    The exact gradients belong to the step, which needs them without a cap as well.
    """
    runs = TASK().start_batch(num_runs)
    runs.reset(list(range(num_runs)), list(range(num_runs)))
    everyone, lrs = torch.ones(num_runs, dtype=torch.bool), torch.zeros(num_runs)
    # valid at every step, since the learning rate is 0
    objective, exact = runs.objective, runs.objective.exact(runs.w, runs.h)

    def refresh(bound: str) -> None:
        noise = objective.noise_std(exact)
        segment_cap(
            runs.w,
            runs.h,
            (exact.gradient_w, exact.gradient_h),
            exact.squared_columns.sum(-1) / 2,
            bound=bound,
            noise_lengths=(noise * objective.length_w, noise * objective.length_h),
        )

    bounds = ("frobenius", "gram_rows")
    actions: dict[str, Action] = {"step": lambda: runs.step(lrs, everyone)}
    actions |= {bound: partial(refresh, bound) for bound in bounds}
    times = take_turns(actions, num_calls=1, num_rounds=num_steps)
    step = median(times["step"])
    return step * 1e3, {bound: median(times[bound]) / step for bound in bounds}


def main() -> None:
    """Measure all and print the table."""
    num_threads = read_options(__doc__, num_threads=2).num_threads
    print_origin("NMF 40 x 40, rank 5, seed 0")
    cases: list[tuple[str, Callable[[], VecEnv], int]] = [
        ("LRControlEnv, 1 run", lambda: DummyVecEnv([make_single]), 12),
        ("DummyVecEnv, 8 runs", lambda: DummyVecEnv([make_single] * 8), 3),
        ("SubprocVecEnv, 8 runs", lambda: SubprocVecEnv([make_single] * 8), 3),
    ]
    cases += [
        (
            f"LRControlVecEnv, {num_runs} runs",
            partial(LRControlVecEnv, TASK(), num_runs, **ARGUMENTS),
            num_rollouts,
        )
        for num_runs, num_rollouts in ((64, 12), (256, 8), (1024, 3))
    ]
    lines = []
    single = 0.0
    for name, make_env, num_rollouts in cases:
        torch.set_num_threads(num_threads if "LRControlVecEnv" in name else 1)
        with_ppo, alone, memory = measure(make_env, num_rollouts)
        single = single or with_ppo
        mib = "-" if "Subproc" in name else f"{memory:.0f}"
        ratio = f"{with_ppo / single:.1f}"
        lines.append([name, f"{with_ppo:,.0f}", ratio, f"{alone:,.0f}", mib])
    header = ["environment", "inner steps/s with PPO", "ratio", "without PPO", "MiB"]
    print(format_table(header, lines))
    milliseconds, shares = measure_cap(256, 300)
    print(
        f"\ninner step of 256 runs: {milliseconds:.2f} ms; a refresh of the segment cap costs "
        + ", ".join(f"{share:.0%} of it with {name} bounds" for name, share in shares.items())
    )


if __name__ == "__main__":
    main()
