"""SGM against blocks whose forward pass is written out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from timm.models.densenet import DenseLayer
from torch import Tensor, nn
from torchvision.models.densenet import _DenseLayer

import advens
from advens.attacks import attack_from_spec, attack_info, create_attack
from advens.attacks.surrogates.changes import Changed
from advens.attacks.surrogates.changes.sgm import SGM, residual_blocks
from advens.errors import InputError
from tests.attacks.surrogates.changes.conftest import gradient


def decayed(gamma: float) -> Callable[[Tensor, Tensor, int], Tensor]:
    """z + f(z), with gamma f' backwards."""
    return lambda z, b, i: z + gamma * b + (1 - gamma) * b.detach()


@pytest.mark.parametrize("gamma", [0.2, 0.5])
def test_formula(residual_block: Any, gamma: float) -> None:
    found, g = gradient(Changed(residual_block.block, [SGM(gamma)]), residual_block.x)
    wanted, w = gradient(lambda x: residual_block.written(x, decayed(gamma)), residual_block.x)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
    torch.testing.assert_close(g, w, rtol=1e-9, atol=1e-12)
    plain = gradient(residual_block.block, residual_block.x)[1]
    assert (g - plain).abs().max() > 1e-3 * plain.abs().max()


def test_a_chain_of_blocks(block_of: Any) -> None:
    """Every block decays once, whatever stands before and behind it."""
    parts = [block_of("bottleneck", 1), block_of("basic", 2), block_of("basic-down", 3)]

    def written(x: Tensor) -> Tensor:
        for each in parts:
            x = each.written(x, decayed(0.3))
        return x

    chain = nn.Sequential(*[each.block for each in parts])
    g = gradient(Changed(chain, [SGM(0.3)]), parts[0].x)[1]
    torch.testing.assert_close(g, gradient(written, parts[0].x)[1], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("layer", [DenseLayer(8, 4, 2), _DenseLayer(8, 4, 2, 0.0)])
def test_features_of_a_dense_layer_are_its_branch(layer: nn.Module) -> None:
    layer = layer.double().eval().requires_grad_(False)

    class Dense(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([x, self.layer([x])], 1)

    def written(x: Tensor) -> Tensor:
        b = layer([x])
        return torch.cat([x, 0.5 * b + 0.5 * b.detach()], 1)

    x = torch.randn(3, 8, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    g = gradient(Changed(Dense(), [SGM()]), x)[1]
    torch.testing.assert_close(g, gradient(written, x)[1], rtol=1e-9, atol=1e-12)


def test_one_changes_nothing(residual_block: Any) -> None:
    found = gradient(Changed(residual_block.block, [SGM(1.0)]), residual_block.x)
    plain = gradient(residual_block.block, residual_block.x)
    assert all(map(torch.equal, found, plain))


def test_blocks_without_a_skip_connection_are_none(block_of: Any) -> None:
    from timm.models._efficientnet_blocks import InvertedResidual
    from timm.models.byobnet import RepVggBlock

    assert not residual_blocks(InvertedResidual(8, 6))
    assert not residual_blocks(RepVggBlock(8, 6))
    assert len(residual_blocks(RepVggBlock(8, 8))) == 1


@pytest.mark.parametrize("name", [n for n in advens.list_models("digits:*") if n != "digits:barre3"])
def test_embedded_models(name: str) -> None:
    """Each gives another gradient and the same logits, or is refused by name."""
    model = advens.load_model(name)
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    changed = Changed(model, [SGM()])
    if name == "digits:efficientnet":  # every block narrows or widens: none has a skip connection
        with pytest.raises(InputError, match=r"'sgm' finds no residual branch in 'digits:efficientnet'"):
            changed(x)
        return
    before = hooks(model)
    logits, g = gradient(changed, x)
    plain_logits, plain = gradient(model, x)
    assert torch.equal(logits, plain_logits)
    cosine = torch.cosine_similarity(g.flatten(1), plain.flatten(1))
    assert 0 < cosine.max() < 0.999
    assert hooks(model) == before


def hooks(model: nn.Module) -> list[Any]:
    """What a change could leave behind."""
    return [
        (sorted(vars(m)), len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks))
        for m in model.modules()
    ]


def test_no_batch_neighbours(block_of: Any) -> None:
    net = nn.Sequential(*[block_of("vit", seed).block for seed in range(2)])
    x = block_of("vit").x

    def loss(z: Tensor) -> Tensor:
        leaf = z.clone().requires_grad_()
        out = (Changed(net, [SGM()])(leaf) ** 2).sum()
        return torch.autograd.grad(out, leaf)[0]

    torch.testing.assert_close(loss(x)[1:2], loss(x[1:2]), rtol=1e-12, atol=1e-14)


def test_gamma() -> None:
    for wrong in (0.0, -0.5, 1.5):
        with pytest.raises(InputError, match="gamma"):
            create_attack("sgm", gamma=wrong)


# the attack


@pytest.fixture(scope="module")
def pair() -> list[nn.Module]:
    return [advens.load_model("digits:resnet"), advens.load_model("digits:vit")]


@pytest.fixture(scope="module")
def shard() -> tuple[Tensor, Tensor]:
    x = torch.randint(0, 256, (4, 3, 32, 32), generator=torch.Generator().manual_seed(1)) / 255
    return x, torch.arange(4)


@pytest.mark.parametrize("name", ["sgm", "sgm-mi-adaea", "sgm-svre", "ghost-sgm-linbp-mifgsm"])
def test_passes_and_models(name: str, pair: Any, shard: Any, count: Any) -> None:
    attack = create_attack(name, steps=2)
    before = [hooks(model) for model in pair]
    with count(pair) as counter:
        found = attack.run(pair, *shard, seed=3)
    formula = attack.passes(2)
    assert found.passes == formula
    assert (counter.forward, counter.backward) == (4 * formula.forward, 4 * formula.backward)
    assert [hooks(model) for model in pair] == before
    assert attack_from_spec(attack.spec) == attack
    assert (found.x_adv - shard[0]).abs().max() > 1 / 255


def test_order_of_names(pair: Any, shard: Any) -> None:
    made = [create_attack(f"{name}-mifgsm", steps=2)(pair, *shard, seed=1) for name in
            ("di-sgm-ghost", "ghost-di-sgm", "sgm-ghost-di")]  # fmt: skip
    assert torch.equal(made[0], made[1])
    assert torch.equal(made[0], made[2])
    assert not torch.equal(made[0], create_attack("ghost-di-mifgsm", steps=2)(pair, *shard, seed=1))


def test_recipe() -> None:
    attack: Any = create_attack("sgm")
    assert attack.spec["changes"] == [{"name": "sgm", "gamma": 0.5}]
    assert (float(attack.threat.radius), attack.steps) == (16 / 255, 10)
    assert create_attack("sgm", gamma=0.2).spec["changes"] == [{"name": "sgm", "gamma": 0.2}]
    assert attack_info("sgm").family == "surrogate"
