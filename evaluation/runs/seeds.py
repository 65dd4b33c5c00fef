"""Seeds of evaluation: disjoint ranges above those that agents are trained on."""

from lrpilot.envs.episodes import FIRST_EVALUATION_SEED

FIRST_TUNING_SEED = FIRST_EVALUATION_SEED + 1_000_000
FIRST_REPLAY_SEED = FIRST_EVALUATION_SEED + 2_000_000


def evaluation_seeds(count: int) -> range:
    """Seeds whose runs are reported; nothing is trained or chosen on them."""
    return range(FIRST_EVALUATION_SEED, FIRST_EVALUATION_SEED + count)


def tuning_seeds(count: int) -> range:
    """Seeds that initial learning rates are chosen on."""
    return range(FIRST_TUNING_SEED, FIRST_TUNING_SEED + count)


def replay_seeds(count: int) -> range:
    """Seeds that a policy is recorded on, for the placebos that replay it."""
    return range(FIRST_REPLAY_SEED, FIRST_REPLAY_SEED + count)
