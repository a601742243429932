"""Snapshots: surrogates that share one bare network and differ in weights only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _IncompatibleKeys

from advens.classifier import Classifier
from advens.errors import InputError

Table = dict[str, Any]


def bare(net: nn.Module) -> nn.Module:
    """A copy of a network without its tensors: it runs only while weights are lent to it."""
    if isinstance(net, OwnWeights):
        return deepcopy(net.bare)
    tensors = chain(net.parameters(), net.buffers())
    return deepcopy(net, {id(tensor): None for tensor in tensors})


def _places(net: nn.Module) -> Iterator[tuple[str, nn.Module, Table, str]]:
    """Every place of a tensor: its full name, and the module, table and key where it stands."""
    for path, module in net.named_modules(remove_duplicate=False):
        for table in (module._parameters, module._buffers):
            for key in table:
                yield f"{path}.{key}" if path else key, module, table, key


class OwnWeights(nn.Module):
    """A bare network under weights of its own, lent to it for the time of a forward pass.

    Parameters and buffers carry the names they have in the plain network, so ``state_dict`` and the
    digest are those of a plain network with these weights. Hooks on ``bare`` run, for all that share it.
    Siblings take turns, and are in train or eval mode together: they are not for several threads, nor for
    code that runs blocks again later (gradient checkpoints).

    Args:
        bare: see `bare`; shared.
        net: the same network with tensors. Buffers that no ``state_dict`` has are taken from it.
        state: weights by name; held as they are, not copied.

    Raises:
        InputError: a name is missing or unknown, or a shape differs.
    """

    def __init__(self, bare: nn.Module, net: nn.Module, state: Mapping[str, Tensor]) -> None:
        super().__init__()
        kept = net.state_dict(keep_vars=True)
        check_same({k: t.shape for k, t in kept.items()}, {k: t.shape for k, t in state.items()})
        wrapped: dict[int, nn.Parameter] = {}  # tied weights stay one tensor
        for name, module, table, key in _places(net):
            old = table[key]
            if old is None:
                continue
            new = state[name].to(old.device) if name in kept else old
            if table is module._parameters:
                first = wrapped.setdefault(id(old), nn.Parameter(new, requires_grad=False))
                self._parameters[name] = first
            else:
                self._buffers[name] = new
                if name not in kept:
                    self._non_persistent_buffers_set.add(name)
        self.bare = bare
        where = {name: (table, key) for name, _, table, key in _places(bare)}
        self._slots: list[tuple[Table, str, Table, str]] = [
            (*where[name], mine, name) for mine in (self._parameters, self._buffers) for name in mine
        ]

    def forward(self, x: Tensor) -> Tensor:
        with self.lent():
            out: Tensor = self.bare(x)
        return out

    @contextmanager
    def lent(self, others: Mapping[str, Tensor] | None = None) -> Iterator[nn.Module]:
        """The bare network with these weights, or with ``others``, for a while."""
        try:
            for table, key, mine, name in self._slots:
                table[key] = mine[name] if others is None else others[name]
            yield self.bare
        finally:
            for table, key, _, _ in self._slots:
                table[key] = None

    @torch.no_grad()
    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> _IncompatibleKeys:
        """Copy weights in; ``assign`` copies too."""
        mine = self.state_dict(keep_vars=True)
        missing = [name for name in mine if name not in state_dict]
        unexpected = [name for name in state_dict if name not in mine]
        if strict and (missing or unexpected):
            raise RuntimeError(f"missing weights {missing}, unexpected weights {unexpected}")
        for name in mine.keys() & state_dict.keys():
            mine[name].copy_(state_dict[name])
        return _IncompatibleKeys(missing, unexpected)


class Snapshot(Classifier):
    """A surrogate that shares its bare network with its siblings and holds only its own weights.

    Args:
        shared: the bare network, see `bare`.
        base: the classifier whose architecture and preprocessing this has.
        state: weights by name, held as they are.
        name: how it is asked for.
        bases: digests of the models it comes from.
    """

    def __init__(
        self,
        shared: nn.Module,
        base: Classifier,
        state: Mapping[str, Tensor],
        *,
        name: str,
        bases: Sequence[str] = (),
    ) -> None:
        super().__init__(
            OwnWeights(shared, base.net, state), name=name, num_classes=base.num_classes,
            family=base.family, input_size=base.input_size, interpolation=base.interpolation,
        )  # fmt: skip
        self.mean, self.std = base.mean.clone(), base.std.clone()
        self.bases = tuple(bases)

    def prepared_digest(self) -> str:
        """Hex sha256 of the weights, which were made with one way of preparing images: the surrogate's."""
        return self.weights

    @property
    def shared(self) -> nn.Module:
        """The bare network."""
        net: OwnWeights = self.net  # type: ignore[assignment]
        return net.bare


def check_same(wanted: Mapping[str, torch.Size], given: Mapping[str, torch.Size]) -> None:
    """Raise InputError, naming the first difference, unless both are weights of one architecture."""
    for name in [*wanted, *given]:
        if wanted.get(name) != given.get(name):
            sizes = (tuple(w[name]) if name in w else "none" for w in (wanted, given))
            raise InputError("the weights are of another architecture: {} is {} and {}".format(name, *sizes))
