"""Imitation: an agent's first policy, learned from schedules that were tuned for each training."""

from lrpilot.agents.imitation.control import train_controlled
from lrpilot.agents.imitation.dagger import imitate
from lrpilot.agents.imitation.experts import Experts, search_experts

__all__ = ["Experts", "imitate", "search_experts", "train_controlled"]
