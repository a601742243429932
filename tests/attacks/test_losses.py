"""Losses against the formulas, written with Python floats; gradients where logits saturate."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from advens.attacks.losses import DLR, CrossEntropy, Margin, TargetLogit
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


PAIRS = [(CrossEntropy(), ce), (Margin(), margin), (DLR(), dlr), (TargetLogit(), logit)]
losses = pytest.mark.parametrize(("loss", "formula"), PAIRS, ids=["ce", "margin", "dlr", "logit"])
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


def test_dlr_needs_enough_classes() -> None:
    two, three = torch.zeros(1, 2), torch.zeros(1, 3)
    y, t = torch.tensor([0]), torch.tensor([1])
    with pytest.raises(InputError, match="needs 3 classes; these models have 2"):
        DLR()(two, y, None)
    assert DLR()(three, y, None).shape == (1,)
    with pytest.raises(InputError, match="needs 4 classes; these models have 3"):
        DLR()(three, y, t)
