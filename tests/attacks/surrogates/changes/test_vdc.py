"""VDC: the chain rule written out block by block, first as it is, then with what the first pass adds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import VisionTransformer

from advens.attacks import create_attack
from advens.attacks.surrogates.changes import Changed
from advens.attacks.surrogates.changes.source import ChangedModel
from advens.attacks.surrogates.changes.vdc import VDC
from advens.classifier import Classifier
from advens.errors import InputError
from tests.attacks.fusions.conftest import agree, make
from tests.attacks.surrogates.changes.conftest import check_passes
from tests.attacks.surrogates.changes.transformers import FAMILIES, Transformer, pixels, pull, tiny

WEIGHTS = {"attention": 0.6, "mlp": 0.7, "strength": 0.4, "decay": 0.3, "last": 0.2}


def maps(m: Any, row: Tensor) -> Tensor:
    """The two heads' maps of normed tokens (tokens, 8)."""
    heads = []
    for h in range(2):
        q, k = (row @ m.attn.qkv.weight[s : s + 4].T + m.attn.qkv.bias[s : s + 4] for s in (4 * h, 8 + 4 * h))
        heads.append(torch.softmax(q @ k.T / 2, 1))
    return torch.stack(heads)


def attended(m: Any, a: Tensor, row: Tensor) -> Tensor:
    """What the branch gives with maps ``a`` and the values of normed tokens."""
    values = [row @ m.attn.qkv.weight[s : s + 4].T + m.attn.qkv.bias[s : s + 4] for s in (16, 20)]
    out: Tensor = m.attn.proj(torch.cat([a[h] @ values[h] for h in range(2)], 1))
    return out


def backward(net: Transformer, x: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor:
    """The gradient at one image of a loss of its logits, in VDC's two passes."""
    z = net.embed(x).detach()
    points = []
    for m in net.blocks:
        middle = z + attended(m, maps(m, m.norm1(z)), m.norm1(z))
        points.append((z, middle))
        z = middle + m.mlp(m.norm2(middle))
    end = pull(lambda at: loss(net.read(at)), z, torch.ones((), dtype=z.dtype))
    at_maps: list[Tensor] = []
    at_entries: list[Tensor] = []
    for first in (True, False):
        g = end
        for j, (m, (z, middle)) in enumerate(zip(reversed(net.blocks), reversed(points), strict=True)):
            c = [WEIGHTS["strength"] * WEIGHTS["decay"] ** i for i in range(j)]
            branch = pull(lambda at, m=m: m.mlp(m.norm2(at)), middle, g)
            if first:
                at_entries.append(branch)
            else:
                branch = WEIGHTS["mlp"] * branch + WEIGHTS["last"] * end
                branch = branch + sum(c[i] * at_entries[i] for i in range(j))
            g = g + branch
            row = m.norm1(z)
            a = maps(m, row)
            at_a = pull(lambda a, m=m, row=row: attended(m, a, row), a, g)
            if first:
                at_maps.append(at_a)
            else:
                at_a = WEIGHTS["attention"] * at_a + sum(c[i] * at_maps[i] for i in range(j))
            by_map = pull(lambda at, m=m: maps(m, m.norm1(at)), z, at_a)
            by_value = pull(lambda at, m=m, a=a: attended(m, a, m.norm1(at)), z, g)
            g = g + by_map + by_value
    return pull(net.embed, x, g)


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize(("n", "targeted", "fused"), [(1, False, True), (7, True, False)])
def test_attack(k: int, n: int, targeted: bool, fused: bool) -> None:
    models = [Transformer(seed, fused) for seed in range(k)]
    at = make(k, n, "linf", targeted, models=models)

    def direction(t: int, i: int, x: Tensor, state: dict[str, Any]) -> Tensor:
        logits = [model(x[None])[0] for model in models]
        total = torch.zeros_like(x)
        for net in models:
            rest = sum(z for z, other in zip(logits, models, strict=True) if other is not net)
            total = total + backward(net, x, lambda z, rest=rest: at.j((z + rest) / k, i))
        return total

    found = at.run("vdc", changes=[{"name": "vdc"} | WEIGHTS])
    agree(found, at.alone(direction))


@pytest.mark.parametrize("family", FAMILIES)
def test_families(family: str) -> None:
    """Logits stay, gradients change, a batch of one is the same."""
    net, x = tiny(family), pixels()

    def gradient(model: nn.Module, at: Tensor) -> Tensor:
        leaf = at.clone().requires_grad_()
        z = model(leaf)
        torch.testing.assert_close(z.detach(), net(at), rtol=0, atol=1e-9)
        (g,) = torch.autograd.grad((z * torch.linspace(-1, 2, 5)).sum(), leaf)
        return g

    changed = Changed(net, [VDC()])
    g = gradient(changed, x)
    assert (g - gradient(net, x)).abs().max() > 1e-6 * g.abs().max()
    torch.testing.assert_close(gradient(changed, x[1:2]), g[1:2], rtol=0, atol=1e-9)
    plain = Changed(net, [VDC(attention=1, mlp=1, strength=0, last=0)])
    torch.testing.assert_close(gradient(plain, x), gradient(net, x), rtol=0, atol=1e-9)


def test_torchvision() -> None:
    net = VisionTransformer(16, 8, 2, 2, 8, 16, num_classes=5).double().eval()
    nn.init.normal_(net.heads.head.weight)
    x = pixels().requires_grad_()
    (g,) = torch.autograd.grad(Changed(net, [VDC()])(x).square().sum(), x)
    (plain,) = torch.autograd.grad(net(x).square().sum(), x)
    assert not torch.allclose(g, plain)


def test_two_backward_passes_for_each() -> None:
    at = make(2, 3, models=[Transformer(seed) for seed in range(2)])
    for name, options in (("vdc", {}), ("vdc-svre", {}), ("vdc-ilpd-ens-loss", {"layer": "blocks.1"})):
        check_passes(at, name, **options)
    assert create_attack("vdc").passes(1) == (10, 20)


def test_refusals() -> None:
    with pytest.raises(InputError, match="'vdc': 'Sequential' has no attention blocks"):
        Changed(nn.Sequential(nn.Flatten()), [VDC()])(pixels())
    with pytest.raises(InputError, match="at least 0"):
        create_attack("vdc", last=-1)
    with pytest.raises(InputError, match="'fia' does not go with the change 'vdc', which takes a backward"):
        create_attack("vdc-fia")
    with pytest.raises(InputError, match="'vdc' takes more passes: name it in front of an attack"):
        ChangedModel(Classifier(Transformer(0), name="t", num_classes=5), [VDC()])
