"""Language models and text classification."""
