"""Many different small networks: the task that teaches a policy to transfer."""
