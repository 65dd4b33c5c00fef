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
OPTIONAL_FEATURES: dict[str, tuple[str, ...]] = {
    "recent_loss": (
        "recent_log_loss",
        "fast_change",
        "slow_change",
        "fast_significance",
        "slow_significance",
        "recent_noise",
    ),
    "recent_lr": ("log_lr", "lr_trend"),
    "recent_movement": ("recent_displacement", "recent_cosine", "total_growth"),
    "curvature": ("edge_distance",),
}
"""The groups that are switched on by name; that of curvature costs gradients of its own."""
LATER_GROUPS = frozenset({"recent_loss", "recent_lr", "recent_movement"})
"""Groups that came with format 3 of policy files."""
MOVEMENT_WINDOW = 4
"""Steps before a decision that recent_movement looks at."""
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

    The groups above measure over a decision interval, whose length grows with the run's. These
    depend on the steps alone, so they mean the same in a run of any length. With r_i the relative
    loss of step i, kept in [-10, 10], f and l its exponential averages over about 4 and 16 steps
    (decays 3/4 and 15/16, bias-corrected), g its mean over all steps weighted by i, s^2 half the
    average of (r_i - r_{i-1})^2 over about 16 steps, and d = d' + d'' the displacement of the last
    four steps, in two halves:

    =============== =================== ===============================================
    group           feature             value
    =============== =================== ===============================================
    recent_loss     recent_log_loss     log(l) / 2
    recent_loss     fast_change         asinh(10 log(f / l)) / 2
    recent_loss     slow_change         asinh(10 log(l / g)) / 2
    recent_loss     fast_significance   asinh((f - l) / (.264 s)) / 2
    recent_loss     slow_significance   asinh((l - g) / (.18 s)) / 2
    recent_loss     recent_noise        1 + log10(s / l + 1e-4) / 2
    recent_lr       log_lr              log10(lr / initial lr) / 2
    recent_lr       lr_trend            log10(lr) minus its mean over all steps weighted by i
    recent_movement recent_displacement 2 + log10(||d|| / ||w||)
    recent_movement recent_cosine       <d', d''> / (||d'|| ||d''||)
    recent_movement total_growth        asinh(10 log(||w|| / ||w_0||)) / 2
    =============== =================== ===============================================

    The factors .264 and .18 are the standard errors of the differences for independent losses of
    variance 1; where r falls as a power of the step, slow_change is constant.

    Args:
        groups: the groups of features that are switched on; by default those of intervals.
            Curvature needs a loss that can be computed anew, and costs some gradients per decision.
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
    def least_interval(self) -> int:
        """The fewest optimizer steps between two decisions."""
        return MOVEMENT_WINDOW + 1 if "recent_movement" in self.groups else 1

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
