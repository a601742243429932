"""FIA against its formulas, and what masks and scores do."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from advens.attacks import create_attack
from advens.errors import InputError

EPS = 16 / 255


@pytest.mark.parametrize(("score", "layer", "stage"), [("logit", 0.5, 2), ("probability", "stages.2", 3)])
def test_fia(at: Any, mi: Any, n2: Any, score: str, layer: Any, stage: int) -> None:
    copies, keep, alpha = 4, 0.6, EPS / 3

    def guide(i: int, k: int) -> Any:
        total: Any = 0
        for m in range(copies):
            mask = at.once().uniform(at.x, 0, 1, "fia", m)[i] < keep
            total = total + at.importance(i, k, at.x[i] * mask, stage, score)
        return n2(total)

    def step(t: int, i: int, x: Any, memory: dict[str, Any]) -> Any:
        if t == 0:
            memory["A"] = [guide(i, k) for k in range(at.k)]
        return alpha * mi(at.guided(memory["A"], x, stage), memory).sign()

    at.same(step, "fia", 3, copies=copies, keep=keep, score=score, layer=layer)


def test_without_masks_it_is_the_gradient_at_the_clean_image(at: Any, mi: Any, n2: Any) -> None:
    def step(t: int, i: int, x: Any, memory: dict[str, Any]) -> Any:
        guides = [n2(at.importance(i, k, at.x[i], 2, "logit")) for k in range(at.k)]
        return EPS / 2 * mi(at.guided(guides, x, 2), memory).sign()

    at.same(step, "fia", 2, keep=1.0, copies=2)


def test_the_probability_of_a_sure_surrogate_still_guides(at: Any) -> None:
    """In single precision a probability of 1 has no gradient; here it is taken as two factors."""
    x = at.x.float()
    models = [model.float() for model in at.models]
    for model in models:
        model.head.weight.data *= 100
    y = models[0](x).argmax(1)
    assert (models[0](x).softmax(1).max(1).values == 1).any()
    run = create_attack("fia", eps=EPS, score="probability", copies=3, steps=2).run(models[:1], x, y)
    assert run.silent is not None
    assert run.silent.max() == 0


def test_masks_do_not_depend_on_the_surrogates(at: Any) -> None:
    """The first of K is guided as it is alone."""
    attack = create_attack("fia", eps=EPS, copies=3, fusion={"name": "cycle"}, steps=1)
    together = attack.run(at.models, at.x, at.y, seed=3).x_adv
    alone = [attack.run([model], at.x, at.y, seed=3).x_adv for model in at.models]
    assert any(torch.equal(together, each) for each in alone)


def test_passes() -> None:
    assert create_attack("fia").passes(1) == (40, 40)
    assert create_attack("fia", steps=5, copies=10).passes(3) == (45, 45)
    assert create_attack("di-fia", warm_up=5).passes(2) == (90, 90)


@pytest.mark.parametrize(
    "options", [{"keep": 0}, {"copies": 0}, {"layer": 0.0}, {"layer": 1.5}, {"score": "z"}]
)
def test_bad_options(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"'fia': {next(iter(options))}"):
        create_attack("fia", **options)


def test_no_targets(at: Any) -> None:
    with pytest.raises(InputError, match="'fia' is defined without targets only"):
        create_attack("fia").run(at.models, at.x, at.y, (at.y + 1) % 4)
