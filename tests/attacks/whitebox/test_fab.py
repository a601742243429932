"""FAB: rows that mind no others, counted passes, the ball, randomness, wrong options."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import advens
from advens.attacks import attack_from_spec, attack_info, create_attack
from advens.attacks.oracle import Passes
from advens.attacks.whitebox.engine import search
from advens.attacks.whitebox.fab import FastAdaptiveBoundary
from advens.attacks.whitebox.oracle import Answer, RowOracle
from advens.attacks.whitebox.rows import Rows
from advens.classifier import borrowed
from advens.errors import InputError

Net = Callable[..., nn.Module]
Images = Callable[..., Tensor]
Labelled = Callable[..., tuple[Tensor, Tensor]]
Scene = tuple[nn.Module, Tensor, Tensor]

names = pytest.mark.parametrize("name", ["fab", "fab-t"])
norms = pytest.mark.parametrize(("norm", "eps"), [("linf", 0.01), ("l2", 0.1)])
SEED, CLASSES = 11, 6


class OneByOne(nn.Module):
    """Answers image by image, so that not even rounding knows how many there are."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.net(image[None]) for image in x])


def made(name: str, **options: Any) -> FastAdaptiveBoundary:
    attack = create_attack(name, **options)
    assert isinstance(attack, FastAdaptiveBoundary)
    return attack


@pytest.fixture
def scene(net: Net, images: Images, labelled: Labelled) -> Scene:
    model, x = OneByOne(net(1)), images(2, n=10)
    return model, x, labelled([model], x)[0]


def length(d: Tensor, norm: str) -> float:
    return float(d.abs().max() if norm == "linf" else d.square().sum().sqrt())


class Listening(RowOracle):
    """Remembers every point, by sample and iteration, and the steps beside them."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.heard: dict[tuple[int, int], Tensor] = {}
        self.together: set[int] = set()

    def gradients(self, x: Tensor, rows: Rows, losses: Any) -> list[Answer]:
        self.together.add(len(set(rows.t.tolist())))
        for i, key in enumerate(zip(rows.place.tolist(), rows.t.tolist(), strict=True)):
            self.heard[key] = x[i].clone()
        return super().gradients(x, rows, losses)


def listened(
    attack: FastAdaptiveBoundary, model: nn.Module, x: Tensor, y: Tensor, batch: int = 10,
    stop: bool = False,
) -> Listening:  # fmt: skip
    with borrowed([model]):
        oracle = Listening([model], attack.threat, x, y, seed=SEED)
        search(attack, oracle, torch.arange(len(x)), batch=batch, stop=stop)
    return oracle


@norms
@names
@pytest.mark.parametrize("stop", [True, False], ids=["compacted", "whole"])
def test_batch_changes_nothing(name: str, stop: bool, norm: str, eps: float, scene: Scene) -> None:
    """Rows that leave, join and stand at other iterations than their neighbours: bit for bit."""
    model, x, y = scene
    options = {"targets": 3} if name == "fab-t" else {}
    attack = made(name, norm=norm, eps=eps, steps=6, restarts=2, **options)
    one, *others = [listened(attack, model, x, y, batch, stop) for batch in (10, 1, 3, 4)]
    assert 0 < one.correct.sum() < 10, "some stand, some break"
    assert not stop or max(max(o.together) for o in others) > 1
    for other in others:
        assert other.heard.keys() == one.heard.keys()
        assert all(torch.equal(other.heard[key], point) for key, point in one.heard.items())
        for what in ("correct", "x_adv", "broken_at", "forwards", "backwards"):
            assert torch.equal(getattr(other, what), getattr(one, what)), what
    standing, formula = one.correct > 0, attack.passes(1, classes=CLASSES)
    assert (one.backwards[standing] == formula.backward).all()
    assert (one.forwards[standing] == formula.forward).all()
    if stop:
        assert (one.backwards[~standing] < formula.backward).any()


@pytest.mark.parametrize(
    ("name", "options", "steps", "planes"),
    [
        ("fab", {}, 4, 5),
        ("fab", {"hyperplanes": None, "restarts": 2}, 8, 5),
        ("fab", {"hyperplanes": 3, "eot": 2}, 4, 3),
        ("fab-t", {}, 20, 1),
        ("fab-t", {"targets": 2, "restarts": 3, "eot": 2}, 24, 1),
    ],
)
def test_passes(
    name: str, options: dict[str, Any], steps: int, planes: int, scene: Scene, net: Net, count: Any
) -> None:
    """What the models saw, where six classes are enough and where they are not."""
    _, x, y = scene
    attack, eot = made(name, steps=4, **options), options.get("eot", 1)
    for models in ([net(0)], [net(0), net(1)]):
        formula = attack.passes(len(models), classes=CLASSES)
        k = len(models) * eot
        assert formula == Passes(k * (2 * steps + 2), k * steps * planes)
        with count(models) as seen:
            assert attack.run(models, x, y).passes == formula
        assert (seen.forward, seen.backward) == tuple(len(x) * n for n in formula)


def test_passes_without_the_number_of_classes() -> None:
    assert made("fab").passes(1) == Passes(202, 900)
    assert made("fab-t").passes(1) == made("fab-t").passes(1, classes=1000) == Passes(1802, 900)
    with pytest.raises(InputError, match="number of classes"):
        made("fab", hyperplanes=None).passes(1)


@norms
@names
def test_ball(name: str, norm: str, eps: float, scene: Scene) -> None:
    """In single precision: broken samples inside, others on the edge, where something was found."""
    model, x, y = scene
    model, x = model.float(), x.float()
    x_adv = made(name, norm=norm, eps=eps, steps=8)(model, x, y)
    sizes = torch.tensor([length(d, norm) for d in x_adv.double() - x.double()])
    with torch.no_grad():
        broken = model(x_adv).argmax(1) != y
    assert 0 < broken.sum() < len(x)
    assert sizes.max() <= eps * (1 + 1e-5)
    torch.testing.assert_close(
        sizes[~broken], torch.full_like(sizes[~broken], eps), rtol=0.02, atol=0
    )
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1


class Restless(nn.Module):
    """Drops inputs at random at every pass, training or not."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(F.dropout(x, 0.1, training=True))
        return out


@names
def test_eot(name: str, scene: Scene) -> None:
    """Randomness of the model's own is named by the seed; without any, four passes are one."""
    model, x, y = scene
    attack = made(name, eps=0.02, steps=3, eot=4)
    state = torch.get_rng_state()
    first = attack(Restless(model), x, y, seed=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(attack(Restless(model), x, y, seed=2), first)
    torch.testing.assert_close(attack(model, x, y), made(name, eps=0.02, steps=3)(model, x, y))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "'fab': steps = 0: at least 1"),
        ({"restarts": 0}, "'fab': restarts = 0: at least 1"),
        ({"eot": 0}, "'fab': eot = 0: at least 1"),
        ({"hyperplanes": 0}, "'fab': hyperplanes = 0: at least 1"),
        ({"targets": -1}, "'fab': targets = -1: at least 0"),
        ({"alpha_max": 1.5}, "'fab': alpha_max = 1.5: from 0 to 1"),
        ({"eta": 0.9}, "'fab': eta = 0.9: Input should be greater than or equal to 1"),
        ({"beta": 0.0}, "'fab': beta = 0.0: above 0 and at most 1"),
        ({"norm": "l3"}, "unknown norm 'l3'; did you mean 'l2'?"),
        ({"step": 3}, "this attack has no option 'step'; did you mean 'steps'?"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        create_attack("fab", **options)
    assert str(caught.value) == message


@names
def test_targets_of_the_user_are_refused(name: str, scene: Scene) -> None:
    model, x, y = scene
    with pytest.raises(InputError, match="'fab' picks its own classes"):
        made(name)(model, x, y, (y + 1) % CLASSES)


def test_recipes_and_spec() -> None:
    assert made("fab") == advens.attacks.FAB() == FastAdaptiveBoundary()
    assert made("fab-t") == advens.attacks.FABT() == FastAdaptiveBoundary(targets=9)
    for name in ("fab", "fab-t"):
        assert not attack_info(name).targeted
        attack = made(name, norm="l2", eps=0.3, steps=7, beta=0.5)
        assert attack_from_spec(attack.spec) == attack
