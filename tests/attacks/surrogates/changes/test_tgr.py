"""TGR against forward passes written out, whose gradients lose their extremes image by image in loops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import advens
from advens.attacks import attack_from_spec, attack_info, create_attack
from advens.attacks.surrogates.changes import ChangeContext, Changed, attached
from advens.attacks.surrogates.changes.ghost import Ghost
from advens.attacks.surrogates.changes.tgr import TGR, without_crosses, without_tokens
from advens.errors import InputError
from advens.seeding import Draws
from tests.attacks.surrogates.changes.conftest import gradient
from tests.attacks.surrogates.changes.transformers import FOUR_FAMILIES, pixels, tiny

Place = Callable[[Tensor, str], Tensor]
"""(value, name of the place) to the value, with something done to its gradient."""


# what is done to gradients, in loops


def plain_tokens(g: Tensor) -> Tensor:
    """(tokens, channels) of one image."""
    out = g.clone()
    for c in range(g.shape[1]):
        column = g[:, c].tolist()
        for extreme in (max(column), min(column)):
            out[column.index(extreme), c] = 0
    return out


def plain_crosses(g: Tensor) -> Tensor:
    """(rows, columns) of one head of one image."""
    out, values = g.clone(), g.flatten().tolist()
    for extreme in (max(values), min(values)):
        row, column = divmod(values.index(extreme), g.shape[1])
        out[:, column] = 0
        if len(g) > 1:
            out[row] = 0
    return out


def each(g: Tensor, plain: Callable[[Tensor], Tensor]) -> Tensor:
    """For every matrix of (..., a, b)."""
    return torch.stack([plain(m) for m in g.reshape(-1, *g.shape[-2:])]).view_as(g)


def regularised(attention: float, qkv: float, mlp: float) -> Place:
    def place(value: Tensor, name: str) -> Tensor:
        value = value.clone()
        if name == "attention":
            value.register_hook(lambda g: each(g, plain_crosses) * attention)
        elif name == "mlp":  # whatever lies between images and channels are tokens
            value.register_hook(
                lambda g: each(g.reshape(len(g), -1, g.shape[-1]), plain_tokens).view_as(g) * mlp
            )
        else:
            value.register_hook(lambda g: each(g, plain_tokens) * qkv)
        return value

    return place


PUBLISHED = regularised(0.25, 0.75, 0.5)


def test_without_tokens() -> None:
    g = torch.randn(3, 2, 6, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(without_tokens(g), each(g, plain_tokens))
    assert ((without_tokens(g) == 0).sum(-2) == 2).all()
    assert torch.equal(without_tokens(g[:, :, :1]), torch.zeros(3, 2, 1, 4))


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_without_crosses(rows: int) -> None:
    """A map of one row loses columns alone; extremes in one row or column meet."""
    g = torch.randn(40, 2, rows, 5, generator=torch.Generator().manual_seed(0))
    found = without_crosses(g)
    assert torch.equal(found, each(g, plain_crosses))
    if rows == 1:
        assert ((found == 0).sum(-1) == 2).all()


# networks


def vit_written(net: Any, place: Place) -> Callable[[Tensor], Tensor]:
    """A ViT's forward pass from its weights."""

    def attend(m: Any, x: Tensor) -> Tensor:
        qkv = x @ m.qkv.weight.T + m.qkv.bias
        q, k, v = qkv.view(*x.shape[:2], 3, 2, 8).permute(2, 0, 3, 1, 4)
        q, k, v = place(q, "q"), place(k, "k"), place(v, "v")
        scores = q @ k.transpose(2, 3) / 8**0.5
        heads = place(scores.softmax(-1), "attention") @ v
        return heads.transpose(1, 2).flatten(2) @ m.proj.weight.T + m.proj.bias

    def forward(x: Tensor) -> Tensor:
        z = net._pos_embed(net.patch_embed(x))
        for block in net.blocks:
            z = z + attend(block.attn, block.norm1(z))
            hidden = F.gelu(F.linear(block.norm2(z), block.mlp.fc1.weight, block.mlp.fc1.bias))
            z = z + place(F.linear(hidden, block.mlp.fc2.weight, block.mlp.fc2.bias), "mlp")
        out: Tensor = net.head(net.norm(z)[:, 0])
        return out

    return forward


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("scales", [(0.25, 0.75, 0.5), (1.0, 1.0, 1.0), (0.0, 0.5, 0.0)])
def test_formula(fused: bool, scales: tuple[float, float, float]) -> None:
    net, x = tiny("vit", fused), pixels()
    found, g = gradient(Changed(net, [TGR(*scales)]), x)
    wanted, w = gradient(vit_written(net, regularised(*scales)), x)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
    torch.testing.assert_close(g, w, rtol=1e-8, atol=1e-12)
    plain = gradient(net, x)
    torch.testing.assert_close(found, plain[0], rtol=0, atol=1e-12)
    torch.testing.assert_close(gradient(vit_written(net, lambda z, _: z), x)[1], plain[1])
    assert (g - plain[1]).abs().max() > 1e-2 * plain[1].abs().max()


def test_published_code_couples_images() -> None:
    """It looks for extremes in the first image and zeroes them in all: ours agrees for that image."""
    net, x = tiny("vit"), pixels()

    def coupled(value: Tensor, name: str) -> Tensor:
        plain = plain_crosses if name == "attention" else plain_tokens
        value = value.clone()
        value.register_hook(lambda g: g * (each(g[:1], plain) != 0))
        return value

    published = gradient(vit_written(net, coupled), x)[1]
    ours = gradient(Changed(net, [TGR(1.0, 1.0, 1.0)]), x)[1]
    torch.testing.assert_close(published[0], ours[0], rtol=1e-8, atol=1e-12)
    assert not torch.allclose(published[1], ours[1], rtol=1e-2)


def swin_block(m: Any, x: Tensor, place: Place) -> Tensor:
    """A block with shifted windows and a mask: (B, H, W, C), windows of a x a."""
    a, shift = m.window_size[0], m.shift_size[0]
    b, side, _, c = x.shape
    z = m.norm1(x).roll((-shift, -shift), (1, 2))
    count = side // a
    windows = z.view(b, count, a, count, a, c).transpose(2, 3).reshape(-1, a * a, c)
    q, k, v = m.attn.qkv(windows).view(len(windows), a * a, 3, 2, c // 2).permute(2, 0, 3, 1, 4)
    q, k, v = place(q, "q"), place(k, "k"), place(v, "v")
    scores = q @ k.transpose(2, 3) / (c // 2) ** 0.5 + m.attn._get_rel_pos_bias()
    if shift:
        scores = scores + m.attn_mask[:, None].repeat(b, 1, 1, 1)
    heads = place(scores.softmax(-1), "attention") @ v
    windows = m.attn.proj(heads.transpose(1, 2).flatten(2))
    z = windows.view(b, count, count, a, a, c).transpose(2, 3).reshape(b, side, side, c)
    x = x + z.roll((shift, shift), (1, 2))
    return x + place(m.mlp(m.norm2(x)), "mlp")


@pytest.mark.parametrize("fused", [True, False])
def test_windows(fused: bool) -> None:
    """Every window has its own extremes; the MLP's are over all tokens of an image."""
    net: Any = tiny("swin", fused)
    blocks = net.layers[0].blocks
    assert [block.shift_size[0] for block in blocks] == [0, 2]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 8, 8, 8, generator=generator, dtype=torch.float64)

    def written(z: Tensor) -> Tensor:
        for block in blocks:
            z = swin_block(block, z, PUBLISHED)
        return z

    found, g = gradient(Changed(blocks, [TGR()]), x)
    wanted, w = gradient(written, x)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
    torch.testing.assert_close(g, w, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("fused", [True, False])
def test_class_attention(fused: bool) -> None:
    """CaiT's class blocks: maps of one row, and a query and an MLP that see one token lose all."""
    block: Any = tiny("cait", fused).blocks_token_only[0]
    generator = torch.Generator().manual_seed(0)
    cls, rest = torch.randn(3, 5, 16, generator=generator, dtype=torch.float64).split([1, 4], 1)

    def written(x: Tensor) -> Tensor:
        m = block.attn
        u = block.norm1(torch.cat([cls, x], 1))
        k, v = (lin(u).view(3, 5, 2, 8).transpose(1, 2) for lin in (m.k, m.v))
        q = m.q(u[:, :1]).view(3, 1, 2, 8).transpose(1, 2)
        q, k, v = PUBLISHED(q, "q"), PUBLISHED(k, "k"), PUBLISHED(v, "v")
        heads = PUBLISHED((q @ k.transpose(2, 3) / 8**0.5).softmax(-1), "attention") @ v
        z = cls + block.gamma_1 * m.proj(heads.transpose(1, 2).reshape(3, 1, 16))
        return z + block.gamma_2 * PUBLISHED(block.mlp(block.norm2(z)), "mlp")

    def changed(x: Tensor) -> Tensor:
        with attached(block, [TGR()], ChangeContext()):
            out: Tensor = block(x, cls)
        return out

    found, g = gradient(changed, rest)
    wanted, w = gradient(written, rest)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
    torch.testing.assert_close(g, w, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("family", FOUR_FAMILIES)
def test_no_batch_neighbours(family: str) -> None:
    """Logits stay; an image alone has the gradient it has in a batch, in whatever order."""
    net, x = tiny(family), pixels()
    changed = Changed(net, [TGR()])
    found, g = gradient(changed, x)
    torch.testing.assert_close(found, gradient(net, x)[0], rtol=0, atol=1e-12)
    near = {"rtol": 1e-7, "atol": 1e-9 * float(g.abs().max())}
    torch.testing.assert_close(torch.cat([gradient(changed, row[None])[1] for row in x]), g, **near)
    torch.testing.assert_close(gradient(changed, x.flip(0))[1].flip(0), g, **near)


# beside other changes, and in attacks


def test_order_with_changes_of_values() -> None:
    """Masks and factors belong to the network, and regularisation to its gradients."""
    net, x = tiny("vit"), pixels()
    found = []
    for order in ([TGR(), Ghost(keep=0.8)], [Ghost(keep=0.8), TGR()]):
        changed = Changed(net, order)
        changed.at_step(Draws(5, 3).at(0))
        found.append(gradient(changed, x))
    for mine, other in zip(*found, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-8, atol=1e-12)


def test_attack(count: Any) -> None:
    models = [tiny("vit"), tiny("cait")]
    x, y = pixels(), torch.arange(3)
    attack: Any = create_attack("tgr", steps=2)
    assert attack.spec["changes"] == [{"name": "tgr", "attention": 0.25, "qkv": 0.75, "mlp": 0.5}]
    assert (float(attack.threat.radius), create_attack("tgr").steps) == (16 / 255, 10)
    assert attack_info("tgr").family == "surrogate"
    assert attack_from_spec(attack.spec) == attack
    with count(models) as counter:
        found = attack.run(models, x, y, seed=1)
    assert (counter.forward, counter.backward) == (12, 12)
    small = attack.run(models, x, y, seed=1, micro_batch=2)
    torch.testing.assert_close(small.x_adv, found.x_adv, rtol=0, atol=1e-9)
    for wrong in ("attention", "qkv", "mlp"):
        with pytest.raises(InputError, match=wrong):
            create_attack("tgr", **{wrong: 1.1})
    with pytest.raises(InputError, match="'tgr': 'digits:resnet' has no attention blocks"):
        attack(advens.load_model("digits:resnet"), x.float(), y)
