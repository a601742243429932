"""FPR: maps and remembered branches written out, row by row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import VisionTransformer

from advens.attacks import create_attack
from advens.attacks.surrogates.changes import Changed
from advens.attacks.surrogates.changes.fpr import FPR
from advens.errors import InputError
from advens.seeding import Draws
from tests.attacks.fusions.conftest import SEED, agree, grad, make
from tests.attacks.surrogates.changes.transformers import (
    FAMILIES,
    Block,
    blocks,
    pixels,
    tiny,
    tokens,
)

SPREAD, SCALE, PAST = 3.0, 0.7, 0.4
CHANGE = {"name": "fpr", "spread": SPREAD, "scale": SCALE, "past": PAST}
Memory = dict[Any, Tensor]


def remembered(value: Tensor, key: object, memory: Memory) -> Tensor:
    """``E_t = scale out_t + past E_{t-1}``."""
    out = SCALE * value
    if key in memory:
        out = out + PAST * memory[key]
    memory[key] = out.detach()
    return out


def block(m: Any, x: Tensor, noise: Tensor | None, memory: Memory, index: int) -> Tensor:
    """One image (tokens, 8) through a block; ``noise`` multiplies its map, head by head."""
    row, heads = m.norm(x), []
    for h in range(2):
        q, k, v = (
            row @ m.attn.qkv.weight[s : s + 4].T + m.attn.qkv.bias[s : s + 4]
            for s in (4 * h, 8 + 4 * h, 16 + 4 * h)
        )
        a = torch.softmax(q @ k.T / 2, 1)
        heads.append((a if noise is None else torch.softmax(a * noise[h], 1)) @ v)
    attention = torch.cat(heads, 1) @ m.attn.proj.weight.T + m.attn.proj.bias
    x = x + remembered(attention, (index, "attention"), memory)
    return x + remembered(m.mlp(m.norm(x)), (index, "mlp"), memory)


def noise_of(n: int, tokens: int, step: int, member: int, index: int) -> Tensor:
    like = torch.empty(n, 2, tokens, tokens, dtype=torch.float64)
    draws = Draws(SEED, n).at(step)
    return draws.uniform(like, 1 - SPREAD, 1 + SPREAD, "change", member, "fpr", index)


@pytest.mark.parametrize("fused", [True, False])
def test_blocks_over_steps(fused: bool) -> None:
    """Of two blocks both maps are diversified; a second pass of a step changes no memory."""
    net, x = blocks(fused), tokens()
    changed = Changed(net, [FPR(SPREAD, SCALE, PAST)], member=1)
    memories: list[Memory] = [{} for _ in x]
    for step in range(3):
        changed.at_step(Draws(SEED, 3).at(step))
        noise = [noise_of(3, 5, step, 1, index) for index in (0, 1)]
        at, wanted = x + 0.1 * step, []
        for i, image in enumerate(at):
            for index, m in enumerate(net):
                image = block(m, image, noise[index][i], memories[i], index)
            wanted.append(image)
        torch.testing.assert_close(changed(at), torch.stack(wanted), rtol=0, atol=1e-11)
        torch.testing.assert_close(changed(at), torch.stack(wanted), rtol=0, atol=1e-11)
        twice = changed(torch.cat([at, at]))
        torch.testing.assert_close(twice, torch.cat([torch.stack(wanted)] * 2), rtol=0, atol=1e-11)
        changed(at + 1)


class Transformer(nn.Module):
    """Patches of four pixels, one block of the test's, and classes."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.patches, self.block, self.head = nn.Conv2d(3, 8, 4, 4), Block(True), nn.Linear(32, 5)
            for p in self.parameters():
                p.data.mul_(2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.block(self.patches(x).flatten(2).transpose(1, 2)).flatten(1))
        return out


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize(("n", "targeted"), [(1, False), (7, True)])
def test_attack(k: int, n: int, targeted: bool) -> None:
    models = [Transformer(seed).double().eval().requires_grad_(False) for seed in range(k)]
    at = make(k, n, "linf", targeted, models=models)
    memories: dict[tuple[int, int], Memory] = {}

    def logits(member: int, t: int, i: int, leaf: Tensor) -> Tensor:
        m = models[member]
        z = m.patches(leaf[None])[0].flatten(1).T
        memory = memories.setdefault((member, i), {})
        out: Tensor = m.head(block(m.block, z, noise_of(n, 4, t, member, 0)[i], memory, 0).flatten())
        return out

    def direction(t: int, i: int, x: Tensor, state: dict[str, Any]) -> Tensor:
        return grad(lambda leaf: at.j(sum(logits(m, t, i, leaf) for m in range(k)) / k, i), x)

    agree(at.run("fpr", changes=[CHANGE]), at.alone(direction))


def test_nothing_is_left_in_a_second_run(images: Callable[..., Tensor]) -> None:
    """Nor from one micro-batch to the next."""
    net = tiny("vit")
    x, y = pixels(), torch.arange(3)
    attack = create_attack("fpr", steps=3)
    first = attack(net, x, y, seed=1)
    assert torch.equal(attack(net, x, y, seed=1), first)
    apart = attack.run(net, x, y, seed=1, micro_batch=1).x_adv
    torch.testing.assert_close(apart, first, rtol=0, atol=1e-12)
    assert not torch.equal(create_attack("fpr", steps=3, past=0)(net, x, y, seed=1), first)


@pytest.mark.parametrize("family", FAMILIES)
def test_families(family: str) -> None:
    net, x = tiny(family), pixels()
    changed = Changed(net, [FPR()])
    outs = []
    for step in range(2):
        changed.at_step(Draws(0, 3).at(step))
        outs.append(changed(x))
    assert (outs[0] - net(x)).abs().max() > 1e-8
    assert not torch.equal(*outs)
    for step in range(2):
        changed.at_step(Draws(0, 3, slice(1, 2)).at(step))
        torch.testing.assert_close(changed(x[1:2]), outs[step][1:2], rtol=0, atol=1e-9)


def test_torchvision_and_outside_an_attack() -> None:
    net = VisionTransformer(16, 8, 2, 2, 8, 16, num_classes=5).double().eval()
    nn.init.normal_(net.heads.head.weight)
    changed, x = Changed(net, [FPR()]), pixels()
    assert torch.equal(changed(x), changed(x))
    assert not torch.equal(changed(x), net(x))


def test_refusals() -> None:
    with pytest.raises(InputError, match="'fpr': 'Sequential' has no attention blocks"):
        Changed(nn.Sequential(nn.Flatten()), [FPR()])(pixels())
    with pytest.raises(InputError, match="at least 0"):
        create_attack("fpr", past=-1)
