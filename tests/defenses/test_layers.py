"""Layers of networks as they are: what goes into every nonlinearity, found here by hooks and by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from advens.defenses.layers import LOGITS, before, layers
from advens.models import load_model


def images(n: int = 3) -> Tensor:
    return torch.rand(n, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("name", "relus"),
    [
        ("torchvision:resnet18?weights=none", 17), ("timm:resnet18?pretrained=false", 17),
        ("digits:resnet", 12),
    ],
)  # fmt: skip
def test_residual_networks(name: str, relus: int) -> None:
    """Every call of a ReLU: batch-norm and the residual sum lie before it, also where modules are shared."""
    model, x, wanted = load_model(name), images(), []
    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.register_forward_pre_hook(lambda _, args: wanted.append(args[0].clone()))
    with torch.no_grad():
        logits = model(x)
        wanted, seen = [], wanted
        assert layers(model, x) == [*range(relus), LOGITS]
        assert len(seen) == relus
        assert bool((seen[0] < 0).any())
        for k, features in enumerate(seen):
            assert torch.equal(before(model, x, k), features)
        assert torch.equal(before(model, x, LOGITS), logits)


class Plain(nn.Module):
    """Functions instead of modules, one of them in place."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 3), nn.Linear(4, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.a(x)).mean((2, 3))
        x = torch.tanh(self.b(x).relu_())
        out: Tensor = self.c(x * torch.sigmoid(x))
        return out


def test_functions_are_as_good_as_modules() -> None:
    model, x = Plain(), images()
    first = model.a(x)
    second = model.b(F.gelu(first).mean((2, 3)))
    wanted = [first, second, second.clamp_min(0), model(x)]
    assert layers(model, x) == [0, 1, 2, LOGITS]
    for layer, features in zip((0, 1, 2, LOGITS), wanted, strict=True):
        torch.testing.assert_close(before(model, x, layer), features)
    with pytest.raises(ValueError, match="no layer 3"):
        before(model, x, 3)


def test_a_network_without_any() -> None:
    assert layers(nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 2)), images()) == [LOGITS]


def test_every_layer_sees_the_image() -> None:
    """The nonlinearities in a table of relative positions are none; the layers that stay are its MLPs'."""
    model, x = load_model("digits:vit-relpos"), images()
    known = layers(model, x)
    assert known == [1, 3, 5, 7, LOGITS]
    for layer in known:
        assert len(before(model, x, layer)) == len(x)


def test_asking_changes_nothing() -> None:
    """Also with batch-norm in train mode, and where gradients are off."""
    head = nn.Sequential(nn.Dropout(), nn.Flatten(), nn.Linear(3 * 32 * 32, 2))
    model = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(inplace=True), head)
    state, random = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    with torch.no_grad():
        assert layers(model, images()) == [0, LOGITS]
    assert all(torch.equal(state[k], v) for k, v in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert all(module.training for module in model.modules())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
