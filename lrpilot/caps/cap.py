"""What a cap is: the learning rate that a controller may never exceed."""

from collections.abc import Callable

Cap = Callable[[], tuple[float, str]]
"""Asked before every optimizer step: the largest learning rate, and the name of its guarantee.

A cap reads the state of the run through its closure, and must not depend on the minibatch of
the step that it bounds, or expectations over that minibatch no longer hold. Guarantees are

- deterministic: a noise-free step does not raise the loss;
- expected: the step does not raise the expected loss, under the noise that the cap states;
- stationary: noise is bounded, not beaten: the loss falls up to a term of its variance;
- estimate: measured, or held beyond the state that it was computed on.
"""


def ask_cap(cap: Cap) -> tuple[float, str]:
    """Ask a cap and check its answer.

    Raises:
        TypeError: if it is no function, or returns anything but the two values.
        ValueError: if the largest learning rate is not positive.

    >>> ask_cap(lambda: (0.5, "estimate"))
    (0.5, 'estimate')
    """
    answer = cap() if callable(cap) else cap
    if not isinstance(answer, tuple) or len(answer) != 2:
        raise TypeError(
            f"`cap` must be a function that returns (largest lr, name of guarantee), got {answer!r}"
        )
    eta_max, guarantee = float(answer[0]), answer[1]
    if not eta_max > 0.0:
        raise ValueError(f"`cap` must return a positive learning rate, got {eta_max}")
    return eta_max, guarantee
