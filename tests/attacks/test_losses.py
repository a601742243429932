"""Losses against the formulas, written with Python floats; gradients where logits saturate."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from advens.attacks.losses import (
    DLR,
    CalibratedByMargin,
    CalibratedByTemperature,
    CrossEntropy,
    Margin,
    TargetLogit,
    cross_entropy,
    log_cross_entropy,
    mean_odds,
)
from advens.errors import InputError

Formula = Callable[[list[float], int, int | None], float]


def softmax(z: list[float]) -> list[float]:
    top = max(z)
    e = [math.exp(v - top) for v in z]
    return [v / sum(e) for v in e]


def ce(z: list[float], y: int, t: int | None) -> float:
    return -math.log(softmax(z)[y]) if t is None else math.log(softmax(z)[t])


def margin(z: list[float], y: int, t: int | None) -> float:
    own = y if t is None else t
    best = max(v for i, v in enumerate(z) if i != own)
    return best - z[own] if t is None else z[own] - best


def dlr(z: list[float], y: int, t: int | None) -> float:
    top = sorted(z, reverse=True)
    if t is None:
        best = max(v for i, v in enumerate(z) if i != y)
        return -(z[y] - best) / (top[0] - top[2])
    return -(z[y] - z[t]) / (top[0] - (top[2] + top[3]) / 2)


def logit(z: list[float], y: int, t: int | None) -> float:
    return -z[y] if t is None else z[t]


def by_temperature(z: list[float], y: int, t: int | None) -> float:
    return ce([v / 3 for v in z], y, t)


def by_margin(z: list[float], y: int, t: int | None) -> float:
    top = sorted(z, reverse=True)
    return ce([v / max(top[0] - top[1], 1e-6) for v in z], y, t)


PAIRS = [(CrossEntropy(), ce), (Margin(), margin), (DLR(), dlr), (TargetLogit(), logit),
         (CalibratedByTemperature(temperature=3), by_temperature),
         (CalibratedByMargin(), by_margin)]  # fmt: skip
losses = pytest.mark.parametrize(
    ("loss", "formula"), PAIRS, ids=["ce", "margin", "dlr", "logit", "temperature", "by-margin"]
)
LOGITS = [
    [2.0, -1.0, 0.5, 0.25, 1.0],  # the label wins
    [-3.0, 4.0, 0.5, 1.5, 2.0],  # the label loses, the target wins
    [0.1, 0.2, 5.0, -7.0, 0.0],
    [1.0, 1.5, 1.0, 1.0, 1.2],
]
Y, T = [0, 0, 3, 4], [1, 1, 2, 0]


@losses
@pytest.mark.parametrize("targeted", [False, True])
def test_formula(loss: CrossEntropy, formula: Formula, targeted: bool) -> None:
    z, y = torch.tensor(LOGITS, dtype=torch.float64), torch.tensor(Y)
    found = loss(z, y, torch.tensor(T) if targeted else None)
    wanted = [formula(z, y, t if targeted else None) for z, y, t in zip(LOGITS, Y, T, strict=True)]
    assert found.shape == (4,), "per sample, never averaged"
    assert found.tolist() == pytest.approx(wanted, abs=1e-9)


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("loss", [CrossEntropy(), Margin(), TargetLogit()])
def test_ascent_goes_the_right_way(loss: CrossEntropy, targeted: bool) -> None:
    """A small step up the loss takes probability from the label, or gives it to the target.

    Not so for DLR everywhere: it can grow by its denominator alone.
    """
    z = torch.tensor(LOGITS, dtype=torch.float64, requires_grad=True)
    y, t = torch.tensor(Y), torch.tensor(T)
    (g,) = torch.autograd.grad(loss(z, y, t if targeted else None).sum(), z)
    up = (z + 1e-3 * g / g.norm(dim=1, keepdim=True)).detach().log_softmax(1)
    flat = z.detach().log_softmax(1)
    wanted = t if targeted else y
    change = (up - flat).gather(1, wanted[:, None]).squeeze(1)
    assert (change > 0 if targeted else change < 0).all()


@losses
@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_are_finite_in_saturation(
    loss: CrossEntropy, formula: Formula, targeted: bool, dtype: torch.dtype
) -> None:
    rows = [
        [1e4, 0.0, 0.0, 0.0, 0.0],
        [0.0, 1e4, 0.0, -1e4, 0.0],
        [0.0, 0.0, 0.0, 0.0, 0.0],
        [5.0, 5.0, 5.0, 5.0, -1e4],
    ]
    z = torch.tensor(rows, dtype=dtype, requires_grad=True)
    y, t = torch.tensor([0, 0, 1, 4]), torch.tensor([1, 2, 0, 3])
    value = loss(z, y, t if targeted else None)
    (g,) = torch.autograd.grad(value.sum(), z)
    assert torch.isfinite(value).all()
    assert torch.isfinite(g).all()


def test_dlr_is_free_of_scale_and_offset() -> None:
    z, y, t = torch.tensor(LOGITS, dtype=torch.float64), torch.tensor(Y), torch.tensor(T)
    for target in (None, t):
        torch.testing.assert_close(DLR()(7 * z - 3, y, target), DLR()(z, y, target))


@pytest.mark.parametrize("y", range(5))
@pytest.mark.parametrize(
    "z",
    [
        [3.0, 3.0, 1.0, 0.0, -1.0],
        [3.0, 1.0, 1.0, 1.0, 1.0],
        [2.0, 2.0, 2.0, 2.0, 0.0],
        [0.5, -1.0, 0.5, -1.0, -2.0],
    ],
)
def test_dlr_with_ties(z: list[float], y: int) -> None:
    """By ranks: against the second where the label is first, else the first; no spread is 1e-12."""
    first, second, third, fourth, _ = sorted(z, reverse=True)
    rival = second if z[y] == first else first
    logits, label = torch.tensor([z], dtype=torch.float64), torch.tensor([y])
    wanted = (rival - z[y]) / (first - third + 1e-12)
    assert float(DLR()(logits, label, None)) == pytest.approx(wanted)
    for t in set(range(5)) - {y}:
        wanted = (z[t] - z[y]) / (first - (third + fourth) / 2 + 1e-12)
        assert float(DLR()(logits, label, torch.tensor([t]))) == pytest.approx(wanted)


def test_dlr_needs_enough_classes() -> None:
    two, three = torch.zeros(1, 2), torch.zeros(1, 3)
    y, t = torch.tensor([0]), torch.tensor([1])
    with pytest.raises(InputError, match="needs 3 classes; these models have 2"):
        DLR()(two, y, None)
    assert DLR()(three, y, None).shape == (1,)
    with pytest.raises(InputError, match="needs 4 classes; these models have 3"):
        DLR()(three, y, t)


def confident(by: float, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Logits (1, 5) with log-odds of ``by`` for class 0; differences of others are exact in float32."""
    rest = [0.0, -1.0, -2.0, 0.5]
    top = by + math.log(sum(math.exp(v) for v in rest))
    return torch.tensor([[top, *rest]], dtype=dtype)


@pytest.mark.parametrize("by", [-300.0, -40.0, -5.0, 0.0, 5.0, 20.0, 50.0, 80.0])
def test_cross_entropy_of_confident_logits(by: float) -> None:
    """log(1 + e^-by) and its logarithm, in Python floats."""
    y = torch.tensor([0])
    wanted = math.log1p(math.exp(-by))
    for dtype, rel in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        z = confident(by, dtype)
        assert float(cross_entropy(z, y)) == pytest.approx(wanted, rel=rel)
        assert float(log_cross_entropy(z, y)) == pytest.approx(math.log(wanted), rel=rel)


@pytest.mark.parametrize("by", [-20.0, 0.0, 20.0, 50.0, 120.0, 3000.0])
@pytest.mark.parametrize("targeted", [False, True])
def test_cross_entropy_keeps_its_direction(by: float, targeted: bool) -> None:
    """``exp(log f'(m)) grad m``: m is p_o / p_others away from the label; the slope is 1 - p of the label."""
    z = confident(by).requires_grad_()
    y, target = (torch.tensor([1]), torch.tensor([0])) if targeted else (torch.tensor([0]), None)
    odds = CrossEntropy().odds(z, y, target)
    (g,) = torch.autograd.grad(odds.sum(), z)
    rest = softmax([0.0, -1.0, -2.0, 0.5])
    away = [-1.0, *rest]
    sign = -1 if targeted else 1
    assert g[0].tolist() == pytest.approx([sign * v for v in away], rel=1e-6)
    value, log_slope = CrossEntropy().at(odds.detach(), targeted)
    expected = -by if by > 30 else -math.log1p(math.exp(by))
    assert float(log_slope) == pytest.approx(expected, rel=1e-5, abs=1e-5)
    assert float(value * sign) == pytest.approx(math.log1p(math.exp(-by)), rel=1e-5, abs=1e-44)


@pytest.mark.parametrize("by", [5.0, 50.0, 300.0])
def test_gradient_of_the_logarithm(by: float) -> None:
    """d log J / dm = sigmoid(m) / log(1 + e^m), which goes to 1 and not to 0."""
    z = confident(by, torch.float64).requires_grad_()
    (g,) = torch.autograd.grad(log_cross_entropy(z, torch.tensor([0])).sum(), z)
    odds = math.exp(-by)
    assert float(g[0, 0]) == pytest.approx(-odds / (1 + odds) / math.log1p(odds), rel=1e-9)


def test_log_odds_of_a_mean_of_probabilities() -> None:
    odds, w = [1.5, -2.0, 0.25], [0.5, 0.2, 0.3]
    p = sum(b / (1 + math.exp(-m)) for m, b in zip(odds, w, strict=True))
    found = mean_odds(torch.tensor(odds).double()[:, None], torch.tensor(w).double().log()[:, None])
    assert float(found) == pytest.approx(math.log(p / (1 - p)))
    sure = torch.tensor([[-200.0], [-90.0]])  # the mean is half of the larger probability
    assert float(mean_odds(sure, torch.full((2, 1), 0.5).log())) == pytest.approx(-90 - math.log(2))


def test_cross_entropy_needs_two_classes() -> None:
    with pytest.raises(InputError, match="needs 2 classes; these models have 1"):
        CrossEntropy().odds(torch.zeros(1, 1), torch.tensor([0]), None)
