"""Diversity and transfer against plain transcriptions; members come back as they were."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from advens.attacks.registry import create_attack
from advens.classifier import Classifier
from advens.defenses.layers import LOGITS, layers
from advens.defenses.measures import diversity, transfer_between
from advens.errors import InputError
from advens.seeding import Draws, RowDraws, derive
from advens.threat import Threat

C, SIDE, N, K = 4, 6, 12, 3


def net(seed: int) -> nn.Sequential:
    """Float64, smooth, much alike; with batch-norm and dropout, whose mode shows."""
    with torch.random.fork_rng(devices=[]):
        made = nn.Sequential(
            nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Dropout(),
            nn.Linear(4 * SIDE * SIDE, 8), nn.Tanh(), nn.Linear(8, C),
        ).double()  # fmt: skip
    common, own = (torch.Generator().manual_seed(s) for s in (99, seed))
    for layer in (made[1], made[5], made[7]):
        shape, wide = layer.weight.shape, layer.weight[0].numel() ** 0.5
        noise = [torch.randn(shape, generator=g, dtype=torch.float64) / wide for g in (common, own)]
        layer.weight.data = 1.5 * noise[0] + 0.3 * noise[1]
        layer.bias.data.zero_()
    made[0].running_mean.fill_(0.5)
    made[0].running_var.fill_(1 / 12)
    return made


@pytest.fixture
def members() -> list[Classifier]:
    return [Classifier(net(k), name=f"toy:{k}", num_classes=C) for k in range(K)]


@pytest.fixture
def x() -> Tensor:
    g = torch.Generator().manual_seed(0)
    return torch.rand(N, 3, SIDE, SIDE, generator=g, dtype=torch.float64)


@pytest.fixture
def y(members: list[Classifier], x: Tensor) -> Tensor:
    """What the first member says, but for one image that all get wrong."""
    nets = [evaluated(member) for member in members]
    y = nets[0](x).argmax(1)
    same = agreed(nets, x, y)
    assert len(same) >= 4, "the toy members should agree somewhere"
    y[same[0]] = (y[same[0]] + 1) % C
    return y


@pytest.fixture(autouse=True)
def untouched(members: list[Classifier]) -> Iterator[None]:
    """Modes, what learns, hooks, buffers and the global generator are the same after every test."""
    members[0].train()
    members[0].net[0].eval()
    members[1].requires_grad_(True)
    members[2].net[1].weight.requires_grad_(True)
    before, state = [card(m) for m in members], torch.get_rng_state()
    buffers = [b.clone() for m in members for b in m.buffers()]
    yield
    assert [card(m) for m in members] == before
    assert torch.equal(torch.get_rng_state(), state)
    after = [b for m in members for b in m.buffers()]
    assert all(torch.equal(a, b) for a, b in zip(buffers, after, strict=True))
    assert not nn.modules.module._global_forward_hooks
    assert not nn.modules.module._global_forward_pre_hooks


def card(model: nn.Module) -> list[tuple[object, ...]]:
    return [
        (m.training, len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks),
         *((p.requires_grad, p.grad is None) for p in m.parameters(recurse=False)))
        for m in model.modules()
    ]  # fmt: skip


def evaluated(member: Classifier) -> nn.Sequential:
    """A copy in eval mode."""
    copy = net(0)
    copy.load_state_dict(member.net.state_dict())
    return copy.eval()


def agreed(nets: Sequence[nn.Module], x: Tensor, y: Tensor) -> list[int]:
    return [i for i in range(len(x)) if all(int(f(x[i : i + 1]).argmax()) == int(y[i]) for f in nets)]


PARTS = {0: slice(2), 1: slice(6), LOGITS: slice(8)}
"""The beginning of a member that gives what goes into a layer."""


def distilled(f: nn.Sequential, layer: int, x_s: Tensor, x_t: Tensor, eps: float, steps: int) -> Tensor:
    """One image, plainly: momentum signs of a tenth of eps that bring features to the target's."""
    part = f[PARTS[layer]]
    z, v = x_s.clone(), torch.zeros_like(x_s)
    for _ in range(steps):
        leaf = z.clone().requires_grad_()
        (g,) = torch.autograd.grad(((part(leaf[None]) - part(x_t[None])) ** 2).sum(), leaf)
        v = v + g / g.abs().mean()
        z = torch.minimum(torch.maximum(z - eps / 10 * v.sign(), x_s - eps), x_s + eps).clamp(0, 1)
    return z


def plainly(
    nets: list[nn.Sequential], x: Tensor, y: Tensor, x_s: Tensor, at: list[list[int]], rows: list[int]
) -> Tensor:
    """Mean cross-entropy of j on images of i, (K, K)."""
    seen = torch.zeros(K, K, dtype=torch.float64)
    for i in range(K):
        for n in rows:
            z = distilled(nets[i], at[i][n], x_s[n], x[n], 0.07, 10)
            for j in range(K):
                p = torch.softmax(nets[j](z[None])[0].detach(), 0)
                seen[i, j] += -math.log(float(p[y[n]])) / len(rows)
    return seen


@pytest.mark.parametrize("layer", PARTS)
def test_diversity_of_a_layer(layer: int, members: list[Classifier], x: Tensor, y: Tensor) -> None:
    nets, x_s = [evaluated(m) for m in members], x.flip(0).roll(1, 0)
    rows = agreed(nets, x, y)
    assert 0 < len(rows) < N
    wanted = plainly(nets, x, y, x_s, [[layer] * N] * K, rows)
    with torch.no_grad():
        found = diversity(members, x, y, x_s, layer=layer)
    torch.testing.assert_close(found.seen, wanted, rtol=1e-9, atol=1e-12)
    assert found.n == len(rows)
    pairs = [(i, j) for i in range(K) for j in range(K) if i != j]
    for i, j in pairs:
        assert float(found.pairs[i, j]) == pytest.approx(float(wanted[i, j] + wanted[j, i]) / 2, rel=1e-9)
    assert not found.pairs.diagonal().any()
    assert found.value == pytest.approx(sum(float(wanted[p]) for p in pairs) / len(pairs), rel=1e-9)


def test_diversity_over_drawn_layers_and_sources(members: list[Classifier], x: Tensor, y: Tensor) -> None:
    nets = [evaluated(m) for m in members]
    rows = agreed(nets, x, y)
    place = torch.arange(N)
    depth = RowDraws(5).uniform(place, torch.zeros_like(place), (), "layer")
    known = list(PARTS)
    assert layers(members[0], x) == known
    at = [[known[int(float(d) * len(known))] for d in depth]] * K
    assert len({at[0][n] for n in rows}) > 1
    x_s = x.clone()
    others = Draws(5, len(rows)).others("source")
    for n, other in zip(rows, others.tolist(), strict=True):
        assert rows[other] != n
        x_s[n] = x[rows[other]]
    found = diversity(members, x, y, seed=5)
    torch.testing.assert_close(found.seen, plainly(nets, x, y, x_s, at, rows), rtol=1e-9, atol=1e-12)
    small = diversity(members, x, y, seed=5, micro_batch=2)
    torch.testing.assert_close(found.seen, small.seen, rtol=1e-9, atol=1e-12)
    assert not torch.equal(found.seen, diversity(members, x, y, seed=6).seen)


def test_an_image_draws_its_layer_by_its_place(members: list[Classifier], x: Tensor, y: Tensor) -> None:
    """The mean over all images is that over two halves, wherever their labels are right."""
    y = evaluated(members[0])(x).argmax(1)
    same = [members[0], members[0]]
    whole = diversity(same, x, y, x.flip(0), seed=1)
    first = diversity(same, x[:5], y[:5], x.flip(0)[:5], seed=1)
    y_rest = torch.cat([(y[:5] + 1) % C, y[5:]])
    rest = diversity(same, x, y_rest, x.flip(0), seed=1)
    assert (first.n, rest.n) == (5, N - 5)
    torch.testing.assert_close(whole.seen * N, first.seen * 5 + rest.seen * (N - 5))


def test_equal_members_are_less_diverse(members: list[Classifier], x: Tensor, y: Tensor) -> None:
    """Images of a member look like their target to that member more than to the others."""
    found = diversity(members, x, y, layer=LOGITS, steps=30)
    assert float(found.seen.diagonal().mean()) < found.value
    reached = diversity(members, x, y, layer=LOGITS, eps=1.0, step_size=0.02, steps=60)
    nets = [evaluated(member) for member in members]
    rows = agreed(nets, x, y)
    clean = [float(nn.functional.cross_entropy(f(x[rows]), y[rows]).detach()) for f in nets]
    assert reached.seen.diagonal().tolist() == pytest.approx(clean, abs=0.05), "the target itself is felt"
    same = [members[1]] * 2
    twins = diversity(same, x, y, layer=LOGITS)
    assert twins.n == int((nets[1](x).argmax(1) == y).sum())
    assert float(twins.seen.max() - twins.seen.min()) < 1e-12


@pytest.mark.parametrize("denominator", ["common", "target"])
def test_transfer(denominator: Any, members: list[Classifier]) -> None:
    nets, many = [evaluated(m) for m in members], 80
    x = torch.rand(many, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    y = nets[0](x).argmax(1)
    y[:9] = (y[:9] + 1) % C
    how: dict[str, Any] = {"seed": 3, "denominator": denominator, "steps": 2, "step_size": "eps/2"}
    with torch.inference_mode():
        once, found = (transfer_between(members, x, y, Threat(eps=0.03), restarts=r, **how) for r in (1, 2))
    assert bool((found.broken >= once.broken).all())
    assert bool((found.broken > once.broken).any()), "any restart counts"
    with torch.no_grad():
        right = torch.stack([f(x).argmax(1) == y for f in nets])
    counts = right.all(0).expand_as(right) if denominator == "common" else right
    assert found.counted.tolist() == counts.sum(1).tolist()
    used = counts.any(0)
    attack = create_attack("pgd", eps=0.03, steps=2, step_size="eps/2")
    for i in range(K):
        crafted = [attack(nets[i], x[used], y[used], seed=derive(3, "restart", r)) for r in range(2)]
        for j in range(K):
            broken = torch.stack([nets[j](x_adv).argmax(1) != y[used] for x_adv in crafted]).any(0)
            assert int(found.broken[i, j]) == int((broken & counts[j][used]).sum())
    assert bool((found.rates.diagonal() >= found.rates).all()), "white-box is the strongest here"
    assert 0 < float(found.rates.min()) < float(found.rates.max()) < 1


def test_transfer_as_a_table(members: list[Classifier], x: Tensor, y: Tensor) -> None:
    attack = create_attack("mifgsm", eps=0.2, steps=3)
    found = transfer_between(members, x, y, attack=attack, restarts=1)
    table = found.frame()
    assert list(table) == ["source", "target", "white_box", "n", "broken", "rate", "low", "high"]
    assert len(table) == K * K
    for row in table.itertuples():
        assert row.rate == float(found.rates[row.source, row.target]) == row.broken / row.n
        assert row.n == int(found.counted[row.target])
        assert row.white_box == (row.source == row.target)
        assert 0 <= row.low <= row.rate <= row.high <= 1
    by_name = transfer_between(members, x, y, Threat(eps=0.2), attack="mifgsm", restarts=1, steps=3)
    assert torch.equal(by_name.broken, found.broken)
    narrow = transfer_between(members, x, y, Threat(eps=1e-9), attack=attack, restarts=1)
    assert not narrow.broken.any()


def test_published_defaults(members: list[Classifier], x: Tensor, y: Tensor) -> None:
    attack = create_attack("pgd", eps=0.03, steps=50, step_size="eps/5")
    found = transfer_between(members[:1], x, y, restarts=1)
    assert torch.equal(found.broken, transfer_between(members[:1], x, y, attack=attack, restarts=1).broken)
    assert found.broken.any()


def test_mistakes(members: list[Classifier], x: Tensor, y: Tensor) -> None:
    attack = create_attack("fgsm")
    with pytest.raises(InputError, match="at least two members"):
        diversity(members[:1], x, y)
    with pytest.raises(InputError, match="layer = 2: a member has layers 0 to 1, and -1, the logits"):
        diversity(members, x, y, layer=2)
    with pytest.raises(InputError, match="as many sources"):
        diversity(members, x, y, x[:2])
    with pytest.raises(InputError, match="eps = -1"):
        diversity(members, x, y, eps=-1)
    with pytest.raises(InputError, match="0 of 12 images right"):
        diversity(members, x, (evaluated(members[0])(x).argmax(1) + 1) % C)
    with pytest.raises(InputError, match="12 images and 3 labels"):
        transfer_between(members, x, y[:3])
    with pytest.raises(InputError, match="go with an attack's name"):
        transfer_between(members, x, y, attack=attack, steps=3)
    with pytest.raises(InputError, match="did you mean 'common'"):
        transfer_between(members, x, y, denominator="comon")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="one restart"):
        transfer_between(members, x, y, restarts=0)
    with pytest.raises(InputError, match="none counts"):
        transfer_between(members, x, (evaluated(members[0])(x).argmax(1) + 1) % C)
