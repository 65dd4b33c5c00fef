"""Learned step sizes for stochastic NMF (ICLR 2023)."""
