"""The scale of the matrix: legible everywhere, in both themes and in greyscale."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest

from advens.results.report import colour


@pytest.mark.parametrize(("one", "other", "ratio"), [
    ("#000000", "#ffffff", 21.0), ("#777777", "#ffffff", 4.478), ("#0000ff", "#ffffff", 8.592),
])  # fmt: skip
def test_contrast_is_that_of_wcag(one: str, other: str, ratio: float) -> None:
    assert colour.contrast(one, other) == pytest.approx(ratio, abs=1e-3)
    assert colour.contrast(other, one) == colour.contrast(one, other)


def test_ends_of_oklab() -> None:
    """White, black and a red of oklab's article."""
    assert colour._hex((1.0, 0.0, 0.0)) == "#ffffff"
    assert colour._hex((0.0, 0.0, 0.0)) == "#000000"
    assert colour._hex((0.62796, 0.22486, 0.12585)) == "#ff0000"


def test_every_step_can_be_read_in_both_themes() -> None:
    found = re.findall(
        r"\.v\d+{background-color:light-dark\((#\w+),(#\w+)\);color:light-dark\((#\w+),(#\w+)\)}",
        colour.stylesheet(),
    )
    assert len(found) == colour.LEVELS
    for light, dark, ink, ink_dark in found:
        assert colour.contrast(light, ink) >= 4.5
        assert colour.contrast(dark, ink_dark) >= 4.5


@pytest.mark.parametrize("scale", [colour.LIGHT, colour.DARK])
def test_lightness_alone_orders_the_steps(scale: colour.Scale) -> None:
    """In greyscale, and for those who see no hues, a higher rate is farther from the page."""
    lights = [colour._luminance(scale.at(step / 20)) for step in range(21)]
    up = lights[-1] > lights[0]
    assert all((b > a) == up for a, b in pairwise(lights))


@pytest.mark.parametrize(("share", "step"), [(0, 0), (1, 50), (0.5, 25), (-0.2, 0), (1.2, 50), (0.334, 17)])
def test_levels(share: float, step: int) -> None:
    assert colour.level(share) == step


def test_text_of_the_page_has_contrast() -> None:
    """Colours of text on the backgrounds that it may stand on, from the style sheet."""
    from advens.results.report.page import _static

    colours = dict(re.findall(r"--(\w+):light-dark\((#\w+,#\w+)\)", _static("report.css")))
    both = {name: value.split(",") for name, value in colours.items()}
    for text, grounds in {
        "ink": ("page", "surface", "wash", "warnwash", "hatch"), "soft": ("page", "surface", "wash"),
        "accent": ("page", "surface", "wash"),
    }.items():  # fmt: skip
        for ground in grounds:
            for theme in (0, 1):
                ratio = colour.contrast(both[text][theme], both[ground][theme])
                assert ratio >= 4.5, (text, ground, theme, ratio)
