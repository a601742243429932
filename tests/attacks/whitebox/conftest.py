"""What tests of white-box attacks share: models, a scene, and oracles that remember or are given numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from advens.attacks import create_attack
from advens.attacks.whitebox.engine import WhiteBox, search
from advens.attacks.whitebox.oracle import RowOracle
from advens.attacks.whitebox.rows import Rows
from advens.classifier import borrowed

Net = Callable[..., nn.Module]
Images = Callable[..., Tensor]
Labelled = Callable[..., tuple[Tensor, Tensor]]
Scene = tuple[nn.Module, Tensor, Tensor, Tensor]
"""A model, images, their labels and a target for each."""

Kind = TypeVar("Kind", bound=WhiteBox)
SEED = 11


def maker(kind: type[Kind]) -> Callable[..., Kind]:
    """``create_attack`` for attacks of one class."""

    def made(name: str, **options: Any) -> Kind:
        attack = create_attack(name, **options)
        assert isinstance(attack, kind)
        return attack

    return made


class OneByOne(nn.Module):
    """Answers image by image, so that not even rounding knows how many there are."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.net(image[None]) for image in x])


class Restless(nn.Module):
    """Drops inputs at random at every pass, training or not."""

    def __init__(self, net: nn.Module, p: float) -> None:
        super().__init__()
        self.net, self.p = net, p

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(F.dropout(x, self.p, training=True))
        return out


@pytest.fixture
def batched_scene(net: Net, images: Images, labelled: Labelled) -> Scene:
    """Ten images, and a model that answers them in one batch."""
    model, x = net(1), images(2, n=10)
    y, target = labelled([model], x)
    return model, x, y, target


@pytest.fixture
def scene(batched_scene: Scene) -> Scene:
    """The same where the model answers image by image."""
    model, x, y, target = batched_scene
    return OneByOne(model), x, y, target


class Listening(RowOracle):
    """Remembers tensors of its rows by sample and iteration, and how many iterations stood side by side."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.heard: dict[tuple[int, int], tuple[Tensor, ...]] = {}
        self.together: set[int] = set()

    def note(self, rows: Rows, *tensors: Tensor) -> None:
        self.together.add(len(set(rows.t.tolist())))
        for i, (place, t) in enumerate(zip(rows.place.tolist(), rows.t.tolist(), strict=True)):
            self.heard[place + self._first, t] = tuple(tensor[i].clone() for tensor in tensors)


Listener = TypeVar("Listener", bound=Listening)


def listened(
    kind: type[Listener], attack: WhiteBox, model: nn.Module, x: Tensor, y: Tensor,
    target: Tensor | None = None, batch: int = 10, stop: bool = False, first: int = 0,
) -> Listener:  # fmt: skip
    """The oracle of an attack on all of ``x``."""
    with borrowed([model]):
        oracle = kind([model], attack.threat, x, y, target, seed=SEED, first=first)
        search(attack, oracle, torch.arange(len(x)), batch=batch, stop=stop)
    return oracle


def same_heard(one: dict[Any, tuple[Tensor, ...]], other: dict[Any, tuple[Tensor, ...]]) -> None:
    """What two oracles remember is the same to the bit."""
    assert other.keys() == one.keys()
    for key, tensors in one.items():
        assert all(torch.equal(a, b) for a, b in zip(other[key], tensors, strict=True))


RESULTS = ("correct", "x_adv", "broken_at", "forwards", "backwards")


def same_in_batches(one: Listening, others: Sequence[Listening], stop: bool) -> None:
    """Oracles of the same attack in batches of other sizes end alike, bit for bit."""
    assert 0 < one.correct.sum() < len(one.correct), "some stand, some break"
    assert not stop or max(max(other.together) for other in others) > 1
    for other in others:
        same_heard(one.heard, other.heard)
        for what in RESULTS:
            assert torch.equal(getattr(other, what), getattr(one, what)), what


class GivenStarts(RowOracle):
    """An oracle whose numbers come from a table (runs, N, C, H, W) in (-1, 1)."""

    table: Tensor
    steps: int

    def numbers(self, rows: Rows, shape: tuple[int, ...], *tag: object) -> Tensor:
        return (self.table[rows.t // self.steps, rows.place] + 1) / 2

    def normals(self, rows: Rows, shape: tuple[int, ...], *tag: object) -> Tensor:
        return self.table[rows.t // self.steps, rows.place]


def from_given_starts(
    single: Callable[..., Any], x: Tensor, table: Tensor, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Any]:
    """A peer's function of one run, which then draws for every image of ``x`` what the table has for it."""
    runs = iter(table)

    def given(x_in: Tensor, *args: Any, **options: Any) -> Any:
        at = [int((x == image).flatten(1).all(1).nonzero()[0]) for image in x_in]
        noise = next(runs)[at]
        with monkeypatch.context() as patch:
            patch.setattr(torch, "rand", lambda *_: (noise + 1) / 2)
            patch.setattr(torch, "randn", lambda *_: noise)
            return single(x_in, *args, **options)

    return given
