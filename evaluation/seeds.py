"""Seeds of evaluation: disjoint ranges above those that agents are trained on."""

from lrpilot.envs.lr_control import FIRST_EVALUATION_SEED

__all__ = ["FIRST_EVALUATION_SEED", "FIRST_REPLAY_SEED", "FIRST_TUNING_SEED"]

FIRST_TUNING_SEED = FIRST_EVALUATION_SEED + 1_000_000
FIRST_REPLAY_SEED = FIRST_EVALUATION_SEED + 2_000_000
