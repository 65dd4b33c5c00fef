"""Stochastic non-negative matrix factorization under a certified step size."""
