"""Changes of one attention, several at once: each sees the one product that is there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from advens.attacks.surrogates.changes import Changed
from advens.attacks.surrogates.changes.pna import PNA
from advens.attacks.surrogates.changes.tgr import TGR
from advens.attacks.surrogates.changes.vit import ScoreScale
from advens.seeding import Draws


@pytest.fixture(params=[True, False], ids=["fused", "written out"])
def net(request: Any) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        made: nn.Module = timm.create_model(
            "vit_tiny_patch16_224", num_classes=5, img_size=16, patch_size=8, embed_dim=16, depth=2,
            num_heads=2,
        )  # fmt: skip
        for tensor in made.double().eval().requires_grad_(False).parameters():
            tensor.add_(torch.rand_like(tensor) * 0.4 - 0.2)
    for module in made.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = request.param
    return made


def answer(net: nn.Module, changes: Sequence[Any]) -> tuple[Tensor, Tensor]:
    """Logits of three images under changes, and the gradient of their squares."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(3, 3, 16, 16, generator=generator, dtype=torch.float64, requires_grad=True)
    changed = Changed(net, changes)
    changed.at_step(Draws(3, 3).at(1))
    out = changed(x)
    return out.detach(), torch.autograd.grad(out.square().sum(), x)[0]


def test_scores_are_scaled_around_tgr(net: nn.Module) -> None:
    scale = ScoreScale(s=0.5)
    alone = answer(net, [scale])[0]
    assert not torch.allclose(alone, answer(net, [])[0])
    for order in ([TGR(), scale], [scale, TGR()]):
        torch.testing.assert_close(answer(net, order)[0], alone, rtol=0, atol=1e-12)


def test_tgr_and_pna_commute(net: nn.Module) -> None:
    one, other = (answer(net, order)[1] for order in ([TGR(), PNA()], [PNA(), TGR()]))
    torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
    assert not torch.allclose(one, answer(net, [TGR()])[1])
