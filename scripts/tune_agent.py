"""Search the settings of the agent itself: `python scripts/tune_agent.py task=digits`.

Each trial trains an agent under values that Optuna draws from `search.space`, and is worth the mean
return of its last rollouts. The run folder holds the study (search.db), trials.csv, Optuna's
figures, and the trials' own run folders in `trials`. The best settings are printed as a command.
"""

import io
import math
import multiprocessing
import shlex
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import hydra
import numpy as np
import optuna
from omegaconf import DictConfig
from optuna.samplers import TPESampler
from optuna.trial import FrozenTrial, TrialState
from tqdm import tqdm

from lrpilot.envs.start_method import known_start_method
from lrpilot.redaction import without_password
from scripts.jobs import explain, run_job, run_script
from scripts.overrides import given_overrides, key_of
from scripts.studies import (
    ERROR,
    NUM_REPORTS,
    TRIALS_FILE,
    as_arguments,
    draw_study,
    finished,
    open_study,
    read_space,
    storage_url,
    suggested,
    with_values,
    write_trials,
)
from scripts.training import command_line, train_configured

UNREAD = ("scheduler", "rival", "policy", "compare", "is_quick", "store", "workers")
# rows whose mean return a trial is worth, as in the summary of a training
_NUM_LAST_ROWS = 10
_POLL_SECONDS = 0.5


@hydra.main(version_base=None, config_path="../conf", config_name="tune_agent")
def main(cfg: DictConfig) -> float | None:
    """Search, in a run folder of its own; returns the best return."""
    best: float | None = run_job(tune, cfg, unread=UNREAD)
    return best


def tune(cfg: DictConfig, run_dir: Path) -> float:
    """Run the trials that are missing; print the best, and draw the study."""
    if "agent" not in cfg:
        raise ValueError("`agent` must be chosen, as in agent=ppo, got none")
    space = read_space(cfg)
    url = storage_url(cfg.search.storage, run_dir)
    study = _study(cfg, url)
    num_before = len(finished(study))
    print(
        f"study {study.study_name}: {num_before} of {cfg.search.num_trials} trials are finished; "
        f"searching {', '.join(space)}"
    )
    if cfg.num_workers:
        _work_beside_each_other(cfg, run_dir, url, study)
    else:
        with _bar(cfg, num_before) as bar:
            work(cfg, run_dir, url, bar)
    return _report(cfg, run_dir, study, url)


def _study(cfg: DictConfig, url: str) -> optuna.Study:
    search = cfg.search
    name = str(search.study_name)
    return open_study(url, name, pruner=search.pruner, num_seeds=search.num_seeds)


def _bar(cfg: DictConfig, num_before: int) -> Any:
    return tqdm(
        total=max(cfg.search.num_trials, num_before),
        initial=num_before,
        unit=" trials",
        disable=not cfg.show_progress,
    )


def work(cfg: DictConfig, run_dir: Path, url: str, bar: Any = None) -> None:
    """Run trials until enough are finished, by whichever process."""
    study = _study(cfg, url)
    space = read_space(cfg)
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)

    def objective(trial: optuna.Trial) -> float:
        # drawn by the trial's number, so that no two processes draw the same
        seed = np.random.SeedSequence([cfg.seed, trial.number]).generate_state(1)[0]
        study.sampler = TPESampler(seed=int(seed))
        try:
            changed = with_values(cfg, suggested(trial, space))
            return run_trial(changed, trial, run_dir / "trials" / str(trial.number))
        except optuna.TrialPruned:
            raise
        except Exception as error:
            text = explain(error) or f"{type(error).__name__}: {error}"
            trial.set_user_attr(ERROR, text)
            tqdm.write(f"trial {trial.number} failed: {text}", file=sys.stderr)
            raise

    while len(finished(study)) < cfg.search.num_trials:
        study.optimize(objective, n_trials=1, catch=(Exception,))
        if bar is not None:
            _show(bar, study)


def _work_beside_each_other(cfg: DictConfig, run_dir: Path, url: str, study: optuna.Study) -> None:
    """Run trials in `num_workers` processes."""
    context = multiprocessing.get_context("spawn")
    workers = [
        context.Process(target=work, args=(cfg, run_dir, url)) for _ in range(cfg.num_workers)
    ]
    with known_start_method():
        for worker in workers:
            worker.start()
    with _bar(cfg, len(finished(study))) as bar:
        while any(worker.is_alive() for worker in workers):
            time.sleep(_POLL_SECONDS)
            _show(bar, study)
    codes = [worker.exitcode for worker in workers]
    if any(codes) and len(finished(study)) < cfg.search.num_trials:
        raise SystemExit(
            f"workers ended with the exit codes {codes}; the same command with "
            "search.storage=<run folder> goes on"
        )


def _show(bar: Any, study: optuna.Study) -> None:
    bar.update(len(finished(study)) - bar.n)
    best = _best(study)
    if best is not None:
        bar.set_postfix_str(f"best return {best.value:+.3f}")


def _best(study: optuna.Study) -> FrozenTrial | None:
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return max(complete, key=lambda trial: trial.value or 0.0, default=None)


def run_trial(cfg: DictConfig, trial: optuna.Trial, folder: Path) -> float:
    """The mean return of the last rollouts, over the agents of all seeds.

    Raises:
        optuna.TrialPruned: if the returns so far are hopeless.
        ValueError: if no episode ended.
    """
    returns: list[float] = []
    group = folder.parents[1].name
    for index in range(cfg.search.num_seeds):
        job = cfg.copy()
        job.seed, job.show_progress = cfg.seed + index, False
        run_dir = folder / f"seed_{job.seed}"
        run_dir.mkdir(parents=True)
        reports = Reports(trial, total_steps=cfg.agent.total_steps, earlier=returns)
        with redirect_stdout(io.StringIO()):
            summary = train_configured(job, run_dir, report=reports, group=group)
        if summary["stopped_by"]:
            raise KeyboardInterrupt
        last = summary["return_mean_last_rollouts"]
        if last is None or not math.isfinite(last):
            raise ValueError(
                "`agent.total_steps` must be enough for an episode to end with a finite return, "
                f"got {cfg.agent.total_steps} and {last}"
            )
        returns.append(last)
    return float(np.mean(returns))


class Reports:
    """Tells a trial how its training goes, at every tenth of the budget.

    Args:
        trial: is told the mean return of the last rollouts, averaged with those of other seeds.
        total_steps: the budget, env steps.
        earlier: the returns of the seeds before.
    """

    def __init__(self, trial: optuna.Trial, *, total_steps: int, earlier: list[float]) -> None:
        self._trial = trial
        self._total_steps = total_steps
        self._earlier = list(earlier)
        self._returns: list[float] = []
        self._num_told = 0

    def __call__(self, row: dict[str, Any], step: int) -> None:
        """Take a row of metrics.

        Raises:
            optuna.TrialPruned: if the returns so far are hopeless.
        """
        if row["num_episodes"]:
            self._returns.append(float(row["return_mean"]))
        reached = min(NUM_REPORTS, NUM_REPORTS * step // self._total_steps)
        if reached == self._num_told or not self._returns:
            return
        last = float(np.mean(self._returns[-_NUM_LAST_ROWS:]))
        value = float(np.mean([*self._earlier, last]))
        # rollouts of other lengths reach other steps, and a pruner compares those of one number
        for number in range(self._num_told, reached):
            self._trial.report(value, len(self._earlier) * NUM_REPORTS + number)
        self._num_told = reached
        # a training that is over is no cheaper if it is pruned
        if reached < NUM_REPORTS and self._trial.should_prune():
            raise optuna.TrialPruned


def _report(cfg: DictConfig, run_dir: Path, study: optuna.Study, url: str) -> float:
    trials = study.get_trials(deepcopy=False)
    write_trials(trials, run_dir / TRIALS_FILE)
    best = _best(study)
    states = [trial.state for trial in trials]
    if best is None:
        errors = [trial.user_attrs[ERROR] for trial in trials if ERROR in trial.user_attrs]
        raise ValueError(
            f"`search` must have one trial at least that succeeds, got {len(errors)} that failed"
            + (f"; the last: {errors[-1]}" if errors else "")
        )
    figures = draw_study(study, run_dir)
    counts = {state: states.count(state) for state in dict.fromkeys(states)}
    print(f"\ntrials       {', '.join(f'{n} {state.name.lower()}' for state, n in counts.items())}")
    print(f"best         trial {best.number}, return {best.value:+.3f}")
    for key, value in best.params.items():
        print(f"             {key}={value}")
    print(f"storage      {without_password(url)}")
    for path in (run_dir / TRIALS_FILE, *figures):
        print(f"             {path}")
    given = [o for o in given_overrides() if key_of(o).split(".")[0] in ("task", "env", "agent")]
    given = [o for o in given if key_of(o) not in best.params]
    shown = [shlex.quote(override.removeprefix("++")) for override in given]
    arguments = [*shown, *as_arguments(cfg, best.params)]
    print(f"train        {command_line('train_agent.py', *arguments)}")
    assert best.value is not None
    return best.value


if __name__ == "__main__":
    run_script(main)
