"""FTM against its formulas: perturbations that work against the attack, renewed where a layer is drawn."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from advens.attacks import create_attack
from advens.attacks.surrogates.changes import Changed
from advens.attacks.surrogates.changes.ftm import FTM
from advens.errors import InputError
from tests.attacks.fusions.conftest import Setting, agree
from tests.attacks.surrogates.changes.test_cfm import (
    chosen,
    clean_features,
    mixing,
    others,
    scene,
    through,
)

P, BETA, PARTNERS = 0.6, 0.3, 2
Perturbations = dict[tuple[int, int], Tensor]
"""By surrogate and layer."""


def logits(
    at: Setting, member: int, x: Tensor, t: int, i: int, known: Perturbations, noise: dict[int, Tensor]
) -> Tensor:
    """Of one surrogate; ``noise`` (0 everywhere) is added where the perturbations are."""
    model = at.models[member]
    clean = [clean_features(model, image) for image in others(at, i, PARTNERS)]

    def mix(layer: int, out: Tensor) -> Tensor:
        if layer == 0:
            return out
        if (member, layer) in known:
            p = known[member, layer]
            out = out + BETA * (out.detach() ** 2).sum().sqrt() * p / (p**2).sum().sqrt()
        out = out + noise.setdefault(layer, torch.zeros_like(out).requires_grad_())
        if not chosen(t, member, P)[layer]:
            return out
        which, a = mixing(at, t, i, member, layer, len(clean))
        return (1 - a) * out + a * clean[which][layer]

    return through(model, x, mix)


def features(at: Setting, member: int, x: Tensor, t: int, i: int, known: Perturbations) -> dict[int, Tensor]:
    """What each layer gives before its perturbation."""
    found: dict[int, Tensor] = {}
    model = at.models[member]
    clean = [clean_features(model, image) for image in others(at, i, PARTNERS)]

    def mix(layer: int, out: Tensor) -> Tensor:
        found[layer] = out.detach()
        if layer and (member, layer) in known:
            p = known[member, layer]
            out = out + BETA * (out**2).sum().sqrt() * p / (p**2).sum().sqrt()
        if layer and chosen(t, member, P)[layer]:
            which, a = mixing(at, t, i, member, layer, len(clean))
            out = (1 - a) * out + a * clean[which][layer]
        return out

    through(model, x, mix)
    return found


def wanted(z: Tensor, at: Setting, i: int) -> Tensor:
    return z[at.wanted(i)] if at.target is not None else -z[at.wanted(i)]


@pytest.mark.parametrize(("k", "n", "targeted"), [(1, 7, True), (3, 1, True), (3, 7, False), (1, 1, False)])
def test_ftm(k: int, n: int, targeted: bool) -> None:
    at = scene(k, n, targeted).but(steps=5, alpha=4 / 255)
    turned = []

    def direction(t: int, i: int, x: Tensor, state: dict[str, Any]) -> Tensor:
        known: Perturbations = state.setdefault("P", {})
        noises: list[dict[int, Tensor]] = [{} for _ in range(k)]
        leaf = x.clone().requires_grad_()
        z = sum(logits(at, m, leaf, t, i, known, noises[m]) for m in range(k)) / k
        wanted(z, at, i).backward()  # type: ignore[arg-type,no-untyped-call]
        renewed: Perturbations = {}
        for m in range(k):
            before = features(at, m, x, t, i, known)
            for layer in (1, 2, 3):
                if chosen(t, m, P)[layer]:
                    g = noises[m][layer].grad
                    assert g is not None
                    if (m, layer) in known:
                        p = known[m, layer]
                        scale = BETA * (before[layer] ** 2).sum().sqrt() / (p**2).sum().sqrt()
                        renewed[m, layer] = p - scale * g
                        both = p.flatten(), renewed[m, layer].flatten()
                        turned.append(float(torch.cosine_similarity(*both, 0)))
                    else:
                        renewed[m, layer] = -g
        known |= renewed
        assert leaf.grad is not None
        return leaf.grad

    change = {"name": "ftm", "p": P, "beta": BETA, "partners": PARTNERS}
    attack = at.attack("ftm", transforms=[], changes=[change])
    assert attack.passes(k) == (k * (5 + PARTNERS), 5 * k)
    agree(at.run(attack), at.alone(direction))
    assert min(turned) < 0.999, "perturbations turn"


def test_untuned_it_is_cfm() -> None:
    """What published code does: the perturbation stays 0."""
    at = scene(2, 3, True)
    options = {"p": 0.7, "partners": 2}
    cfm = at.run("cfm", changes=[{"name": "cfm", **options}]).x_adv
    assert torch.equal(at.run("ftm", changes=[{"name": "ftm", "tuned": False, **options}]).x_adv, cfm)
    assert not torch.equal(at.run("ftm", changes=[{"name": "ftm", "beta": 0.3, **options}]).x_adv, cfm)
    torch.testing.assert_close(at.run("ftm", changes=[{"name": "ftm", "beta": 0, **options}]).x_adv, cfm)


def test_perturbations_lower_what_the_attack_raises() -> None:
    at = scene(1, 7, True).but(steps=1)
    attack = at.attack("ftm", transforms=[], p=1.0, strength=0.0, beta=0.1)
    oracle = attack.oracle(at.oracle(attack).job)
    net = oracle.job.models[0]
    assert isinstance(net, Changed)
    oracle.begin(0, 0.1)
    oracle.gradient(at.x)
    before = oracle.logits(at.x, 0).gather(1, at.target[:, None])  # type: ignore[index]
    oracle.begin(1, 0.1)
    after = oracle.logits(at.x, 0).gather(1, at.target[:, None])  # type: ignore[index]
    assert (after < before).all()


def test_several_views_at_once() -> None:
    """Their gradients are added."""
    at = scene(2, 3, False)
    attack = at.attack("ftm", transforms=[{"name": "si", "copies": 4}], p=0.8, beta=0.3)
    one, many = (attack.run(at.models, at.x, at.y, copies_at_once=count).x_adv for count in (1, 4))
    torch.testing.assert_close(one, many, rtol=0, atol=1e-12)


def test_bad_numbers() -> None:
    for option in ({"beta": -0.1}, {"p": 2}):
        with pytest.raises(InputError, match="at least 0|from 0 to 1"):  # noqa: RUF043
            create_attack("ftm", **option)
    with pytest.raises(InputError, match="'ftm' finds neither"):
        Changed(torch.nn.Flatten(), [FTM()])(torch.zeros(1, 3, 2, 2))


def test_a_zero_gradient() -> None:
    """A step whose gradient is zero renews nothing, and leaves no NaN."""
    at = scene(1, 2, True)
    with torch.no_grad():
        at.models[0].head.weight.zero_()  # type: ignore[union-attr]
    attack = at.attack("ftm", p=1.0, beta=0.3)
    assert torch.equal(attack.run(at.models, at.x, at.y, at.target).x_adv, at.x)
