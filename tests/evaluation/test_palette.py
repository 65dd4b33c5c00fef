"""Methods are told apart by color, by dash and in grey, also by color-blind readers."""

from itertools import combinations, pairwise

import numpy as np
import pytest

from lrpilot.evaluation.palette import (
    COLORS,
    DARK_BACKGROUND,
    DARK_COLORS,
    NUM_STYLES,
    POLICY_COLOR,
    POLICY_DARK_COLOR,
    Style,
    method_style,
)

STYLES = [method_style(index) for index in range(NUM_STYLES)]
# Machado, Oliveira, Fernandes. A physiologically-based model for simulation of color vision
# deficiency. 2009. Severity 1.0.
COLOR_BLIND = {
    "none": np.eye(3),
    "protanopia": np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
    "deuteranopia": np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ]
    ),
    "tritanopia": np.array(
        [
            [1.255528, -0.076749, -0.178779],
            [-0.078411, 0.930809, 0.147602],
            [0.004733, 0.691367, 0.303900],
        ]
    ),
}
TO_XYZ = np.array(
    [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
) / np.array([[0.9505], [1.0], [1.089]])


def linear(color: str) -> np.ndarray:
    """The linear RGB of "#rrggbb"."""
    encoded = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    """CIELAB: lightness, and the two axes of color."""
    x, y, z = TO_XYZ @ rgb
    x, y, z = (np.cbrt(t) if t > 0.008856 else 7.787 * t + 16 / 116 for t in (x, y, z))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def contrast(color: str, background: str) -> float:
    """The contrast ratio of WCAG 2."""
    first, second = (TO_XYZ[1] @ linear(name) for name in (color, background))
    return float((max(first, second) + 0.05) / (min(first, second) + 0.05))


def of_one_dash() -> list[tuple[Style, Style]]:
    return [(a, b) for a, b in combinations(STYLES, 2) if a.dash == b.dash]


def test_thirty_methods_have_thirty_styles() -> None:
    assert len({(style.color, style.dash) for style in STYLES}) == NUM_STYLES == 30


def test_neighbors_differ_in_color_and_dash() -> None:
    for first, second in pairwise(STYLES):
        assert first.color != second.color
        assert first.dash != second.dash


@pytest.mark.parametrize("shade", ["color", "dark_color"])
def test_methods_of_one_dash_differ_in_grey(shade: str) -> None:
    pairs = of_one_dash()
    assert len(pairs) == 60
    for pair in pairs:
        first, second = (lab(linear(getattr(style, shade)))[0] for style in pair)
        assert abs(first - second) > 10


@pytest.mark.parametrize("shade", ["color", "dark_color"])
@pytest.mark.parametrize("kind", COLOR_BLIND)
def test_methods_of_one_dash_differ_to_color_blind_readers(shade: str, kind: str) -> None:
    """By over 15 in CIELAB, where 2.3 is just noticeable."""
    for pair in of_one_dash():
        first, second = (
            lab(np.clip(COLOR_BLIND[kind] @ linear(getattr(style, shade)), 0, 1)) for style in pair
        )
        assert np.linalg.norm(first - second) > 15


@pytest.mark.parametrize("color", [*COLORS, POLICY_COLOR])
def test_every_color_stands_out_from_white(color: str) -> None:
    assert contrast(color, "#ffffff") >= 3


@pytest.mark.parametrize("color", [*DARK_COLORS, POLICY_DARK_COLOR])
def test_every_dark_color_stands_out_from_the_dark_background(color: str) -> None:
    assert contrast(color, DARK_BACKGROUND) >= 3
