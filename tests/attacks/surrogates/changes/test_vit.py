"""Head dropping, score scaling and token mixing against forward passes written out with the same draws."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import advens
from advens.attacks.attack import ComposedAttack
from advens.attacks.parts import from_spec, to_spec
from advens.attacks.surrogates.changes import ChangeContext, Changed, attached
from advens.attacks.surrogates.changes.vit import HeadDrop, ScoreScale, TokenMix
from advens.errors import InputError
from advens.seeding import Draws
from tests.attacks.surrogates.changes.conftest import gradient
from tests.attacks.surrogates.changes.transformers import FOUR_FAMILIES, pixels, tiny

STRONG: dict[str, Any] = {
    "head-drop": HeadDrop(0.5), "score-scale": ScoreScale(1.0), "token-mix": TokenMix(0.5),
}  # fmt: skip
OFF: list[Any] = [HeadDrop(0.0), ScoreScale(0.0), TokenMix(0.0)]
DRAWS = Draws(5, 3).at(0)
every = pytest.mark.parametrize("change", STRONG.values(), ids=STRONG.keys())
either = pytest.mark.parametrize("fused", [True, False])


def network(family: str, fused: bool = True) -> nn.Module:
    """A network of a family, with four heads where all of its blocks have the same number."""
    return tiny(family, fused, **({} if family == "swin" else {"num_heads": 4}))


def under(net: nn.Module, changes: Any, draws: Draws = DRAWS, member: int = 0) -> Changed:
    changed = Changed(net, changes if isinstance(changes, list) else [changes], member)
    changed.at_step(draws)
    return changed


def drawn(shape: tuple[int, ...], low: float, high: float, name: str, block: int) -> Tensor:
    """What a block draws for each of three images."""
    return ChangeContext(DRAWS).uniform(torch.empty(3, *shape, dtype=torch.float64), low, high, name, block)


class Written:
    """A network's parts by hand, with the places of the three strategies visible.

    Args:
        name: of the strategy that acts, as strong as in ``STRONG``.
        heads, tokens: of a block; tokens of an image, over all its windows.
    """

    def __init__(self, name: str, heads: int, tokens: int) -> None:
        self.name, self.heads, self.tokens = name, heads, tokens

    def scale(self, scores: Tensor, block: int) -> Tensor:
        """The windows of an image stand one after another."""
        if self.name != "score-scale":
            return scores
        factors = drawn((1, 1, 1), 0.0, 2.0, "score-scale", block).flatten().tolist()
        windows = len(scores) // 3
        return torch.stack([scores[i] * factors[i // windows] for i in range(len(scores))])

    def drop(self, out: Tensor, block: int) -> Tensor:
        if self.name != "head-drop":
            return out
        left = (drawn((self.heads,), 0, 1, "head-drop", block) >= 0.5).tolist()
        windows, rows = len(out) // 3, []
        for i in range(len(out)):
            rows.append(torch.stack([
                out[i, h] / 0.5 if left[i // windows][h] else torch.zeros_like(out[i, h])
                for h in range(self.heads)
            ]))  # fmt: skip
        return torch.stack(rows)

    def mix(self, hidden: Tensor, block: int) -> Tensor:
        """On the hidden activation, as the formula has it; tokens are all of an image."""
        if self.name != "token-mix":
            return hidden
        perms = drawn((self.tokens,), 0, 1, "token-mix", block).argsort(1).tolist()
        rows = hidden.reshape(3, -1, hidden.shape[-1])
        mixed = [0.5 * h + 0.5 * h[perm] for h, perm in zip(rows, perms, strict=True)]
        return torch.stack(mixed).view_as(hidden)

    def attend(self, m: Any, x: Tensor, block: int, bias: Tensor | float = 0.0) -> Tensor:
        d = x.shape[-1] // self.heads
        q, k, v = m.qkv(x).view(*x.shape[:2], 3, self.heads, d).permute(2, 0, 3, 1, 4)
        scores = self.scale(q @ k.transpose(2, 3) / d**0.5, block) + bias
        out: Tensor = m.proj(self.drop(scores.softmax(-1) @ v, block).transpose(1, 2).flatten(2))
        return out

    def mlp(self, m: Any, x: Tensor, block: int) -> Tensor:
        out: Tensor = m.fc2(self.mix(F.gelu(m.fc1(x)), block))
        return out


@either
@every
def test_formula(change: Any, fused: bool) -> None:
    net: Any = network("vit", fused)
    hand = Written(change.part_name, 4, 5)

    def written(x: Tensor) -> Tensor:
        z = net._pos_embed(net.patch_embed(x))
        for i, block in enumerate(net.blocks):
            z = z + hand.attend(block.attn, block.norm1(z), i)
            z = z + hand.mlp(block.mlp, block.norm2(z), i)
        out: Tensor = net.head(net.norm(z)[:, 0])
        return out

    x = pixels()
    found = gradient(under(net, change), x)
    for mine, wanted in zip(found, gradient(written, x), strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-9, atol=1e-11)
    assert (found[0] - net(x)).abs().max() > 1e-2 * net(x).abs().max()


@either
@every
def test_windows(change: Any, fused: bool) -> None:
    """Windows of an image share factors and masks; biases and masks are not scaled; tokens mix over all."""
    net: Any = network("swin", fused)
    blocks, hand = net.layers[0].blocks, Written(change.part_name, 2, 64)

    def written(x: Tensor) -> Tensor:
        for i, m in enumerate(blocks):
            shift = m.shift_size[0]
            assert shift == (0, 2)[i]
            z = m.norm1(x).roll((-shift, -shift), (1, 2))
            windows = z.view(3, 2, 4, 2, 4, 8).transpose(2, 3).reshape(12, 16, 8)
            bias = m.attn._get_rel_pos_bias()
            bias = bias + m.attn_mask[:, None].repeat(3, 1, 1, 1) if shift else bias
            z = hand.attend(m.attn, windows, i, bias).view(3, 2, 2, 4, 4, 8)
            x = x + z.transpose(2, 3).reshape(3, 8, 8, 8).roll((shift, shift), (1, 2))
            x = x + hand.mlp(m.mlp, m.norm2(x), i)
        return x

    x = torch.randn(3, 8, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = gradient(under(blocks, change), x)
    for mine, wanted in zip(found, gradient(written, x), strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("family", FOUR_FAMILIES)
@either
def test_strength_zero_changes_nothing(family: str, fused: bool) -> None:
    net, x = network(family, fused), pixels()
    assert all(map(torch.equal, gradient(under(net, OFF), x), gradient(net, x)))


# what is drawn


@pytest.mark.parametrize("family", FOUR_FAMILIES)
@every
def test_draws(change: Any, family: str) -> None:
    """Fixed within a step, forward and backward; others at another step, seed, member and sample."""
    net, x = network(family), pixels()[:1].repeat(3, 1, 1, 1)
    here = under(net, change)
    first = gradient(here, x)
    assert all(map(torch.equal, gradient(here, x), first))
    with torch.no_grad():
        assert torch.equal(here(x), first[0])
    with attached(net, [change], ChangeContext(DRAWS)):
        assert torch.equal(net(x), net(x))
    for other in (
        under(net, change, DRAWS.at(1)), under(net, change, DRAWS, member=1),
        under(net, change, Draws(6, 3).at(0)),
    ):  # fmt: skip
        assert not torch.allclose(other(x), first[0], rtol=1e-6)
    assert not torch.allclose(first[0][0], first[0][1], rtol=1e-6)


@pytest.mark.parametrize("family", FOUR_FAMILIES)
@every
def test_no_batch_neighbours(change: Any, family: str) -> None:
    """A slice of the shard gives what the shard gives; so do several candidates of every sample."""
    net, x = network(family), pixels()
    whole = gradient(under(net, change), x)
    part = gradient(under(net, change, Draws(5, 3, slice(1, 3)).at(0)), x[1:])
    many = gradient(under(net, change), x.repeat(2, 1, 1, 1))
    other = gradient(under(net, change), torch.cat([x[:1], pixels()[1:] ** 2]))
    for i in range(2):
        torch.testing.assert_close(part[i], whole[i][1:], rtol=1e-8, atol=1e-10)
        torch.testing.assert_close(many[i][:3], whole[i], rtol=1e-8, atol=1e-10)
        torch.testing.assert_close(many[i][3:], whole[i], rtol=1e-8, atol=1e-10)
        torch.testing.assert_close(other[i][0], whole[i][0], rtol=1e-8, atol=1e-10)


def test_heads_dropped_and_factors_in_range() -> None:
    """Over many images: p of the heads are 0, the others divided by 1 - p; factors span their range."""
    net: Any = network("vit").blocks  # type: ignore[union-attr]
    x = torch.randn(1, 5, 16, generator=torch.Generator().manual_seed(0)).double().repeat(400, 1, 1)
    seen: list[Tensor] = []
    handle = net[1].attn.proj.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    under(net[1], HeadDrop(0.3), Draws(1, 400).at(0))(x)
    net[1](x[:1])
    handle.remove()
    ratio = (seen[0] / seen[1]).view(400, 5, 4, 4)  # tokens, heads, channels
    torch.testing.assert_close(ratio, ratio[:, :1, :, :1].expand_as(ratio))
    kept = ratio[:, 0, :, 0] > 0
    torch.testing.assert_close(ratio[:, 0, :, 0][kept], torch.full((int(kept.sum()),), 1 / 0.7).double())
    assert (kept.double().mean(0) - 0.7).abs().max() < 0.08
    factors = [drawn((1, 1, 1), 0.8, 1.2, "score-scale", b).flatten() for b in range(40)]
    assert 0.8 <= torch.cat(factors).min() < 0.85 < 1.15 < torch.cat(factors).max() <= 1.2


@pytest.mark.parametrize("family", ["vit", "swin"])
def test_attack(family: str, count: Any) -> None:
    """Micro-batches give the same; every step and member draws for itself; passes are the formula's."""
    net, x, y = network(family), pixels(), torch.arange(3)
    attack: Any = ComposedAttack(steps=2, changes=tuple(STRONG.values()))
    with count([net]) as counter:
        found = attack.run([net, net], x, y, seed=1)
    assert (counter.forward, counter.backward) == (12, 12)
    small = attack.run([net, net], x, y, seed=1, micro_batch=2)
    torch.testing.assert_close(small.x_adv, found.x_adv, rtol=0, atol=1e-9)
    assert torch.equal(attack([net, net], x, y, seed=1), found.x_adv)
    assert not torch.equal(attack([net, net], x, y, seed=2), found.x_adv)
    assert not torch.equal(attack([net], x, y, seed=1), found.x_adv)


@pytest.mark.parametrize(
    ("name", "option", "high"), [("head-drop", "p", 0.5), ("score-scale", "s", 1.0), ("token-mix", "m", 0.5)]
)
def test_ranges_and_refusals(name: str, option: str, high: float) -> None:
    change = from_spec("change", {"name": name, option: high})
    assert to_spec(change) == {"name": name, option: high}
    for wrong in (-0.01, high + 0.01, float("nan")):
        with pytest.raises(InputError, match=f"'{name}': {option} = "):
            from_spec("change", {"name": name, option: wrong})
    model, x = advens.load_model("digits:resnet"), torch.rand(3, 3, 32, 32)
    for strength in (high, 0.0):
        attack = ComposedAttack(steps=1, changes=(from_spec("change", {"name": name, option: strength}),))
        with pytest.raises(InputError, match=f"'{name}': 'digits:resnet' has no attention blocks"):
            attack(model, x, torch.arange(3))
