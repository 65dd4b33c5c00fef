"""The largest stable learning rate of lazily trained networks."""
