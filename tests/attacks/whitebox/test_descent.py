"""White-box descents: counted passes, rows that mind no others, targets, seeds, wrong options."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import advens
from advens.attacks import create_attack
from advens.attacks.oracle import Passes
from advens.attacks.whitebox.descent import ODI, Descent, Halves
from advens.attacks.whitebox.engine import search
from advens.attacks.whitebox.oracle import RowOracle
from advens.classifier import borrowed
from advens.errors import InputError
from tests.attacks.whitebox.conftest import Images, Net, Scene, maker

NAMES = ["pgd-ce", "cw", "pgd-dlr", "pma-simple", "md", "pma"]
names = pytest.mark.parametrize("name", NAMES)
norms = pytest.mark.parametrize(("norm", "eps"), [("linf", 0.06), ("l2", 0.5)])
made = maker(Descent)


@names
@pytest.mark.parametrize(
    "options", [{}, {"restarts": 2}, {"start": "odi"}, {"eot": 3}, {"start": "clean", "steps": 2}]
)
def test_passes(name: str, options: dict[str, Any], batched_scene: Scene, net: Net, count: Any) -> None:
    _, x, y, _ = batched_scene
    attack = made(name, **{"steps": 4, **options})
    runs = options.get("restarts", 1) * (2 if name in ("md", "pma") else 1)
    own = attack.steps + (2 if options.get("start") == "odi" else 0)
    eot = options.get("eot", 1)
    backward = runs * own * eot
    for models in ([net(0)], [net(0), net(1)]):
        formula = attack.passes(len(models))
        assert formula == Passes(len(models) * (backward + runs * eot), len(models) * backward)
        with count(models) as seen:
            result = attack.run(models, x, y)
        assert result.passes == formula
        assert (seen.forward, seen.backward) == tuple(len(x) * n for n in formula)


@names
@pytest.mark.parametrize("stop", [True, False], ids=["compacted", "whole"])
@pytest.mark.parametrize("start", ["uniform", "odi"])
def test_batch_changes_nothing(name: str, stop: bool, start: str, net: Net, images: Images) -> None:
    """Rows that leave, join and stand at other iterations than their neighbours: bit for bit."""
    model, x = net(1), images(5, n=11)
    with torch.no_grad():
        y = model(x).argmax(1)
    attack = made(name, eps=0.012, steps=6, restarts=2, start=start)
    results = []
    for batch in (3, 7, 11):
        oracle = RowOracle([model], attack.threat, x, y, seed=5)
        search(attack, oracle, torch.arange(11), batch=batch, stop=stop)
        results.append(oracle)
    first = results[0]
    assert 0 < first.correct.sum() < 11, "some stand, some break"
    for other in results[1:]:
        assert torch.equal(other.correct, first.correct)
        assert torch.equal(other.x_adv, first.x_adv)
        assert torch.equal(other.broken_at, first.broken_at)
        assert torch.equal(other.forwards, first.forwards)
        assert torch.equal(other.backwards, first.backwards)
    formula = attack.passes(1)
    standing = first.correct > 0
    assert (first.backwards[standing] == formula.backward).all()
    assert (first.forwards[standing] == formula.forward).all()
    if stop:
        assert (first.backwards[~standing] <= formula.backward).all()
        assert (first.backwards[~standing] < formula.backward).any()
    else:
        assert (first.backwards == formula.backward).all()


@names
@norms
def test_targets_are_reached(name: str, norm: str, eps: float, batched_scene: Scene) -> None:
    model, x, y, target = batched_scene
    attack = made(name, norm=norm, eps=eps * 3, steps=12)
    x_adv = attack(model, x, y, target)
    with torch.no_grad():
        reached = (model(x_adv).argmax(1) == target).double().mean()
        before = (model(x).argmax(1) == target).double().mean()
    assert before == 0
    assert reached >= 0.8


@names
def test_seeds(name: str, batched_scene: Scene) -> None:
    model, x, y, _ = batched_scene
    attack = made(name, eps=0.004, steps=3)
    same = [attack(model, x, y, seed=1) for _ in range(2)]
    assert torch.equal(*same)
    assert not torch.equal(attack(model, x, y, seed=2), same[0])


@names
def test_models_come_back(name: str, net: Net, images: Images) -> None:
    model, x = net(4, batch_norm=True).train(), images(0)
    for i, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(i % 2 == 0)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    made(name, steps=3)(model, x, torch.arange(len(x)))
    assert model.training
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert [p.requires_grad for p in model.parameters()] == [
        i % 2 == 0 for i in range(len(list(model.parameters())))
    ]
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "ce"}, "'descent': decomposed = True: loss 'ce' has no terms to take apart; use"),
        ({"steps": 1}, "'descent': decomposed = True: this takes at least 2 steps"),
        ({"steps": 0}, "'descent': steps = 0: at least 1"),
        ({"restarts": 0}, "'descent': restarts = 0: at least 1"),
        ({"eot": 0}, "'descent': eot = 0: at least 1"),
        (
            {"start": "gaussian"},
            "'descent': start = Gaussian(std=0.001): the start is 'uniform', 'cl",
        ),
        ({"start": {"name": "odi", "steps": 0}}, "'odi': steps = 0: at least 1"),
        (
            {"step_size": {"alpha": "eps*2"}},
            "'halves': alpha = 'eps*2': step_size = 'eps*2' is not a number",
        ),
        ({"transforms": ["di"]}, "this attack has no option 'transforms'"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        create_attack("pma", **options)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_odi_is_refused_where_no_model_can_be_asked(batched_scene: Scene) -> None:
    model, x, y, _ = batched_scene
    with pytest.raises(InputError, match="start 'odi' asks the model"):
        create_attack("pgd", start="odi")(model, x, y)
    assert made("pma", start="odi").start == ODI()
    assert made("pma", step_size="eps/10").step_size == Halves("eps/10")


def test_factories() -> None:
    from advens.attacks import CW, MD, PGDCE, PGDDLR, PMA, PMASimple  # type: ignore[attr-defined]

    found = (PGDCE(), CW(), PGDDLR(), PMASimple(), MD(), PMA())
    assert found == tuple(create_attack(name) for name in NAMES)
    assert PMA(eps=0.1, norm="l2", steps=7) == create_attack("pma", eps=0.1, norm="l2", steps=7)


def test_pma_is_no_weaker_than_pgd_on_a_robust_model() -> None:
    data, model = advens.load_data("digits:test?limit=60"), advens.load_model("digits:resnet-at")
    x = torch.stack([sample.image for sample in data])
    y = torch.tensor([sample.label for sample in data])
    robust = {}
    for name in ("pgd-ce", "pma"):
        attack = made(name, eps=0.2, steps=10)
        with borrowed([model]):
            oracle = RowOracle([model], attack.threat, x, y)
            search(attack, oracle, oracle.begin(torch.arange(60)), batch=30)
        robust[name] = oracle.correct.mean().item()
        with torch.no_grad():
            wrong = model(oracle.x_adv).argmax(1) != y
        assert torch.equal(wrong, oracle.correct == 0)
    assert robust["pma"] <= robust["pgd-ce"] + 0.03
