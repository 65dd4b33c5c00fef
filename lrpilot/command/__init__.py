"""The command `lrpilot`: what a policy is and does, and what came of runs."""
