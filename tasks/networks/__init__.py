"""Supervised training of any network, one run at a time or many runs as one computation."""
