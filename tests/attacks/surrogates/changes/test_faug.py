"""FAUG and weight scaling: the first layer with noise, and convolutions with weaker weights."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from advens.attacks import create_attack
from advens.attacks.surrogates.changes import Changed
from advens.attacks.surrogates.changes.faug import FAUG
from advens.attacks.surrogates.changes.weight_scale import WeightScale
from advens.errors import InputError
from advens.seeding import Draws
from tests.attacks.fusions.conftest import SEED, agree, grad, make


def convolutions(seed: int) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        net = nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 2, 3, stride=2), nn.Tanh(), nn.Flatten(),
            nn.Linear(18, 5),
        )  # fmt: skip
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(3)
    return net.double().eval().requires_grad_(False)


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize(("n", "targeted"), [(1, False), (7, True)])
def test_attack(k: int, n: int, targeted: bool) -> None:
    """The first step without noise, the others with that of the step, sample and surrogate."""
    models = [convolutions(seed) for seed in range(k)]
    at = make(k, n, "linf", targeted, models=models)

    def seen(model: nn.Sequential, x: Tensor, t: int, i: int, member: int) -> Tensor:
        first = model[0](x[None])
        if t > 0:
            like = torch.empty(n, *first.shape[1:], dtype=x.dtype)
            noise = Draws(SEED, n).at(t).normal(like, 1.0, "change", member, "faug")[i]
            values = first.detach()
            spread = ((values - values.sum() / values.numel()) ** 2).sum().div(values.numel()).sqrt()
            first = first + 0.5 * spread * noise
        out: Tensor = model[1:](first)[0]
        return out

    def direction(t: int, i: int, x: Tensor, state: dict[str, Any]) -> Tensor:
        return grad(lambda leaf: at.j(sum(seen(m, leaf, t, i, j) for j, m in enumerate(models)) / k, i), x)

    agree(at.run("faug", changes=[{"name": "faug", "width": 0.5}]), at.alone(direction))


def test_every_sample_and_step_has_noise_of_its_own() -> None:
    net, x = Changed(convolutions(0), [FAUG()]), torch.rand(2, 3, 8, 8, dtype=torch.float64)
    plain = net(x)
    assert torch.equal(plain, convolutions(0)(x)), "outside an attack there is none"
    outs = []
    for step in (0, 1, 2):
        net.at_step(Draws(3, 2).at(step))
        outs.append(net(x))
        assert torch.equal(net(x), outs[-1]), "one draw a step"
        twice = net(torch.cat([x, x]))
        torch.testing.assert_close(twice, torch.cat([outs[-1]] * 2))
    assert torch.equal(outs[0], plain)
    assert not torch.equal(outs[1], outs[2])
    net.at_step(Draws(3, 2, slice(1, 2)).at(1))
    torch.testing.assert_close(net(x[1:]), outs[1][1:])


def test_weaker_weights() -> None:
    net = convolutions(1)
    weaker = copy.deepcopy(net)
    for layer in (weaker[0], weaker[2]):
        layer.weight.mul_(0.8)
    x = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(Changed(net, [WeightScale(0.8)])(x), weaker(x))
    assert not torch.equal(net(x), weaker(x))


def test_refusals() -> None:
    for change in (FAUG(), WeightScale()):
        with pytest.raises(InputError, match="finds no convolution in 'Sequential'"):
            Changed(nn.Sequential(nn.Flatten()), [change])(torch.zeros(1, 3, 4, 4))
    for option in ({"width": -1}, {"changes": [{"name": "weight-scale", "factor": 0}]}):
        with pytest.raises(InputError, match="at least 0|above 0"):  # noqa: RUF043
            create_attack("faug", **option)
