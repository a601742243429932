"""Schedules of white-box descents, step by step, against plain transcriptions."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from advens.attacks.losses import CrossEntropy, Margin
from advens.attacks.starts import Uniform
from advens.attacks.whitebox.descent import Descent
from advens.attacks.whitebox.engine import search
from advens.attacks.whitebox.margins import ProbabilityMargin
from advens.attacks.whitebox.oracle import RowOracle
from advens.threat import Threat
from tests.attacks.whitebox.conftest import Images, Net, Scene, maker

NAMES = ["pgd-ce", "cw", "pgd-dlr", "pma-simple", "md", "pma"]
names = pytest.mark.parametrize("name", NAMES)
norms = pytest.mark.parametrize(("norm", "eps"), [("linf", 0.06), ("l2", 0.5)])
made = maker(Descent)


class Path:
    """What an attack asked, per iteration: points and the loss gradients over logits."""

    def __init__(
        self, attack: Descent, model: nn.Module, x: Tensor, y: Tensor, target: Tensor | None = None
    ) -> None:
        self.points: list[Tensor] = []
        self.over_logits: list[Tensor] = []
        self.ends: list[Tensor] = []
        path = self

        class Watching(RowOracle):
            def gradient(self, x: Tensor, rows: Any, loss: Any) -> Any:
                path.points.append(x.clone())

                def watched(logits: Tensor) -> Tensor:
                    logits.register_hook(lambda g: path.over_logits.append(g.clone()))
                    value: Tensor = loss(logits)
                    return value

                return super().gradient(x, rows, watched)

            def logits(self, x: Tensor, rows: Any) -> Tensor:
                path.ends.append(x.clone())
                return super().logits(x, rows)

        oracle = Watching([model], attack.threat, x, y, target)
        search(attack, oracle, torch.arange(len(x)), batch=len(x), stop=False)
        self.oracle = oracle


def published(run: int, i: int, k: int, eps: float) -> tuple[float, str]:
    """Step length and term of one PMA step, in the words of the notes."""
    half = k // 2
    if i <= half:
        alpha = eps * (1 + math.cos(math.pi * (i - 1) / (k - half)))
    else:
        alpha = eps * (1 + math.cos(math.pi * (i - half - 1) / (k - half)))
    if i == 0:
        return alpha, "p_y"
    if i < half:
        return alpha, "-p_y" if run == 0 else "p_m"
    return alpha, "p_m - p_y"


COEFFICIENTS = {"p_y": (-1, 0), "-p_y": (1, 0), "p_m": (0, 1), "p_m - p_y": (1, 1)}


@pytest.mark.parametrize("steps", [5, 8, 50, 100])
def test_schedule_of_pma(steps: int) -> None:
    attack = made("pma", steps=steps, eps=0.1)
    wanted = [[published(run, i, steps, 0.1) for i in range(steps)] for run in (0, 1)]
    assert attack.alphas() == pytest.approx([alpha for alpha, _ in wanted[0]], abs=1e-15)
    for run in range(4):
        assert attack.weights(run) == [COEFFICIENTS[term] for _, term in wanted[run % 2]]
    assert attack.runs == 2
    assert made("pma", restarts=3).runs == 6
    factors = [a / 0.1 for a in made("pma", steps=100, eps=0.1).alphas()]
    at = [factors[i] for i in (0, 1, 25, 49, 50, 51, 99)]
    assert at == pytest.approx([1.998, 2.0, 1.063, 0.0079, 0.002, 2.0, 0.0079], abs=6e-4)


def test_schedules_of_the_others() -> None:
    assert made("md", steps=6).weights(0) == [(1, 0)] * 3 + [(1, 1)] * 3
    assert made("md", steps=6).weights(1) == [(0, 1)] * 3 + [(1, 1)] * 3
    assert made("md", steps=6, first_on_label=True).weights(1)[:3] == [(-1, 0), (0, 1), (0, 1)]
    for name, loss in (
        ("pgd-ce", CrossEntropy()),
        ("cw", Margin()),
        ("pma-simple", ProbabilityMargin()),
    ):
        attack = made(name, eps="8/255")
        assert attack.loss == loss
        assert (attack.runs, attack.steps, attack.start) == (1, 100, Uniform())
        assert attack.alphas() == pytest.approx([2 / 255] * 100)
    odi = made("pgd-ce", eps=0.1, steps=4, start="odi", step_size="2.5eps/T")
    assert odi.alphas() == pytest.approx([0.1, 0.1] + [0.0625] * 4)


@norms
@pytest.mark.parametrize("targeted", [False, True], ids=["away", "targeted"])
def test_pma_against_plain_transcription(
    norm: str, eps: float, targeted: bool, batched_scene: Scene
) -> None:
    """Every point of both runs, through autograd on softmax in float64 at moderate margins."""
    model, x, y, others = batched_scene
    target, steps = others if targeted else None, 8
    attack = made("pma", norm=norm, eps=eps, steps=steps)
    path = Path(attack, model, x, y, target)
    assert len(path.points) == 2 * steps
    rows = torch.arange(len(x))
    for run in (0, 1):
        at = path.points[run * steps]  # the start, from the rows' own numbers
        for i in range(steps):
            torch.testing.assert_close(path.points[run * steps + i], at, rtol=0, atol=1e-12)
            leaf = at.clone().requires_grad_()
            p = model(leaf).softmax(1)
            fixed = y if target is None else target
            best = p.detach().clone()
            best[rows, fixed] = -1
            falls, rises = (fixed, best.argmax(1)) if target is None else (best.argmax(1), fixed)
            alpha, term = published(run, i, steps, eps)
            p_y, p_m = p[rows, falls], p[rows, rises]
            loss = {"p_y": p_y, "-p_y": -p_y, "p_m": p_m, "p_m - p_y": p_m - p_y}[term]
            (g,) = torch.autograd.grad(loss.sum(), leaf)
            unit = g.sign() if norm == "linf" else g / g.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
            at = Threat(norm, eps).project(at + alpha * unit, x)
        torch.testing.assert_close(path.ends[run], at, rtol=0, atol=1e-12)
    assert not torch.equal(path.points[0], path.points[steps]), "a start of its own"


@norms
def test_odi_ascends_one_direction_of_logits_per_run(norm: str, eps: float, batched_scene: Scene) -> None:
    model, x, y, _ = batched_scene
    attack = made("cw", norm=norm, eps=eps, steps=3, restarts=2, start={"name": "odi", "steps": 4})
    path = Path(attack, model, x, y)
    assert len(path.points) == 2 * (4 + 3)
    directions = [path.over_logits[run * 7 : run * 7 + 4] for run in (0, 1)]
    for run in (0, 1):
        first = directions[run][0]
        assert all(torch.equal(w, first) for w in directions[run])
        assert first.abs().max() <= 1
        assert len(torch.unique(first)) == first.numel(), "each row has its own"
        heights = [(first * model(point)).sum(1) for point in path.points[run * 7 : run * 7 + 5]]
        assert (heights[-1] > heights[0]).all()
        moved = path.points[run * 7 + 1]
        leaf = path.points[run * 7].clone().requires_grad_()
        (g,) = torch.autograd.grad((model(leaf) * first).sum(), leaf)
        wanted = attack.threat.project(leaf.detach() + eps * attack.threat.steepest(g), x)
        torch.testing.assert_close(moved, wanted, rtol=0, atol=1e-12)
        margin = path.over_logits[run * 7 + 4]
        assert torch.equal(margin.abs().sum(1), torch.full((len(x),), 2.0, dtype=x.dtype))
    assert not torch.equal(directions[0][0], directions[1][0])


@names
@norms
def test_every_point_is_allowed(name: str, norm: str, eps: float, batched_scene: Scene) -> None:
    model, x, y, _ = batched_scene
    attack = made(name, norm=norm, eps=eps, steps=5)
    path = Path(attack, model, x, y)
    for point in [*path.points, *path.ends, path.oracle.x_adv]:
        delta = (point - x).flatten(1)
        size = delta.abs().amax(1) if norm == "linf" else delta.norm(dim=1)
        assert size.max() <= eps * (1 + 1e-12)
        assert point.min() >= 0
        assert point.max() <= 1


def test_the_last_point_counts(net: Net, images: Images) -> None:
    """One step of eps from the clean image: only the look at its end can break."""
    model, x = net(1), images(5, n=8)
    with torch.no_grad():
        y = model(x).argmax(1)
    attack = made("cw", eps=0.1, steps=1, step_size="eps", start="clean")
    x_adv = attack(model, x, y)
    with torch.no_grad():
        broken = model(x_adv).argmax(1) != y
    assert broken.any()
    path = Path(attack, model, x, y)
    assert torch.equal(path.oracle.correct == 0, broken)
    assert torch.equal(path.points[0], x)


def test_standing_rows_give_their_nearest_point(batched_scene: Scene) -> None:
    model, x, y, _ = batched_scene
    attack = made("pma", eps=0.004, steps=6)
    path = Path(attack, model, x, y)
    with torch.no_grad():
        seen = [Margin()(model(point), y, None) for point in [*path.points, *path.ends]]
        given = Margin()(model(path.oracle.x_adv), y, None)
    standing = path.oracle.correct > 0
    assert standing.any()
    assert torch.equal(given[standing], torch.stack(seen).amax(0)[standing])
