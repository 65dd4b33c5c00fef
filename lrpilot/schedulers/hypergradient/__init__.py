"""HypergradientLR: descend the loss along the learning rate itself."""
