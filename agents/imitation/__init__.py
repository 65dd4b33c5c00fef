"""Imitation: an agent's first policy, learned from schedules that were tuned for each training."""

from lrpilot.agents.imitation.dagger import imitate
from lrpilot.agents.imitation.experts import Expert, read_experts, search_experts, write_experts

__all__ = ["Expert", "imitate", "read_experts", "search_experts", "write_experts"]
