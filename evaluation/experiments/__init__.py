"""The published experiments, from the runs to the tables."""
