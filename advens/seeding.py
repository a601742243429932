"""Randomness that depends on what is computed, never on how.

Every draw is named by a seed, a step and a purpose, and made by a generator of its own: no stream is
shared, so the order of calls, the micro-batch size and a crash in between cannot change a number.
Tensors are drawn for the whole shard and sliced to the rows at hand; choices are drawn once for all.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor


def derive(*parts: object) -> int:
    """A 63-bit seed from any printable parts: the same parts give the same seed everywhere."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


@dataclass(frozen=True)
class Draws:
    """The random numbers of one attack on one shard.

    Args:
        seed: what everything is derived from.
        size: samples in the shard.
        rows: the slice of the shard at hand.
        step: the attack step the draws belong to.
    """

    seed: int
    size: int
    rows: slice = field(default_factory=lambda: slice(None))
    step: int = -1

    @property
    def rows_at_hand(self) -> int:
        """How many samples are at hand."""
        return len(range(self.size)[self.rows])

    def at(self, step: int) -> Draws:
        """The draws of one step: every gradient the step takes sees the same ones."""
        return replace(self, step=step)

    def fork(self, *tag: object) -> Draws:
        """Draws of another purpose, independent of these."""
        return replace(self, seed=derive(self.seed, "fork", *tag))

    def generator(self, *tag: object, device: torch.device | str = "cpu") -> torch.Generator:
        """A generator for one purpose at this step."""
        generator = torch.Generator(device=device)
        generator.manual_seed(derive(self.seed, self.step, *tag))
        return generator

    def uniform(self, like: Tensor, low: float, high: float, *tag: object) -> Tensor:
        """U(low, high) of the shape, type and device of ``like`` (rows at hand, ...)."""
        return self._full(like).uniform_(
            low, high, generator=self.generator(*tag, device=like.device)
        )[self.rows]

    def normal(self, like: Tensor, std: float, *tag: object) -> Tensor:
        """N(0, std²) of the shape, type and device of ``like`` (rows at hand, ...)."""
        return self._full(like).normal_(
            0.0, std, generator=self.generator(*tag, device=like.device)
        )[self.rows]

    def integers(self, high: int, count: int, *tag: object) -> list[int]:
        """``count`` integers in [0, high), shared by the whole shard."""
        return torch.randint(high, (count,), generator=self.generator(*tag)).tolist()

    def permutation(self, n: int, *tag: object) -> list[int]:
        """A permutation of range(n), shared by the whole shard."""
        return torch.randperm(n, generator=self.generator(*tag)).tolist()

    def number(self, low: float, high: float, *tag: object) -> float:
        """One number from U(low, high), shared by the whole shard."""
        unit = torch.rand((), generator=self.generator(*tag), dtype=torch.float64).item()
        return low + (high - low) * unit

    def others(self, *tag: object) -> Tensor:
        """For the rows at hand, the index of another sample of the shard (N,); itself when alone."""
        if self.size == 1:
            return torch.zeros(1, dtype=torch.long)[self.rows]
        shift = torch.randint(1, self.size, (self.size,), generator=self.generator(*tag))
        return ((torch.arange(self.size) + shift) % self.size)[self.rows]

    def _full(self, like: Tensor) -> Tensor:
        """Room for the whole shard."""
        return torch.empty((self.size, *like.shape[1:]), dtype=like.dtype, device=like.device)


@dataclass(frozen=True)
class RowDraws:
    """Random numbers of samples that are at different steps, by counting instead of by streams.

    Number ``j`` of a sample is a hash of (seed, purpose, sample, step, j): which other samples are at
    hand changes nothing. The hash is SplitMix64's mixing function (Steele et al., OOPSLA 2014).

    Args:
        seed: what everything is derived from.
    """

    seed: int

    def uniform(
        self, place: Tensor, step: Tensor, shape: tuple[int, ...], *tag: object
    ) -> Tensor:
        """U(0, 1) in float64, (N, *shape), never 0 and never 1.

        Args:
            place: (N,) int64, which sample of the shard each row is.
            step: (N,) int64, the step each row is at.
            shape: of the numbers of one row.
        """
        key = torch.tensor(derive(self.seed, *tag), device=place.device)
        row = _mixed(_mixed(key + _GOLDEN * (place + 1)) + _GOLDEN * (step + 2))
        numbers = torch.arange(1, math.prod(shape) + 1, device=place.device)
        bits = _shifted(_mixed(row[:, None] + _GOLDEN * numbers), 12)
        return ((bits.double() + 0.5) / 2**52).view(len(place), *shape)

    def normal(self, place: Tensor, step: Tensor, shape: tuple[int, ...], *tag: object) -> Tensor:
        """N(0, 1) in float64, (N, *shape); arguments as for ``uniform``."""
        return math.sqrt(2) * torch.erfinv(2 * self.uniform(place, step, shape, *tag) - 1)


_GOLDEN = 0x9E3779B97F4A7C15 - 2**64


def _mixed(z: Tensor) -> Tensor:
    """SplitMix64's finaliser on int64, which wraps around as unsigned numbers do."""
    z = (z ^ _shifted(z, 30)) * (0xBF58476D1CE4E5B9 - 2**64)
    z = (z ^ _shifted(z, 27)) * (0x94D049BB133111EB - 2**64)
    return z ^ _shifted(z, 31)


def _shifted(z: Tensor, bits: int) -> Tensor:
    """Right shift that fills with zeros."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)
