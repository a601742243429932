"""CFM against its formulas, one image and one surrogate at a time; whose features are mixed in, and where."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from advens import load_model
from advens.attacks import create_attack
from advens.attacks.interfaces import Job
from advens.attacks.surrogates.changes import Changed
from advens.attacks.surrogates.changes.cfm import CFM, partner
from advens.errors import InputError
from advens.seeding import Draws
from tests.attacks.fusions.conftest import SEED, Setting, agree, grad, make


class Narrowing(nn.Module):
    """Images (N, 3, 8, 8): a wide convolution, one of 2 x 2, a linear layer of tokens, and classes."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.wide, self.narrow = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 5, 4, 4)
            self.tokens, self.head = nn.Linear(5, 6), nn.Linear(24, 5)
            for p in self.parameters():
                p.data.mul_(2.5)

    def forward(self, x: Tensor) -> Tensor:
        z = torch.tanh(self.narrow(torch.tanh(self.wide(x)))).flatten(2).transpose(1, 2)
        out: Tensor = self.head(torch.tanh(self.tokens(z)).flatten(1))
        return out


def scene(k: int, n: int, targeted: bool) -> Setting:
    models = [Narrowing(seed).double().eval().requires_grad_(False) for seed in range(k)]
    return make(k, n, "linf", targeted, models=models)


def linear(layer: Any, v: Tensor) -> Tensor:
    return v @ layer.weight.T + layer.bias  # type: ignore[no-any-return]


def through(model: Any, x: Tensor, mixed: Any) -> Tensor:
    """Logits of one image; ``mixed`` is told every layer's number and output, channels last."""
    wide = mixed(0, model.wide(x[None])[0].permute(1, 2, 0))
    narrow = mixed(1, model.narrow(torch.tanh(wide).permute(2, 0, 1)[None])[0].permute(1, 2, 0))
    tokens = mixed(2, linear(model.tokens, torch.tanh(narrow).reshape(4, 5)))
    out: Tensor = mixed(3, linear(model.head, torch.tanh(tokens).flatten()))
    return out


SHAPES = {1: (5, 1, 1), 2: (1, 6), 3: (5,)}
"""Of the layers that may be mixed: the draws of a, one for each channel."""


def clean_features(model: Any, x: Tensor) -> dict[int, Tensor]:
    found: dict[int, Tensor] = {}

    def note(layer: int, out: Tensor) -> Tensor:
        found[layer] = out.detach()
        return out

    through(model, x, note)
    return found


def chosen(t: int, member: int, p: float) -> list[bool]:
    generator = Draws(SEED, 1).at(t).generator("change", member, "cfm")
    return [bool(u < p) for u in torch.rand(4, generator=generator, dtype=torch.float64)]


def others(at: Setting, i: int, partners: int) -> list[Tensor]:
    """The clean images whose features sample i competes with."""
    n = len(at.x)
    return [at.x[int(Draws(SEED, n).others("cfm", "partner", j)[i])] for j in range(partners)] or [at.x[i]]


def mixing(at: Setting, t: int, i: int, member: int, layer: int, count: int) -> tuple[int, Tensor]:
    """Which image, and a for every channel."""
    n, draws = len(at.x), Draws(SEED, len(at.x)).at(t)
    u = draws.uniform(torch.empty(n).double(), 0, count, "change", member, "cfm", "which", layer, 1)[i]
    like = torch.empty(n, *SHAPES[layer]).double()
    return int(u), draws.uniform(like, 0, 0.75, "change", member, "cfm", layer, 1)[i].flatten()


def logits(at: Setting, member: int, x: Tensor, t: int, i: int, p: float, partners: int) -> Tensor:
    """Of one surrogate, some of its layers mixed."""
    model = at.models[member]
    clean = [clean_features(model, image) for image in others(at, i, partners)]

    def mix(layer: int, out: Tensor) -> Tensor:
        if layer == 0 or not chosen(t, member, p)[layer]:
            return out
        which, a = mixing(at, t, i, member, layer, len(clean))
        return (1 - a) * out + a * clean[which][layer]

    return through(model, x, mix)


@pytest.mark.parametrize(("k", "n", "targeted"), [(1, 7, True), (3, 1, True), (3, 7, False), (1, 1, False)])
@pytest.mark.parametrize("partners", [0, 1, 3])
def test_cfm(k: int, n: int, targeted: bool, partners: int) -> None:
    at, p = scene(k, n, targeted), 0.6

    def direction(t: int, i: int, x: Tensor, state: dict[str, Any]) -> Tensor:
        def loss(leaf: Tensor) -> Tensor:
            z = sum(logits(at, member, leaf, t, i, p, partners) for member in range(k)) / k
            return z[at.wanted(i)] if targeted else -z[at.wanted(i)]  # type: ignore[index]

        return grad(loss, x)

    attack = at.attack("cfm", transforms=[], changes=[{"name": "cfm", "p": p, "partners": partners}])
    assert attack.passes(k) == (k * (3 + max(1, partners)), 3 * k)
    agree(at.run(attack), at.alone(direction))
    assert {layer for t in range(3) for layer in (1, 2, 3) if chosen(t, 0, p)[layer]} == {1, 2, 3}


def test_without_mixing_it_is_its_base() -> None:
    at = scene(2, 3, True)
    for nothing in ({"p": 0.0}, {"strength": 0.0, "p": 1.0}):
        found = at.run("cfm", changes=[{"name": "cfm", **nothing}])
        plain = at.run("cfm", changes=[])
        torch.testing.assert_close(found.x_adv, plain.x_adv, rtol=0, atol=1e-12)
    mixed = at.run("cfm", changes=[{"name": "cfm", "p": 1.0}]).x_adv
    assert not torch.equal(mixed, at.run("cfm", changes=[]).x_adv)


def test_a_layer_that_is_all_of_another_image() -> None:
    """With p = 1 and a near 1 logits are those of the partner's, not of the image at hand."""
    x, net = torch.rand(3, 3, 8, 8).double(), scene(1, 1, False).models[0]
    job = Job([net], x, torch.zeros(3).long(), None, Draws(SEED, 3), x)
    changed = Changed(net, [CFM(p=1)])
    changed.show(job, changed)
    changed.at_step(Draws(SEED, 3).at(0))
    other = partner(job, 0)
    assert not any(torch.equal(a, b) for a, b in zip(x, other, strict=True))
    torch.testing.assert_close(changed(other), net(other), rtol=0, atol=1e-12)
    assert not torch.allclose(changed(x), net(x))
    twice = changed(torch.cat([x, x + 0.1]))
    torch.testing.assert_close(twice, torch.cat([changed(x), changed(x + 0.1)]), rtol=0, atol=1e-12)


def test_other_changes_do_not_see_the_clean_images() -> None:
    """A change that remembers its step's first pass remembers none of another image."""
    at = scene(1, 3, False)
    seen: list[int] = []

    class Watching:
        def attach(self, model: nn.Module, context: Any) -> list[Any]:
            seen.append(len(seen))
            return []

    changed = Changed(at.models[0], [Watching(), CFM()])
    changed.show(Job(at.models, at.x, at.y, None, Draws(SEED, 3), at.x), changed)
    assert not seen


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256"])
def test_networks(name: str) -> None:
    """Windows and tables of positions among the rows: samples do not depend on their neighbours."""
    options = {"img_size": 64, "depths": (1, 1, 1, 1), "embed_dim": 12, "num_heads": (1, 2, 2, 2)}
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        net = timm.create_model(name, num_classes=5, **options).double().eval().requires_grad_(False)
    x, y = torch.rand(3, 3, 64, 64, dtype=torch.float64), torch.arange(3)
    attack = create_attack("cfm", steps=2, eps="32/255", changes=[{"name": "cfm", "p": 1.0}])
    whole = attack.run(net, x, y).x_adv
    for size in (1, 2):
        part = attack.run(net, x, y, micro_batch=size).x_adv
        torch.testing.assert_close(part, whole, rtol=0, atol=1e-9)
    plain = create_attack("cfm", steps=2, eps="32/255", changes=[]).run(net, x, y).x_adv
    assert not torch.equal(whole, plain)


def test_a_first_attack_does_not_see_them_again() -> None:
    at = scene(2, 3, False)
    attack = create_attack("ila", layer="tokens", changes=["cfm"], first="ifgsm", steps=2)
    assert attack.run(at.models, at.x, at.y).passes == attack.passes(2) == (2 * (1 + 10 + 2 + 2), 2 * 12)


def test_the_width_is_that_of_what_the_network_sees() -> None:
    """Behind a resize inside the model."""
    model = load_model("digits:resnet")
    x, y = torch.rand(2, 3, 64, 64), torch.arange(2)
    attack = create_attack("cfm", steps=1, p=1.0)
    assert attack.run(model, x, y).passes == (2, 1)


def test_refusals() -> None:
    with pytest.raises(InputError, match="'cfm' finds neither convolution nor linear layer in 'Flatten'"):
        Changed(nn.Flatten(), [CFM()])(torch.zeros(1, 3, 2, 2))
    with pytest.raises(InputError, match="'cfm' needs clean images: name it in front of an attack"):
        load_model("changed:cfm?of=digits:resnet")
    for option in ({"p": -0.1}, {"strength": 1.5}, {"partners": -1}):
        with pytest.raises(InputError, match="from 0 to 1|at least 0"):  # noqa: RUF043
            create_attack("cfm", **option)
