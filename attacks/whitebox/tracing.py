"""What white-box attacks note of their iterations, of rows that are at different ones and leave early."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

RECORDED = 50
"""Iterations of an attack that are kept, evenly spaced."""
MOMENTARY = ("step_size",)
"""Observations of samples that are still attacked; of all others, a sample that has left keeps the last."""
SO_FAR = {"margin": torch.fmax, "distance": torch.fmin}
"""Observations that are the best so far, over all rounds of an attack, and the better of two."""


class RowTrace:
    """Observations of the samples of a shard at some iterations of an attack.

    At a recorded iteration a sample has its last observation since the recorded one before. A sample that has
    left keeps the last one that it had, so that every mean is over the same samples; its step size excepted.

    Attributes:
        at: the iterations that are recorded, from 0.
    """

    def __init__(self, samples: int) -> None:
        self._samples = samples
        self._before = 0
        self._values: dict[str, Tensor] = {}
        self.at: tuple[int, ...] = ()

    def begin(self, iterations: int) -> None:
        """An attack of so many iterations in all begins."""
        kept = torch.linspace(
            0, max(iterations - 1, 0), min(iterations, RECORDED), dtype=torch.float64
        )
        self.at = tuple(kept.round().long().tolist())

    def after(self, iterations: int) -> None:
        """What is noted from now on is of a round after so many iterations."""
        self._before += iterations

    def note(self, t: Tensor, place: Tensor, observed: Mapping[str, Tensor]) -> None:
        """Note observations (M,) of the samples at ``place`` (M,) in their iterations ``t`` (M,)."""
        at = torch.tensor(self.at, device=t.device)
        index = torch.searchsorted(at, t + self._before).clamp_max(len(self.at) - 1)
        for name, values in observed.items():
            if name not in self._values:
                empty = torch.full((len(self.at), self._samples), torch.nan, dtype=torch.float64)
                self._values[name] = empty.to(t.device)
            values = values.detach().double()
            known = values.isfinite()
            self._values[name][index[known], place[known]] = values[known]

    def filled(self) -> dict[str, Tensor]:
        """Every observation, (recorded iterations, N); NaN where a sample was not attacked or has none."""
        found = {}
        for name, values in self._values.items():
            held = values.cpu().clone()
            for step in range(1, len(held) if name not in MOMENTARY else 0):
                held[step] = SO_FAR.get(name, _last)(held[step], held[step - 1])
            found[name] = held
        return found


def _last(now: Tensor, before: Tensor) -> Tensor:
    """The values of now, where there are any."""
    return torch.where(now.isnan(), before, now)
