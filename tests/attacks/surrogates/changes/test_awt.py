"""AWT: one image at a time, with the weights' descent written out, tensor by tensor."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from advens.attacks import create_attack
from advens.attacks.surrogates.changes import Changed
from advens.attacks.surrogates.changes.awt import AWT
from advens.errors import InputError
from tests.attacks.fusions.conftest import agree, grad, make
from tests.attacks.surrogates.changes.conftest import check_passes

HOW = {"rho": 0.3, "rate": 0.2, "momentum": 0.6}
Weights = dict[str, Tensor]


def learned(at: Any, net: nn.Module, w: Weights, x: list[Tensor], rows: list[int], b: Weights | None) -> Any:
    """Weights and momentum after a step on the mean of J(x') + J(x) over some samples."""

    def slope(weights: Weights) -> Weights:
        leaves = {name: each.detach().clone().requires_grad_() for name, each in weights.items()}
        total = torch.zeros((), dtype=torch.float64)
        for i, image in zip(rows, x, strict=True):
            for point in (image, at.x[i]):
                total = total + at.j(functional_call(net, leaves, (point[None],))[0], i) / len(rows)
        return dict(zip(leaves, torch.autograd.grad(total, list(leaves.values())), strict=True))

    g = slope(w)
    length = torch.sqrt(sum((each**2).sum() for each in g.values()))  # type: ignore[arg-type]
    ahead = slope({name: w[name] + HOW["rho"] * g[name] / length for name in w})
    b = ahead if b is None else {name: HOW["momentum"] * b[name] + ahead[name] for name in w}
    return {name: w[name] - HOW["rate"] * b[name] for name in w}, b


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize(("n", "targeted"), [(1, False), (7, True)])
def test_attack(k: int, n: int, targeted: bool) -> None:
    at = make(k, n, "linf", targeted)
    models = at.models

    def direction(t: int, i: int, x: Tensor, state: dict[str, Any]) -> Tensor:
        for m, net in enumerate(models):
            w, b = state.get(m, (dict(net.named_parameters()), None))
            state[m] = learned(at, net, w, [x], [i], b)

        def loss(leaf: Tensor) -> Tensor:
            each = [functional_call(net, state[m][0], (leaf[None],))[0] for m, net in enumerate(models)]
            return at.j(sum(each) / k, i)

        return grad(loss, x)

    agree(at.run("ens-logits", changes=[{"name": "awt"} | HOW]), at.alone(direction))


def test_shared_weights() -> None:
    """All images of the micro-batch in one descent, and its images depend on each other."""
    at = make(2, 3)
    models = at.models

    def direction(t: int, points: list[Tensor], state: dict[str, Any]) -> list[Tensor]:
        for m, net in enumerate(models):
            w, b = state.get(m, (dict(net.named_parameters()), None))
            state[m] = learned(at, net, w, points, [0, 1, 2], b)

        def loss(leaf: Tensor, i: int) -> Tensor:
            each = [functional_call(net, state[m][0], (leaf[None],))[0] for m, net in enumerate(models)]
            return at.j(sum(each) / 2, i)

        return [grad(lambda leaf, i=i: loss(leaf, i), x) for i, x in enumerate(points)]

    found = at.run("ens-logits", changes=[{"name": "awt", "shared": True} | HOW])
    agree(found, at.together(direction))


def test_images_are_by_themselves_and_surrogates_come_back() -> None:
    at = make(2, 3)
    before = [p.detach().clone() for net in at.models for p in net.parameters()]
    attack = create_attack("awt", steps=3, copies=2, changes=[{"name": "awt"} | HOW])
    whole = attack.run(at.models, at.x, at.y, seed=1, copies_at_once=4).x_adv
    apart = attack.run(at.models, at.x, at.y, seed=1, micro_batch=1).x_adv
    torch.testing.assert_close(apart, whole, rtol=0, atol=1e-12)
    after = [p for net in at.models for p in net.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))
    still = create_attack("awt", steps=3, copies=2, rate=0)(at.models, at.x, at.y, seed=1)
    plain = create_attack("pgn", steps=3, copies=2, eps="16/255")(at.models, at.x, at.y, seed=1)
    torch.testing.assert_close(still, plain, rtol=0, atol=1e-12)
    assert not torch.equal(whole, plain)


def test_passes() -> None:
    at = make(2, 3)
    for name in ("awt", "awt-svre", "awt-adaea"):
        check_passes(at, name)
    assert create_attack("awt").passes(1) == (440, 440)


def test_refusals() -> None:
    with pytest.raises(InputError, match="'awt' finds no weights in 'Flatten'"):
        Changed(nn.Flatten(), [AWT()])(torch.zeros(1, 3, 2, 2))
    with pytest.raises(InputError, match="at least 0"):
        create_attack("awt", rho=-1)
    for name, other in (("sgm-awt", "sgm"), ("fia-awt-ens-loss", "fia"), ("awt-namea", "namea")):
        with pytest.raises(InputError, match=f"'awt' does not go with '{other}': it gives every image"):
            create_attack(name)
