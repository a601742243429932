"""MUP: one image and one surrogate at a time, with weights that are masked and put in for a pass."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from advens.attacks import create_attack
from advens.attacks.surrogates.changes import Changed
from advens.attacks.surrogates.changes.mup import MUP, convolved
from advens.attacks.surrogates.changes.source import ChangedModel
from advens.classifier import Classifier
from advens.errors import InputError
from tests.attacks.fusions.conftest import agree, grad, make
from tests.attacks.surrogates.changes.conftest import check_passes

SHARE = 0.35


class Net(nn.Module):
    """Convolutions with groups, without bias and with a border that wraps around."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.first = nn.Conv2d(3, 4, 3, stride=2, padding=1, bias=False)
            self.second = nn.Conv2d(4, 6, 3, padding=1, groups=2, padding_mode="circular")
            self.stages, self.head = nn.Sequential(nn.Conv2d(6, 4, 1), nn.Tanh()), nn.Linear(64, 5)
            for p in self.parameters():
                p.data.mul_(2)
        self.double().eval().requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.stages(F.softplus(self.second(torch.tanh(self.first(x))))).flatten(1))
        return out


@pytest.mark.parametrize("score", ["taylor", "weight", "gradient"])
@pytest.mark.parametrize(("n", "k", "targeted"), [(1, 1, False), (7, 3, True), (7, 1, True), (1, 3, False)])
def test_attack(n: int, k: int, targeted: bool, score: str) -> None:
    models = [Net(seed) for seed in range(k)]
    at = make(k, n, "linf", targeted, models=models)

    def masked(net: Net, x: Tensor, i: int) -> dict[str, Tensor]:
        """The network's weights with the least important ones of every convolution put to 0."""
        weights = {name: p.clone().requires_grad_() for name, p in net.named_parameters()}
        loss = at.j(functional_call(net, weights, (x[None],))[0], i)
        grads = dict(zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True))
        found = {}
        for name, w in weights.items():
            w, g = w.detach().clone(), grads[name]
            if w.dim() == 4:
                size = {"taylor": w * g, "weight": w, "gradient": g}[score].abs().flatten()
                order = sorted(range(w.numel()), key=size.tolist().__getitem__)
                for index in order[: int(SHARE * w.numel())]:
                    w.view(-1)[index] = 0
            found[name] = w
        return found

    def direction(t: int, i: int, x: Tensor, state: dict[str, Any]) -> Tensor:
        weights = [masked(net, x, i) for net in models]

        def loss(leaf: Tensor) -> Tensor:
            each = [functional_call(net, w, (leaf[None],))[0] for net, w in zip(models, weights, strict=True)]
            return at.j(sum(each) / k, i)

        return grad(loss, x)

    agree(at.run("mup", changes=[{"name": "mup", "share": SHARE, "score": score}]), at.alone(direction))


@pytest.mark.parametrize("padding", ["same", 1, (0, 2)])
def test_convolutions(padding: Any) -> None:
    module = nn.Conv2d(4, 6, 3, padding=padding, dilation=2, groups=2).double()
    x, w = torch.randn(4, 4, 9, 7, dtype=torch.float64), torch.randn(2, 6, 2, 3, 3, dtype=torch.float64)
    found = convolved(module, x, w)
    for row in range(4):
        module.weight.data = w[row % 2]
        torch.testing.assert_close(found[row : row + 1], module(x[row : row + 1]))


def test_nothing_masked_is_momentum_and_images_are_by_themselves() -> None:
    models, at = [Net(seed) for seed in range(2)], make(2, 3)
    plain = create_attack("mifgsm", steps=3, eps="16/255", step_size="eps/8")(models, at.x, at.y)
    none = create_attack("mup", steps=3, share=0)(models, at.x, at.y)
    torch.testing.assert_close(none, plain, rtol=0, atol=1e-12)
    attack = create_attack("si-mup", steps=3)
    whole = attack.run(models, at.x, at.y, copies_at_once=5).x_adv
    torch.testing.assert_close(attack.run(models, at.x, at.y, micro_batch=1).x_adv, whole, rtol=0, atol=1e-12)
    assert not torch.equal(whole, none)


def test_passes_beside_other_parts() -> None:
    """Also where features are prepared, and where another attack comes first."""
    at = make(2, 3, models=[Net(seed) for seed in range(2)])
    layer = {"feature.layer": "stages"}
    cases: list[tuple[str, dict[str, Any]]] = [
        ("mup", {"warm_up": 2}), ("mup-svre", {}), ("mup-ilpd-ens-loss", layer), ("mup-ila", layer),
    ]  # fmt: skip
    for name, options in cases:
        check_passes(at, name, **options)
    assert create_attack("mup").passes(1) == (20, 20)


def test_refusals() -> None:
    with pytest.raises(InputError, match="'mup' finds no convolution in 'Flatten'"):
        Changed(nn.Flatten(), [MUP()])(torch.zeros(1, 3, 2, 2))
    with pytest.raises(InputError, match="from 0 to below 1"):
        create_attack("mup", share=1)
    with pytest.raises(InputError, match="'mup' takes more passes: name it in front of an attack"):
        ChangedModel(Classifier(Net(0), name="t", num_classes=5), [MUP()])
