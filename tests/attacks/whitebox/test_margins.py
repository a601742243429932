"""Margins taken apart: their gradients against differences, autograd and 400-digit arithmetic."""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import Decimal, localcontext

import pytest
import torch
from torch import Tensor, nn

from advens.attacks.losses import CrossEntropy, Margin
from advens.attacks.whitebox.margins import (
    ProbabilityMargin,
    logit_terms,
    probability_terms,
    sides,
)

PAIRS = [(1.0, 1.0), (1.0, 0.0), (0.0, 1.0), (-1.0, 0.0), (0.3, 2.0)]
pairs = pytest.mark.parametrize(("a", "b"), PAIRS)
ways = pytest.mark.parametrize("targeted", [False, True], ids=["away", "targeted"])
Problem = tuple[Tensor, Tensor, "Tensor | None"]


def problem(targeted: bool, n: int = 12, classes: int = 7, spread: float = 2.0) -> Problem:
    """Logits in float64, labels that are mostly not the largest, targets when wanted."""
    generator = torch.Generator().manual_seed(4)
    logits = torch.randn((n, classes), generator=generator, dtype=torch.float64) * spread
    y = torch.arange(n) % classes
    return logits, y, (y + 3) % classes if targeted else None


def gradient(value: Tensor, leaf: Tensor) -> Tensor:
    return torch.autograd.grad(value.sum(), leaf)[0]


def coefficients(a: float, b: float, n: int) -> tuple[Tensor, Tensor]:
    return torch.full((n,), a, dtype=torch.float64), torch.full((n,), b, dtype=torch.float64)


def plain(p: Tensor, y: Tensor, target: Tensor | None, a: Tensor, b: Tensor) -> Tensor:
    """The formula row by row: ``-a p_own + b p_other``."""
    found = []
    for i in range(len(p)):
        fixed = int(y[i]) if target is None else int(target[i])
        best = max((j for j in range(p.shape[1]) if j != fixed), key=lambda j: p[i, j].item())
        own, other = (fixed, best) if target is None else (best, fixed)
        found.append(-a[i] * p[i, own] + b[i] * p[i, other])
    return torch.stack(found)


def cosines(g: Tensor, h: Tensor) -> Tensor:
    return (g * h).flatten(1).sum(1) / (g.flatten(1).norm(dim=1) * h.flatten(1).norm(dim=1))


def exact(z: list[float], own: int, other: int, a: float, b: float) -> list[Decimal]:
    """Gradient over logits of ``-a p_own + b p_other`` in 400-digit arithmetic."""
    with localcontext() as context:
        context.prec = 400
        powers = [Decimal(value).exp() for value in z]
        total = sum(powers)
        p = [power / total for power in powers]
        one = Decimal(1)
        return [
            Decimal(b) * p[other] * ((one if j == other else 0) - p[j])
            - Decimal(a) * p[own] * ((one if j == own else 0) - p[j])
            for j in range(len(z))
        ]


@ways
def test_sides(targeted: bool) -> None:
    logits = torch.tensor([[3.0, 1.0, 2.0], [0.0, 5.0, 4.0]])
    y, target = torch.tensor([0, 0]), torch.tensor([1, 1]) if targeted else None
    own, other = sides(logits, y, target)
    assert own.tolist() == ([0, 2] if targeted else [0, 0])
    assert other.tolist() == ([1, 1] if targeted else [2, 1])


@ways
def test_whole_margins_are_the_losses(targeted: bool) -> None:
    logits, y, target = problem(targeted)
    ones = torch.ones(len(y))
    assert torch.equal(logit_terms(logits, y, target, ones, ones), Margin()(logits, y, target))
    whole = ProbabilityMargin()(logits, y, target)
    assert torch.equal(whole, probability_terms(logits, y, target, ones, ones))
    torch.testing.assert_close(whole, Margin()(logits.softmax(1), y, target), rtol=0, atol=1e-15)


@pairs
@ways
def test_values_and_logit_gradients_against_differences(a: float, b: float, targeted: bool) -> None:
    logits, y, target = problem(targeted)
    weights = coefficients(a, b, len(y))
    torch.testing.assert_close(
        probability_terms(logits, y, target, *weights),
        plain(logits.softmax(1), y, target, *weights), rtol=0, atol=1e-14,
    )  # fmt: skip
    leaf = logits.clone().requires_grad_()
    g = gradient(logit_terms(leaf, y, target, *weights), leaf)
    slow = differences(lambda z: plain(z, y, target, *weights), logits)
    torch.testing.assert_close(g, slow, rtol=0, atol=1e-8)


def differences(function: Callable[[Tensor], Tensor], logits: Tensor, h: float = 1e-6) -> Tensor:
    columns = []
    for j in range(logits.shape[1]):
        step = torch.zeros_like(logits)
        step[:, j] = h
        columns.append((function(logits + step) - function(logits - step)) / (2 * h))
    return torch.stack(columns, 1)


@pairs
@ways
def test_probability_gradient_points_where_the_plain_one_does(
    a: float, b: float, targeted: bool
) -> None:
    """At moderate margins: cosine 1, against autograd through softmax and against differences."""
    logits, y, target = problem(targeted)
    weights = coefficients(a, b, len(y))
    leaf = logits.clone().requires_grad_()
    g = gradient(probability_terms(leaf, y, target, *weights), leaf)
    truth = gradient(plain(leaf.softmax(1), y, target, *weights), leaf)
    assert cosines(g, truth).min() > 1 - 1e-9
    slow = differences(lambda z: plain(z.softmax(1), y, target, *weights), logits)
    assert cosines(g, slow).min() > 1 - 1e-8
    norms = g.norm(dim=1)
    assert norms.min() > 0.5
    assert norms.max() < 4, "the scale is of order one"


@pairs
@ways
def test_every_row_has_its_own_coefficients(a: float, b: float, targeted: bool) -> None:
    logits, y, target = problem(targeted, n=len(PAIRS))
    mixed = torch.tensor(PAIRS, dtype=torch.float64)
    row = PAIRS.index((a, b))
    leaf = logits.clone().requires_grad_()
    for terms in (logit_terms, probability_terms):
        together = terms(leaf, y, target, *mixed.unbind(1))
        alone = terms(leaf, y, target, *coefficients(a, b, len(y)))
        assert together[row] == alone[row]
        assert torch.equal(gradient(together[row], leaf), gradient(alone[row], leaf))


def test_no_coefficients_no_gradient() -> None:
    """Rows that are elsewhere have (0, 0): nothing, and not NaN."""
    logits, y, _ = problem(False)
    leaf = logits.clone().requires_grad_()
    value = probability_terms(leaf, y, None, *coefficients(0, 0, len(y)))
    assert not value.any()
    assert not gradient(value, leaf).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("nats", [5.0, 20.0, 50.0, 80.0, 300.0, -50.0, -300.0])
@pairs
def test_gradient_far_into_saturation(a: float, b: float, nats: float, dtype: torch.dtype) -> None:
    """Every coordinate, label's included, to single precision; ahead of the label too."""
    z = torch.tensor([[nats, 0.0, -1.25, -0.5, -7.0]], dtype=dtype)
    y = torch.tensor([0])
    leaf = z.clone().requires_grad_()
    g = gradient(probability_terms(leaf, y, None, *coefficients(a, b, 1)), leaf)[0]
    truth = exact(z[0].tolist(), 0, 1, a, b)
    largest = max(abs(value) for value in truth)
    assert g.abs().max() > 0.1
    precision = 1e-4 if dtype == torch.float32 else 1e-11
    for mine, true in zip(g.double().tolist(), truth, strict=True):
        ratio = float(true / largest)
        assert math.isclose(
            mine / g.abs().max().item(), ratio, rel_tol=precision, abs_tol=precision
        )
        assert abs(ratio) < 1e-30 or math.copysign(1, mine) == math.copysign(1, ratio)


def test_where_autograd_fails(net: object) -> None:
    """Through a model, 50 nats sure in float32: autograd through softmax has no sign to give, ours has
    that of 400-digit arithmetic in all but a few pixels near zero."""
    model: nn.Module = net(3)  # type: ignore[operator]
    generator = torch.Generator().manual_seed(0)
    x = torch.rand((3, 3, 8, 8), generator=generator, dtype=torch.float64)
    with torch.no_grad():
        logits = model(x)
        top = logits.topk(2, 1).values
        sure = 50 / (top[:, 0] - top[:, 1])
        y = logits.argmax(1)

    def single(loss: object) -> Tensor:
        leaf = x.float().requires_grad_()
        out = model.float()(leaf) * sure.float()[:, None]
        g = gradient(loss(out), leaf)  # type: ignore[operator]
        model.double()
        return g

    def naive(out: Tensor) -> Tensor:
        return Margin()(out.softmax(1), y, None)

    leaf = x.clone().requires_grad_()
    scaled = model(leaf) * sure[:, None]
    other = sides(scaled.detach(), y, None)[1]
    rows = []
    for i in range(len(x)):
        slope = exact(scaled[i].tolist(), int(y[i]), int(other[i]), 1, 1)
        unit = [float(value / max(abs(v) for v in slope)) for value in slope]
        rows.append(scaled.new_tensor(unit))
    truth = gradient((scaled * torch.stack(rows)).sum(1), leaf)
    g = single(lambda out: ProbabilityMargin()(out, y, None))
    assert (g.sign() == truth.sign()).double().mean() > 0.999
    assert cosines(g.double(), truth).min() > 1 - 1e-6
    dead = single(naive).double()
    assert (cosines(dead, truth).nan_to_num() < 0.99).any(), "the naive form was to fail here"
    ce = single(lambda out: CrossEntropy()(out, y, None)).double()
    assert cosines(ce, truth).max() < 1 - 1e-6
