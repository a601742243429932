"""Small vision transformers: those of a library, and one whose blocks tests write out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

VIT = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
SWIN = {
    "img_size": 16, "patch_size": 2, "window_size": 4, "embed_dim": 8, "depths": (2, 1), "num_heads": (2, 2),
}  # fmt: skip
PIT = {
    "img_size": 16, "patch_size": 4, "stride": 2, "base_dims": (8, 8, 8), "depth": (1, 1, 1),
    "heads": (1, 2, 2),
}  # fmt: skip
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("vit_tiny_patch16_224", VIT),
    "vit-qk-norm": ("vit_tiny_patch16_224", VIT | {"qk_norm": True}),
    "deit-distilled": ("deit_tiny_distilled_patch16_224", VIT),
    "vit-relpos": ("vit_relpos_small_patch16_224", VIT),
    "beit": ("beit_base_patch16_224", VIT),
    "eva": ("eva02_tiny_patch14_224", VIT),
    "cait": ("cait_xxs24_224", VIT),
    "swin": ("swin_tiny_patch4_window7_224", SWIN),
    "swinv2": ("swinv2_tiny_window8_256", SWIN),
    "pit": ("pit_ti_224", PIT),
}
FOUR_FAMILIES = ["vit", "beit", "cait", "swin"]


def tiny(family: str, fused: bool = True, **options: Any) -> nn.Module:
    """A network of a family in float64, with weights and biases of its own."""
    arch, own = FAMILIES[family]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        net: nn.Module = timm.create_model(arch, num_classes=5, **own | options).double().eval()
        for tensor in net.parameters():
            tensor.requires_grad_(False).add_(torch.rand_like(tensor) * 0.4 - 0.2)
    for module in net.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = fused  # type: ignore[assignment]
    return net


def pixels() -> Tensor:
    """Three images for these networks."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand(3, 3, 16, 16, generator=generator, dtype=torch.float64)


class Attention(nn.Module):
    """Self-attention on eight channels by hand, in one call or written out."""

    def __init__(self, fused: bool, heads: int = 2) -> None:
        super().__init__()
        self.num_heads, self.fused_attn = heads, fused
        self.qkv, self.proj = nn.Linear(8, 24), nn.Linear(8, 8)
        self.attn_drop = nn.Dropout(0.3)

    def forward(self, x: Tensor) -> Tensor:
        size = 8 // self.num_heads
        q, k, v = self.qkv(x).unflatten(2, (3, self.num_heads, size)).permute(2, 0, 3, 1, 4)
        if self.fused_attn:
            out = F.scaled_dot_product_attention(q, k, v)
        else:
            out = self.attn_drop((q @ k.transpose(-2, -1) / size**0.5).softmax(-1)) @ v
        mixed: Tensor = self.proj(out.transpose(1, 2).flatten(2))
        return mixed


class Block(nn.Module):
    """x + attn(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.norm, self.attn = nn.LayerNorm(8), Attention(fused)
        self.mlp = nn.Sequential(nn.Linear(8, 12), nn.GELU(), nn.Linear(12, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm(x))
        out: Tensor = x + self.mlp(self.norm(x))
        return out


def blocks(fused: bool) -> nn.Sequential:
    """Two blocks."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(1)
        net = nn.Sequential(Block(fused), Block(fused))
    return net.double().eval().requires_grad_(False)


def tokens() -> Tensor:
    """Five tokens of each of three images, for the blocks."""
    return torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2


class TwoNormBlock(nn.Module):
    """x + attn(norm1(x)), then x + mlp(norm2(x)), with heads of two dimensions of their own."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.norm1, self.attn, self.norm2 = nn.LayerNorm(8), Attention(fused), nn.LayerNorm(8)
        self.mlp = nn.Sequential(nn.Linear(8, 12), nn.GELU(), nn.Linear(12, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class Transformer(nn.Module):
    """Patches of four pixels, three blocks, and classes of the first token."""

    def __init__(self, seed: int, fused: bool = True) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.patches = nn.Conv2d(3, 8, 4, 4)
            self.blocks = nn.ModuleList(TwoNormBlock(fused) for _ in range(3))
            self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 5)
            for p in self.parameters():
                p.data.mul_(2)
        self.double().eval().requires_grad_(False)

    def embed(self, x: Tensor) -> Tensor:
        tokens: Tensor = self.patches(x).flatten(-2).transpose(-1, -2)
        return tokens

    def read(self, z: Tensor) -> Tensor:
        out: Tensor = self.head(self.norm(z)[..., 0, :])
        return out

    def forward(self, x: Tensor) -> Tensor:
        z = self.embed(x)
        for block in self.blocks:
            z = block(z)
        return self.read(z)


def pull(f: Callable[[Tensor], Tensor], at: Tensor, g: Tensor) -> Tensor:
    """``g`` pulled back through f."""
    leaf = at.detach().requires_grad_()
    (found,) = torch.autograd.grad((f(leaf) * g).sum(), leaf)
    return found
