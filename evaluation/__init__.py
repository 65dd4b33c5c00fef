"""Run schedulers x initial learning rates x seeds through real optimizers, and report."""
