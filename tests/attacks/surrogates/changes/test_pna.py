"""PNA: logits stay, and gradients are those of networks whose attention maps are constants."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torchvision.models import VisionTransformer

import advens
from advens.attacks import attack_from_spec, attack_info, create_attack
from advens.attacks.surrogates.changes import Changed
from advens.attacks.surrogates.changes.ghost import Ghost
from advens.attacks.surrogates.changes.pna import PNA
from advens.attacks.surrogates.changes.vit import HeadDrop, ScoreScale
from advens.errors import InputError
from advens.seeding import Draws
from tests.attacks.surrogates.changes.conftest import gradient
from tests.attacks.surrogates.changes.transformers import FAMILIES, blocks, pixels, tiny, tokens


class Constant(TorchFunctionMode):
    """Every map that a softmax gives is a constant; fused attention is written out."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") == "scaled_dot_product_attention":
            q, k, v = args
            scores = q @ k.transpose(-2, -1) * (kwargs.get("scale") or q.shape[-1] ** -0.5)
            mask = kwargs.get("attn_mask")
            return (scores if mask is None else scores + mask).softmax(-1).detach() @ v
        out = func(*args, **kwargs)
        return out.detach() if getattr(func, "__name__", "") == "softmax" else out


def plain_block(m: Any, x: Tensor) -> Tensor:
    """Image by image and head by head, with the map detached."""
    rows = []
    for row in m.norm(x):
        heads = []
        for h in range(2):
            q, k, v = (
                row @ m.attn.qkv.weight[s : s + 4].T + m.attn.qkv.bias[s : s + 4]
                for s in (4 * h, 8 + 4 * h, 16 + 4 * h)
            )
            weights = torch.exp(q @ k.T / 4**0.5)
            heads.append((weights / weights.sum(1, keepdim=True)).detach() @ v)
        rows.append(torch.cat(heads, 1) @ m.attn.proj.weight.T + m.attn.proj.bias)
    x = x + torch.stack(rows)
    out: Tensor = x + m.mlp(m.norm(x))
    return out


@pytest.mark.parametrize("fused", [True, False])
def test_formula_of_a_block(fused: bool) -> None:
    net, x = blocks(fused), tokens()
    found, g = gradient(Changed(net, [PNA()]), x)
    assert torch.equal(found, net(x))
    wanted, w = gradient(lambda z: plain_block(net[1], plain_block(net[0], z)), x)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
    torch.testing.assert_close(g, w, rtol=1e-10, atol=1e-12)
    plain = gradient(net, x)[1]
    assert (g - plain).abs().max() > 1e-2 * plain.abs().max()


def test_it_is_the_published_hook() -> None:
    """There the dropout after the softmax gives back a gradient of 0."""
    net, x = blocks(fused=False), tokens()
    g = gradient(Changed(net, [PNA()]), x)[1]
    for block in net:
        block.attn.attn_drop.register_full_backward_hook(lambda m, into, out: (0 * into[0],))
    torch.testing.assert_close(g, gradient(net, x)[1], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", ["vit", "deit3", "post-norm", "swin", "tv-vit"])
def test_blocks_of_libraries(name: str, block_of: Any) -> None:
    sample = block_of(name)
    found, g = gradient(Changed(sample.block, [PNA()]), sample.x)
    plain, before = gradient(sample.block, sample.x)
    torch.testing.assert_close(found, plain, rtol=0, atol=1e-12)
    assert (g - before).abs().max() > 1e-3 * before.abs().max()
    if name != "tv-vit":  # that is one call, in which no softmax is seen
        with Constant():
            wanted = gradient(sample.block, sample.x)[1]
        torch.testing.assert_close(g, wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_networks(family: str, fused: bool) -> None:
    """Logits to the bit, gradients of constant maps, each image for itself."""
    net, x = tiny(family, fused), pixels()
    changed = Changed(net, [PNA()])
    found, g = gradient(changed, x)
    plain = gradient(net, x)
    assert torch.equal(found, plain[0])
    with Constant():
        wanted = gradient(net, x)[1]
    torch.testing.assert_close(g, wanted, rtol=1e-8, atol=1e-10 * float(wanted.abs().max()))
    assert (g - plain[1]).abs().max() > 1e-4 * plain[1].abs().max()
    alone = torch.cat([gradient(changed, row[None])[1] for row in x])
    torch.testing.assert_close(alone, g, rtol=1e-8, atol=1e-10 * float(g.abs().max()))
    assert all(m.fused_attn == fused for m in net.modules() if hasattr(m, "fused_attn"))


def test_torchvision() -> None:
    """Its attention is written out here: against the formula with torch's own projections."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        net = VisionTransformer(16, 8, 2, 2, 8, 12, num_classes=5)
        nn.init.normal_(net.heads.head.weight)
    net = net.double().eval().requires_grad_(False)

    def attend(m: Any, x: Tensor) -> Tensor:
        q, k, v = (x @ m.in_proj_weight.T + m.in_proj_bias).chunk(3, -1)
        heads = [
            (q[..., s] @ k[..., s].transpose(1, 2) / 2).softmax(-1).detach() @ v[..., s]
            for s in (slice(0, 4), slice(4, 8))
        ]
        out: Tensor = m.out_proj(torch.cat(heads, -1))
        return out

    def written(x: Tensor) -> Tensor:
        z = torch.cat([net.class_token.expand(len(x), -1, -1), net._process_input(x)], 1)
        z = z + net.encoder.pos_embedding
        for block in net.encoder.layers:
            m: Any = block
            z = z + attend(m.self_attention, m.ln_1(z))
            z = z + m.mlp(m.ln_2(z))
        out: Tensor = net.heads(net.encoder.ln(z)[:, 0])
        return out

    x = pixels()
    found, g = gradient(Changed(net, [PNA()]), x)
    torch.testing.assert_close(found, net(x), rtol=0, atol=1e-12)
    torch.testing.assert_close(g, gradient(written, x)[1], rtol=1e-9, atol=1e-12)


def test_order_with_other_changes() -> None:
    """Scores are scaled and heads dropped whichever comes first, and no gradient enters the maps."""
    net, x = blocks(fused=True), tokens()
    changes: list[Any] = [PNA(), ScoreScale(0.5), HeadDrop(0.4), Ghost(keep=0.8)]
    found = []
    for order in (changes, changes[::-1], [changes[i] for i in (2, 0, 3, 1)]):
        changed = Changed(net, order)
        changed.at_step(Draws(5, 3).at(0))
        found.append(gradient(changed, x))
        with Constant():
            plain = Changed(net, [change for change in order if change is not changes[0]])
            plain.at_step(Draws(5, 3).at(0))
            wanted = gradient(plain, x)[1]
        torch.testing.assert_close(found[-1][1], wanted, rtol=1e-9, atol=1e-12)
    for value, g in found[1:]:
        torch.testing.assert_close(value, found[0][0], rtol=0, atol=1e-12)
        torch.testing.assert_close(g, found[0][1], rtol=1e-9, atol=1e-12)


def test_attack(count: Any) -> None:
    """Passes by the formula, micro-batches alike, the recipe's spec, CNNs refused by name."""
    models = [tiny("vit"), tiny("beit")]
    x, y = pixels(), torch.arange(3)
    attack: Any = create_attack("pna-patchout", steps=2)
    assert attack.spec["changes"] == [{"name": "pna"}]
    assert attack.spec["transforms"] == [{"name": "patchout", "grid": 14, "keep": 130 / 196}]
    assert (float(attack.threat.radius), create_attack("pna-patchout").steps) == (16 / 255, 10)
    assert attack_info("pna-patchout").family == "surrogate"
    assert attack_from_spec(attack.spec) == attack
    with count(models) as counter:
        found = attack.run(models, x, y, seed=1)
    assert (counter.forward, counter.backward) == (12, 12)
    small = attack.run(models, x, y, seed=1, micro_batch=2)
    torch.testing.assert_close(small.x_adv, found.x_adv, rtol=0, atol=1e-9)
    without = create_attack("patchout-mifgsm", eps=16 / 255, steps=2)
    assert not torch.equal(without(models, x, y, seed=1), found.x_adv)
    with pytest.raises(InputError, match="'pna': 'digits:resnet' has no attention blocks"):
        create_attack("pna-mifgsm")(advens.load_model("digits:resnet"), x.float(), y)
