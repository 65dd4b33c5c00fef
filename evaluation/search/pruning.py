"""Searches that stop hopeless trials early, by Optuna: TPE with Hyperband, and ASHA.

They need the extra `search`. A trial that is pruned has cost the steps that it ran, so the same
budget pays for more trials than a random search makes.
"""

import warnings

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import BasePruner, HyperbandPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.terminator import RegretBoundEvaluator, StaticErrorEvaluator, Terminator
from optuna.trial import TrialState

from lrpilot.evaluation.search.lr_search import REDUCTION_FACTOR, LRSearch, SearchResult

FEWEST_COMPLETE_TRIALS = 10
"""The regret is not bounded before."""


def tpe_search(search: LRSearch, *, regret_tolerance: float | None = None) -> SearchResult:
    """The tree-structured Parzen estimator draws, and Hyperband prunes at the rungs of the search.

    Both are Optuna's, at their defaults: the first ten trials are drawn at random, and of those of
    a bracket that have reached a rung the best third goes on. One bracket in about four trials is
    never pruned.

    Args:
        search: what is searched, at which cost.
        regret_tolerance: ends the search early, once Optuna's upper bound on how much lower the
            held-out loss could become, by a Gaussian process on the complete trials, of which there
            are at least ten, is below this. None spends the budget. (Optuna announces that its
            release 6 will no longer have it.)

    Raises:
        ValueError: if `regret_tolerance` is not positive.

    References:
        Bergstra et al. Algorithms for hyper-parameter optimization. 2011. Li et al. Hyperband: A
        novel bandit-based approach to hyperparameter optimization. 2018. Makarova et al. Automatic
        termination for hyperparameter optimization. 2022.
    """
    if regret_tolerance is not None and not regret_tolerance > 0.0:
        raise ValueError(f"`regret_tolerance` must be positive, got {regret_tolerance}")
    pruner = HyperbandPruner(
        min_resource=_first_rung(search),
        max_resource=search.horizon,
        reduction_factor=REDUCTION_FACTOR,
    )
    terminator = None if regret_tolerance is None else _terminator(search, regret_tolerance)
    return _run(search, TPESampler(seed=search.seed), pruner, terminator)


def asha_search(search: LRSearch) -> SearchResult:
    """Random draws under asynchronous successive halving: at each rung the best third goes on.

    A trial is compared with those that have reached the rung before it, so the first one always
    goes on.

    Args:
        search: what is searched, at which cost.

    References:
        Li et al. A system for massively parallel hyperparameter tuning. 2020.
    """
    pruner = SuccessiveHalvingPruner(
        min_resource=_first_rung(search), reduction_factor=REDUCTION_FACTOR
    )
    return _run(search, RandomSampler(seed=search.seed), pruner, None)


def _first_rung(search: LRSearch) -> int:
    return (search.rungs or [search.horizon])[0]


def _terminator(search: LRSearch, regret_tolerance: float) -> Terminator:
    with warnings.catch_warnings():
        for category in (ExperimentalWarning, FutureWarning):
            warnings.simplefilter("ignore", category)
        return Terminator(
            RegretBoundEvaluator(min_n_trials=FEWEST_COMPLETE_TRIALS, seed=search.seed),
            StaticErrorEvaluator(regret_tolerance),
            min_n_trials=FEWEST_COMPLETE_TRIALS,
        )


def _run(
    search: LRSearch, sampler: BaseSampler, pruner: BasePruner, terminator: Terminator | None
) -> SearchResult:
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # a name, as Hyperband draws a trial's bracket from it
    study = optuna.create_study(sampler=sampler, pruner=pruner, study_name=f"seed {search.seed}")
    optuna.logging.set_verbosity(verbosity)
    trials, num_left = [], search.budget_steps
    while num_left >= search.horizon:
        asked = study.ask()

        def goes_on(num_steps: int, loss: float, asked: optuna.Trial = asked) -> bool:
            asked.report(loss, num_steps)
            return not asked.should_prune()

        lr = asked.suggest_float("lr", *search.lr_range, log=True)
        trial = search.run_trial(lr, goes_on=goes_on)
        if trial.is_complete:
            study.tell(asked, trial.held_out_loss)
        else:
            study.tell(asked, state=TrialState.PRUNED)
        trials.append(trial)
        num_left -= trial.num_steps
        if terminator is not None and terminator.should_terminate(study):
            break
    return SearchResult(trials)
