"""Every part of kind feature with every other part: it runs as its formula says, or is refused by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from advens.attacks import create_attack
from advens.attacks.attack import ComposedAttack
from advens.attacks.parts import PARTS
from advens.attacks.registry import RECIPES
from advens.errors import InputError
from tests.attacks.conftest import among, counting, tiny_tokens
from tests.attacks.features.conftest import scene
from tests.attacks.fusions.test_product import ESTIMATORS, FILTERS, TRANSFORMS, UPDATES

EPS = 8 / 255
SMALL: dict[str, Any] = {"copies": 2, "first": ComposedAttack(steps=2)}
FUSIONS = [name for name in PARTS["fusion"] if not hasattr(PARTS["fusion"].get(name), "OF_LOGITS")]


def small(name: str) -> dict[str, Any]:
    """A feature part with few passes."""
    known = PARTS["feature"].get(name).__dataclass_fields__  # type: ignore[attr-defined]
    fits = {key for key, value in SMALL.items() if key in known and type(known[key].default) is type(value)}
    return {"name": name} | {key: SMALL[key] for key in fits}


def setting(name: str, n: int) -> Any:
    """Two surrogates that a feature part can be tried on, n images, their labels and perhaps targets."""
    at = scene(n, 2, targeted=not PARTS["feature"].info(name).untargeted)
    if name == "aa":  # needs an image of every target class
        at.y, at.target = among(at.y)
    if name == "se":  # reads tokens by the network's own head
        at.models = [tiny_tokens(seed, side=6) for seed in range(2)]  # type: ignore[assignment]
        at.y = sum(model(at.x) for model in at.models).argmax(1)  # type: ignore[union-attr]
    return at


@pytest.mark.parametrize("name", list(PARTS["feature"]))
def test_everything_goes_with_everything(name: str) -> None:
    """Each fusion, transform, estimator, update and filter beside a feature part, and never the same four."""
    at = setting(name, 2)
    models: list[nn.Module] = list(at.models)
    axes: tuple[list[Any], ...] = (FUSIONS, TRANSFORMS, ESTIMATORS, UPDATES)
    shift = list(PARTS["feature"]).index(name)
    for number in range(max(map(len, axes))):
        chosen = [axis[(number + turn * shift) % len(axis)] for turn, axis in enumerate(axes)]
        fusion, transform, estimator, update = chosen
        if hasattr(PARTS["fusion"].get(fusion), "rounds"):
            fusion = {"name": fusion, "rounds": 1}
        attack = create_attack(
            "ens-loss", feature=small(name), fusion=fusion, transforms=[transform], estimator=estimator,
            update=update, filters=FILTERS[number % 2], eps=EPS, step_size=EPS / 2, steps=2,
        )  # fmt: skip
        case = f"{fusion} {transform} {estimator} {update}"
        with counting(models) as passes:
            found = attack.run(models, at.x, at.y, at.target, seed=1)
        formula = attack.passes(2)
        assert found.passes == formula, case
        assert (passes.forward, passes.backward) == (2 * formula.forward, 2 * formula.backward), case
        assert torch.isfinite(found.x_adv).all(), case
        assert (found.x_adv - at.x).abs().max() <= EPS + 1e-6, case
        assert (found.x_adv - at.x).abs().amax((1, 2, 3)).min() > EPS / 8, case


@pytest.mark.parametrize("name", list(PARTS["feature"]))
def test_fusions_that_need_logits_are_refused(name: str) -> None:
    loss = hasattr(PARTS["feature"].get(name), "loss")
    for fusion in PARTS["fusion"]:
        if fusion in FUSIONS or not (loss or hasattr(PARTS["fusion"].get(fusion), "layers")):
            create_attack("ens-loss", feature=name, fusion=fusion)
            continue
        refused = rf"'{name}' does not go with the fusion '{fusion}', which \w+.*'ens-loss'"
        with pytest.raises(InputError, match=refused):
            create_attack("ens-loss", feature=name, fusion=fusion)


@pytest.mark.parametrize("name", [name for name in RECIPES if RECIPES.info(name).family == "feature"])
def test_the_feature_is_what_a_recipe_adds(name: str) -> None:
    """Without it the same attack does something else."""
    at = setting(name, 3)
    attack = create_attack(name, steps=2, eps=EPS)
    spec = attack.spec | {"feature": None}
    with_it = attack.run(at.models, at.x, at.y).x_adv
    same = {key: value for key, value in spec.items() if key in ("update", "steps", "step_size")}
    without = create_attack("ens-loss", **same)
    assert not torch.equal(with_it, without.run(at.models, at.x, at.y).x_adv)


@pytest.mark.parametrize("name", list(PARTS["feature"]))
def test_several_views_in_one_pass(name: str) -> None:
    """Two scales of two neighbours: the same images and passes as one view at a time."""
    at = setting(name, 2)
    attack = create_attack(
        "ens-loss", feature=small(name), transforms=[{"name": "si", "copies": 2}], steps=2,
        estimator={"name": "pgn", "copies": 2}, eps=EPS,
    )  # fmt: skip
    one = attack.run(at.models, at.x, at.y, at.target, seed=1)
    all_at_once = attack.run(at.models, at.x, at.y, at.target, seed=1, copies_at_once=8)
    assert all_at_once.passes == one.passes
    torch.testing.assert_close(all_at_once.x_adv, one.x_adv, rtol=0, atol=1e-12)
