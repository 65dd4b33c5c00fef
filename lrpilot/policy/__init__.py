"""What a policy sees, what it does and how it is stored: shared by training and deployment."""
