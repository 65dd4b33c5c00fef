"""Step-size caps: what a controller may never exceed."""

from collections.abc import Callable

Cap = Callable[[], tuple[float, str]]
"""Asked before every optimizer step: the largest learning rate, and the name of its guarantee.

A cap reads the state of the run through its closure, and must not depend on the minibatch of
the step that it bounds, or expectations over that minibatch no longer hold. Guarantees are
named as in `"deterministic"`, `"expected"`, `"stationary"` or `"estimate"`.
"""


def ask_cap(cap: Cap) -> tuple[float, str]:
    """Ask a cap and check its answer.

    Raises:
        ValueError: if the largest learning rate is not positive.

    >>> ask_cap(lambda: (0.5, "estimate"))
    (0.5, 'estimate')
    """
    eta_max, guarantee = cap()
    eta_max = float(eta_max)
    if not eta_max > 0.0:
        raise ValueError(f"`cap` must return a positive learning rate, got {eta_max}")
    return eta_max, guarantee
