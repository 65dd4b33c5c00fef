"""What a learning-rate policy sees: dimensionless features of a training run."""

from dataclasses import asdict, dataclass
from typing import Any, Self

from lrpilot.arguments import require_count, require_fields

FEATURES: dict[str, tuple[str, ...]] = {
    "progress": ("progress",),
    "loss": ("log_loss", "short_slope", "long_slope", "slope_significance", "relative_noise"),
    "lr": ("log_lr", "previous_action"),
    "movement": ("displacement", "displacement_cosine", "weight_growth"),
    "gradient": ("gradient_growth",),
}
"""The groups that are on by default."""
OPTIONAL_FEATURES: dict[str, tuple[str, ...]] = {"curvature": ("edge_distance",)}
"""The groups that cost gradients of their own."""
_ALL_FEATURES = FEATURES | OPTIONAL_FEATURES
FEATURE_LIMIT = 5.0
"""All features are clipped to it, and to its negative."""


@dataclass(frozen=True)
class ObservationSpec:
    """Which features a policy sees, in which order.

    All features are dimensionless and lie in [-5, 5]. With r the minibatch loss divided by the
    first loss of the run, m_k its mean over decision interval k (floored at 1e-8), s_k^2 its
    variance (an exponential average, .7, over intervals), se_k^2 = s_k^2 / steps, w_k the sampled
    parameter entries at the end of interval k, d_k = w_k - w_{k-1}, and g_k their gradient:

    ========== =================== ====================================================
    group      feature             value
    ========== =================== ====================================================
    progress   progress            2 t/T - 1; stays 1 past the end
    loss       log_loss            log(m_k) / 2
    loss       short_slope         asinh(10 (log m_k - log m_{k-1})) / 2
    loss       long_slope          the same of an exponential average (.8) of the slope
    loss       slope_significance  asinh((m_k - m_{k-1}) / sqrt(se_k^2 + se_{k-1}^2)) / 2
    loss       relative_noise      1 + log10(s_k / m_k + 1e-4) / 2
    lr         log_lr              log10(lr / initial lr) / 2
    lr         previous_action     in [-1, 1]
    movement   displacement        2 + log10(||d_k|| / ||w_k||)
    movement   displacement_cosine <d_k, d_{k-1}> / (||d_k|| ||d_{k-1}||)
    movement   weight_growth       asinh(10 log(||w_k|| / ||w_{k-1}||)) / 2
    gradient   gradient_growth     log(||g_k|| / ||g_{k-1}||) / 2
    curvature  edge_distance       log10(lr / eta_max), the largest stable lr; see
                                   `EdgeDistance`; 0 after an interval without a step
    ========== =================== ====================================================

    Args:
        groups: the groups of features that are switched on; by default all but curvature, which
            needs a loss that can be computed anew, and costs some gradients per decision.
        num_entries: how many parameter entries are sampled for movement and gradient.

    Raises:
        ValueError: if a group is unknown or given twice, or `num_entries` is no whole number of
            at least 1.

    >>> ObservationSpec(groups=("progress", "lr")).names
    ('progress', 'log_lr', 'previous_action')
    """

    groups: tuple[str, ...] = tuple(FEATURES)
    num_entries: int = 10_000

    def __post_init__(self) -> None:
        if isinstance(self.groups, str):
            raise ValueError(f"`groups` must be a list of names, got {self.groups!r}")
        object.__setattr__(self, "groups", tuple(self.groups))
        if not self.groups or len(set(self.groups)) != len(self.groups):
            raise ValueError(f"`groups` must name each group once, got {list(self.groups)}")
        for group in self.groups:
            if group not in _ALL_FEATURES:
                raise ValueError(f"`groups` must be among {list(_ALL_FEATURES)}, got {group!r}")
        require_count("num_entries", self.num_entries)

    @property
    def names(self) -> tuple[str, ...]:
        """The features in their order."""
        return tuple(name for group in self.groups for name in _ALL_FEATURES[group])

    @property
    def needs_progress(self) -> bool:
        """Whether the total number of steps must be known."""
        return "progress" in self.groups

    def to_dict(self) -> dict[str, Any]:
        """The specification as it is stored in a policy file."""
        return {**asdict(self), "groups": list(self.groups)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The specification stored in a policy file."""
        require_fields(cls, values)
        return cls(**values)
