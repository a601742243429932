"""Members of one architecture run together: one after the other, or stacked, every layer one batched kernel.

Either way they are one network of K N rows, of which the first N go through the first member, the next N
through the second, and so on. Code that works with rows need not know which way is used.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from advens.defenses.layers import LOGITS, before
from advens.errors import InputError, first_line

Stacking = Literal["auto", "always", "never"]


class Members(nn.Module):
    """K members as one network of K N rows, run one after the other.

    Args:
        members: share the shape of what they take and give.
    """

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, x: Tensor, layer: int = LOGITS) -> Tensor:
        """The input (K N, ...) of a layer of every member, for its rows of ``x`` (K N, ...)."""
        parts = x.chunk(len(self.members))
        return torch.cat([before(f, part, layer) for f, part in zip(self.members, parts, strict=True)])

    def keep(self) -> None:
        """Give every member its buffers; here they are the members' own already."""


class Stacked(Members):
    """The same in one pass, through `torch.func`: gradients reach each member's own parameters.

    Parameters are stacked once, so a stack is of use only until the weights change. Buffers are stacked too:
    batch-norm updates the running statistics of every member in the stack, and `keep` copies them back.

    Raises:
        RuntimeError, AttributeError: members are not of one architecture.
    """

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__(members)
        self.part = Part(members[0])
        self.weights = {
            f"model.{name}": torch.stack([f.get_parameter(name) for f in members])
            for name, _ in members[0].named_parameters()
        }
        self.kept = {
            f"model.{name}": torch.stack([f.get_buffer(name) for f in members])
            for name, _ in members[0].named_buffers()
        }

    def forward(self, x: Tensor, layer: int = LOGITS) -> Tensor:
        """As one after the other. Dropout is refused: its draws would be others."""
        weights = self.weights
        if not any(p.requires_grad for p in self.parameters()):
            weights = {name: w.detach() for name, w in weights.items()}

        def one(state: dict[str, Tensor], rows: Tensor) -> Tensor:
            out: Tensor = functional_call(self.part, state, (rows, layer))
            return out

        rows = x.unflatten(0, (len(self.members), -1))
        out: Tensor = torch.vmap(one)(weights | self.kept, rows)
        return out.flatten(0, 1)

    @torch.no_grad()
    def keep(self) -> None:
        """Give every member its buffers."""
        for name, stack in self.kept.items():
            for f, buffer in zip(self.members, stack, strict=True):
                f.get_buffer(name.removeprefix("model.")).copy_(buffer)


class Part(nn.Module):
    """A network that returns the input of one of its layers."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, layer: int) -> Tensor:
        return before(self.model, x, layer)


def features(model: nn.Module, x: Tensor, layer: int) -> Tensor:
    """The input of a layer for ``x``, (N, ...), of one network or of members run together."""
    out: Tensor = model(x, layer) if isinstance(model, Members) else before(model, x, layer)
    return out


@contextmanager
def together(members: Sequence[nn.Module], *, stacked: bool) -> Iterator[Members]:
    """Members as one network, while their weights do not change; at the end they are given their buffers."""
    everyone = Stacked(members) if stacked else Members(members)
    yield everyone
    everyone.keep()


def faster(x: Tensor) -> bool:
    """Whether to stack where ``x`` lives: not on a CPU, see `advens.benchmarks.speed.defenses`."""
    return x.is_cuda


def stackable(members: Sequence[nn.Module], x: Tensor, how: Stacking) -> bool:
    """Whether members are to be stacked: tried once, in double precision, on copies and a few images.

    Args:
        x: (N, C, H, W); of these the first two.

    Raises:
        InputError: they should ``always`` be and cannot.
    """
    if how == "never" or (how == "auto" and not faster(x)):
        return False
    why = differs(members, x[:2])
    if why is not None and how == "always":
        raise InputError(f"stacked='always': these members cannot be stacked ({why})")
    return why is None


def differs(members: Sequence[nn.Module], x: Tensor) -> str | None:
    """What keeps members from being stacked, as far as images ``x`` (N, C, H, W) tell; None if nothing."""
    if len({tuple(f.state_dict()) for f in members}) > 1:
        return "they have different parameters"
    with torch.no_grad(), torch.random.fork_rng():
        try:
            found, wanted = (_outcome(members, x, stacked) for stacked in (True, False))
        except (RuntimeError, AttributeError) as error:
            return first_line(error)
    apart = (found - wanted).abs().max()
    return None if apart <= 1e-9 * wanted.abs().max().clamp_min(1) else f"results change by {apart:.1e}"


def _outcome(members: Sequence[nn.Module], x: Tensor, stacked: bool) -> Tensor:
    """Answers of copies to the same images, and their buffers after that, (numbers,)."""
    copies = [copy.deepcopy(f).double() for f in members]
    with together(copies, stacked=stacked) as everyone:
        answers = everyone(x.double().repeat(len(copies), 1, 1, 1))
    return torch.cat([t.double().flatten() for t in (answers, *everyone.members.buffers())])
