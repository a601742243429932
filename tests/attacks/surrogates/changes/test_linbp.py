"""LinBP against backward passes written out."""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations
from typing import Any

import pytest
import torch
from timm.models import resnet as timm_resnet
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import resnet as tv_resnet

import advens
from advens.attacks import attack_from_spec, create_attack
from advens.attacks.surrogates.changes import Changed
from advens.attacks.surrogates.changes.ghost import Ghost
from advens.attacks.surrogates.changes.linbp import LinBP, activations
from advens.attacks.surrogates.changes.sgm import SGM
from advens.errors import InputError
from advens.seeding import Draws
from tests.attacks.surrogates.changes.conftest import gradient, outward

Act = Callable[[Tensor], Tensor]


def linear(x: Tensor) -> Tensor:
    """ReLU forward, identity backward."""
    return x + (F.relu(x) - x).detach()


def pull(f: Callable[[Tensor], Tensor], z: Tensor, g: Tensor) -> Tensor:
    """``J^T g`` of ``f`` at ``z``."""
    leaf = z.detach().requires_grad_()
    return torch.autograd.grad(f(leaf), leaf, g)[0]


def length(g: Tensor) -> Tensor:
    return (g**2).flatten(1).sum(1).sqrt()[:, None, None, None]


def plain_net(act: Callable[[], nn.Module]) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        layers: list[nn.Module] = []
        for _ in range(4):
            layers += [nn.Conv2d(3, 3, 3, padding=1), act()]
    return nn.Sequential(*layers).double().eval().requires_grad_(False)


def pixels(n: int = 3, side: int = 8) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(n, 3, side, side, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize(("depth", "left"), [(0.0, 0), (0.25, 1), (0.5, 2), (1.0, 4)])
def test_without_skip_connections(depth: float, left: int, inplace: bool) -> None:
    net = plain_net(lambda: nn.ReLU(inplace=inplace))

    def written(x: Tensor) -> Tensor:
        for i in range(4):
            x = (F.relu if i < left else linear)(net[2 * i](x))
        return x

    found, g = gradient(Changed(net, [LinBP(depth)]), pixels())
    assert torch.equal(found, gradient(net, pixels())[0])
    torch.testing.assert_close(g, gradient(written, pixels())[1], rtol=1e-10, atol=1e-14)
    assert torch.equal(g, gradient(net, pixels())[1]) == (left == 4)
    assert [module.inplace for module in net[1::2]] == [inplace] * 4


@pytest.mark.parametrize("act", [nn.GELU, nn.SiLU, nn.ReLU6, nn.Hardswish])
def test_other_activations(act: Callable[[], nn.Module]) -> None:
    net = plain_net(act)
    layers = nn.Sequential(*[net[i] for i in (0, 2, 4, 6)])
    activations_at = [layer(x) for layer, x in _walk(net, pixels())]
    g = 2 * net(pixels()) + torch.linspace(-1, 2, pixels()[0].numel(), dtype=torch.float64).view(3, 8, 8)
    assert len(activations_at) == 4
    for layer, (_, x) in reversed(list(zip(layers, _walk(net, pixels()), strict=True))):
        g = pull(layer, x, g)
    torch.testing.assert_close(gradient(Changed(net, [LinBP(0.0)]), pixels())[1], g)


def _walk(net: nn.Sequential, x: Tensor) -> list[tuple[nn.Module, Tensor]]:
    """Each convolution and what it is given."""
    seen = []
    for i in range(0, len(net), 2):
        seen.append((net[i], x))
        x = net[i + 1](net[i](x))
    return seen


def resnet_block(m: Any, act: Act) -> Callable[[Tensor], Tensor]:
    """The branch of a ResNet's block, up to the sum."""

    def branch(z: Tensor) -> Tensor:
        for i in range(1, 4):
            if hasattr(m, f"conv{i}"):
                z = getattr(m, f"bn{i}")(getattr(m, f"conv{i}")(z if i == 1 else act(z)))
        return z

    return branch


def pull_block(m: Any, z: Tensor, g: Tensor, rescale: bool = True) -> Tensor:
    """``g`` through the ReLU after the sum, then through the skip connection and the linear branch."""
    skip = z if m.downsample is None else m.downsample(z)
    g = g * (skip + resnet_block(m, F.relu)(z) > 0)
    through = pull(resnet_block(m, linear), z, g)
    alpha = length(pull(resnet_block(m, F.relu), z, g)) / length(through)
    assert bool(((alpha - 1).abs() > 0.01).all())
    skipped = g if m.downsample is None else pull(m.downsample, z, g)
    return skipped + (alpha * through if rescale else through)


@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize("kinds", [("bottleneck", "basic-down"), ("tv-bottleneck", "tv-basic")])
def test_branches_are_scaled_back(kinds: tuple[str, str], rescale: bool, block_of: Any) -> None:
    """Two ResNet blocks by hand; torchvision's use one ReLU in the branch and after the sum."""
    first, second = (block_of(kind, seed) for seed, kind in enumerate(kinds))
    net = nn.Sequential(first.block, second.block)
    z = first.block(first.x)
    out = second.block(z).requires_grad_()
    (g,) = torch.autograd.grad(outward(out), out)
    wanted = pull_block(first.block, first.x, pull_block(second.block, z, g, rescale), rescale)
    found = gradient(Changed(net, [LinBP(0.0, rescale)]), first.x)[1]
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("library", [timm_resnet, tv_resnet], ids=["timm", "torchvision"])
@pytest.mark.parametrize("depth", [0.0, 0.5])
def test_whole_resnets(library: Any, depth: float) -> None:
    """Four blocks: stem and head keep their gradients, whatever the depth; half of it is two blocks."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        net: Any = library.ResNet(library.BasicBlock, [1, 1, 1, 1], num_classes=5)
        for tensor in (*net.parameters(), *net.buffers()):
            if tensor.is_floating_point():
                tensor.data.add_(torch.rand_like(tensor) * 0.04 - 0.02)
    net.double().eval().requires_grad_(False)
    blocks, x = [net.layer1[0], net.layer2[0], net.layer3[0], net.layer4[0]], pixels(2, side=32)

    def stem(x: Tensor) -> Tensor:
        out: Tensor = net.maxpool(F.relu(net.bn1(net.conv1(x))))
        return out

    at = [stem(x)]
    for block in blocks:
        at.append(block(at[-1]))
    last = at.pop().requires_grad_()
    (g,) = torch.autograd.grad(outward(net.fc(last.mean((2, 3)))), last)
    for i, (block, z) in reversed(list(enumerate(zip(blocks, at, strict=True)))):
        g = pull_block(block, z, g) if i >= 4 * depth else pull(block, z, g)
    found = gradient(Changed(net, [LinBP(depth)]), x)[1]
    torch.testing.assert_close(found, pull(stem, x, g), rtol=1e-8, atol=1e-12)


def test_second_branch_of_a_transformer(block_of: Any) -> None:
    """The MLP's branch begins where attention was added, and attention is left as it is."""
    sample = block_of("deit3")
    m: Any = sample.block

    def mlp(act: Act) -> Callable[[Tensor], Tensor]:
        return lambda z: m.ls2(m.mlp.fc2(act(m.mlp.fc1(m.norm2(z)))))

    def soft(x: Tensor) -> Tensor:
        return x + (F.gelu(x) - x).detach()

    def attention(z: Tensor) -> Tensor:
        out: Tensor = m.ls1(m.attn(m.norm1(z)))
        return out

    z = sample.x + attention(sample.x)
    out = (z + mlp(F.gelu)(z)).requires_grad_()
    (g,) = torch.autograd.grad(outward(out), out)
    through = pull(mlp(soft), z, g)
    alpha = (pull(mlp(F.gelu), z, g).flatten(1).norm(dim=1) / through.flatten(1).norm(dim=1))[:, None, None]
    g = g + alpha * through
    wanted = g + pull(attention, sample.x, g)
    found = gradient(Changed(m, [LinBP(0.0)]), sample.x)[1]
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)


def test_every_block(residual_block: Any) -> None:
    """Values stay; samples do not meet; one leaves everything alone, to the bit."""
    net, x = residual_block.block, residual_block.x
    if not activations(net):
        pytest.skip("no activation in this block")
    plain = gradient(net, x)
    found = gradient(Changed(net, [LinBP(0.0)]), x)
    assert torch.equal(found[0], plain[0])
    assert (found[1] - plain[1]).abs().max() > 1e-3 * plain[1].abs().max()
    alone = gradient(Changed(net, [LinBP(0.0)]), x[1:2])
    torch.testing.assert_close(alone[1], found[1][1:2], rtol=1e-8, atol=1e-10)
    assert all(map(torch.equal, gradient(Changed(net, [LinBP(1.0)]), x), plain))


@pytest.mark.parametrize("name", [n for n in advens.list_models("digits:*") if n != "digits:barre3"])
def test_embedded_models(name: str) -> None:
    model = advens.load_model(name)
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    before = [vars(m).keys() | {"forward": m.forward} for m in model.modules()]
    logits, g = gradient(Changed(model, [LinBP()]), x)
    plain_logits, plain = gradient(model, x)
    assert torch.equal(logits, plain_logits)
    assert torch.cosine_similarity(g.flatten(1), plain.flatten(1)).max() > 0
    assert (g - plain).abs().max() > 1e-2 * plain.abs().max()
    assert [vars(m).keys() | {"forward": m.forward} for m in model.modules()] == before


def test_refusals() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 4)).double()
    with pytest.raises(InputError, match="'linbp' finds no activation module in 'Sequential'"):
        create_attack("linbp")(net, pixels(), torch.arange(3))
    with pytest.raises(InputError, match="depth"):
        create_attack("linbp", depth=1.5)


class Shortcut(nn.Module):
    """A residual block whose parts have names of its own."""

    def __init__(self, act: Act | nn.Module) -> None:
        super().__init__()
        self.a, self.b, self.nonlinear = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), act

    def forward(self, x: Tensor) -> Tensor:
        return self.nonlinear(self.b(self.nonlinear(self.a(x))) + x)


def test_unknown_skip_connections_are_refused() -> None:
    """A ReLU after a sum that is in no known block would wrongly become linear."""
    head = [nn.Flatten(), nn.Linear(192, 4)]
    net = nn.Sequential(Shortcut(nn.ReLU()), *head).double()
    with pytest.raises(InputError, match=r"'linbp': 'Sequential' has a skip connection .* unknown form"):
        create_attack("linbp", depth=0.0)(net, pixels(), torch.arange(3))
    net = nn.Sequential(Shortcut(F.relu), *head, nn.ReLU(), nn.Linear(4, 4)).double()
    assert create_attack("linbp", depth=0.0)(net, pixels(), torch.arange(3)).shape == (3, 3, 8, 8)


def test_branches_without_activation_modules_are_refused(block_of: Any) -> None:
    block = block_of("tv-vit").block
    block.mlp[1] = nn.Identity()
    with pytest.raises(InputError, match="no activation module in a residual branch of 'Sequential'"):
        Changed(nn.Sequential(nn.ReLU(), block), [LinBP()])(block_of("tv-vit").x)


def test_models_come_back_after_an_exception() -> None:
    """A surrogate that fails in its forward or its backward pass."""

    class Failing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise KeyError("surrogate")

    net = nn.Sequential(*plain_net(lambda: nn.ReLU(inplace=True)), Failing())
    with pytest.raises(KeyError):
        Changed(net, [LinBP(0.0)])(pixels())
    for module in net.modules():
        assert "forward" not in vars(module)
        assert not module._forward_hooks
    assert all(module.inplace for module in net[1:-1:2])


def test_recipe_and_spec() -> None:
    attack: Any = create_attack("linbp", depth=0.25)
    assert attack.spec["changes"] == [{"name": "linbp", "depth": 0.25, "rescale": True}]
    assert attack.spec["update"]["name"] == "sign"
    assert attack_from_spec(attack.spec) == attack


@pytest.mark.parametrize("block", ["basic", "deit3", "convmixer", "byob"])
def test_order_with_ghost_and_sgm(block: str, block_of: Any) -> None:
    """Masks and factors belong to the values, also backwards: whichever change comes first."""
    sample = block_of(block)
    changes: list[Any] = [LinBP(0.0), Ghost(keep=0.7), SGM()]
    found = []
    for order in permutations(changes):
        changed = Changed(sample.block, order)
        changed.at_step(Draws(5, 3).at(0))
        found.append(gradient(changed, sample.x))
    for value, g in found[1:]:
        assert torch.equal(value, found[0][0])
        torch.testing.assert_close(g, found[0][1], rtol=1e-9, atol=1e-12)
