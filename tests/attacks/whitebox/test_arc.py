"""ARC against a slow transcription; what theory promises for two linear members; passes, neighbours."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch import Tensor, nn

from advens.attacks import attack_from_spec, create_attack
from advens.attacks.oracle import Passes
from advens.attacks.whitebox.arc import RandomizedEnsembleAttack
from advens.attacks.whitebox.engine import search
from advens.attacks.whitebox.oracle import RowOracle
from advens.defenses.ensembles import RandomizedEnsemble
from advens.errors import InputError
from advens.threat import Threat
from tests.attacks.whitebox.conftest import Images, Net, maker

CLASSES = 6
ALPHAS = {1: [1.0], 2: [0.4, 0.6], 3: [0.25, 0.4, 0.35]}
EPS = {"linf": 0.03, "l2": 0.3}
made = partial(maker(RandomizedEnsembleAttack), "arc")


def ensemble(net: Net, k: int) -> RandomizedEnsemble:
    return RandomizedEnsemble([net(seed) for seed in range(k)], ALPHAS[k], num_classes=CLASSES)


@pytest.fixture
def scene(net: Net, images: Images) -> Callable[[int, int], tuple[RandomizedEnsemble, Tensor, Tensor]]:
    def make(k: int, n: int) -> tuple[RandomizedEnsemble, Tensor, Tensor]:
        """Labels that most samples' members agree with."""
        model, x = ensemble(net, k), images(3, n=n)
        with torch.no_grad():
            return model, x, model.members[k - 1](x).argmax(1)

    return make


def slow_project(x_adv: Tensor, x: Tensor, norm: str, eps: float) -> Tensor:
    if norm == "linf":
        return torch.minimum(torch.maximum(x_adv, x - eps), x + eps).clamp(0, 1)
    delta = x_adv.clamp(0, 1) - x
    length = math.sqrt(float((delta**2).sum()))
    return x + delta * (eps / length if length > eps else 1.0)


def slow_accuracy(models: list[nn.Module], alphas: list[float], x: Tensor, y: int) -> float:
    with torch.no_grad():
        says = [int(model(x[None])[0].argmax()) for model in models]
    return sum(a for a, said in zip(alphas, says, strict=True) if said == y)


def slow_step(
    models: list[nn.Module], alphas: list[float], x: Tensor, y: int, delta: Tensor, v: float,
    norm: str, eps: float, eta: float, g: int, rho: float, around: str, seen: set[str],
) -> tuple[Tensor, float]:  # fmt: skip
    """One outer step on one sample, with the second acceptance test and a gradient for every logit."""
    d, v_local = torch.zeros_like(x), v
    order = sorted(range(len(models)), key=lambda i: -alphas[i])
    for i in order:
        leaf = (x + delta + (d if around == "moved" else 0)).requires_grad_()
        z = models[i](leaf[None])[0]
        gradients = [torch.autograd.grad(z[c], leaf, retain_graph=True)[0] for c in range(len(z))]
        z = z.detach()
        ranked = sorted(range(len(z)), key=lambda c: -float(z[c]))
        m, best = ranked[0], (math.inf, torch.zeros_like(x))
        for j in ranked[1 : g + 1]:
            w = gradients[m] - gradients[j]
            dual = w.abs().sum() if norm == "linf" else (w**2).sum().sqrt()
            zeta = float((z[m] - z[j]).abs() / (dual + 1e-10))
            if zeta < best[0]:
                best = (zeta, w)
        zeta, w = best
        if norm == "linf":
            u, projector = -w.sign(), -w / w.abs().sum()
        else:
            u = projector = -w / (w**2).sum().sqrt()
        if i == order[0]:
            beta = eta
        elif zeta >= eta:
            beta = eta
            seen.add("far")
        else:
            beta = eta / (eta - zeta + 1e-10) * abs(zeta - float((projector * d).sum())) + rho
            seen.add("near")
        step = d + beta * u
        size = step.abs().max() if norm == "linf" else (step**2).sum().sqrt()
        d_hat = eta * step / size
        accuracy = slow_accuracy(models, alphas, slow_project(x + delta + d_hat, x, norm, eps), y)
        if accuracy <= v_local + 1e-12:
            d, v_local = d_hat, accuracy
            seen.add("accepted")
        else:
            seen.add("refused")
    there = slow_project(x + delta + d, x, norm, eps)
    accuracy = slow_accuracy(models, alphas, there, y)
    if accuracy <= v + 1e-12:
        return there - x, accuracy
    return delta, v


@pytest.mark.parametrize("around", ["start", "moved"])
@pytest.mark.parametrize("planes", [2, None])
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("k", [2, 3])
def test_equals_the_slow_transcription(
    k: int, norm: str, planes: int | None, around: str, scene: Any
) -> None:
    n, steps = 6, 4
    model, x, y = scene(k, n)
    threat = Threat(norm, EPS[norm])
    attack = made(norm=norm, eps=threat.eps, hyperplanes=planes, around=around, local_radius="eps/2")
    members, alphas = list(model.members), ALPHAS[k]
    deltas = [torch.zeros_like(x[0]) for _ in range(n)]
    values = [slow_accuracy(members, alphas, x[i], int(y[i])) for i in range(n)]
    seen: set[str] = set()
    model.requires_grad_(False)
    oracle = RowOracle([model], threat, x, y)
    rows = oracle.rows(torch.arange(n))
    attack.begin(oracle, rows)
    for _ in range(steps):
        attack.advance(oracle, rows)
        rows.t = rows.t + 1
        for i in range(n):
            deltas[i], values[i] = slow_step(
                members, alphas, x[i], int(y[i]), deltas[i], values[i], norm, threat.radius,
                threat.radius / 2, planes or CLASSES - 1, 0.05 * threat.radius, around, seen,
            )  # fmt: skip
        torch.testing.assert_close(rows.memory["x"], x + torch.stack(deltas), rtol=0, atol=1e-9)
        expected = torch.tensor(values, dtype=torch.float64)
        torch.testing.assert_close(rows.memory["accuracy"], expected, rtol=0, atol=1e-12)
        assert (oracle.correct <= expected + 1e-12).all(), "every point looked at counts"
    assert seen == {"far", "near", "accepted", "refused"}


class Planes(nn.Module):
    """A plane for each row of the batch: the label 0 holds where ``<w, x - 1/2> + b > 0``."""

    def __init__(self, w: Tensor, b: Tensor) -> None:
        super().__init__()
        self.num_classes = 2
        self.w, self.b = nn.Parameter(w), nn.Parameter(b)

    def forward(self, x: Tensor) -> Tensor:
        f = (((x - 0.5).flatten(1) * self.w).sum(1) + self.b) / 2
        return torch.stack([f, -f], 1)


RADIUS = 0.1
CASES = 200


def planes(norm: str) -> tuple[Tensor, Tensor]:
    """Normals (CASES, 2, 3) and offsets (CASES, 2); in every other case the normals nearly oppose."""
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(CASES, 2, 3, generator=generator, dtype=torch.float64)
    w[::2, 1] = 0.7 * w[::2, 1] - w[::2, 0]
    w *= torch.randn(CASES, 2, 1, generator=generator, dtype=torch.float64).exp()
    reach = RADIUS * (w.abs().sum(2) if norm == "linf" else w.norm(dim=2))
    return w, 1.6 * reach * torch.rand(CASES, 2, generator=generator, dtype=torch.float64)


def common(w: Tensor, b: Tensor, norm: str) -> bool:
    """Whether some perturbation of the ball crosses both planes."""
    a, m = -w.numpy(), b.numpy()
    if norm == "linf":
        bounds = [(-RADIUS, RADIUS)] * a.shape[1]
        return bool(linprog(np.zeros(a.shape[1]), A_ub=-a, b_ub=-m, bounds=bounds).status == 0)
    shortest = math.inf  # the nearest point of two half-spaces: on one plane, or on both
    for active in ([0], [1], [0, 1]):
        part = a[active]
        point = part.T @ np.linalg.solve(part @ part.T, m[active])
        if (a @ point >= m - 1e-9).all():
            shortest = min(shortest, float(np.linalg.norm(point)))
    return shortest <= RADIUS


@cache
def least(norm: str, alphas: tuple[float, float]) -> Tensor:
    """The lowest expected accuracy there is, (CASES,)."""
    w, b = planes(norm)
    reach = RADIUS * (w.abs().sum(2) if norm == "linf" else w.norm(dim=2))
    values = []
    for case in range(CASES):
        falls = [alpha for alpha, hit in zip(alphas, reach[case] > b[case], strict=True) if hit]
        both = len(falls) == 2 and common(w[case], b[case], norm)
        values.append(0.0 if both else 1 - max(falls, default=0.0))
    return torch.tensor(values, dtype=torch.float64)


def found(name: str, norm: str, alphas: tuple[float, float], **options: Any) -> Tensor:
    """The expected accuracy that an attack leaves, (CASES,)."""
    w, b = planes(norm)
    model = RandomizedEnsemble([Planes(w[:, k], b[:, k]) for k in range(2)], alphas)
    x, y = torch.full((CASES, 3, 1, 1), 0.5).double(), torch.zeros(CASES, dtype=torch.long)
    return model.expected_accuracy(create_attack(name, norm=norm, eps=RADIUS, **options)(model, x, y), y)


both_norms = pytest.mark.parametrize("norm", ["linf", "l2"])
two_alphas = pytest.mark.parametrize("alphas", [(0.6, 0.4), (0.5, 0.5)])


@both_norms
@two_alphas
def test_finds_whatever_exists_for_two_linear_members(
    norm: str, alphas: tuple[float, float]
) -> None:
    """The consistency that the paper proves, with the local step as long as eps."""
    lowest, got = least(norm, alphas), found("arc", norm, alphas, local_radius="eps")
    assert 100 < (lowest < 1).sum() < CASES
    assert torch.equal(got < 1, lowest < 1)
    assert (got >= lowest - 1e-9).all(), "better than the best there is"
    both = lowest == 0
    assert both.sum() > 20
    assert (got[both] < 1e-9).double().mean() > 0.5, "what breaks both is found more often than not"


@both_norms
@two_alphas
def test_gradient_of_the_expected_loss_misses_some(norm: str, alphas: tuple[float, float]) -> None:
    lowest, got = least(norm, alphas), found("adaptive-pgd", norm, alphas)
    assert ((got == 1) & (lowest < 1)).sum() > 20


@both_norms
@two_alphas
def test_linearised_where_it_stands_it_misses_some(norm: str, alphas: tuple[float, float]) -> None:
    """Why ``around="start"`` is the default."""
    lowest, got = least(norm, alphas), found("arc", norm, alphas, local_radius="eps", around="moved")
    assert ((got == 1) & (lowest < 1)).sum() > 10


@pytest.mark.parametrize("planes", [1, 3, 9, None])
@pytest.mark.parametrize("k", [1, 2, 3])
def test_passes_of_randomized_ensembles(k: int, planes: int | None, scene: Any, count: Any) -> None:
    model, x, y = scene(k, 4)
    attack = made(steps=3, hyperplanes=planes)
    formula = attack.passes(1, members=k, classes=CLASSES)
    looks = CLASSES - 1 if planes in (9, None) else planes
    assert formula == Passes(k * (1 + 3 * (1 + k)), 3 * k * looks)
    with count(list(model.members)) as seen:
        result = attack.run(model, x, y)
    assert result.passes == formula
    assert (seen.forward, seen.backward) == tuple(len(x) * n for n in formula)


def test_plain_models_are_one(net: Net, images: Images, count: Any) -> None:
    """A list is the mean of its logits; alone, a model is an ensemble of one."""
    models, x = [net(0), net(1)], images(1)
    with torch.no_grad():
        y = (models[0](x) + models[1](x)).argmax(1)
    attack = made(steps=5, eps="16/255")
    with count(models) as seen:
        result = attack.run(models, x, y)
    assert (seen.forward, seen.backward) == tuple(len(x) * n for n in attack.passes(2))
    with torch.no_grad():
        assert ((models[0](result.x_adv) + models[1](result.x_adv)).argmax(1) != y).all()
    alone = RandomizedEnsemble([models[0]], num_classes=CLASSES)
    assert torch.equal(attack(models[0], x, y), attack(alone, x, y))


@pytest.mark.parametrize("stop", [True, False], ids=["compacted", "whole"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_batch_changes_nothing(norm: str, stop: bool, scene: Any) -> None:
    model, x, y = scene(2, 11)
    attack = made(norm=norm, eps=EPS[norm] / 3, steps=5)
    results = []
    for batch in (3, 7, 11):
        oracle = RowOracle([model], attack.threat, x, y, seed=5)
        search(attack, oracle, oracle.begin(torch.arange(11)), batch=batch, stop=stop)
        results.append(oracle)
    first = results[0]
    assert len(set(first.correct.tolist())) > 1, "some stand, some break"
    for other in results[1:]:
        for name in ("correct", "x_adv", "broken_at", "forwards", "backwards"):
            torch.testing.assert_close(getattr(other, name), getattr(first, name), rtol=0, atol=1e-12)


def test_order_is_by_probability(scene: Any) -> None:
    """The same members listed in another order give the same images."""
    model, x, y = scene(3, 4)
    order = [2, 0, 1]
    other = RandomizedEnsemble(
        [model.members[i] for i in order], [ALPHAS[3][i] for i in order], num_classes=CLASSES
    )
    attack = made(steps=3)
    torch.testing.assert_close(attack(model, x, y), attack(other, x, y), rtol=0, atol=1e-12)


def test_local_radius() -> None:
    assert made(eps=0.1).eta == pytest.approx(0.1)
    assert made(norm="l2", eps=0.1).eta == pytest.approx(0.025)
    assert made(norm="l2", eps=0.1, local_radius="eps/2").eta == pytest.approx(0.05)
    assert made(local_radius=0.01).eta == 0.01


def test_spec() -> None:
    attack = made(hyperplanes=None, local_radius="eps/3", rho=0.1)
    assert attack_from_spec(attack.spec) == attack


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ({"hyperplanes": 0}, "at least 1"),
        ({"steps": 0}, "at least 1"),
        ({"rho": -1.0}, "at least 0"),
        ({"around": "there"}, "'start' or 'moved'"),
        ({"local_radius": "wide"}, "local_radius"),
    ],
)
def test_wrong_options_are_one_line(option: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        made(**option)
    assert "\n" not in str(caught.value)


def test_what_it_does_not_do(scene: Any) -> None:
    model, x, y = scene(2, 4)
    with pytest.raises(InputError, match="takes no targets"):
        made()(model, x, y, (y + 1) % CLASSES)
    with pytest.raises(InputError, match="number of classes"):
        made(hyperplanes=None).passes(1)
