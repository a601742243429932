"""Samples in flight: rows that may be at different iterations of one attack."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Rows:
    """Some samples, each at its own iteration. Every tensor has one entry per row, first dimension.

    Args:
        x: clean images (N, C, H, W).
        y: labels (N,).
        target: wanted labels (N,), or None.
        place: which sample of the shard each row is, (N,).
        t: iterations each row has behind it, (N,).
        memory: what the attack remembers of each row.
    """

    x: Tensor
    y: Tensor
    target: Tensor | None
    place: Tensor
    t: Tensor
    memory: dict[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.x)

    def pick(self, index: Tensor) -> Rows:
        """Some of the rows, by mask or by position."""
        return Rows(
            self.x[index], self.y[index], None if self.target is None else self.target[index],
            self.place[index], self.t[index], {k: v[index] for k, v in self.memory.items()},
        )  # fmt: skip

    def joined(self, other: Rows) -> Rows:
        """These rows and others, in that order."""
        if not len(self):
            return other
        target = None
        if self.target is not None and other.target is not None:
            target = torch.cat([self.target, other.target])
        return Rows(
            torch.cat([self.x, other.x]), torch.cat([self.y, other.y]), target,
            torch.cat([self.place, other.place]), torch.cat([self.t, other.t]),
            {k: torch.cat([v, other.memory[k]]) for k, v in self.memory.items()},
        )  # fmt: skip

    def keep(self, name: str, where: Tensor, value: Tensor) -> None:
        """Set ``memory[name]`` to ``value`` in the rows where ``where`` (N,) holds."""
        old = self.memory[name]
        self.memory[name] = torch.where(where.view(-1, *([1] * (old.dim() - 1))), value, old)


def per_row(values: Tensor, like: Tensor) -> Tensor:
    """(N,) numbers in a shape that multiplies ``like`` (N, ...)."""
    return values.view(-1, *([1] * (like.dim() - 1))).to(like.dtype)
