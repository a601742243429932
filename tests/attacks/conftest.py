"""Tiny surrogates with smooth activations, in double precision: small enough for thousands of passes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch
from timm.models.resnet import BasicBlock
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from advens.attacks import attack_from_spec, create_attack
from advens.attacks.attack import Attack
from advens.attacks.surrogates.changes import ChangeContext, attached
from advens.errors import InputError

torch.set_num_threads(1)

SIDE, CLASSES, N = 8, 6, 4
SMALL = {"steps": 3, "copies": 2, "others": 2, "scales": 2, "targets": 2, "hyperplanes": 4, "queries": 5,
         "noises": 2, "operators": 2, "pairs": 2, "views": 2}  # fmt: skip


def tiny_net(seed: int, side: int = SIDE, batch_norm: bool = False) -> nn.Module:
    """A conv net for (N, 3, side, side), with logits far enough apart to be sure of itself."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        extra: list[nn.Module] = [nn.BatchNorm2d(6), nn.Dropout(0.5)] if batch_norm else []
        net = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1), *extra, nn.GELU(),
            nn.Conv2d(6, 8, 3, stride=2, padding=1), nn.GELU(), nn.Flatten(),
            nn.Linear(8 * ((side + 1) // 2) ** 2, CLASSES),
        )  # fmt: skip
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.mul_(3)
    ends = {f"{len(extra) + 1}": 1, f"{len(extra) + 3}": 2}  # its two stages, as timm's networks tell them
    stages: Any = [{"module": name, "reduction": 2**i} for name, i in ends.items()]
    net.feature_info = stages
    return net.double().eval()


class TinyViT(nn.Module):
    """One block of a vision transformer, with residual branches and attention, on patches of two pixels."""

    def __init__(self, side: int, batch_norm: bool) -> None:
        super().__init__()
        norm: list[nn.Module] = [nn.BatchNorm2d(8), nn.Dropout(0.5)] if batch_norm else []
        self.patches = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), *norm)
        self.block = Block(8, num_heads=2, mlp_ratio=2)
        self.head = nn.Linear(8 * ((side + 1) // 2) ** 2, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        out: Tensor = self.head(self.block(tokens).flatten(1))
        return out


def tiny_vit(seed: int, side: int = SIDE, batch_norm: bool = False) -> nn.Module:
    """The same for attacks that change blocks inside."""
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(seed)
        net = TinyViT(side, batch_norm)
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.mul_(2)
    return net.double().eval()


class TinyTokens(nn.Module):
    """Two blocks of a vision transformer, read by a norm and a head as timm's are."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.blocks = nn.Sequential(*(Block(8, num_heads=2, mlp_ratio=2) for _ in range(2)))
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8 * ((side + 1) // 2) ** 2, CLASSES)
        stages: Any = [{"module": f"blocks.{i}", "reduction": 2} for i in range(2)]
        self.feature_info = stages

    def forward_head(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.head(tokens.flatten(1))
        return out

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        return self.forward_head(self.norm(self.blocks(tokens)))


def tiny_tokens(seed: int, side: int = SIDE, batch_norm: bool = False) -> nn.Module:
    """The same for attacks that read blocks by the network's head."""
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(seed)
        net = TinyTokens(side)
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.mul_(2)
    return net.double().eval()


class TinyResNet(nn.Module):
    """One residual block with ReLUs, behind a convolution."""

    def __init__(self, side: int, batch_norm: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.block = BasicBlock(8, 8)
        self.drop = nn.Dropout(0.5 if batch_norm else 0)
        self.head = nn.Linear(8 * ((side + 1) // 2) ** 2, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.drop(self.block(self.stem(x))).flatten(1))
        return out


def tiny_resnet(seed: int, side: int = SIDE, batch_norm: bool = False) -> nn.Module:
    """The same for attacks that change ReLUs."""
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(seed)
        net = TinyResNet(side, batch_norm)
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.mul_(2)
    return net.double().eval()


def bytes_like(seed: int, n: int = N, side: int = SIDE) -> Tensor:
    """8-bit images in [0, 1], float64, with saturated pixels."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 256, (n, 3, side, side), generator=generator).double()
    x[:, 0, 0, :3], x[:, 1, 0, :3] = 0, 255
    return x / 255


def small_attack(name: str, **overrides: Any) -> Attack:
    """An attack with few steps and few copies."""

    def shrink(value: Any) -> Any:
        if isinstance(value, dict):
            return {
                k: min(v, SMALL[k]) if k in SMALL and isinstance(v, int) else shrink(v)
                for k, v in value.items()
            }
        return [shrink(item) for item in value] if isinstance(value, list) else value

    return attack_from_spec(shrink(create_attack(name, **overrides).spec))


def net_of(attack: Attack) -> Callable[..., nn.Module]:
    """What makes models that an attack can be tried on."""
    if getattr(getattr(attack, "feature", None), "part_name", "") == "se":
        return tiny_tokens
    for kind in (tiny_net, tiny_vit):
        try:
            with attached(kind(0), getattr(attack, "changes", ()), ChangeContext()):
                return kind
        except InputError:
            continue
    return tiny_resnet


class Counter:
    """Samples that went forward and backward through some models, counted at the models.

    A backward pass may begin at features inside and end at the images, begin at the logits and end at
    features, or go through all of the model: then both ends see it, and it counts once.
    """

    def __init__(self) -> None:
        self.forward = 0
        self.backward = 0
        self._begun: set[int] = set()

    def before(self, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x = args[0]
        if x.requires_grad and torch.is_grad_enabled():
            x = x.view_as(x)  # this call's own
            x.register_hook(partial(self._arrives, self.forward))
        return (x,)

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
        if out.requires_grad:
            out.register_hook(partial(self._begins, self.forward))
        self.forward += len(args[0])

    def _begins(self, call: int, g: Tensor) -> None:
        self.backward += len(g)
        self._begun.add(call)

    def _arrives(self, call: int, g: Tensor) -> None:
        self.backward += 0 if call in self._begun else len(g)
        self._begun.discard(call)


@contextmanager
def counting(models: Sequence[nn.Module]) -> Iterator[Counter]:
    """Count the passes of models by hooks."""
    counter = Counter()
    handles: list[Any] = [model.register_forward_pre_hook(counter.before) for model in models]
    handles += [model.register_forward_hook(counter) for model in models]
    yield counter
    for handle in handles:
        handle.remove()


@pytest.fixture
def net() -> Callable[..., nn.Module]:
    """``net(seed, side=8, batch_norm=False)``: a fresh model."""
    return tiny_net


@pytest.fixture
def net_for() -> Callable[[str], Callable[..., nn.Module]]:
    """``net_for(attack)``: ``net``, or one with blocks where the attack changes these."""
    return lambda name: net_of(create_attack(name))


@pytest.fixture
def images() -> Callable[..., Tensor]:
    """``images(seed, n=4, side=8)``: 8-bit images in [0, 1], float64."""
    return bytes_like


def among(y: Tensor) -> tuple[Tensor, Tensor]:
    """Labels of which there are several, and for each sample that of another one as target."""
    if (y == y[0]).all():
        y = torch.cat([y[:-1], (y[-1:] + 1) % CLASSES])
    other = [next(int(label) for label in y if label != own) for own in y]
    return y, torch.tensor(other)


@pytest.fixture
def small() -> Callable[..., Attack]:
    """``small(name, **overrides)``: an attack with few steps and copies."""
    return small_attack


@pytest.fixture
def count() -> Callable[..., Any]:
    """``with count(models) as counter``: counter.forward, counter.backward in samples."""
    return counting


@pytest.fixture
def labelled() -> Callable[..., tuple[Tensor, Tensor]]:
    """``labelled(models, x)``: what the mean logits say, and another class for each sample."""

    def label(models: Sequence[nn.Module], x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            y = torch.stack([model(x) for model in models]).mean(0).argmax(1)
        return y, (y + 1 + torch.arange(len(y)) % (CLASSES - 1)) % CLASSES

    return label
