"""DEM: diversity ensemble, enlarged and padded copies whose logits are averaged."""

from __future__ import annotations

from typing import Literal

from pydantic import field_validator
from torch import Tensor

from advens.attacks.geometry import enlarged
from advens.attacks.interfaces import Context
from advens.attacks.parts import part


@part("transform", "dem", paper="Zou et al., ECCV 2020 (DEM)", year=2020)
class DEM:
    """Copies enlarged to a random size, padded with zeros to ``int(rate H)`` and resized back, one a rate.

    The loss is that of the mean of the copies' logits; ``over="loss"`` takes the mean of their losses, as
    other transforms do. Averaged logits hold the graphs of all copies in memory at once.

    The side is a whole number of pixels between H and ``int(rate H) - 1``. Sides and places are drawn once a
    step and copy for the whole shard. The paper feeds the enlarged images to surrogates that take them;
    here, as in published PyTorch code, every copy is resized back.

    Args:
        rates: the largest size of each copy, relative to the image's.
        over: what is averaged over copies, ``logits`` or the ``loss``.
    """

    rates: tuple[float, ...] = (1.14, 1.27, 1.4, 1.53, 1.66)
    over: Literal["logits", "loss"] = "logits"

    @field_validator("rates")
    @classmethod
    def _enlarge(cls, rates: tuple[float, ...]) -> tuple[float, ...]:
        if not rates or min(rates) < 1:
            raise ValueError("one rate or several, each at least 1")
        return rates

    @property
    def copies(self) -> int:
        return len(self.rates)

    def __call__(self, x: Tensor, copy: int, context: Context) -> Tensor:
        return enlarged(x, int(self.rates[copy] * x.shape[-2]), context.draws.fork("dem", copy))
