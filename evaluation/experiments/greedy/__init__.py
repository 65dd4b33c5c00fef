"""What the GreedyLR paper claims, as it measured it and with tuned rivals on held-out data.

A file per experiment. `protocols` trains, `claims` writes the table; both are the same for all.

References:
    Subramanian, Krishnamoorthy, Murthy. Zeroth order GreedyLR: an adaptive learning rate
    scheduler for deep neural network training. 2023.
    Subramanian, Krishnamoorthy, Murthy. Dynamic learning rate scheduling based on loss changes
    leads to faster convergence. 2025.
"""
