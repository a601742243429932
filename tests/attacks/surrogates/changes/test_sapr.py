"""SAPR: attention of permuted tokens, block by block and sample by sample."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torchvision.models import VisionTransformer

from advens.attacks import create_attack
from advens.attacks.surrogates.changes import Changed
from advens.attacks.surrogates.changes.sapr import SAPR, prefix_tokens
from advens.errors import InputError
from advens.seeding import Draws
from tests.attacks.surrogates.changes.transformers import FAMILIES, blocks, pixels, tiny, tokens

SEED = 5


def written(net: nn.Sequential, x: Tensor, p: float, step: int, member: int = 0) -> Tensor:
    """Two blocks, row by row: ``x + attn(norm(x)[order])``, then the MLP."""
    for index, m in enumerate(net):
        like = torch.empty(len(x), x.shape[1] + 1, dtype=x.dtype)
        drawn = Draws(SEED, len(x)).at(step).uniform(like, 0, 1, "change", member, "sapr", index)
        rows = []
        for row, u in zip(x, drawn, strict=True):
            order = sorted(range(x.shape[1]), key=u[1:].tolist().__getitem__)
            inside = m.norm(row)
            if u[0] < p:
                inside = torch.stack([inside[k] for k in order])
            rows.append(row + m.attn(inside[None])[0])
        x = torch.stack(rows)
        x = x + m.mlp(m.norm(x))
    return x


@pytest.mark.parametrize("p", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("fused", [True, False])
def test_blocks(p: float, fused: bool) -> None:
    net, x = blocks(fused), tokens()
    changed = Changed(net, [SAPR(p)], member=2)
    for step in range(3):
        changed.at_step(Draws(SEED, len(x)).at(step))
        wanted = written(net, x, p, step, member=2)
        torch.testing.assert_close(changed(x), wanted, rtol=0, atol=1e-12)
        assert torch.equal(wanted, written(net, x, 0.0, step)) == (p == 0)


@pytest.mark.parametrize("family", FAMILIES)
def test_families(family: str) -> None:
    """Values change with patches, samples do not meet, and the gradient flows."""
    net, x = tiny(family), pixels()
    changed = Changed(net, [SAPR(1.0)])
    changed.at_step(Draws(0, 3).at(0))
    out = changed(x)
    assert (out - net(x)).abs().max() > 1e-8  # CaiT's branches are scaled by 1e-5
    changed.at_step(Draws(0, 3, slice(1, 2)).at(0))
    torch.testing.assert_close(changed(x[1:2]), out[1:2], rtol=0, atol=1e-9)
    assert torch.equal(Changed(net, [SAPR(0.0)])(x), net(x))


def test_prefix_tokens_stay() -> None:
    """One patch alone: there is nothing to permute."""
    counts = {"vit": 1, "deit-distilled": 2, "swin": 0}
    for family, count in counts.items():
        assert prefix_tokens(tiny(family)) == count
    options: Any = {"img_size": 16, "patch_size": 16, "embed_dim": 16, "depth": 2, "num_heads": 2}
    net = timm.create_model("vit_tiny_patch16_224", num_classes=5, **options).double().eval()
    x = pixels()
    assert torch.equal(Changed(net, [SAPR(1.0)])(x), net(x))
    tv = VisionTransformer(16, 16, 2, 2, 8, 16, num_classes=5).double().eval()
    torch.nn.init.normal_(tv.heads.head.weight)
    assert prefix_tokens(tv) == 1
    assert torch.equal(Changed(tv, [SAPR(1.0)])(x), tv(x))
    several = VisionTransformer(16, 8, 2, 2, 8, 16, num_classes=5).double().eval()
    torch.nn.init.normal_(several.heads.head.weight)
    assert not torch.equal(Changed(several, [SAPR(1.0)])(x), several(x))


def test_refusals() -> None:
    with pytest.raises(InputError, match="'sapr': 'Sequential' has no attention blocks"):
        Changed(nn.Sequential(nn.Flatten(), nn.Linear(768, 5)).double(), [SAPR()])(pixels())
    with pytest.raises(InputError, match="from 0 to 1"):
        create_attack("sapr", p=1.5)
