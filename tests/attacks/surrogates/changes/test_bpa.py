"""BPA: values stay, and gradients are those of windows and derivatives written out."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from advens.attacks import create_attack
from advens.attacks.surrogates.changes import ChangeContext, Changed, attached
from advens.attacks.surrogates.changes.bpa import BPA, relu_modules
from advens.errors import InputError
from tests.attacks.fusions.conftest import SEED, Setting, agree, grad, make


class Small(nn.Module):
    """Convolution, ReLU, overlapping pooling, convolution, ReLU, classes; the second ReLU is changed."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3)
            self.head = nn.Linear(16, 5)
            self.act1, self.act2 = nn.ReLU(), nn.ReLU(inplace=True)
            self.pool = nn.MaxPool2d(3, 2, 1)
            for p in self.parameters():
                p.data.mul_(4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.act2(self.second(self.pool(self.act1(self.first(x))))).flatten(1))
        return out

    def written(self, x: Tensor, tau: float) -> Tensor:
        """The same values; the gradient of SiLU, and of windows mixed by softmax."""
        z = F.relu(self.first(x[None])[0])
        pooled = []
        for r in range(0, 8, 2):
            for c in range(0, 8, 2):
                window = z[:, max(0, r - 1) : r + 2, max(0, c - 1) : c + 2].flatten(1)
                share = torch.exp(tau * window) / torch.exp(tau * window).sum(1, keepdim=True)
                mixed = (share.detach() * window).sum(1)
                pooled.append(mixed + (window.amax(1) - mixed).detach())
        z = self.second(torch.stack(pooled, 1).view(1, 4, 4, 4))
        silu = z * torch.sigmoid(z)
        z = silu + (F.relu(z) - silu).detach()
        out: Tensor = self.head(z.flatten(1))[0]
        return out


def small(seed: int) -> Small:
    return Small(seed).double().eval().requires_grad_(False)


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize(("n", "targeted"), [(1, False), (7, True)])
def test_attack(k: int, n: int, targeted: bool) -> None:
    """Three steps of momentum on the written gradient of the mean logits."""
    models = [small(seed) for seed in range(k)]
    at = make(k, n, "linf", targeted, models=models)

    def direction(t: int, i: int, x: Tensor, state: dict[str, Any]) -> Tensor:
        return grad(lambda leaf: at.j(sum(m.written(leaf, 3.0) for m in models) / k, i), x)

    wanted: Any = at.alone(direction)
    found = at.run("bpa", changes=[{"name": "bpa", "depth": 0.5, "temperature": 3.0}])
    agree(found, wanted)
    assert isinstance(at, Setting)
    plain = create_attack("mifgsm", eps=at.eps, steps=3, step_size=at.alpha)
    assert not torch.equal(plain(models, at.x, at.y, at.target, seed=SEED), found.x_adv)


def back(pool: nn.Module, x: Tensor, *, tau: float | None) -> tuple[Tensor, Tensor]:
    """Value of a pooling, and its gradient for weights that differ."""
    changes = [] if tau is None else [BPA(depth=1.0, temperature=tau)]
    net = nn.Sequential(nn.ReLU(), pool)
    leaf = x.clone().requires_grad_()
    out = Changed(net, changes)(leaf)
    weight = torch.linspace(-1, 2, out.numel(), dtype=x.dtype).view_as(out)
    return out.detach(), torch.autograd.grad((weight * out).sum(), leaf)[0]


POOLS: list[Callable[[], nn.Module]] = [
    lambda: nn.MaxPool2d(2), lambda: nn.MaxPool2d(3, 2, 1), lambda: nn.MaxPool2d(2, 2, ceil_mode=True),
    lambda: nn.MaxPool2d((3, 2), (1, 2), (1, 0), (1, 2)), lambda: nn.MaxPool2d(3, 3, ceil_mode=True),
]  # fmt: skip


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("side", [7, 8])
def test_any_pooling(pool: Callable[[], nn.Module], side: int) -> None:
    """By loops over windows; very hot it is max-pooling itself."""
    module: Any = pool()
    x = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0), dtype=torch.float64).abs()
    plain, at_maximum = back(module, x, tau=None)
    found, g = back(module, x, tau=2.0)
    assert torch.equal(found, plain)
    torch.testing.assert_close(back(module, x, tau=1e9)[1], at_maximum)
    ks, ss, ps, ds = ((n, n) if isinstance(n, int) else n for n in
                      (module.kernel_size, module.stride, module.padding, module.dilation))  # fmt: skip
    weight = torch.linspace(-1, 2, found.numel(), dtype=x.dtype).view_as(found)
    wanted = torch.zeros_like(x)
    for r in range(found.shape[2]):
        for c in range(found.shape[3]):
            at = [(i, j) for a in range(ks[0]) for b in range(ks[1])
                  for i, j in [(r * ss[0] - ps[0] + a * ds[0], c * ss[1] - ps[1] + b * ds[1])]
                  if 0 <= i < side and 0 <= j < side]  # fmt: skip
            total = sum(torch.exp(2 * x[:, :, i, j]) for i, j in at)
            for i, j in at:
                wanted[:, :, i, j] += torch.exp(2 * x[:, :, i, j]) / total * weight[:, :, r, c]
    torch.testing.assert_close(g, wanted, rtol=0, atol=1e-12)


def test_large_values_do_not_overflow() -> None:
    x = torch.full((1, 1, 4, 4), 300.0)
    _, g = back(nn.MaxPool2d(2), x, tau=10.0)
    assert torch.isfinite(g).all()
    assert g[0, 0, 0, 0] == g[0, 0, 1, 1], "equal values share the gradient"


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_begins_in_resnet50_where_published_code_does(library: str) -> None:
    with torch.device("meta"):
        net = timm.create_model("resnet50") if library == "timm" else torchvision.models.resnet50()
    names = {module: name for name, module in net.named_modules()}
    relus = relu_modules(net, "bpa")
    deep = [names[module] for module in relus[round(BPA().depth * len(relus)) :]]
    assert deep[0].startswith("layer3.1.")
    before = {name: module.forward for name, module in net.named_modules()}
    with attached(net, [BPA()], ChangeContext()):
        changed = [name for name, module in net.named_modules() if "forward" in vars(module)]
    assert changed == ["maxpool", *deep]
    assert all(module.forward == before[name] for name, module in net.named_modules())


def test_derivative_of_silu() -> None:
    v = torch.linspace(-4, 4, 9, dtype=torch.float64).view(1, 1, 3, 3).requires_grad_()
    (g,) = torch.autograd.grad(Changed(nn.Sequential(nn.ReLU()), [BPA(depth=0)])(v).sum(), v)
    for value, slope in zip(v.flatten().tolist(), g.flatten().tolist(), strict=True):
        s = 1 / (1 + math.exp(-value))
        assert slope == pytest.approx(s * (1 + value * (1 - s)), abs=1e-12)


def test_refusals() -> None:
    with pytest.raises(InputError, match="'bpa' finds no ReLU module in 'Sequential'"):
        Changed(nn.Sequential(nn.GELU()), [BPA()])(torch.zeros(1, 3, 4, 4))
    for option in ({"depth": 1.5}, {"temperature": 0}):
        with pytest.raises(InputError, match="above 0|from 0 to 1"):  # noqa: RUF043
            create_attack("bpa", **option)
