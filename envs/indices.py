"""Which of many environments a call is for."""

from collections.abc import Iterable


def selected(indices: int | Iterable[int] | None, num_envs: int) -> list[int]:
    """The indices as a list; None selects all environments.

    >>> selected(None, 3), selected(2, 3), selected([2, 0], 3)
    ([0, 1, 2], [2], [2, 0])
    """
    if indices is None:
        return list(range(num_envs))
    return [indices] if isinstance(indices, int) else list(indices)
