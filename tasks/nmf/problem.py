"""What is factorized, from which noisy gradients: all that an `NMFTask` is told."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from lrpilot.tasks.data.matrices import (
    REAL_MATRICES,
    load_matrix,
    normalize_matrix,
    read_matrix,
    to_tensor,
)
from lrpilot.tasks.devices import DeviceTask
from lrpilot.tasks.task import shared_property

NOISES = ("none", "minibatch", "gaussian", "relative")
UPDATES = ("simultaneous", "alternating")
CAPS = ("segment", "ball", "block")


@dataclass(frozen=True, kw_only=True)
class NMFProblem(DeviceTask):
    """Minimize f(W, H) = 1/2 ||V - W H||^2 over W, H >= 0 from noisy gradients.

    Each seed is a new matrix V = k^2 max(W* H* + E, 0), normalized to mean k^2, where the entries
    of W* and H* are uniform or zero, their columns and rows decay geometrically, and E is
    Gaussian; or, with `matrix`, a real matrix times k^2. After every step the factors are
    projected on the non-negative orthant (and, under the ball cap, on a ball). The exact f is
    privileged; the observed loss is the one of a random minibatch of columns.

    Noise of the gradient G, with level c drawn per run:

    - "none": G itself, and the exact loss;
    - "minibatch": unbiased estimates from `batch_size` columns (for W) and rows (for H);
    - "gaussian": i.i.d. entries of standard deviation c times the root mean square of the
      entries of G at the start, the same at every step;
    - "relative": as gaussian, but relative to the present G, so E||xi||^2 = c^2 ||G||^2.

    All of it is equivariant: V -> k^2 V multiplies the gradient and its noise by k^3.

    Args:
        shape: (m, n) of V; of the largest V if `smallest_shape` is given.
        rank: r, at most min(m, n); the largest rank if `smallest_rank` is given.
        smallest_shape: sizes are drawn uniformly from here to `shape`.
        smallest_rank: ranks are drawn uniformly from here to `rank`.
        scale_range: V's mean k^2, log-uniform.
        condition_range: ratio of the first to the last column of W*, log-uniform.
        sparsity_range: share of zeros in W* and H*, uniform.
        data_noise: standard deviation of E over the mean of W* H*.
        start_scale: W and H start so many times as large; at 1, W H starts at the mean of V.
        matrix: what to factorize instead of random matrices: "olivetti", "digits",
            "shakespeare", "fashion_mnist", the path of an .npy, .npz or .csv file (see
            `read_matrix`), or a matrix of the user's own: a tensor, an array or a sparse one, a
            data frame or a list of rows, of floats, integers or booleans, none negative. It is
            divided by its mean, computed with in float32, and sets `shape`.
        data_dir: folder of the data files (default: environment variable `LRPILOT_DATA`).
        noise: one of `NOISES`.
        noise_range: the level c, log-uniform.
        batch_size: columns (rows) per minibatch, at most min(m, n).
        with_replacement: whether minibatches are drawn with replacement.
        update: "simultaneous" (W and H at once) or "alternating" (W at even steps, H at odd).
        cap_kind: None, "segment", "ball" or "block" (alternating updates only).
        cap_c: eta L at the cap, in (0, 2).

    Raises:
        ValueError: if an argument is out of range, or the cap does not certify the update.
    """

    shape: Sequence[int] = (40, 40)
    rank: int = 5
    smallest_shape: Sequence[int] | None = None
    smallest_rank: int | None = None
    scale_range: Sequence[float] = (1.0, 1.0)
    condition_range: Sequence[float] = (1.0, 1.0)
    sparsity_range: Sequence[float] = (0.0, 0.0)
    data_noise: float = 0.1
    start_scale: float = 1.0
    matrix: Any = None
    data_dir: str | None = None
    noise: str = "minibatch"
    noise_range: Sequence[float] = (1.0, 1.0)
    batch_size: int = 10
    with_replacement: bool = False
    update: str = "simultaneous"
    cap_kind: str | None = None
    cap_c: float = 1.9

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.matrix is not None:
            is_met = self.smallest_shape is None
            self._require("smallest_shape", is_met, "be None with a real `matrix`")
            if isinstance(self.matrix, str | Path) and self.matrix not in REAL_MATRICES:
                object.__setattr__(self, "matrix", read_matrix(self.matrix))
            if not isinstance(self.matrix, str):
                object.__setattr__(self, "matrix", to_tensor(self.matrix))
            object.__setattr__(self, "shape", self.real_matrix.shape)
        smaller = min(self.smallest_shape or self.shape)
        for name in ("rank", "batch_size"):
            is_met = 1 <= getattr(self, name) <= smaller
            self._require(name, is_met, f"be in [1, min(m, n) = {smaller}]")
        is_met = self.smallest_rank is None or 1 <= self.smallest_rank <= self.rank
        self._require("smallest_rank", is_met, f"be in [1, rank = {self.rank}]")
        is_met = all(map(int.__le__, self.smallest_shape or (), self.shape))
        self._require("smallest_shape", is_met, f"not exceed `shape` = {tuple(self.shape)}")
        for name in ("scale_range", "condition_range", "noise_range"):
            low, high = getattr(self, name)
            self._require(name, 0.0 < low <= high < math.inf, "be 0 < low <= high")
        low, high = self.sparsity_range
        self._require("sparsity_range", 0.0 <= low <= high < 1.0, "be in [0, 1)")
        self._require("data_noise", self.data_noise >= 0.0, "not be negative")
        self._require("start_scale", 0.0 < self.start_scale < math.inf, "be positive")
        self._require("noise", self.noise in NOISES, f"be one of {NOISES}")
        self._require("update", self.update in UPDATES, f"be one of {UPDATES}")
        if self.cap_kind is not None:
            self._require("cap_kind", self.cap_kind in CAPS, f"be one of {CAPS}")
            self._require("cap_c", 0.0 < self.cap_c < 2.0, "be in (0, 2)")
            # the loss may rise though the step of each block is safe
            is_met = self.cap_kind != "block" or self.update == "alternating"
            self._require("update", is_met, "be 'alternating' for block caps")
            if self.cap_kind == "block" and self.noise in ("gaussian", "relative"):
                raise ValueError(
                    "`cap_kind` 'block' bounds no iterates under added noise: use 'segment' or "
                    "'ball'"
                )
            if self.cap_kind == "segment" and self.noise == "minibatch":
                raise ValueError(
                    "`cap_kind` 'segment' needs a bounded gradient, which minibatches have not: "
                    "use 'ball'"
                )

    @shared_property
    def real_matrix(self) -> Tensor:
        """The real matrix, or the user's, with mean 1."""
        if isinstance(self.matrix, Tensor):
            return normalize_matrix(self.matrix)
        return load_matrix(self.matrix, self.data_dir)
