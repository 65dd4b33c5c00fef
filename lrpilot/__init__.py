"""Learning-rate schedules that learn: run a learned policy as a PyTorch scheduler."""

from lrpilot import environment
from lrpilot.action import ActionSpec
from lrpilot.adaptive_lr import AdaptiveLR
from lrpilot.caps import Cap
from lrpilot.controller import ClockSpec, Controller
from lrpilot.curvature import CurvatureCap
from lrpilot.decision_log import Decision, DecisionLog
from lrpilot.greedy_lr import GreedyLR
from lrpilot.guard import DivergenceError, Guard
from lrpilot.hypergradient import HypergradientLR
from lrpilot.line_search import LineSearchLR
from lrpilot.observation import ObservationSpec, Observer
from lrpilot.policy import Policy, PolicyFileError
from lrpilot.policy_lr import PolicyLR

__version__ = "0.1.0"

__all__ = [
    "ActionSpec",
    "AdaptiveLR",
    "Cap",
    "ClockSpec",
    "Controller",
    "CurvatureCap",
    "Decision",
    "DecisionLog",
    "DivergenceError",
    "GreedyLR",
    "Guard",
    "HypergradientLR",
    "LineSearchLR",
    "ObservationSpec",
    "Observer",
    "Policy",
    "PolicyFileError",
    "PolicyLR",
]

environment.register()
