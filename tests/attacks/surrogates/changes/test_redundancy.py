"""Dropped entries of maps, exchanged maps and MLPs of several copies, written out block by block."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from advens.attacks import create_attack
from advens.attacks.surrogates.changes import Changed
from advens.attacks.surrogates.changes.redundancy import AttentionDrop, GhostMLP, HeadShuffle
from advens.errors import InputError
from advens.seeding import Draws
from tests.attacks.surrogates.changes.transformers import FAMILIES, Attention, pixels, tiny

SEED, HEADS = 5, 4
CHANGES: dict[str, Any] = {
    "attn-drop": AttentionDrop(0.5), "head-shuffle": HeadShuffle(0.7, 0.8), "ghost-mlp": GhostMLP(0.4),
}  # fmt: skip


class Block(nn.Module):
    """x + attn(x), then x + mlp(x)."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.attn = Attention(fused, HEADS)
        self.mlp = nn.Sequential(nn.Linear(8, 12), nn.GELU(), nn.Linear(12, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(x)
        out: Tensor = x + self.mlp(x)
        return out


def net(fused: bool) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(3)
        found = nn.Sequential(Block(fused), Block(fused))
    return found.double().eval().requires_grad_(False)


def drawn(n: int, shape: tuple[int, ...], step: int, *tag: object) -> Tensor:
    like = torch.empty(n, *shape, dtype=torch.float64)
    return Draws(SEED, n).at(step).uniform(like, 0, 1, "change", 0, *tag)


def written(model: Any, x: Tensor, name: str, step: int) -> Tensor:
    n, count = x.shape[:2]
    for index, m in enumerate(model):
        rows = []
        for i, row in enumerate(x):
            maps, values = [], []
            for h in range(HEADS):
                q, k, v = (
                    row @ m.attn.qkv.weight[s : s + 2].T + m.attn.qkv.bias[s : s + 2]
                    for s in (2 * h, 8 + 2 * h, 16 + 2 * h)
                )
                maps.append(torch.softmax(q @ k.T / 2**0.5, 1))
                values.append(v)
            if name == "attn-drop":
                u = drawn(n, (HEADS, count, count), step, "attn-drop", index)[i]
                maps = [a * (u[h] >= 0.5) for h, a in enumerate(maps)]
            if name == "head-shuffle":
                u = drawn(n, (9,), step, "head-shuffle", index)[i].tolist()
                if u[0] < 0.7:
                    some = sorted(range(4), key=u[1:5].__getitem__)[:3]
                    sources = sorted(some, key=lambda h: u[5 + h])
                    new = list(maps)
                    for h, source in zip(some, sources, strict=True):
                        new[h] = maps[source]
                    maps = new
            out = torch.cat([a @ v for a, v in zip(maps, values, strict=True)], 1)
            row = row + out @ m.attn.proj.weight.T + m.attn.proj.bias
            hidden = m.mlp[:2](row)
            if name == "ghost-mlp":
                copies = 2 + int(4 * drawn(n, (1,), step, "ghost-mlp", index)[i])
                outs = [
                    m.mlp[2](hidden * (drawn(n, (count, 12), step, "ghost-mlp", index, k)[i] >= 0.4))
                    for k in range(copies)
                ]
                rows.append(row + sum(outs) / copies)
            else:
                rows.append(row + m.mlp[2](hidden))
        x = torch.stack(rows)
    return x


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("name", CHANGES)
def test_blocks(name: str, fused: bool) -> None:
    model = net(fused)
    x = torch.randn(4, 5, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2
    changed = Changed(model, [CHANGES[name]])
    for step in range(3):
        changed.at_step(Draws(SEED, 4).at(step))
        wanted = written(model, x, name, step)
        torch.testing.assert_close(changed(x), wanted, rtol=0, atol=1e-12)
        assert (wanted - model(x)).abs().max() > 1e-2


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("family", FAMILIES)
def test_families(name: str, family: str) -> None:
    """Values change, samples do not meet, and it composes with an attack."""
    model, x = tiny(family), pixels()
    changed = Changed(model, [type(CHANGES[name])(1.0) if name == "head-shuffle" else CHANGES[name]])
    changed.at_step(Draws(0, 3).at(0))
    out = changed(x)
    heads = min(getattr(module, "num_heads", 9) for module in model.modules())
    if name != "head-shuffle" or int(0.45 * heads) > 1:
        assert (out - model(x)).abs().max() > 1e-8
    changed.at_step(Draws(0, 3, slice(1, 2)).at(0))
    torch.testing.assert_close(changed(x[1:2]), out[1:2], rtol=0, atol=1e-9)
    create_attack("mifgsm", steps=1, changes=[name])(model, x, torch.arange(3))


def test_off() -> None:
    model, x = tiny("vit"), pixels()
    for change in (AttentionDrop(0), HeadShuffle(0), GhostMLP(0)):
        torch.testing.assert_close(Changed(model, [change])(x), model(x), rtol=0, atol=1e-12)


def test_bad_numbers() -> None:
    for change in ({"name": "attn-drop", "p": 2}, {"name": "head-shuffle", "share": -1},
                   {"name": "ghost-mlp", "most": 1}):  # fmt: skip
        with pytest.raises(InputError, match=r"from 0 to 1|at least 2"):
            create_attack("mifgsm", changes=[change])
