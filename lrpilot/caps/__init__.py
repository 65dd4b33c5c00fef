"""Largest learning rates that no scheduler exceeds, and how they are measured."""
