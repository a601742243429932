"""OPS: noisy images under random compositions of operators."""

from __future__ import annotations

from pydantic import field_validator
from torch import Tensor

from advens.attacks.geometry import enlarged, rotate
from advens.attacks.interfaces import Context
from advens.attacks.parts import part
from advens.seeding import Draws

RADII = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
"""Of the noise, relative to 2 eps."""
EACH = 30
"""Noise images in the pool, of each radius."""
ANGLES = (5, -5, 15, -15, 45, -45, 90, -90, 180)
RATES = (1.1, 1.3, 1.5, 1.7, 1.9, 2.1, 2.3, 2.5, 2.7, 2.9)
OPERATORS: tuple[tuple[str, float], ...] = (
    ("identity", 0), ("flip", -2), ("flip", -1), ("roll", -2), ("roll", -1),
    *(("rotate", angle) for angle in ANGLES), *(("divide", by) for by in range(2, 9)),
    *(("enlarge", rate) for rate in RATES),
)  # fmt: skip
LENGTHS = (2, 3, 4)
"""Of compositions, equally many of each."""


@part("transform", "ops", paper="Guo et al., CVPR 2025 (OPS)", year=2025)
class OPS:
    """The image, and ``operators`` random compositions on the image with each of ``noises`` noises.

    Noise is taken from a pool that is drawn once for the attack, a sample's own: for each radius r = 0.25,
    0.5, ..., 1.5 times 2 eps, 30 images of U(-r, r). Each step uses some of the 180, without replacement.
    For each of them 93 compositions are built, a third of them of two, three and four operators, and some
    are used. The 31 operators, with replacement: identity; flips; rolling rows or columns by any number of
    pixels; rotations by 5, 15, 45 and 90 degrees either way and by 180 (nearest pixel, zeros outside);
    division by 2, ..., 8; and enlarging, padding and resizing back as ``dem`` does, with rates of 1.1, 1.3,
    ..., 2.9. Operators are drawn once a step and copy for the whole shard; published code shares the noise,
    too.

    Gradients are averaged as they are: a copy divided by 64 counts for little. **Published numbers take 30
    noises and 30 operators, which is 901 passes a step**; the default takes 21, as much as other methods
    do, and a comparison has to say which.

    Args:
        noises: how many noises a step, at most 180.
        operators: how many compositions for each, at most 93.
    """

    noises: int = 5
    operators: int = 4

    @field_validator("noises")
    @classmethod
    def _from_the_pool(cls, count: int) -> int:
        if not 1 <= count <= EACH * len(RADII):
            raise ValueError(f"from 1 to {EACH * len(RADII)}")
        return count

    @field_validator("operators")
    @classmethod
    def _from_the_compositions(cls, count: int) -> int:
        if not 1 <= count <= len(LENGTHS) * len(OPERATORS):
            raise ValueError(f"from 1 to {len(LENGTHS) * len(OPERATORS)}")
        return count

    @property
    def copies(self) -> int:
        return self.noises * self.operators + 1

    def __call__(self, x: Tensor, copy: int, context: Context) -> Tensor:
        if copy == 0:
            return x
        which, composition = divmod(copy - 1, self.operators)
        draws = context.draws.fork("ops")
        noise = draws.permutation(EACH * len(RADII), "pool")[which]
        radius = 2 * RADII[noise // EACH]
        x = x + context.threat.noise(x, radius, draws.at(-1), "noise", noise)  # of no step: of the attack
        built = draws.permutation(len(LENGTHS) * len(OPERATORS), "built", which)[composition]
        length = LENGTHS[built // len(OPERATORS)]
        draws = draws.fork(which, composition)
        for place, chosen in enumerate(draws.integers(len(OPERATORS), length, "operators")):
            x = operate(*OPERATORS[chosen], x, draws.fork(place))
        return x


def operate(name: str, value: float, x: Tensor, draws: Draws) -> Tensor:
    """Images under one operator."""
    if name == "flip":
        return x.flip(int(value))
    if name == "roll":
        return x.roll(draws.integers(x.shape[int(value)], 1, "shift")[0], int(value))
    if name == "rotate":
        return rotate(x, value, mode="nearest")
    if name == "divide":
        return x / value
    if name == "enlarge":
        return enlarged(x, int(value * x.shape[-2]), draws)
    return x
