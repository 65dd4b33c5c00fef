"""GreedyLR: raise the learning rate while the loss falls, lower it while the loss rises."""
