"""What tests of changes share: gradients, counted passes, and residual blocks of many kinds.

The forward pass of each block is written out with its sums visible.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from timm.layers import ScaledStdConv2d, SEModule
from timm.models import _efficientnet_blocks as efficient
from timm.models import byobnet, convmixer, convnext, maxxvit, mlp_mixer, nfnet, resnet
from timm.models import swin_transformer as swin
from timm.models import vision_transformer as vit
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import convnext as tv_convnext
from torchvision.models import resnet as tv_resnet
from torchvision.models import vision_transformer as tv_vit

from advens.attacks import create_attack
from tests.attacks.conftest import counting
from tests.attacks.fusions.conftest import Setting

torch.set_num_threads(1)

Add = Callable[[Tensor, Tensor, int], Tensor]
"""(z, value of the branch, its number) to the sum."""

MAP, TOKENS, LAST = (3, 8, 6, 6), (3, 5, 8), (3, 4, 4, 8)


def basic(m: Any, x: Tensor, add: Add) -> Tensor:
    b = m.bn2(m.conv2(F.relu(m.bn1(m.conv1(x)))))
    return F.relu(add(x if m.downsample is None else m.downsample(x), b, 0))


def bottleneck(m: Any, x: Tensor, add: Add) -> Tensor:
    b = m.bn3(m.conv3(F.relu(m.bn2(m.conv2(F.relu(m.bn1(m.conv1(x))))))))
    b = m.se(b) if getattr(m, "se", None) is not None else b
    return F.relu(add(x if m.downsample is None else m.downsample(x), b, 0))


def pre_norm(m: Any, x: Tensor, add: Add) -> Tensor:
    x = add(x, m.ls1(m.attn(m.norm1(x))), 0)
    return add(x, m.ls2(m.mlp(m.norm2(x))), 1)


def post_norm(m: Any, x: Tensor, add: Add) -> Tensor:
    x = add(x, m.norm1(m.attn(x)), 0)
    return add(x, m.norm2(m.mlp(x)), 1)


def windows(m: Any, x: Tensor, add: Add) -> Tensor:
    x = add(x, m._attn(m.norm1(x)), 0)
    return add(x, m.mlp(m.norm2(x)), 1)


def mixer(m: Any, x: Tensor, add: Add) -> Tensor:
    x = add(x, m.mlp_tokens(m.norm1(x).transpose(1, 2)).transpose(1, 2), 0)
    return add(x, m.mlp_channels(m.norm2(x)), 1)


def conv_next(m: Any, x: Tensor, add: Add) -> Tensor:
    b = m.mlp(m.norm(m.conv_dw(x).permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
    return add(x, b * m.gamma.reshape(1, -1, 1, 1), 0)


def norm_free(m: Any, x: Tensor, add: Add) -> Tensor:
    out = F.relu(x) * m.beta
    s = x if m.downsample is None else m.downsample(out)
    b = m.conv3(F.relu(m.conv2(F.relu(m.conv1(out)))))
    return add(s, b * m.alpha, 0)


def inverted(m: Any, x: Tensor, add: Add) -> Tensor:
    b = m.bn2(m.conv_dw(m.bn1(m.conv_pw(x))))
    return add(x, m.bn3(m.conv_pwl(m.se(b))), 0)


def dark(m: Any, x: Tensor, add: Add) -> Tensor:
    return F.relu(add(m.shortcut(x), m.conv2_kxk(m.conv1_1x1(x)), 0))


def residual(m: Any, x: Tensor, add: Add) -> Tensor:
    return add(x, m.fn(x), 0)


def two_dimensional(m: Any, x: Tensor, add: Add) -> Tensor:
    x = add(m.shortcut(x), m.attn(m.norm1(x)), 0)
    return add(x, m.mlp(m.norm2(x)), 1)


def encoder(m: Any, x: Tensor, add: Add) -> Tensor:
    y = m.ln_1(x)
    x = add(x, m.self_attention(y, y, y, need_weights=False)[0], 0)
    return add(x, m.mlp(m.ln_2(x)), 1)


def tv_next(m: Any, x: Tensor, add: Add) -> Tensor:
    return add(x, m.layer_scale * m.block(x), 0)


def narrowing(planes: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(8, planes, 1, stride=2), nn.BatchNorm2d(planes))


def norm_free_block(out: int, **options: Any) -> nn.Module:
    return nfnet.NormFreeBlock(
        8, out, alpha=0.2, beta=0.7, act_layer=nn.ReLU, conv_layer=ScaledStdConv2d, **options
    )


def transformer_2d() -> nn.Module:
    config = maxxvit.MaxxVitTransformerCfg(dim_head=4, rel_pos_type="")
    return maxxvit.TransformerBlock2d(8, 16, stride=2, cfg=config)  # type: ignore[no-untyped-call]


KINDS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], Callable[..., Tensor]]] = {
    "basic": (lambda: resnet.BasicBlock(8, 8), MAP, basic),
    "basic-down": (lambda: resnet.BasicBlock(8, 6, 2, narrowing(6)), MAP, basic),
    "bottleneck": (lambda: resnet.Bottleneck(8, 2), MAP, bottleneck),
    "bottleneck-se": (
        lambda: resnet.Bottleneck(8, 2, attn_layer=SEModule), MAP, bottleneck,
    ),
    "tv-basic": (lambda: tv_resnet.BasicBlock(8, 6, 2, narrowing(6)), MAP, basic),
    "tv-bottleneck": (lambda: tv_resnet.Bottleneck(8, 2), MAP, bottleneck),
    "vit": (lambda: vit.Block(8, 2), TOKENS, pre_norm),
    "deit3": (lambda: vit.Block(8, 2, init_values=0.3), TOKENS, pre_norm),
    "post-norm": (lambda: vit.ResPostBlock(8, 2, init_values=0.3), TOKENS, post_norm),
    "swin": (lambda: swin.SwinTransformerBlock(8, (4, 4), 2, window_size=2), LAST, windows),
    "mixer": (lambda: mlp_mixer.MixerBlock(8, 5), TOKENS, mixer),
    "convnext": (lambda: convnext.ConvNeXtBlock(8, ls_init_value=0.3), MAP, conv_next),
    "nfnet": (lambda: norm_free_block(8), MAP, norm_free),
    "nfnet-down": (lambda: norm_free_block(6, stride=2), MAP, norm_free),
    "efficient": (lambda: efficient.InvertedResidual(8, 8, exp_ratio=2.0), MAP, inverted),
    "byob": (lambda: byobnet.DarkBlock(8, 8), MAP, dark),
    "byob-down": (lambda: byobnet.DarkBlock(8, 6, stride=2), MAP, dark),
    "convmixer": (
        lambda: convmixer.Residual(nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.GELU())),
        MAP, residual,
    ),
    "coatnet": (transformer_2d, MAP, two_dimensional),
    "tv-vit": (lambda: tv_vit.EncoderBlock(2, 8, 12, 0.0, 0.0), TOKENS, encoder),
    "tv-convnext": (lambda: tv_convnext.CNBlock(8, 0.3, 0.0), MAP, tv_next),
}  # fmt: skip


@dataclass
class Sample:
    """A block, an input and the block's forward pass with ``add`` for every sum."""

    block: nn.Module
    x: Tensor
    written: Callable[[Tensor, Add], Tensor]


def sample(kind: str, seed: int = 0) -> Sample:
    """A block of a kind, in float64, with weights and statistics of its own."""
    make, shape, forward = KINDS[kind]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        block = make().double().eval().requires_grad_(False)
        for tensor in (*block.parameters(), *block.buffers()):
            if tensor.is_floating_point():
                tensor.add_(torch.rand_like(tensor) * 0.8 - 0.4)
        x = torch.randn(shape, dtype=torch.float64)
    return Sample(block, x, lambda z, add: forward(block, z, add))


def outward(out: Tensor) -> Tensor:
    """A fixed smooth function of each image's values, summed over images."""
    weight = torch.linspace(-1, 2, out[0].numel(), dtype=out.dtype).view_as(out[0])
    return (weight * out).sum() + (out**2).sum()


def gradient(f: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """Value of ``f`` at ``x`` and the gradient of a fixed smooth function of it."""
    leaf = x.clone().requires_grad_()
    out = f(leaf)
    (g,) = torch.autograd.grad(outward(out), leaf)
    return out.detach(), g


def check_passes(at: Setting, name: str, **options: Any) -> None:
    """An attack of two steps reports the passes of its formula, and these are what the models see."""
    attack = create_attack(name, steps=2, **options)
    with counting(at.models) as passes:
        found = attack.run(at.models, at.x, at.y, seed=1)
    assert found.passes == attack.passes(at.k), name
    n, told = len(at.x), found.passes
    assert (passes.forward, passes.backward) == (n * told.forward, n * told.backward)


@pytest.fixture
def residual_block(kind: str) -> Sample:
    """A block of every kind, in turn."""
    return sample(kind)


@pytest.fixture
def block_of() -> Callable[..., Sample]:
    """``block_of(kind, seed=0)``."""
    return sample


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Tests that take ``kind`` run for every block."""
    if "kind" in metafunc.fixturenames:
        metafunc.parametrize("kind", list(KINDS))


