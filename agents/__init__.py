"""Reinforcement-learning agents: train, checkpoint, resume, export to an `lrpilot.Policy`."""
