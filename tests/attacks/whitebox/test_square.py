"""Square: rows that mind no others, counted passes, the ball, the schedule, odd images, wrong options."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import advens
from advens.attacks import attack_from_spec, attack_info, create_attack
from advens.attacks.losses import CrossEntropy, Margin
from advens.attacks.oracle import Passes
from advens.attacks.whitebox.cascade import sequence
from advens.attacks.whitebox.rows import Rows
from advens.attacks.whitebox.square import SquareAttack, _levels
from advens.errors import InputError
from advens.threat import norms as lengths
from tests.attacks.whitebox.conftest import (
    RESULTS,
    Listening,
    Net,
    Restless,
    Scene,
    listened,
    maker,
    same_heard,
    same_in_batches,
)

norms = pytest.mark.parametrize(("norm", "eps"), [("linf", 0.06), ("l2", 0.8)])
made = partial(maker(SquareAttack), "square")


class Flat(nn.Module):
    """Likes the first class, whatever it sees."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :1] * 0 + torch.tensor([2.0, 0.0, 0.0], dtype=x.dtype)


class Queried(Listening):
    """Remembers every point, and what the attack had at hand then."""

    def logits(self, x: Tensor, rows: Rows) -> Tensor:
        self.note(rows, x, rows.memory["x"])
        return super().logits(x, rows)


@norms
@pytest.mark.parametrize("stop", [True, False], ids=["compacted", "whole"])
def test_batch_changes_nothing(stop: bool, norm: str, eps: float, scene: Scene) -> None:
    """Rows that leave, join, or are alone: bit for bit."""
    model, x, y, _ = scene
    attack = made(norm=norm, eps=eps, queries=25, restarts=2)
    one, *others = [listened(Queried, attack, model, x, y, batch=b, stop=stop) for b in (10, 3, 4)]
    same_in_batches(one, others, stop)
    alone = [
        listened(Queried, attack, model, x[i : i + 1], y[i : i + 1], stop=stop, first=i) for i in range(10)
    ]
    same_heard(one.heard, {key: points for oracle in alone for key, points in oracle.heard.items()})
    for what in RESULTS:
        assert torch.equal(torch.cat([getattr(oracle, what) for oracle in alone]), getattr(one, what)), what
    standing, formula = one.correct > 0, attack.passes(1)
    assert (one.forwards[standing] == formula.forward).all()
    assert (one.backwards == 0).all()
    assert not stop or (one.forwards[~standing] < formula.forward).all()


@pytest.mark.parametrize("options", [{}, {"restarts": 2}, {"eot": 3}, {"restarts": 2, "eot": 2}])
def test_passes(options: dict[str, Any], scene: Scene, net: Net, count: Any) -> None:
    """The start and each query, forward alone."""
    _, x, y, _ = scene
    attack = made(queries=6, **options)
    forward = 7 * options.get("restarts", 1) * options.get("eot", 1)
    for models in ([net(0)], [net(0), net(1)]):
        k = len(models)
        assert attack.passes(k) == Passes(k * forward, 0)
        with count(models) as seen:
            result = attack.run(models, x, y)
        assert result.passes == attack.passes(k)
        assert (seen.forward, seen.backward) == (len(x) * k * forward, 0)


@norms
@pytest.mark.parametrize("loss", ["margin", "ce"])
@pytest.mark.parametrize("targeted", [False, True], ids=["away", "targeted"])
def test_ball(targeted: bool, loss: str, norm: str, eps: float, scene: Scene) -> None:
    """In single precision; every point that was looked at, and the nearest is what is given back."""
    model, x, y, target = scene
    model, x, wanted = model.float(), x.float(), target if targeted else None
    oracle = listened(
        Queried, made(norm=norm, eps=eps, queries=40, restarts=2, loss=loss), model, x, y, wanted
    )
    seen = torch.stack([torch.stack([oracle.heard[i, t][0] for t in range(82)]) for i in range(10)])
    reach = lengths((seen - x[:, None]).flatten(0, 1), norm)
    assert reach.max() <= eps + 1e-6
    assert reach.min() > (0.9 if norm == "linf" else 0.6) * eps, "cutting to [0, 1] shortens l_2"
    assert seen.min() >= 0
    assert seen.max() <= 1
    with torch.no_grad():
        margins = torch.stack([Margin()(model(seen[:, t]), y, wanted) for t in range(82)])
    standing = oracle.correct > 0
    assert standing.any()
    assert torch.equal(standing, margins.amax(0) < 0)
    best = seen[torch.arange(10), margins.argmax(0)]
    assert torch.equal(oracle.x_adv[standing], best[standing])
    assert (margins.argmax(0) > 0).any(), "no query was better than the start"


@pytest.mark.parametrize("rescale", [True, False], ids=["rescaled", "published"])
@pytest.mark.parametrize("queries", [40, 200, 500])
def test_schedule(queries: int, rescale: bool) -> None:
    """Sides of the squares that are tried, against the published table worked out for 32 x 32."""
    linf = {10: 29, 50: 20, 200: 14, 500: 10, 1000: 7, 2000: 5, 4000: 4, 6000: 3, 8000: 2, 9999: 1}
    counted = [q * 10000 // queries if rescale else q for q in range(queries)]
    expected = [next(s for u, s in linf.items() if q <= u) for q in counted]
    x, y = torch.full((2, 3, 32, 32), 0.5), torch.tensor([0, 0])
    oracle = listened(Queried, made(eps=0.1, queries=queries, rescale=rescale), Flat(), x, y)
    found = 0
    for i in range(2):
        for t, side in enumerate(expected, start=1):
            point, at_hand = oracle.heard[i, t]
            changed = (point - at_hand).abs() > 0.1
            if changed.any():  # stripes that are in that corner already stay
                found += 1
                assert {int(n) for n in changed.any(0).sum(0)} <= {0, side}
                columns = changed.any(0).any(0).nonzero()
                assert int(columns.max() - columns.min()) < side
    assert found > 1.5 * queries
    levels = _levels(10000, rescale, x.device).diff().nonzero().flatten() + 1
    assert levels.tolist() == [11, 51, 201, 501, 1001, 2001, 4001, 6001, 8001]
    assert made().sides(32, 32) == tuple(linf.values())
    assert made(norm="l2").sides(32, 32) == (29, 21, 15, 11, 7, 5, 5, 3, 3, 3)
    assert made(norm="l2").sides(224, 224)[:4] == (201, 143, 101, 71)
    assert made(p_init=1.0).sides(32, 32)[0] == 31
    assert made(norm="l2", p_init=1.0).sides(32, 32)[0] == 31
    assert made(norm="l2", p_init=1.0).sides(31, 31)[0] == 29


@pytest.mark.parametrize("name", ["autoattack", "pma-plus-plus"])
def test_autoattack_counts_the_published_queries(name: str) -> None:
    """Its 5,000 queries see p halved seven times, the last time after 4,000; alone, all nine."""
    square = sequence(name).attacks[-1]
    assert square == made(rescale=False)
    assert square.queries == 5000
    queries, cpu = range(5000), torch.device("cpu")
    published = [sum(q > until for until in (10, 50, 200, 500, 1000, 2000, 4000)) for q in queries]
    assert _levels(square.queries, square.rescale, cpu).tolist() == published
    assert made().rescale, "the default of the authors' code of this attack"
    assert _levels(5000, True, cpu).max() == 9


@norms
@pytest.mark.parametrize(
    "shape", [(3, 32, 12), (1, 12, 32), (3, 14, 14), (2, 4, 5), (1, 2, 2), (1, 1, 1)]
)
def test_shapes(shape: tuple[int, ...], norm: str, eps: float) -> None:
    """Images that are not square or hardly there; every pixel of the start but a margin is changed."""
    x = torch.full((3, *shape), 0.5, dtype=torch.float64)
    oracle = listened(
        Queried, made(norm=norm, eps=eps, queries=50), Flat(), x, torch.zeros(3, dtype=torch.long)
    )
    for point, _ in oracle.heard.values():
        assert torch.isfinite(point).all()
        assert lengths(point[None] - x[:1], norm).max() <= eps + 1e-9
    start = (oracle.heard[0, 0][0] != x[0]).all(0)
    assert start.any(1).sum() > 0.6 * shape[1]
    assert start.any(0).sum() > 0.6 * shape[2]
    if min(shape[1:]) > 1:
        points = [tuple(point.flatten().tolist()) for point, _ in oracle.heard.values()]
        assert len(set(points)) > 3


def test_randomness(scene: Scene) -> None:
    """The model's own is named by the seed too, and the global stream is left alone."""
    model, x, y, _ = scene
    attack, state = made(eps=0.02, queries=8, eot=4), torch.get_rng_state()
    first = attack(Restless(model, 0.3), x, y, seed=2)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(5)
    assert torch.equal(attack(Restless(model, 0.3), x, y, seed=2), first)
    assert not torch.equal(attack(Restless(model, 0.3), x, y, seed=3), first)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"queries": 0}, "'square': queries = 0: at least 1"),
        ({"restarts": 0}, "'square': restarts = 0: at least 1"),
        ({"eot": 0}, "'square': eot = 0: at least 1"),
        ({"p_init": 0.0}, "'square': p_init = 0.0: above 0 and at most 1"),
        ({"p_init": 1.5}, "'square': p_init = 1.5: above 0 and at most 1"),
        ({"loss": "margn"}, "unknown loss 'margn'; did you mean 'margin'?"),
        ({"norm": "l3"}, "unknown norm 'l3'; did you mean 'l2'?"),
        ({"querys": 3}, "this attack has no option 'querys'; did you mean 'queries'?"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        create_attack("square", **options)
    assert str(caught.value) == message


def test_recipe_and_spec() -> None:
    assert made() == SquareAttack() == advens.attacks.Square()
    assert made().passes(1) == Passes(5001, 0)
    assert made(loss="ce").loss == CrossEntropy()
    assert attack_info("square").targeted
    attack = made(norm="l2", eps=0.3, queries=7, p_init=0.5, loss="ce")
    assert attack_from_spec(attack.spec) == attack
