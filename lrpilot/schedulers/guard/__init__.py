"""Guard: lower the learning rate and restore weights when another scheduler's training breaks."""
