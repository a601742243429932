"""Auto-PGD: rows that mind no others, counted passes, the ball, targets, randomness, wrong options."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import advens
from advens.attacks import attack_from_spec, attack_info, create_attack
from advens.attacks.losses import DLR, CrossEntropy
from advens.attacks.oracle import Passes
from advens.attacks.whitebox.apgd import AutoPGD
from advens.attacks.whitebox.oracle import Answer
from advens.attacks.whitebox.rows import Rows
from advens.errors import InputError
from tests.attacks.whitebox.conftest import (
    Images,
    Labelled,
    Listening,
    Net,
    Restless,
    Scene,
    listened,
    maker,
    same_in_batches,
)

NAMES = ["apgd", "apgd-ce", "apgd-dlr", "apgd-t"]
names = pytest.mark.parametrize("name", NAMES)
norms = pytest.mark.parametrize(("norm", "eps"), [("linf", 0.06), ("l2", 0.8)])
made = maker(AutoPGD)


class ByGradient(Listening):
    """Remembers every point whose gradient is asked for, and that gradient."""

    def gradient(self, x: Tensor, rows: Rows, loss: Any) -> Answer:
        answer = super().gradient(x, rows, loss)
        self.note(rows, x, answer.gradient)
        return answer


@norms
@names
@pytest.mark.parametrize("stop", [True, False], ids=["compacted", "whole"])
def test_batch_changes_nothing(name: str, stop: bool, norm: str, eps: float, scene: Scene) -> None:
    """Rows that leave, join and stand at other iterations than their neighbours: bit for bit."""
    model, x, y, _ = scene
    options = {"targets": 3} if name == "apgd-t" else {"restarts": 2}
    attack = made(name, norm=norm, eps=eps / 4, steps=20, **options)
    one, *others = [listened(ByGradient, attack, model, x, y, batch=b, stop=stop) for b in (10, 3, 4)]
    same_in_batches(one, others, stop)
    standing, formula = one.correct > 0, attack.passes(1)
    assert (one.backwards[standing] == formula.backward).all()
    assert (one.forwards[standing] == formula.forward).all()
    if stop:
        assert (one.backwards[~standing] < formula.backward).any()


@names
@pytest.mark.parametrize(
    "options", [{}, {"restarts": 2}, {"eot": 3}, {"steps": 1}, {"restarts": 2, "eot": 2}]
)
def test_passes(name: str, options: dict[str, Any], scene: Scene, net: Net, count: Any) -> None:
    _, x, y, _ = scene
    targets = {"targets": 4} if name == "apgd-t" else {}
    attack = made(name, **{"steps": 6, **options, **targets})
    runs = options.get("restarts", 1) * targets.get("targets", 1)
    backward = runs * attack.steps * options.get("eot", 1)
    forward = backward + (runs + (name == "apgd-t")) * options.get("eot", 1)
    for models in ([net(0)], [net(0), net(1)]):
        k = len(models)
        assert attack.passes(k) == Passes(k * forward, k * backward)
        with count(models) as seen:
            result = attack.run(models, x, y)
        assert result.passes == attack.passes(k)
        assert (seen.forward, seen.backward) == tuple(len(x) * n for n in attack.passes(k))


def test_fewer_classes_than_targets(scene: Scene, count: Any) -> None:
    """Six classes have five to aim at: the other runs are not there."""
    model, x, y, _ = scene
    some, all_of_them = made("apgd-t", steps=5, targets=5), made("apgd-t", steps=5, targets=9)
    with count([model]) as seen:
        result = all_of_them.run(model, x, y)
    assert result.passes == some.passes(1) == Passes(5 * 6 + 1, 25)
    assert (seen.forward, seen.backward) == (10 * 31, 10 * 25)
    assert torch.equal(result.x_adv, some(model, x, y))


@norms
@names
def test_ball(name: str, norm: str, eps: float, scene: Scene) -> None:
    """In single precision; every point that was looked at, and what is given back."""
    model, x, y, _ = scene
    model, x = model.float(), x.float()
    attack = made(name, norm=norm, eps=eps, steps=25)
    oracle = listened(ByGradient, attack, model, x, y)
    seen = torch.stack([point for point, _ in oracle.heard.values()])
    clean = torch.stack([x[place] for place, _ in oracle.heard])
    for images, around in ((seen, clean), (attack(model, x, y), x)):
        delta = (images.double() - around.double()).flatten(1)
        size = delta.abs().amax(1) if norm == "linf" else delta.norm(dim=1)
        assert size.max() <= eps * (1 + 1e-5)
        assert size.max() >= eps * 0.95, "the attack hardly moved"
        assert images.min() >= 0
        assert images.max() <= 1
    assert oracle._inside(seen, clean).all(), "a point outside the ball was evaluated"


@pytest.mark.parametrize("name", ["apgd-ce", "apgd-dlr"])
@norms
def test_targets_of_the_user(name: str, norm: str, eps: float, scene: Scene) -> None:
    model, x, y, target = scene
    x_adv = made(name, norm=norm, eps=eps, steps=25)(model, x, y, target)
    with torch.no_grad():
        rise = (model(x_adv) - model(x)).gather(1, target[:, None])
        hits = model(x_adv).argmax(1) == target
    assert (rise > 0).all()
    assert hits.any()


def test_restarts_and_seeds(scene: Scene) -> None:
    model, x, y, _ = scene
    attack = made("apgd", eps=0.01, steps=4, restarts=3)
    heard = listened(ByGradient, attack, model, x, y).heard
    starts = [torch.stack([heard[i, run * 4][0] for i in range(10)]) for run in range(3)]
    assert all(not torch.equal(a, b) for a, b in pairwise(starts))
    for start in starts:
        reach = (start - x).abs().flatten(1).amax(1)
        inner = ((x > 0.01) & (x < 0.99)).flatten(1).all(1)
        assert (reach <= 0.01 + 1e-12).all()
        torch.testing.assert_close(reach[inner], torch.full_like(reach[inner], 0.01))
    one, two = attack(model, x, y, seed=1), attack(model, x, y, seed=2)
    assert torch.equal(attack(model, x, y, seed=1), one)
    assert not torch.equal(one, two)


def test_models_come_back_as_they_were(net: Net, images: Images, labelled: Labelled) -> None:
    model, x = net(3, batch_norm=True), images(4)
    y, _ = labelled([model], x)
    model.train()
    model[0].eval()
    for i, p in enumerate(model.parameters()):
        p.requires_grad_(i % 2 == 0)
        p.grad = torch.ones_like(p)
    modes = [m.training for m in model.modules()]
    asks = [p.requires_grad for p in model.parameters()]
    state = {k: v.clone() for k, v in model.state_dict().items()}
    made("apgd-t", steps=3, targets=2)(model, x, y)
    assert [m.training for m in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == asks
    assert all(bool((p.grad == 1).all()) for p in model.parameters() if p.grad is not None)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


@names
def test_eot(name: str, scene: Scene) -> None:
    """Randomness of the model's own is named by the seed, and the global stream is left alone."""
    model, x, y, _ = scene
    restless = Restless(model, 0.3)
    attack = made(name, eps=0.02, steps=5, eot=4)
    state = torch.get_rng_state()
    first = attack(restless, x, y, seed=2)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(5)
    assert torch.equal(attack(restless, x, y, seed=2), first)
    # without randomness, an average of four passes is one pass
    torch.testing.assert_close(attack(model, x, y), made(name, eps=0.02, steps=5)(model, x, y))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "'apgd': steps = 0: at least 1"),
        ({"restarts": 0}, "'apgd': restarts = 0: at least 1"),
        ({"eot": 0}, "'apgd': eot = 0: at least 1"),
        ({"targets": -1}, "'apgd': targets = -1: at least 0"),
        ({"rho": 0.0}, "'apgd': rho = 0.0: above 0 and at most 1"),
        ({"rho": 1.5}, "'apgd': rho = 1.5: above 0 and at most 1"),
        ({"loss": "drl"}, "unknown loss 'drl'; did you mean 'dlr'?"),
        ({"norm": "l3"}, "unknown norm 'l3'; did you mean 'l2'?"),
        ({"step": 3}, "this attack has no option 'step'; did you mean 'steps'?"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        create_attack("apgd", **options)
    assert str(caught.value) == message


def test_wrong_models_and_targets(scene: Scene) -> None:
    model, x, y, target = scene
    with pytest.raises(InputError, match="'apgd' picks its own 9 targets; for targets of yours"):
        made("apgd-t")(model, x, y, target)
    two, three = (nn.Sequential(model, Few(n)).eval() for n in (2, 3))
    with pytest.raises(InputError, match="loss 'dlr' needs 3 classes; these models have 2"):
        made("apgd-dlr")(two, x, y % 2)
    with pytest.raises(InputError, match="loss 'dlr' needs 4 classes; these models have 3"):
        made("apgd-t")(three, x, y % 3)


class Few(nn.Module):
    """The first logits alone."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes

    def forward(self, z: Tensor) -> Tensor:
        return z[:, : self.classes]


def test_recipes_and_spec() -> None:
    assert made("apgd") == made("apgd-ce") == AutoPGD()
    assert made("apgd-dlr") == AutoPGD(loss=DLR())
    assert made("apgd-t") == AutoPGD(loss=DLR(), targets=9)
    assert made("apgd").loss == CrossEntropy()
    assert made("apgd-t").passes(1) == Passes(9 * 101 + 1, 900)
    assert advens.attacks.APGDT(eps=0.1) == made("apgd-t", eps=0.1)
    assert [attack_info(name).targeted for name in NAMES] == [True, True, True, False]
    for name in NAMES:
        attack = made(name, norm="l2", eps=0.3, steps=7, rho=0.5)
        assert attack_from_spec(attack.spec) == attack
