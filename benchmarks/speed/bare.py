"""The passes of every fusion's formula and nothing else: what a fusion is timed against.

They are taken at the very images the fusion visits, which are recorded first: some kernels (GELU's) take
twice as long at the images an attack has reached as at those it began with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from advens.seeding import Draws

ROUNDS_OF_TURNS = 4  # of SVRE and SMER, their default


@dataclass
class Bare:
    """Passes of frozen surrogates at given images.

    Args:
        models: frozen, in eval mode.
        points: what each surrogate looks at, in its order; from the first again when it is through.
        y: labels (N,).
    """

    models: Sequence[nn.Module]
    points: Sequence[Sequence[Tensor]]
    y: Tensor

    def __post_init__(self) -> None:
        self.all = range(len(self.models))
        self._turns = [cycle(points) for points in self.points]

    def pair(self, *members: int) -> None:
        """A forward pass of each and one backward pass through their mean logits."""
        self.back(*self.run(*members))

    def run(self, *members: int) -> tuple[list[Tensor], list[Tensor]]:
        """Forward passes that keep their graphs."""
        leaves = [next(self._turns[k]).detach().requires_grad_() for k in members]
        return leaves, [self.models[k](leaf) for k, leaf in zip(members, leaves, strict=True)]

    def back(self, leaves: list[Tensor], logits: list[Tensor], keep: bool = False) -> None:
        """A backward pass; ``keep`` leaves the graph for another."""
        mean = logits[0] if len(logits) == 1 else torch.stack(logits).mean(0)
        loss = F.cross_entropy(mean, self.y, reduction="sum")
        torch.autograd.grad(loss, leaves, retain_graph=keep)

    @torch.no_grad()
    def plain(self, *members: int) -> None:
        """Forward passes without a graph."""
        for k in members:
            self.models[k](next(self._turns[k]))


def together(bare: Bare, draws: Draws) -> None:
    """One pass of all: fused logits or probabilities."""
    bare.pair(*bare.all)


def one_by_one(bare: Bare, draws: Draws) -> None:
    """One pass of each: fused losses, unit gradients, CSE's walk."""
    for k in bare.all:
        bare.pair(k)


def svre(bare: Bare, draws: Draws) -> None:
    """All, each, then an inner loop over the surrogates the draws name."""
    bare.pair(*bare.all)
    for k in [*bare.all, *draws.integers(len(bare.models), ROUNDS_OF_TURNS * len(bare.models), "svre")]:
        bare.pair(k)


def adaea(bare: Bare, draws: Draws) -> None:
    """K graphs that serve 2K backward passes, and a plain forward pass of each on K trial batches."""
    leaves, logits = bare.run(*bare.all)
    for k in bare.all:
        bare.back([leaves[k]], [logits[k]], keep=True)
    bare.plain(*bare.all)
    bare.back(leaves, logits)


def sam(bare: Bare, draws: Draws) -> None:
    """All, twice."""
    together(bare, draws)
    together(bare, draws)


def cwa(bare: Bare, draws: Draws) -> None:
    """All, then each."""
    together(bare, draws)
    one_by_one(bare, draws)


def smer(bare: Bare, draws: Draws) -> None:
    """In every inner step one pass of one surrogate and a plain forward pass of each other."""
    for turn in range(ROUNDS_OF_TURNS):
        for k in draws.permutation(len(bare.models), "smer", turn):
            bare.pair(k)
            bare.plain(*(i for i in bare.all if i != k))


BARE: dict[str, Callable[[Bare, Draws], None]] = {
    "ens-logits": together, "ens-probs": together, "ens-loss": one_by_one, "ens-grads": one_by_one,
    "svre": svre, "adaea": adaea, "sam": sam, "cse": one_by_one, "cwa": cwa, "smer": smer,
}  # fmt: skip
"""The passes of one step of every fusion, in its batches and its order."""
