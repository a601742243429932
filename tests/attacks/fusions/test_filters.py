"""A filter acts on every gradient a fusion asks for, wherever its walk asks."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from advens.attacks.parts import PARTS, changed, from_spec

SIZE, SIGMA = 3, 0.8
TI = [{"name": "ti", "size": SIZE, "sigma": SIGMA}]
AT_THE_END = {"ens-logits", "ens-probs", "ens-loss", "reweighted", "cycle", "adaea"}
"""One gradient, or (AdaEA) raw gradients until the last."""
TWICE = {"svre", "smer"}
"""Whose inner momentum is what the outer update takes for a gradient."""
Make = Callable[..., Any]


def smoothed(g: Tensor) -> Tensor:
    """The gaussian mean over 3 x 3 pixels with zeros beyond the border, shift by shift."""
    reach = SIZE // 2
    weight = {s: math.exp(-(s**2) / (2 * SIGMA**2)) for s in range(-reach, reach + 1)}
    norm, out = sum(weight.values()) ** 2, torch.zeros_like(g)
    rows, columns = g.shape[-2:]
    for a in range(-reach, reach + 1):
        for b in range(-reach, reach + 1):
            for i in range(max(0, -a), min(rows, rows - a)):
                for j in range(max(0, -b), min(columns, columns - b)):
                    out[..., i, j] += weight[a] * weight[b] / norm * g[..., i + a, j + b]
    return out


class Identity(torch.autograd.Function):
    """What goes in comes out; the gradient that comes back is smoothed."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return smoothed(grads[0])


class Smooth(nn.Module):
    """A surrogate every gradient of which is smoothed, whoever asks for it."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.net(Identity.apply(x))
        return z


def short(name: str) -> Any:
    """The fusion with one round of its inner loop, and without a look inside the surrogates."""
    fusion = from_spec("fusion", name)
    fusion = changed(fusion, mask="none") if hasattr(fusion, "mask") else fusion
    return changed(fusion, rounds=1) if hasattr(fusion, "rounds") else fusion


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("name", sorted(set(PARTS["fusion"]) - {"adaea"}))
def test_a_walk_takes_smoothed_gradients_everywhere(
    setting: Make, same: Any, name: str, norm: str
) -> None:
    """It is the walk without a filter over surrogates whose every gradient is smoothed."""
    at = setting(k=3, norm=norm)
    smooth = at.but(models=[Smooth(net) for net in at.models])
    fusion = changed(short(name), refilter=False) if name in TWICE else short(name)
    found = at.run("ifgsm", fusion=fusion, filters=TI, update="mi")
    same(found, smooth.run("ifgsm", fusion=fusion, update="mi"))
    plain = at.run("ifgsm", fusion=fusion, update="mi")
    assert not torch.allclose(found.x_adv, plain.x_adv, atol=1e-3), "nothing was filtered"


@pytest.mark.parametrize("name", list(PARTS["fusion"]))
def test_filtering_the_direction_is_the_same_only_where_it_is_one_gradient(
    setting: Make, name: str
) -> None:
    at = setting(k=3)
    plain, filtered = (at.attack("ifgsm", fusion=short(name), filters=f) for f in ([], TI))
    wanted = smoothed(plain.fusion.direction(at.oracle(plain), at.x))
    found = filtered.fusion.direction(at.oracle(filtered), at.x)
    assert torch.allclose(found, wanted, rtol=0, atol=1e-12) == (name in AT_THE_END)


@pytest.mark.parametrize("name", sorted(TWICE))
def test_the_last_inner_momentum_is_filtered_like_a_gradient(setting: Make, name: str) -> None:
    at = setting(k=3)
    once, twice = (
        at.attack("ifgsm", fusion=changed(short(name), refilter=again), filters=TI)
        for again in (False, True)
    )
    wanted = smoothed(once.fusion.direction(at.oracle(once), at.x))
    found = twice.fusion.direction(at.oracle(twice), at.x)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
    assert short(name) == changed(short(name), refilter=True), "the published form is the default"


def test_adaeas_mask_and_weights_look_at_raw_gradients(setting: Make) -> None:
    """As published: a masked pixel is reached by the kernel from its neighbours."""
    at = setting(k=3)
    attack = at.attack("adaea", filters=TI)
    for shared in (attack, at.attack("adaea", filters=TI, estimator={"name": "vmi", "copies": 1})):
        plain = changed(shared, filters=())
        raw = plain.fusion.direction(at.oracle(plain), at.x)
        assert (raw == 0).any()
        found = shared.fusion.direction(at.oracle(shared), at.x)
        torch.testing.assert_close(found, smoothed(raw), rtol=0, atol=1e-12)


@pytest.mark.parametrize("estimator", [{"name": "vmi", "copies": 2}, {"name": "pgn", "copies": 2}])
def test_filters_come_after_the_estimator(setting: Make, estimator: dict[str, Any]) -> None:
    """VMI's published code smooths g + v, the same as smoothing both; PGN's inner step is along g itself."""
    at = setting(k=2)
    plain = at.attack("mifgsm", estimator=estimator)
    filtered = at.attack("mifgsm", estimator=estimator, filters=TI)
    oracles = at.oracle(plain), at.oracle(filtered)
    for step in range(2):
        raw, found = (oracle.gradient(at.x) for oracle in oracles)
        torch.testing.assert_close(found, smoothed(raw), rtol=0, atol=1e-12)
        for oracle in oracles:
            oracle.begin(step + 1, at.alpha)
    everywhere = at.but(models=[Smooth(net) for net in at.models]).run(plain)
    same = torch.allclose(everywhere.x_adv, at.run(filtered).x_adv, rtol=0, atol=1e-9)
    assert same == (estimator["name"] == "vmi")


def test_filters_act_in_order(setting: Make) -> None:
    at = setting(k=1)
    attack = at.attack("ifgsm", filters=[*TI, {"name": "ti", "size": 5, "sigma": 2.0}])
    once = from_spec("filter", {"name": "ti", "size": 5, "sigma": 2.0})
    g = at.oracle(at.attack("ifgsm")).gradient(at.x)
    torch.testing.assert_close(
        at.oracle(attack).gradient(at.x), once(smoothed(g)), rtol=0, atol=1e-12
    )
