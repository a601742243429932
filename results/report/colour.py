"""The colour scale of the matrix: one hue, even steps in oklab, for a light and a dark page."""

from __future__ import annotations

import math
from dataclasses import dataclass

LEVELS = 51
"""Steps of the scale: one for every two points of a rate."""


@dataclass(frozen=True)
class Scale:
    """A line in oklab from rate 0 to rate 1.

    Args:
        low, high: lightness, chroma and hue (degrees) of its ends.
    """

    low: tuple[float, float, float]
    high: tuple[float, float, float]

    def at(self, share: float) -> str:
        """The colour of a share in [0, 1], as ``#rrggbb``."""
        one, other = (_oklab(*end) for end in (self.low, self.high))
        return _hex(tuple(a + share * (b - a) for a, b in zip(one, other, strict=True)))


LIGHT = Scale((0.975, 0.008, 250), (0.37, 0.125, 258))
DARK = Scale((0.235, 0.018, 258), (0.86, 0.095, 245))
INKS = ("#000000", "#ffffff")


def level(share: float) -> int:
    """The step of the scale for a share in [0, 1]."""
    return round((LEVELS - 1) * min(max(share, 0.0), 1.0))


def ink(background: str) -> str:
    """Black or white, whichever is read better on a colour."""
    return max(INKS, key=lambda each: contrast(each, background))


def stylesheet() -> str:
    """A rule for every step and both themes: ``.v0`` to ``.v50``; in SVG ``.f0`` fills, ``.t0`` is text."""
    rules = []
    for step in range(LEVELS):
        light, dark = (scale.at(step / (LEVELS - 1)) for scale in (LIGHT, DARK))
        rules.append(
            f".v{step}{{background-color:light-dark({light},{dark});"
            f"color:light-dark({ink(light)},{ink(dark)})}}"
        )
        rules.append(
            f"svg .f{step}{{fill:light-dark({light},{dark})}}"
            f"svg .t{step}{{fill:light-dark({ink(light)},{ink(dark)})}}"
        )
    return "\n".join(rules)


def contrast(one: str, other: str) -> float:
    """The contrast ratio of two colours by WCAG 2, from 1 to 21."""
    lighter, darker = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def _luminance(colour: str) -> float:
    r, g, b = (_linear(int(colour[k : k + 2], 16) / 255) for k in (1, 3, 5))
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def _linear(value: float) -> float:
    return value / 12.92 if value <= 0.04045 else float(((value + 0.055) / 1.055) ** 2.4)


def _oklab(lightness: float, chroma: float, hue: float) -> tuple[float, float, float]:
    angle = math.radians(hue)
    return lightness, chroma * math.cos(angle), chroma * math.sin(angle)


def _hex(lab: tuple[float, ...]) -> str:
    """A colour in oklab as sRGB (Ottosson, 2020), each channel clipped."""
    lightness, a, b = lab
    l3 = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    m3 = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    s3 = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    channels = (
        4.0767416621 * l3 - 3.3077115913 * m3 + 0.2309699292 * s3,
        -1.2684380046 * l3 + 2.6097574011 * m3 - 0.3413193965 * s3,
        -0.0041960863 * l3 - 0.7034186147 * m3 + 1.7076147010 * s3,
    )
    return "#" + "".join(f"{round(255 * _encoded(value)):02x}" for value in channels)


def _encoded(linear: float) -> float:
    value = min(max(linear, 0.0), 1.0)
    return 12.92 * value if value <= 0.0031308 else float(1.055 * value ** (1 / 2.4) - 0.055)
