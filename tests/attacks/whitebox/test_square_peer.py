"""Square against a plain transcription, and beside torchattacks with the same numbers and with others.

In l_1, which torchattacks does not have, it stands beside the package of AutoAttack. Both packages draw one
place and one set of signs for a whole batch: given the same numbers for every sample, all do the same. With
numbers of their own, only robust accuracy can be compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from math import sqrt
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import advens
from advens.attacks.losses import CrossEntropy, TargetLogit
from advens.attacks.whitebox.engine import search
from advens.attacks.whitebox.oracle import RowOracle
from advens.attacks.whitebox.rows import Rows
from advens.attacks.whitebox.square import SquareAttack
from advens.classifier import borrowed
from advens.seeding import RowDraws
from tests.attacks.whitebox.conftest import SEED, Images, Labelled, Net, maker

Digits = tuple[nn.Module, Tensor, Tensor]

N = 60
PLACES = 13
"""Seed of the squares of the transcription."""
made = partial(maker(SquareAttack), "square")


class Looking(RowOracle):
    """Remembers the points (N, C, H, W) of every look."""

    def logits(self, x: Tensor, rows: Rows) -> Tensor:
        self.looked = x.clone()
        return super().logits(x, rows)


def plain_eta(s: int, turned: bool, order: int) -> Tensor:
    """Two hills of concentric rectangles, the second upside down: (s, s), of length 1 in l_2 or l_1."""

    def hill(h: int, w: int) -> Tensor:
        delta = torch.zeros(h, w, dtype=torch.float64)
        for k in range(max(h // 2, w // 2) + 1):
            for i in range(max(h // 2 - k, 0), min(h // 2 + k + 1, h)):
                for j in range(max(w // 2 - k, 0), min(w // 2 + k + 1, w)):
                    delta[i, j] += 1 / (k + 1) ** (2 if order == 2 else 4)
        return delta / delta.norm(order)

    delta = torch.zeros(s, s, dtype=torch.float64)
    delta[: s // 2], delta[s // 2 :] = hill(s // 2, s), -hill(s - s // 2, s)
    return (delta.T if turned else delta) / delta.norm(order)


def plain_p(p_init: float, query: int, queries: int, rescale: bool) -> float:
    """The published table."""
    it = int(query / queries * 10000) if rescale else query
    for until, less in ((10, 1), (50, 2), (200, 4), (500, 8), (1000, 16), (2000, 32), (4000, 64),
                        (6000, 128), (8000, 256)):  # fmt: skip
        if it <= until:
            return p_init / less
    return p_init / 512


def plain_run(
    model: nn.Module, x: Tensor, y: int, target: int | None, attack: SquareAttack,
    draw: Callable[..., Tensor], first: int, fooled: bool,
) -> tuple[list[tuple[Tensor, Tensor]], bool]:  # fmt: skip
    """One run for one image (C, H, H): every point looked at and the one kept then; ever fooled?"""
    c, h, _ = x.shape
    eps, linf = attack.threat.radius, attack.threat.norm == "linf"
    order = 1 if attack.threat.norm == "l1" else 2

    def stretch(delta: Tensor) -> Tensor:
        if order == 1:
            return attack.threat.project((x + delta)[None], x[None])[0]
        return (x + eps * delta / delta.norm()).clamp(0, 1)

    def look(p: Tensor) -> tuple[float, bool]:
        z = model(p[None])[0]
        label = y if target is None else target
        other = max(float(z[k]) for k in range(len(z)) if k != label)
        margin = other - float(z[label])
        margin = margin if target is None else -margin
        loss = margin
        if attack.loss == CrossEntropy():
            loss = float(F.cross_entropy(z[None], torch.tensor([label])))
            loss = loss if target is None else -loss
        elif attack.loss == TargetLogit():
            loss = -float(z[label]) if target is None else float(z[label])
        return loss, margin >= 0

    if linf:
        best = (x + eps * (2 * draw(first, (c, 1, h), "stripes") - 1).sign()).clamp(0, 1)
    else:
        s = h // 5
        start = (h - 5 * s) // 2
        tiles = len(range(start, h - s + 1, s))
        u, delta = draw(first, (1 + c, tiles, tiles), "grid"), torch.zeros_like(x)
        for i in range(tiles):
            for j in range(tiles):
                a, b = start + i * s, start + j * s
                signs = (2 * u[1:, i, j] - 1).sign()[:, None, None]
                delta[:, a : a + s, b : b + s] = signs * plain_eta(s, bool(u[0, i, j] > 0.5), order)
        best = stretch(delta)
    loss, fools = look(best)
    fooled = fooled or fools
    found = [(best, best)]
    for query in range(attack.queries):
        p = plain_p(attack.p_init, query, attack.queries, attack.rescale)
        s = max(int(round(sqrt(p * h * h))), 1 if linf else 3)  # noqa: RUF046
        s = min(s + 1 if not linf and s % 2 == 0 else s, h - 1)
        u = draw(first + 1 + query, (5 + c,), "square")
        a, b, a2, b2 = (int(float(v) * (h - s)) for v in u[:4])
        signs = (2 * u[5:] - 1).sign()[:, None, None]
        if linf:
            new = best.clone()
            new[:, a : a + s, b : b + s] += 2 * eps * signs
            new = torch.minimum(torch.maximum(new, x - eps), x + eps).clamp(0, 1)
        else:
            delta, both = best - x, torch.zeros_like(x)
            both[:, a : a + s, b : b + s] = both[:, a2 : a2 + s, b2 : b2 + s] = 1
            old = delta[:, a : a + s, b : b + s].clone()
            hills = signs * plain_eta(s, bool(u[4] > 0.5), order)
            hills = hills + old / (1e-12 + old.flatten(1).norm(order, dim=1)[:, None, None])
            if order == 1:
                spare = max(eps - float(delta.abs().sum()), 0.0) / c
                length = (spare + (delta * both).abs().sum((1, 2), keepdim=True)) * c
            else:
                spare = max(eps**2 - float(delta.norm()) ** 2, 0.0) / c
                length = (spare + (delta * both).square().sum((1, 2), keepdim=True)).sqrt()
            hills = hills / (1e-12 + hills.flatten(1).norm(order, dim=1)[:, None, None]) * length
            delta[:, a2 : a2 + s, b2 : b2 + s] = 0
            delta[:, a : a + s, b : b + s] = hills
            new = stretch(delta)
        new_loss, fools = look(new)
        if new_loss > loss or (fools and not fooled):
            best, loss = new, new_loss
        fooled = fooled or fools
        found.append((new, best))
    return found, fooled


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.06), ("l2", 0.8), ("l1", 6.0)])
@pytest.mark.parametrize("targeted", [False, True], ids=["away", "targeted"])
@pytest.mark.parametrize(
    "options",
    [{}, {"loss": "ce", "p_init": 0.3}, {"loss": "logit"}, {"restarts": 2, "queries": 30},
     {"rescale": False}],
    ids=["margin", "ce", "logit", "restarts", "published"],
)
def test_plain_transcription(
    options: dict[str, Any], targeted: bool, norm: str, eps: float, net: Net, images: Images,
    labelled: Labelled,
) -> None:  # fmt: skip
    """Every point that is looked at and every one that is kept, from the same numbers.

    In l_2 a hill on its own negative, or on nothing at all, is rounding scaled up: on images this
    small some seeds meet that and then part for good; this one does not.
    """
    model, x = net(3, side=12), images(2, n=4, side=12)
    y, target = labelled([model], x)
    attack = made(**{"norm": norm, "eps": eps, "queries": 60, **options})
    with borrowed([model]):
        oracle = Looking([model], attack.threat, x, y, target if targeted else None, seed=PLACES)
        rows, ours = oracle.rows(torch.arange(4)), []
        attack.begin(oracle, rows)
        for t in range(attack.iterations):
            rows.t = torch.full_like(rows.t, t)
            attack.advance(oracle, rows)
            ours.append((oracle.looked, rows.memory["x"].clone()))
    moves = 0
    for i in range(4):

        def draw(t: int, shape: tuple[int, ...], tag: str, i: int = i) -> Tensor:
            return RowDraws(PLACES).uniform(torch.tensor([i]), torch.tensor([t]), shape, tag)[0]

        wanted, fooled = int(target[i]) if targeted else None, False
        for first in range(0, attack.iterations, 1 + attack.queries):
            with torch.no_grad():
                plain, fooled = plain_run(
                    model, x[i], int(y[i]), wanted, attack, draw, first, fooled
                )
            moves += sum(a[1] is not b[1] for a, b in pairwise(plain))
            for (looked, kept), (point, best) in zip(ours[first:], plain, strict=False):
                torch.testing.assert_close(looked[i], point, rtol=0, atol=1e-7)
                torch.testing.assert_close(kept[i], best, rtol=0, atol=1e-7)
    assert 4 * 4 < moves < 4 * attack.iterations / 2, "some are kept"


class Shared(RowOracle):
    """An oracle whose numbers are the same for every sample."""

    numbers_of: dict[str, Tensor]

    def numbers(self, rows: Rows, shape: tuple[int, ...], *tag: object) -> Tensor:
        found = self.numbers_of[str(tag[0])]
        return found[rows.t] if tag[0] == "square" else found.expand(len(rows), *shape)


@pytest.fixture(scope="module")
def digits() -> Digits:
    batch = next(advens.load_data("digits:test").batches([slice(0, N)]))
    return advens.load_model("digits:resnet-at"), batch.pixels.float() / 255, batch.labels


def as_called(numbers: dict[str, Tensor], norm: str) -> Iterator[Tensor]:
    """The same numbers in the order in which torchattacks asks for them."""
    if norm == "linf":
        yield numbers["stripes"]
    else:
        for tile in numbers["grid"].flatten(1).T:
            yield tile[:1]
            yield tile[1:, None, None]
    for u in numbers["square"][1:]:
        yield from u[:2, None] if norm == "linf" else u[:5, None]
        yield u[5:, None, None]


def broken_by_ours(
    kind: type[RowOracle], attack: SquareAttack, digits: Digits, **given: Any
) -> RowOracle:
    """The attack on the digits that the model is right on; attributes of the oracle as given."""
    model, x, y = digits
    with borrowed([model]):
        oracle = kind([model], attack.threat, x, y, seed=SEED)
        for name, value in given.items():
            setattr(oracle, name, value)
        search(attack, oracle, oracle.begin(torch.arange(N)), batch=N)
    return oracle


@pytest.mark.parametrize("rescale", [True, False], ids=["rescaled", "published"])
@pytest.mark.parametrize(
    ("norm", "eps", "queries"), [("linf", 0.3, 150), ("l2", 9.0, 100), ("l1", 70.0, 100)]
)
def test_same_numbers_same_samples(
    norm: str, eps: float, queries: int, rescale: bool, digits: Digits, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same samples break, by the same images; one may part where rounding decides.

    torchattacks gives every channel of an l_2 square the length over all channels, so that only the authors'
    package is a peer there.
    """
    peers = pytest.importorskip("torchattacks" if norm == "linf" else "autoattack.square")
    model, x, y = digits
    shapes = {"stripes": (3, 1, 32), "grid": (4, 5, 5), "square": (queries + 1, 8)}
    generator = torch.Generator().manual_seed(5)
    table = {name: torch.rand(shape, generator=generator) for name, shape in shapes.items()}
    options = {"eps": eps, "n_queries": queries, "resc_schedule": rescale}
    if norm == "linf":
        peer = peers.Square(model, norm="Linf", **options)
    else:
        peer = peers.SquareAttack(model, norm=norm.upper(), device="cpu", **options).perturb
    calls = as_called(table, norm)

    def given(shape: Sequence[int]) -> Tensor:
        return next(calls).expand(*shape)

    with torch.random.fork_rng(), monkeypatch.context() as patch, torch.no_grad():
        patch.setattr(torch, "rand", given)
        theirs = peer(x, y)
    assert next(calls, None) is None, "not all numbers were asked for"
    attack = made(norm=norm, eps=eps, queries=queries, rescale=rescale)
    numbers = {name: values.double() for name, values in table.items()}
    oracle = broken_by_ours(Shared, attack, digits, numbers_of=numbers)
    with torch.no_grad():
        right, robust = (model(images).argmax(1) == y for images in (x, theirs))
    broken = right & ~robust
    assert broken.sum() >= 4, "the peer did nothing"
    assert (robust != (oracle.correct > 0)).sum() <= 1
    apart = (theirs - oracle.x_adv)[broken].abs().flatten(1).amax(1)
    assert (apart > (1e-3 if norm == "l1" else 1e-4)).sum() <= 1, "AutoAttack's l_1 ball is 1e-6 smaller"


def test_beside_torchattacks(digits: Digits) -> None:
    """Robust accuracy on 60 images with numbers of its own: about that of the peer.

    Of the 55 that are right, ours kept 50.7 over 18 seeds, with a deviation of 1.9, and the peer 50.3
    over 16 with 1.4: between two runs the deviation is 2.3, and twice that is allowed. That tells an
    attack that works from one that does not; the test above tells more.
    """
    torchattacks = pytest.importorskip("torchattacks")
    model, x, y = digits
    with torch.random.fork_rng():
        theirs = torchattacks.Square(model, norm="Linf", eps=0.2, n_queries=300)(x, y)
    oracle = broken_by_ours(RowOracle, made(eps=0.2, queries=300), digits)
    with torch.no_grad():
        right, peers, ours = (
            int((model(images).argmax(1) == y).sum()) for images in (x, theirs, oracle.x_adv)
        )
    assert ours == int((oracle.correct > 0).sum())
    assert peers <= right - 3
    assert ours <= right - 3
    assert abs(ours - peers) <= 5
