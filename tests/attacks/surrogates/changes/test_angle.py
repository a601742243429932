"""Calibration by the angle: cosines instead of logits, whatever the length of features and weights."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from advens import load_model
from advens.attacks import create_attack
from advens.attacks.surrogates.changes import Changed
from advens.attacks.surrogates.changes.angle import Angle, classifier
from advens.errors import InputError
from tests.attacks.fusions.conftest import agree, grad, make


def cosine(model: Any, x: Tensor, label: int) -> Tensor:
    """Of one image's features and one row of the classifier of flatten, linear, tanh, linear."""
    f = torch.tanh(model[1].weight @ x.flatten() + model[1].bias)
    w = model[3].weight[label]
    return (f * w).sum() / ((f * f).sum() * (w * w).sum()).sqrt()


@pytest.mark.parametrize(("k", "n", "targeted"), [(1, 7, True), (3, 1, True), (3, 7, False), (1, 1, False)])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_logit_angle(k: int, n: int, targeted: bool, norm: str) -> None:
    at = make(k, n, norm, targeted)

    def direction(t: int, i: int, x: Tensor, state: dict[str, Any]) -> Tensor:
        def loss(leaf: Tensor) -> Tensor:
            each = [cosine(model, leaf, at.wanted(i)) for model in at.models]
            return sum(each) / (k if targeted else -k)  # type: ignore[return-value]

        return grad(loss, x)

    agree(at.run("logit-angle", transforms=[]), at.alone(direction))


def test_lengths_do_not_matter() -> None:
    at = make(1, 3)
    net: Any = at.models[0]
    net[3].bias.data.zero_()
    cosines = Changed(net, [Angle()])(at.x)
    assert cosines.abs().max() <= 1
    with torch.no_grad():
        net[3].weight.mul_(torch.tensor([[1.0], [2.0], [30.0], [0.1], [5.0]]))
        net[3].bias.add_(3)
    torch.testing.assert_close(Changed(net, [Angle()])(at.x), cosines)
    assert not torch.allclose(net(at.x), cosines)


def test_no_features_no_cosine() -> None:
    at = make(1, 2)
    with torch.no_grad():
        at.models[0][1].weight.zero_(), at.models[0][1].bias.zero_()  # type: ignore[index]
    assert torch.equal(Changed(at.models[0], [Angle()])(at.x), torch.zeros(2, 5).double())


@pytest.mark.parametrize("name", ["resnet18", "vgg11", "deit_tiny_patch16_224", "convnext_atto"])
def test_classifiers_of_timm(name: str) -> None:
    with torch.device("meta"):
        net = timm.create_model(name, num_classes=7)
    assert classifier(net).out_features == 7


def test_classifiers_of_others() -> None:
    with torch.device("meta"):
        for make_net in (torchvision.models.resnet18, torchvision.models.vit_b_32, torchvision.models.vgg11):
            assert classifier(make_net(num_classes=7)).out_features == 7
        distilled = timm.create_model("deit_tiny_distilled_patch16_224")
        with pytest.raises(InputError, match="finds no linear layer that gives the logits of"):
            classifier(distilled)


def test_zoo() -> None:
    for name in ("digits:resnet", "digits:swin", "digits:mixer"):
        x = torch.rand(2, 3, 32, 32)
        out = Changed(load_model(name), [Angle()])(x)
        assert out.shape == (2, 10)
        assert out.abs().max() <= 1


def test_refusals() -> None:
    x, ensemble = torch.zeros(1, 3, 2, 2), load_model("digits:dverge3")
    after = nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.Unflatten(1, (2, 2)), nn.Flatten(0))
    with pytest.raises(InputError, match="'angle': logits of 'Sequential' are not what its last layer"):
        Changed(after, [Angle()])(x)
    with pytest.raises(InputError, match="'angle' finds no linear layer that gives the logits of 'Flatten'"):
        Changed(nn.Flatten(), [Angle()])(x)
    with pytest.raises(InputError, match="'angle' changes one network; 'digits:dverge3' has several members"):
        create_attack("logit-angle", steps=1)(ensemble, torch.rand(1, 3, 32, 32), torch.ones(1).long())
