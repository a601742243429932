"""FAB: rows that mind no others, counted passes, the ball, randomness, wrong options."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import advens
from advens.attacks import attack_from_spec, attack_info, create_attack
from advens.attacks.oracle import Passes
from advens.attacks.whitebox.fab import FastAdaptiveBoundary
from advens.attacks.whitebox.oracle import Answer
from advens.attacks.whitebox.rows import Rows
from advens.errors import InputError
from tests.attacks.whitebox.conftest import (
    Listening,
    Net,
    Restless,
    Scene,
    listened,
    maker,
    same_in_batches,
)

names = pytest.mark.parametrize("name", ["fab", "fab-t"])
norms = pytest.mark.parametrize(("norm", "eps"), [("linf", 0.01), ("l2", 0.1)])
CLASSES = 6
made = maker(FastAdaptiveBoundary)


def length(d: Tensor, norm: str) -> float:
    return float(d.abs().max() if norm == "linf" else d.square().sum().sqrt())


class ByGradients(Listening):
    """Remembers every point whose gradients are asked for."""

    def gradients(self, x: Tensor, rows: Rows, losses: Any) -> list[Answer]:
        self.note(rows, x)
        return super().gradients(x, rows, losses)


@norms
@names
@pytest.mark.parametrize("stop", [True, False], ids=["compacted", "whole"])
def test_batch_changes_nothing(name: str, stop: bool, norm: str, eps: float, scene: Scene) -> None:
    """Rows that leave, join and stand at other iterations than their neighbours: bit for bit."""
    model, x, y, _ = scene
    options = {"targets": 3} if name == "fab-t" else {}
    attack = made(name, norm=norm, eps=eps, steps=6, restarts=2, **options)
    one, *others = [
        listened(ByGradients, attack, model, x, y, batch=b, stop=stop) for b in (10, 1, 3, 4)
    ]
    same_in_batches(one, others, stop)
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
    _, x, y, _ = scene
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
    model, x, y, _ = scene
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


@names
def test_eot(name: str, scene: Scene) -> None:
    """Randomness of the model's own is named by the seed; without any, four passes are one."""
    model, x, y, _ = scene
    attack = made(name, eps=0.02, steps=3, eot=4)
    state = torch.get_rng_state()
    first = attack(Restless(model, 0.1), x, y, seed=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(attack(Restless(model, 0.1), x, y, seed=2), first)
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
    model, x, y, _ = scene
    with pytest.raises(InputError, match="'fab' picks its own classes"):
        made(name)(model, x, y, (y + 1) % CLASSES)


def test_recipes_and_spec() -> None:
    assert made("fab") == advens.attacks.FAB() == FastAdaptiveBoundary()
    assert made("fab-t") == advens.attacks.FABT() == FastAdaptiveBoundary(targets=9)
    for name in ("fab", "fab-t"):
        assert not attack_info(name).targeted
        attack = made(name, norm="l2", eps=0.3, steps=7, beta=0.5)
        assert attack_from_spec(attack.spec) == attack
