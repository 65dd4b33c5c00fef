"""Networks on which statements of theory are tested: linearized, lazy, and of growing width."""
