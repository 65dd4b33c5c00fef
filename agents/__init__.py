"""Reinforcement-learning agents: train, checkpoint, resume, export to an `lrpilot.Policy`."""

from lrpilot.agents.training import train

__all__ = ["train"]
