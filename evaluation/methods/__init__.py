"""What is compared: schedules, adaptive rivals and placebo controls."""
