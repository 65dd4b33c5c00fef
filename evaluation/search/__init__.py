"""Searches over the initial learning rate, at a cost that is counted in optimizer steps."""
