"""Learning-rate schedules that learn: run a learned policy as a PyTorch scheduler."""

from lrpilot.action import ActionSpec
from lrpilot.caps import Cap
from lrpilot.controller import ClockSpec, Controller
from lrpilot.observation import ObservationSpec, Observer
from lrpilot.policy import Policy, PolicyFileError
from lrpilot.policy_lr import PolicyLR

__version__ = "0.1.0"

__all__ = [
    "ActionSpec",
    "Cap",
    "ClockSpec",
    "Controller",
    "ObservationSpec",
    "Observer",
    "Policy",
    "PolicyFileError",
    "PolicyLR",
]
