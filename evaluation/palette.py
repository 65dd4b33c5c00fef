"""How methods are told apart in figures: in color, in grey, and by color-blind readers."""

from dataclasses import dataclass

POLICY_COLOR = "#d62728"
POLICY_DARK_COLOR = "#ff5a52"
# from dark to light in steps of 11 in CIELAB lightness, each at a contrast of 3 or more with white
COLORS = ("#1c1a5e", "#6e2d00", "#00665a", "#2878d0", "#bb8c00")
# the same hues, steps and contrast in front of `DARK_BACKGROUND`
DARK_COLORS = ("#6657d6", "#c07537", "#36bba7", "#95ccfc", "#fbe58f")
DARK_BACKGROUND = "#14171c"
# lengths of strokes and gaps in turn, over the width of the line; none is a solid line
DASHES: tuple[tuple[float, ...], ...] = (
    (),
    (4, 2),
    (1.5, 1.5),
    (6, 2, 1, 2),
    (10, 3),
    (4, 1.5, 1, 1.5, 1, 1.5),
)
NUM_STYLES = len(COLORS) * len(DASHES)


@dataclass(frozen=True)
class Style:
    """How one method's line is drawn.

    Args:
        color: on a light background, as "#rrggbb".
        dark_color: on a dark one.
        dash: one of `DASHES`.
        width: of the line, in points.
    """

    color: str
    dark_color: str
    dash: tuple[float, ...]
    width: float


POLICY_STYLE = Style(POLICY_COLOR, POLICY_DARK_COLOR, dash=(), width=2.5)


def method_style(index: int) -> Style:
    """The style of a method that is no policy; `NUM_STYLES` of them differ, then they repeat.

    Color and dash both advance with the index, as 5 colors and 6 dashes have no common divisor, so
    that neighbors differ in both. Two methods of the same dash differ in lightness.

    Args:
        index: place of the method among those of the figure, from 0.

    >>> method_style(0).dash, method_style(7).dash, method_style(7).color
    ((), (4, 2), '#00665a')
    """
    return Style(
        COLORS[index % len(COLORS)],
        DARK_COLORS[index % len(COLORS)],
        DASHES[index % len(DASHES)],
        width=1.4,
    )
