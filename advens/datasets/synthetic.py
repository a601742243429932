"""``synthetic:shapes?n=N&seed=S``: procedural colour images, any number of them, from nothing.

Ten classes of shapes and patterns in random colours, places and sizes, with noise. Image ``i``
depends on (seed, i) only. Nothing but exactly rounded arithmetic is used (no sines, no
exponentials) on a generator whose stream is frozen, so the bytes are the same on every machine.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from advens.datasets.source import Bytes, Integers, NumberedIds
from advens.errors import InputError, unknown

KINDS = ("shapes",)
SIDE = 32
VERSION = 1
"""Raised whenever the images change, so that digests do too."""

Plane = NDArray[np.float64]
Mask = NDArray[np.bool_]

SHAPES: dict[str, Callable[[Plane, Plane], Mask]] = {
    # u runs right and v down, both in units of the shape's half-width, 0 at its centre
    "disc": lambda u, v: u * u + v * v < 1,
    "ring": lambda u, v: (u * u + v * v < 1) & (u * u + v * v > 0.36),
    "square": lambda u, v: np.maximum(abs(u), abs(v)) < 0.85,
    "frame": lambda u, v: (np.maximum(abs(u), abs(v)) < 0.9) & (np.maximum(abs(u), abs(v)) > 0.55),
    "triangle": lambda u, v: (v < 0.8) & (2 * abs(u) < v + 1),
    "plus": lambda u, v: (np.minimum(abs(u), abs(v)) < 0.25) & (np.maximum(abs(u), abs(v)) < 1),
    "saltire": lambda u, v: (abs(abs(u) - abs(v)) < 0.3) & (np.maximum(abs(u), abs(v)) < 0.9),
    "rows": lambda u, v: np.floor(2.5 * v) % 2 == 0,
    "columns": lambda u, v: np.floor(2.5 * u) % 2 == 0,
    "checkers": lambda u, v: (np.floor(2 * u) + np.floor(2 * v)) % 2 == 0,
}
"""The classes: which pixels are foreground."""


@dataclass(frozen=True)
class SyntheticSource:
    """``count`` images of 3x32x32 made when asked for; image i is of class i mod 10.

    Args:
        count: how many.
        seed: any number from 0 to 2**32 - 1.
    """

    count: int
    seed: int = 0
    target_labels: None = None
    in_memory: bool = False

    @property
    def class_names(self) -> tuple[str, ...]:
        """The shapes."""
        return tuple(SHAPES)

    @property
    def num_classes(self) -> int:
        """Ten."""
        return len(SHAPES)

    @cached_property
    def labels(self) -> Integers:
        """(N,) 0, 1, ..., 9, 0, 1, ..."""
        return np.arange(self.count, dtype=np.int64) % len(SHAPES)

    @property
    def sample_ids(self) -> NumberedIds:
        """``shapes-SEED-0000017``."""
        return NumberedIds(f"shapes-{self.seed}", self.count, 7)

    def header_sizes(self, rows: Integers) -> Iterator[tuple[int, tuple[int, int]]]:
        """(32, 32) for all."""
        yield int(rows[0]), (SIDE, SIDE)

    def pixels(self, row: int) -> Bytes:
        """Image ``row``, (3, 32, 32)."""
        draw = np.random.RandomState([self.seed, row])
        centre_u, centre_v, radius = draw.random_sample(3)
        radius = SIDE * (0.22 + 0.16 * radius)
        u = (np.arange(SIDE) + 0.5 - SIDE * (0.38 + 0.24 * centre_u)) / radius
        v = (np.arange(SIDE) + 0.5 - SIDE * (0.38 + 0.24 * centre_v)) / radius
        mask = SHAPES[tuple(SHAPES)[row % len(SHAPES)]](u[None, :], v[:, None])
        ground = draw.randint(0, 256, 3, dtype=np.int64)
        # modulo 256, so the two colours differ by 80 levels or more in every channel
        ink = (ground + draw.randint(80, 177, 3, dtype=np.int64)) % 256
        image = np.where(mask, ink[:, None, None], ground[:, None, None])
        noise = draw.randint(-12, 13, (3, SIDE, SIDE), dtype=np.int8)
        return np.clip(image + noise, 0, 255).astype(np.uint8)

    def content(self, rows: Integers) -> Iterator[bytes]:
        """What the rows are made from: seed and numbers. No image is drawn."""
        text = f"synthetic shapes v{VERSION} {SIDE}x{SIDE} seed {self.seed}"
        numbers = rows.astype("<i8").tobytes()
        yield hashlib.sha256(text.encode() + b"\0" + numbers).digest()


def load(path: str, n: str = "1000", seed: str = "0") -> SyntheticSource:
    """``n`` images drawn from ``seed``. Raises InputError for another kind or a bad number."""
    if path not in KINDS:
        raise unknown("synthetic data", path, KINDS)
    numbers = {}
    for key, text, low in (("n", n, 1), ("seed", seed, 0)):
        if not text.isdecimal() or not low <= int(text) < 2**32:
            raise InputError(
                f"synthetic:{path}: {key} = '{text}' must be a whole number from {low} to 2^32 - 1"
            )
        numbers[key] = int(text)
    return SyntheticSource(numbers["n"], numbers["seed"])
