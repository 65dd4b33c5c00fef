"""LineSearchLR: the largest learning rate that passes a test of sufficient decrease."""
