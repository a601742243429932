"""Everywhere against its formulas: views of regions; and the reduction in front of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from advens.attacks import create_attack
from advens.attacks.transforms.everywhere import Everywhere
from advens.attacks.transforms.shrink import Shrink
from advens.errors import InputError
from tests.attacks.transforms.conftest import context_of

EPS = 16 / 255
COLOUR = (0.485, 0.456, 0.406)


def shrunk(x: Tensor, t: int, at: Any) -> Tensor:
    """A six-pixel image, with probability 0.7 of four or five pixels at a random place."""
    draws = at.draws(t).fork("shrink")
    if draws.number(0, 1, "apply") >= 0.7:
        return x
    side = 4 + draws.integers(2, 1, "side")[0]
    top, left = (draws.integers(6 - side + 1, 1, axis)[0] for axis in ("top", "left"))
    out = torch.zeros_like(x)
    for r in range(side):
        for c in range(side):
            out[:, top + r, left + c] = x[:, r * 6 // side, c * 6 // side]
    return out


def shown(x: Tensor, t: int, copy: int, at: Any) -> Tensor:
    """The image, or one region of two pixels by two on the mean colour."""
    if copy == 0:
        return x
    region = at.draws(t).permutation(9, "everywhere")[copy - 1]
    out = torch.stack([torch.full((6, 6), value, dtype=x.dtype) for value in COLOUR])
    rows, columns = (slice(2 * place, 2 * place + 2) for place in divmod(region, 3))
    out[:, rows, columns] = x[:, rows, columns]
    return out


def test_everywhere(at: Any) -> None:
    def step(t: int, i: int, x: Tensor, memory: dict[str, Any]) -> Tensor:
        g = torch.zeros_like(x)
        for copy in range(5):
            leaf = x.clone().requires_grad_()
            view = shrunk(shown(leaf, t, copy, at), t, at)
            z = sum(model(view[None])[0] for model in at.models) / len(at.models)
            g += torch.autograd.grad(at.logit(z, i), leaf)[0]
        memory["m"] = memory.get("m", torch.zeros_like(g)) + g / g.abs().sum()
        return EPS / 2 * torch.sign(memory["m"])

    transforms = ["everywhere", {"name": "shrink", "rate": 4 / 6}]
    at.same(step, "everywhere-cfm", 4, step_size="eps/2", changes=[], transforms=transforms)


def test_every_region_is_shown_once_a_step() -> None:
    x = torch.rand(2, 3, 9, 9)
    part, context = Everywhere(grid=3, regions=9), context_of(x, 4)
    seen = torch.stack([(part(x, copy, context) == x).all(1) for copy in range(1, 10)])
    assert (seen.sum(0) == 1).all()
    assert (seen.sum((2, 3)) == 9).all()
    order = [part(x, 1, context_of(x, step)) for step in range(6)]
    assert any(not torch.equal(order[0], other) for other in order)


def test_images_of_one_channel_and_edges() -> None:
    x = torch.rand(1, 1, 8, 8)
    views = [Everywhere(grid=3, regions=9)(x, copy, context_of(x)) for copy in range(1, 10)]
    grey = torch.tensor(COLOUR).mean()
    for edge in (edge for view in views for edge in (view[..., 6:, :], view[..., 6:])):
        torch.testing.assert_close(edge, grey.expand_as(edge))


def test_shrunk_images_keep_their_values_and_their_size() -> None:
    x = torch.rand(2, 3, 20, 10) + 0.1
    sides = set()
    for step in range(40):
        out = Shrink(p=1, rate=0.8)(x, 0, context_of(x, step))
        assert out.shape == x.shape
        inside = (out[0, 0] > 0).nonzero()
        height, width = (int(span) + 1 for span in inside.max(0).values - inside.min(0).values)
        assert width == round(height / 2)
        sides.add(height)
    assert sides == {16, 17, 18, 19}
    assert torch.equal(Shrink(p=0)(x, 0, context_of(x)), x)
    for side in (1, 2):
        assert Shrink(p=1)(x[..., :side, :side], 0, context_of(x)).shape[-2:] == (side, side)


def test_numbers_of_the_paper() -> None:
    attack: Any = create_attack("everywhere-cfm", eps="16/255")
    assert attack.passes(2) == (2 * (299 * 5 + 1), 2 * 299 * 5)
    assert attack.step_size.at(0, 299, attack.threat) == pytest.approx(1.6 / 255)
    x = torch.rand(1, 3, 224, 224)
    sides = []
    for step in range(60):
        out = Shrink(p=1, rate=195 / 224)(x, 0, context_of(x, step))
        sides.append(int((out[0, 0].sum(1) > 0).sum()))
    assert 195 <= min(sides) < 199
    assert 219 < max(sides) <= 223
    assert create_attack("everywhere-logit", steps=10).passes(1) == (50, 50)


def test_bad_numbers() -> None:
    for option in ({"regions": 10}, {"grid": 0}, {"rate": 2}):
        with pytest.raises(InputError, match="at most 9|at least 1|from 0 to 1"):  # noqa: RUF043
            create_attack("everywhere-cfm", **option)
