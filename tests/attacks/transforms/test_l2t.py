"""L2T: operators, draws by scores and the scores' learning, one image at a time."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from advens.attacks import create_attack
from advens.attacks.transforms.l2t import L2T, OPERATORS, operate
from advens.errors import InputError
from tests.attacks.fusions.conftest import Setting, agree, grad, make, pixels
from tests.attacks.transforms.conftest import context_of
from tests.attacks.transforms.test_ops import rotated
from tests.attacks.transforms.test_ssm import disturbed

LR, PAIRS, VIEWS = 3.0, 2, 3
LISTS = [[1], [1, 2], [1, 2, 3], [1, 2, 3, 4], [1, 2, 3, 4, 5], [2, 3, 4, 5], [1, 3, 4, 5], [1, 2, 4, 5],
         [1, 2, 3, 5], [1, 2, 3, 4]]  # fmt: skip
COUNTS = [1, *[5] * 10, *range(1, 11), *[1] * 10, *[10] * 10, *[3, 6, 9, 12, 15] * 2,
          *[len(rates) for rates in LISTS], *[5] * 10, *[10] * 9, *[5] * 18]  # fmt: skip

Own = Callable[[str], Tensor]
"""By name: this image's share of what is drawn, or another image."""


def view_of(x: Tensor, number: int, copy: int, draws: Any, own: Own) -> Tensor:
    """One image under one view of one of the 98 operators."""
    side = x.shape[-1]
    if number == 0:
        return x
    if number < 11:
        return rotated(x, 30 * number / 2**copy)
    if number < 21:
        return x / 2**copy
    if number < 31:
        return enlarged(x, math.floor((1.1 + 0.05 * (number - 21)) * side + 1e-9), draws)
    if number < 41:
        return shuffled(x, number - 28, draws.fork("bsr", copy))
    if number < 51:
        eta = 0.2 if number < 46 else 0.4
        return (x + eta * own(f"other {copy // 3}")) / 2 ** (copy % 3)
    if number < 61:
        return torch.where(own("kept") < LISTS[number - 51][copy] / 10, 0.0, x)
    if number < 71:
        n = number - 59
        row, column = draws.integers(n, 2, "cell")
        edge = [round(side / n * i) for i in range(n + 1)]
        out = x.clone()
        out[:, edge[row] : edge[row + 1], edge[column] : edge[column + 1]] = 0
        return out
    if number < 80:
        rho = (number - 70) / 10
        return disturbed(x + own("noise"), 1 - rho + 2 * rho * own("mask"))
    if number < 89:
        r = (number - 79) / 10
        size = max(1, int(side * (r + (1 - r) * (copy + 1) / 5)))
        start = (side - size) // 2
        kept = x[None, :, start : start + size, start : start + size]
        return torch.nn.functional.interpolate(kept, (side, side), mode="bilinear")[0]
    pixels_moved = (0.5 + 0.05 * (number - 89)) * (copy + 1) / 5
    out = torch.zeros_like(x)
    if pixels_moved <= 0.5 + 1e-9:
        return x
    out[:, 1:, 1:] = x[:, :-1, :-1]
    return out


def enlarged(x: Tensor, large: int, draws: Any) -> Tensor:
    side = x.shape[-1]
    inner = side + draws.integers(max(1, large - side), 1, "side")[0]
    top, left = (draws.integers(max(1, large - inner), 1, "place", axis)[0] for axis in (0, 1))
    canvas = torch.zeros(3, large, large, dtype=x.dtype)
    big = torch.nn.functional.interpolate(x[None], (inner, inner), mode="bilinear")[0]
    canvas[:, top : top + inner, left : left + inner] = big
    return torch.nn.functional.interpolate(canvas[None], (side, side), mode="bilinear")[0]


def shuffled(x: Tensor, blocks: int, draws: Any) -> Tensor:
    """Strips along one axis shuffled, then each cut along the other and shuffled."""
    n = min(blocks, 8)

    def pieces(*tag: object) -> list[tuple[int, int]]:
        shares = [draws.number(1, 2, "size", *tag, i) for i in range(n)]
        sizes = [round(share * 8 / sum(shares)) for share in shares]
        while sum(sizes) != 8:
            sizes[sizes.index(max(sizes))] += 1 if sum(sizes) < 8 else -1
        return [(sum(sizes[:i]), sum(sizes[: i + 1])) for i in draws.permutation(n, "order", *tag)]

    across = draws.integers(2, 1, "axis")[0]
    x = x.mT if across else x
    rows = []
    for i, (a, b) in enumerate(pieces("first")):
        rows.append(torch.cat([x[:, a:b, c:d] for c, d in pieces("second", i)], 2))
    out = torch.cat(rows, 1)
    return out.mT if across else out


@pytest.mark.parametrize("number", range(98))
def test_every_operator(number: int) -> None:
    """Its first and its last view."""
    x, noise = pixels(0, 2), torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(5)).double()
    name, value, copies = OPERATORS[number]
    assert copies == COUNTS[number]
    context = context_of(x, number)
    for copy in (0, copies - 1):
        found = operate(name, value, copy, copies, x, context, lambda what: noise)
        wanted = [view_of(image, number, copy, context.draws, lambda what, n=n: n)  # type: ignore[misc]
                  for image, n in zip(x, noise, strict=True)]  # fmt: skip
        torch.testing.assert_close(found, torch.stack(wanted), rtol=0, atol=1e-9)


def drawn(at: Setting, t: int, i: int, w: Tensor) -> list[list[int]]:
    """Two pairs of operators, each the first whose cumulative probability reaches a number."""
    u = at.draws(t).uniform(torch.empty(len(at.x), 4, dtype=torch.float64), 0, 1, "l2t", "choice")[i]
    p, found = torch.exp(w) / torch.exp(w).sum(), []
    for number in u.tolist():
        total, chosen = 0.0, 0
        while (total := total + float(p[chosen])) < number:
            chosen += 1
        found.append(chosen)
    return [found[:2], found[2:]]


def transcribed(at: Setting, seen: list[Any], published: bool = False) -> Callable[..., Tensor]:
    def direction(t: int, i: int, x: Tensor, state: dict[str, Any]) -> Tensor:
        w = state.setdefault("w", torch.zeros(98, dtype=torch.float64))
        total, rise = torch.zeros_like(x), torch.zeros(98, dtype=torch.float64)
        for pair, (a, b) in enumerate(drawn(at, t, i, w)):
            base = at.draws(t).fork("l2t", pair)
            start, losses = base.number(0, 1, "start"), []
            for v in range(VIEWS):
                index = int((v + start) * COUNTS[a] * COUNTS[b] / VIEWS)

                def loss(leaf: Tensor, index: int = index, v: int = v, a: int = a, b: int = b,
                         base: Any = base, losses: list[float] = losses) -> Tensor:  # fmt: skip
                    view = leaf
                    for place, number, copy in (("first", a, index // COUNTS[b]),
                                                ("second", b, index % COUNTS[b])):  # fmt: skip
                        draws = base.fork(v).fork(place)

                        def own(what: str, draws: Any = draws) -> Tensor:
                            if what == "noise":
                                return draws.normal(at.x, at.eps, what)[i]  # type: ignore[no-any-return]
                            if what.startswith("other"):
                                return at.x[int(draws.others(what)[i])]
                            return draws.uniform(at.x, 0, 1, what)[i]  # type: ignore[no-any-return]

                        view = view_of(view, number, copy, draws, own)
                    value = at.j(sum(at.logits(m, view) for m in range(at.k)) / at.k, i)  # type: ignore[arg-type]
                    losses.append(float(value.detach()))
                    return value

                total += grad(loss, x) / (PAIRS * VIEWS)
            p = torch.exp(w) / torch.exp(w).sum()
            slope = -2 * p
            slope[a] += 1
            slope[b] += 1
            weight = float(p[a] * p[b]) if published else 1.0
            rise += weight * sum(losses) / VIEWS * slope / PAIRS
        state["w"] = w + LR * rise
        seen.append((i, state["w"]))
        return total

    return direction


def test_l2t(goal: Any) -> None:
    k, n, targeted = goal
    at = make(k, n, "linf", targeted, seed=k)
    wanted = at.alone(transcribed(at, []))
    agree(at.run("l2t", pairs=PAIRS, views=VIEWS, lr=LR), wanted)


def test_the_published_scores_hardly_move() -> None:
    """With the published step probabilities are as they were, to 1 in 100; with the other they are not."""
    at, moved = make(1, 3), []
    for published in (False, True):
        seen: list[Any] = []
        wanted = at.alone(transcribed(at, seen, published))
        learned = "probability" if published else "score"
        agree(at.run("l2t", pairs=PAIRS, views=VIEWS, lr=LR, learned=learned), wanted)
        p = torch.softmax(seen[-1][1], 0)
        moved.append(float((98 * p - 1).abs().max()))
    assert moved[1] < 1e-2 < 1 < moved[0]


def test_what_raises_the_loss_is_drawn_more_often() -> None:
    """Losses of 1 for pairs that hold an operator, and of -1 for others."""
    part, x = L2T(lr=1.0, views=1), pixels(0, 4)
    context = context_of(x)
    for step in range(300):
        context = replace(context, draws=context.draws.at(step))
        part(x, 0, context)
        holds = (context.memory["l2t"]["chosen"] == 7).any(2)
        for pair in range(3):
            part.learn(pair, 2.0 * holds[:, pair] - 1, context)
    w = context.memory["l2t"]["w"]
    assert bool((w.argmax(1) == 7).all())
    assert w.softmax(1)[:, 7].min() > 0.5
    assert not torch.equal(w[0], w[1]), "every sample learns for itself"


def test_one_set_of_scores_for_the_batch_on_request() -> None:
    at = make(1, 4)
    for coupled in (False, True):
        attack = at.attack("l2t", pairs=2, views=2, lr=5.0, batch_coupled=coupled)
        whole, alone = (attack.run(at.models, at.x, at.y, micro_batch=n).x_adv for n in (4, 1))
        assert torch.allclose(whole, alone, rtol=0, atol=1e-12) != coupled
    oracle = at.oracle(attack)
    oracle.gradient(at.x)
    oracle.begin(1, 0.01)
    oracle.gradient(at.x)
    now = oracle.context.memory["l2t"]
    assert bool((now["chosen"] == now["chosen"][:1]).all())
    assert bool((now["w"] == now["w"][:1]).all())
    assert now["w"].abs().max() > 0


def test_several_gradients_of_a_step_see_the_same_pairs() -> None:
    """Their mean loss is what is learned from."""
    at = make(2, 2)
    oracle = at.oracle(at.attack("l2t", pairs=2, views=2))
    oracle.gradient(at.x)
    once = oracle.context.memory["l2t"]["loss"].clone()
    chosen = oracle.context.memory["l2t"]["chosen"].clone()
    oracle.gradient(at.x, over="loss")
    now = oracle.context.memory["l2t"]
    assert torch.equal(now["chosen"], chosen)
    assert now["count"].tolist() == [4, 4]
    assert bool((now["loss"] != once).all())


def test_a_warm_start_is_forgotten() -> None:
    at = make(1, 2)
    common = {"pairs": 2, "views": 2, "lr": 5.0, "update": "sign"}
    warm, cold = (at.attack("l2t", warm_up=n, **common) for n in (2, 0))
    assert torch.equal(warm.run(at.models, at.x, at.y).x_adv, cold.run(at.models, at.x, at.y).x_adv)


def test_cost() -> None:
    assert sum(COUNTS) / 98 == pytest.approx(5.83, abs=0.01)
    assert create_attack("l2t").passes(1).backward == 10 * 102
    assert L2T.__dataclass_fields__["views"].default == round((sum(COUNTS) / 98) ** 2)  # type: ignore[attr-defined]


def test_bad_numbers() -> None:
    for option, value in (("pairs", 1), ("views", 0)):
        with pytest.raises(InputError, match="at least"):
            create_attack("l2t", **{option: value})
