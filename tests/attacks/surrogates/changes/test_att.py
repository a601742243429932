"""ATT: the backward pass of a transformer written out block by block, and the patches that are left out."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import VisionTransformer

from advens.attacks import create_attack
from advens.attacks.surrogates.changes import Changed
from advens.attacks.surrogates.changes.att import ATT
from advens.errors import InputError
from advens.seeding import Draws
from tests.attacks.fusions.conftest import SEED, agree, make
from tests.attacks.surrogates.changes.conftest import check_passes
from tests.attacks.surrogates.changes.transformers import FAMILIES, Transformer, pixels, pull, tiny

HOW = {"attention": 0.6, "qkv": 0.8, "mlp": 0.7, "gamma": 0.5, "slope": 0.3, "truncated": 1 / 3}
SEEN = {"least": 0.2, "most": 0.7, "first": 0.9}


class Tuning:
    """f and the scales, for one image; what the block behind had, by place."""

    def __init__(self) -> None:
        self.later: dict[str, float] = {}

    def factor(self, place: str, g: Tensor) -> float:
        variance = float(((g - g.mean()) ** 2).mean())
        f = HOW["gamma"]
        if place in self.later:
            f += HOW["slope"] * (1 - math.sqrt(variance / self.later[place]))
        self.later[place] = variance
        return min(1.0, max(0.0, f))

    def tokens(self, place: str, g: Tensor) -> Tensor:
        """(tokens, channels), channel by channel."""
        f, out = self.factor(place, g), g.clone()
        for c in range(g.shape[1]):
            for row in {int(g[:, c].argmax()), int(g[:, c].argmin())}:
                out[row, c] *= f
        return HOW["mlp" if place == "mlp" else "qkv"] * out

    def maps(self, g: Tensor) -> Tensor:
        """(heads, rows, columns), head by head."""
        f, out = self.factor("map", g), g.clone()
        for h, a in enumerate(g):
            places = [divmod(int(at), a.shape[1]) for at in (a.argmax(), a.argmin())]
            rows, columns = {row for row, _ in places}, {column for _, column in places}
            for row in range(a.shape[0]):
                for column in range(a.shape[1]):
                    if row in rows or column in columns:
                        out[h, row, column] *= f
        return HOW["attention"] * out


def part(m: Any, row: Tensor, which: int) -> Tensor:
    """q, k or v of normed tokens, (tokens, 8)."""
    s = 8 * which
    return row @ m.attn.qkv.weight[s : s + 8].T + m.attn.qkv.bias[s : s + 8]


def maps(q: Tensor, k: Tensor) -> Tensor:
    return torch.stack([torch.softmax(q[:, s : s + 4] @ k[:, s : s + 4].T / 2, 1) for s in (0, 4)])


def attended(m: Any, a: Tensor, v: Tensor) -> Tensor:
    out: Tensor = m.attn.proj(torch.cat([a[h] @ v[:, 4 * h : 4 * h + 4] for h in range(2)], 1))
    return out


def backward(net: Transformer, x: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor:
    """The gradient of a loss of the logits of one image, with ATT's changes; two of three maps have one."""
    z, points, tuning = net.embed(x).detach(), [], Tuning()
    for m in net.blocks:
        row = m.norm1(z)
        middle = z + attended(m, maps(part(m, row, 0), part(m, row, 1)), part(m, row, 2))
        points.append((z, middle))
        z = middle + m.mlp(m.norm2(middle))
    g = pull(lambda at: loss(net.read(at)), z, torch.ones((), dtype=z.dtype))
    for j, (m, (z, middle)) in enumerate(zip(reversed(net.blocks), reversed(points), strict=True)):
        at_value = tuning.tokens("mlp", g)
        g = g + pull(lambda at, m=m: m.mlp(m.norm2(at)), middle, at_value)
        row = m.norm1(z)
        q, k, v = (part(m, row, which) for which in range(3))
        a = maps(q, k)
        at_v = tuning.tokens("v", pull(lambda v, m=m, a=a: attended(m, a, v), v, g))
        at_row = pull(lambda at, m=m: part(m, at, 2), row, at_v)
        if j > 0:
            at_a = tuning.maps(pull(lambda a, m=m, v=v: attended(m, a, v), a, g))
            at_q = tuning.tokens("q", pull(lambda q, k=k: maps(q, k), q, at_a))
            at_k = tuning.tokens("k", pull(lambda k, q=q: maps(q, k), k, at_a))
            at_row = at_row + pull(lambda at, m=m: part(m, at, 0), row, at_q)
            at_row = at_row + pull(lambda at, m=m: part(m, at, 1), row, at_k)
        g = g + pull(lambda at, m=m: m.norm1(at), z, at_row)
    return pull(net.embed, x, g)


def importance(net: Transformer, x: Tensor) -> Tensor:
    """s of the four patches of a clean image, (2, 2): all three blocks are in front of the guide's end."""
    z = net.embed(x)
    for m in net.blocks:
        z = m(z[None])[0]
    z = z.detach()
    g = pull(lambda at: net.read(at).sum(), z, torch.ones((), dtype=z.dtype))
    heat = (z * g).sum(1)
    share = (heat - heat.min()) / (heat.max() - heat.min())
    return (SEEN["least"] + (SEEN["most"] - SEEN["least"]) * share).view(2, 2)


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize(("n", "targeted", "fused"), [(1, False, True), (7, True, False)])
def test_attack(k: int, n: int, targeted: bool, fused: bool) -> None:
    models = [Transformer(seed, fused) for seed in range(k)]
    at = make(k, n, "linf", targeted, models=models)

    def seen(member: int, t: int, i: int, x: Tensor) -> Tensor:
        """What a surrogate sees of x, patch by patch."""
        s = importance(models[member], at.x[i])
        like = torch.empty(n, 2, 2, dtype=torch.float64)
        u = Draws(SEED, n).at(t).uniform(like, 0, 1, "change", member, "att")[i]
        out = at.x[i].clone()
        for a in range(2):
            for b in range(2):
                if u[a, b] <= SEEN["first"] - (SEEN["first"] - s[a, b]) * (t + 1) / at.steps:
                    block = slice(None), slice(4 * a, 4 * a + 4), slice(4 * b, 4 * b + 4)
                    out[block] = x[block]
        return out

    def direction(t: int, i: int, x: Tensor, state: dict[str, Any]) -> Tensor:
        views = [seen(member, t, i, x) for member in range(k)]
        logits = [net(view[None])[0] for net, view in zip(models, views, strict=True)]
        total = torch.zeros_like(x)
        for j, (net, view) in enumerate(zip(models, views, strict=True)):
            rest = sum(z for other, z in enumerate(logits) if other != j)
            g = backward(net, view, lambda z, rest=rest: at.j((z + rest) / k, i))
            total = total + g * (seen(j, t, i, x + 10) == x + 10)
        return total

    agree(at.run("att", changes=[{"name": "att"} | HOW | SEEN]), at.alone(direction))


@pytest.mark.parametrize("family", FAMILIES)
def test_families(family: str) -> None:
    """In any network; images by themselves; all of an image is seen where that is certain."""
    net, x, y = tiny(family), pixels(), torch.arange(3)
    attack = create_attack("att", steps=3)
    whole = attack.run(net, x, y, seed=1)
    assert whole.passes == attack.passes(1) == (4, 4)
    apart = attack.run(net, x, y, seed=1, micro_batch=1).x_adv
    torch.testing.assert_close(apart, whole.x_adv, rtol=0, atol=1e-12)
    plain = {"attention": 1, "qkv": 1, "mlp": 1, "gamma": 1, "slope": 0, "truncated": 0}
    all_seen = create_attack("att", steps=3, **plain, least=1, most=1, first=1)(net, x, y, seed=1)
    momentum = create_attack("mifgsm", steps=3, eps="16/255")(net, x, y, seed=1)
    torch.testing.assert_close(all_seen, momentum, rtol=0, atol=1e-9)
    assert not torch.equal(whole.x_adv, momentum)


def test_small_gradients_keep_their_proportions() -> None:
    """In float32, where the squares of gradients are 0."""
    net, x = tiny("vit").float(), pixels().float()
    changed, found = Changed(net, [ATT(slope=0.3)]), []
    for scale in (1.0, 2.0**-90):
        leaf = x.clone().requires_grad_()
        (g,) = torch.autograd.grad((changed(leaf) * torch.linspace(-1, 2, 5)).sum() * scale, leaf)
        found.append(g / scale)
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-7)


def test_torchvision_and_outside_an_attack() -> None:
    net = VisionTransformer(16, 8, 2, 2, 8, 16, num_classes=5).double().eval()
    nn.init.normal_(net.heads.head.weight)
    torch.testing.assert_close(Changed(net, [ATT()])(pixels()), net(pixels()))
    create_attack("att", steps=2).run(net, pixels(), torch.arange(3))


def test_passes_are_counted_beside_other_parts() -> None:
    at = make(2, 3, models=[Transformer(seed) for seed in range(2)])
    ilpd = {"layer": "blocks.1"}
    for name, options in (("att", {}), ("vdc-att", {}), ("si-att-svre", {}), ("att-ilpd-ens-loss", ilpd)):
        check_passes(at, name, **options)


def test_refusals() -> None:
    with pytest.raises(InputError, match="'att': 'Sequential' has no attention blocks"):
        Changed(nn.Sequential(nn.Flatten()), [ATT()])(pixels())
    for option in ({"attention": 2}, {"slope": -1}, {"least": -0.1}):
        with pytest.raises(InputError, match="from 0 to 1|at least 0"):  # noqa: RUF043
            create_attack("att", **option)
