"""TAP against its formulas; where its loss leads at the clean image; passes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from advens.attacks import create_attack
from advens.errors import InputError

EPS = 16 / 255


def root(a: Any) -> Any:
    return torch.sign(a) * torch.sqrt(torch.abs(a) + 1e-12)


def objective(at: Any, i: int, x: Any, weight: float, smooth: float) -> Any:
    """The paper's loss at one image, with its boxes summed pixel by pixel; mean over the surrogates."""
    total = 0
    for k in range(at.k):
        total = total + at.ce(at.logits(k, x), i)
        for stage in (1, 2, 3, 4):
            moved = root(at.features(k, x, stage)) - root(at.features(k, at.x[i], stage).detach())
            total = total + weight * (moved * moved).sum()
    delta, boxes = x - at.x[i], 0
    for row in range(0, 6, 3):
        for column in range(0, 6, 3):
            mean = sum(delta[:, row + a, column + b] for a in range(3) for b in range(3)) / 9
            boxes = boxes + torch.abs(mean).sum()
    return total / at.k + smooth * boxes


def test_tap(any_goal: Any) -> None:
    at = any_goal

    def step(t: int, i: int, x: Any, memory: dict[str, Any]) -> Any:
        return EPS / 3 * at.input_gradient(lambda leaf: objective(at, i, leaf, 0.5, 0.7), x).sign()

    at.same(step, "tap", 3, step_size=EPS / 3, weight=0.5, smooth=0.7)
    found = at.run("tap", steps=3, step_size=EPS / 3, weight=0.5, smooth=0.7)
    for change in ({"weight": 0}, {"smooth": 0}):
        other = at.run("tap", **{"steps": 3, "step_size": EPS / 3, "weight": 0.5, "smooth": 0.7, **change})
        assert not torch.equal(found, other)


def test_the_loss_leads_at_the_clean_image_and_without_weights(any_goal: Any) -> None:
    one = any_goal.run("tap", steps=1, step_size=EPS, weight=100)
    assert torch.equal(one, any_goal.run("ens-loss", steps=1))
    several = any_goal.run("tap", steps=3, step_size=EPS / 3, weight=0, smooth=0)
    torch.testing.assert_close(several, any_goal.run("ens-loss", steps=3), rtol=0, atol=1e-12)


def test_a_surrogate_that_is_sure_still_leads(at: Any) -> None:
    """In float32, where the slope of its loss is e^-300."""
    with torch.no_grad():
        for model in at.models:
            model.head.weight.mul_(1e3)
        y = sum(model(at.x) for model in at.models).argmax(1)
    x, models = at.x.float(), [model.float() for model in at.models]
    found = create_attack("tap", eps=EPS, steps=1, step_size=EPS)(models, x, y)
    assert bool(((found - x).abs().amax((1, 2, 3)) > EPS / 2).all())


def test_passes_and_bad_numbers() -> None:
    assert create_attack("tap", steps=10).passes(3) == (33, 30)
    for option in ({"weight": -1}, {"smooth": -1}, {"layers": [0]}):
        with pytest.raises(InputError):
            create_attack("tap", **option)
