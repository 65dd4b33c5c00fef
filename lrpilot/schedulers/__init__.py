"""The torch schedulers: one base class, and one room for each scheduler of more than a file."""
