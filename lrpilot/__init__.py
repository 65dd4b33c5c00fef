"""Learning-rate schedules that learn: run a learned policy as a PyTorch scheduler."""

from lrpilot import environment
from lrpilot.caps.cap import Cap
from lrpilot.caps.curvature import CurvatureCap
from lrpilot.policy.action import ActionSpec
from lrpilot.policy.actor import Policy
from lrpilot.policy.clock import ClockSpec
from lrpilot.policy.controller import Controller
from lrpilot.policy.observation import ObservationSpec
from lrpilot.policy.observer import Observer
from lrpilot.policy.policy_file import PolicyFileError
from lrpilot.policy.settings import ControlSettings
from lrpilot.schedulers.base import AdaptiveLR
from lrpilot.schedulers.decision_log import Decision, DecisionLog
from lrpilot.schedulers.fixed import D2ZLR, WSDLR, CosineWarmupLR
from lrpilot.schedulers.greedy.scheduler import GreedyLR
from lrpilot.schedulers.guard.scheduler import DivergenceError, Guard
from lrpilot.schedulers.hypergradient.scheduler import HypergradientLR
from lrpilot.schedulers.line_search.scheduler import LineSearchLR
from lrpilot.schedulers.policy_lr import PolicyLR
from lrpilot.version import __version__

__all__ = [
    "D2ZLR",
    "WSDLR",
    "ActionSpec",
    "AdaptiveLR",
    "Cap",
    "ClockSpec",
    "ControlSettings",
    "Controller",
    "CosineWarmupLR",
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
    "__version__",
]

environment.register()
