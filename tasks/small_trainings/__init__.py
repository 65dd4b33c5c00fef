"""Small trainings of many kinds: the task that teaches a policy to transfer to any network."""
