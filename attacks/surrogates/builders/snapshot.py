"""Snapshots: surrogates that share one bare network and differ in weights only."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _IncompatibleKeys

from advens.classifier import Classifier
from advens.errors import InputError

Table = dict[str, Any]


def bare(net: nn.Module) -> nn.Module:
    """A copy of a network without its tensors: it runs only while somebody lends it some."""
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

    @property
    def digest(self) -> str:
        """Hex sha256 of the weights, which were made with one way of preparing images: the surrogate's."""
        return self.weights

    @property
    def shared(self) -> nn.Module:
        """The bare network."""
        net: OwnWeights = self.net  # type: ignore[assignment]
        return net.bare


class Stack:
    """Snapshots of one architecture as one batched model: images (N, 3, H, W) to logits (K, N, classes).

    The weights are stacked once, a second copy of them.

    Raises:
        InputError: they are no snapshots of one network, preprocessed alike.
    """

    def __init__(self, snapshots: Sequence[Snapshot]) -> None:
        if not snapshots or any(s.shared is not snapshots[0].shared for s in snapshots):
            raise InputError("a stack is made of snapshots that share one network")
        nets: list[OwnWeights] = [s.net for s in snapshots]  # type: ignore[misc]
        parameters, buffers = torch.func.stack_module_state(list[nn.Module](nets))
        self.weights = {**parameters, **buffers}
        self.net, first = nets[0], snapshots[0]
        self.prepared = Classifier(
            nn.Identity(), name=first.name, num_classes=first.num_classes, family=first.family,
            input_size=first.input_size, interpolation=first.interpolation,
        )  # fmt: skip
        self.prepared.mean, self.prepared.std = first.mean, first.std

    def __call__(self, x: Tensor) -> Tensor:
        def one(weights: Mapping[str, Tensor], images: Tensor) -> Tensor:
            with self.net.lent(weights) as net:
                out: Tensor = net(images)
            return out

        mapped: Callable[..., Tensor] = torch.vmap(one, in_dims=(0, None))
        with warnings.catch_warnings():  # what cannot be batched runs one by one, and torch says so
            warnings.filterwarnings("ignore", "There is a performance drop")
            return mapped(self.weights, self.prepared(x))


def stacked(snapshots: Sequence[Snapshot], x: Tensor) -> Tensor:
    """Logits (K, N, classes) in one batched call."""
    return Stack(snapshots)(x)


def looped(snapshots: Sequence[Snapshot], x: Tensor) -> Tensor:
    """The same, one snapshot after the other."""
    return torch.stack([snapshot(x) for snapshot in snapshots])


class Race(NamedTuple):
    """Which way was faster, and the seconds of a forward and backward pass each way.

    A network that cannot be batched has ``stack = inf``.
    """

    way: str
    stack: float
    loop: float


def faster(snapshots: Sequence[Snapshot], x: Tensor) -> Race:
    """Measure both ways once, after a pass to warm up; without the stacking, which is done once."""
    try:
        batched = _seconds(Stack(snapshots), x)
    except (RuntimeError, NotImplementedError):
        batched = float("inf")
    loop = _seconds(lambda images: looped(snapshots, images), x)
    return Race("stack" if batched < loop else "loop", batched, loop)


def _seconds(logits: Callable[[Tensor], Tensor], x: Tensor) -> float:
    seconds = 0.0
    for _ in range(2):
        _wait(x)
        started = time.perf_counter()
        leaf = x.detach().requires_grad_()
        torch.autograd.grad(logits(leaf).sum(), leaf)
        _wait(x)
        seconds = time.perf_counter() - started
    return seconds


def _wait(x: Tensor) -> None:
    if x.is_cuda:
        torch.cuda.synchronize(x.device)


def check_same(wanted: Mapping[str, torch.Size], given: Mapping[str, torch.Size]) -> None:
    """Raise InputError, naming the first difference, unless both are weights of one architecture."""
    for name in [*wanted, *given]:
        if wanted.get(name) != given.get(name):
            sizes = (tuple(w[name]) if name in w else "none" for w in (wanted, given))
            raise InputError("the weights are of another architecture: {} is {} and {}".format(name, *sizes))
