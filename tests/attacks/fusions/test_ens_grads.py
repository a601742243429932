"""The sum of unit gradients against its formula."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def transcribed(at: Any) -> Any:
    def direction(t: int, i: int, x: Tensor, state: dict[str, Any]) -> Tensor:
        total = torch.zeros_like(x)
        for k in range(at.k):
            g = at.own(i, k, x)
            total = total + g / math.sqrt(float((g**2).sum()))
        return total

    return at.alone(direction)


def test_formula(at: Any, same: Any) -> None:
    same(at.run("ens-grads"), transcribed(at))


def test_every_surrogate_counts_the_same_whatever_its_scale(
    setting: Callable[..., Any], same: Any
) -> None:
    """With a margin loss, which is linear in the logits, a factor on one net's logits changes nothing."""
    at = setting(k=3)

    class Louder(nn.Module):
        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Tensor:
            z: Tensor = self.net(x)
            return 100 * z

    loud = at.but(models=[at.models[0], Louder(at.models[1]), at.models[2]])
    before = at.run("ens-grads", loss="margin")
    same(loud.run("ens-grads", loss="margin"), before)
    uniform = at.run("ens-loss", loss="margin"), loud.run("ens-loss", loss="margin")
    assert not torch.allclose(uniform[0].x_adv, uniform[1].x_adv)


def test_a_surrogate_without_a_gradient_adds_nothing(setting: Callable[..., Any]) -> None:
    at = setting(k=2)

    class Flat(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 0.0 * x.flatten(1)[:, :5]

    found = at.but(models=[at.models[0], Flat()]).run("ens-grads")
    wanted = at.but(models=[at.models[0]]).run("ens-grads")
    assert torch.equal(found.x_adv, wanted.x_adv)
    assert torch.equal(found.directions, wanted.directions)


def test_passes(setting: Callable[..., Any], count: Any) -> None:
    at = setting(k=3)
    attack = at.attack("ens-grads")
    assert attack.passes(3) == (3 * 3, 3 * 3)
    with count(at.models) as seen:
        found = attack.run(at.models, at.x, at.y)
    assert found.passes == (9, 9)
    assert (seen.forward, seen.backward) == (9 * len(at.x), 9 * len(at.x))
