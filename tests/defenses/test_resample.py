"""OSP after the fact, on members with a known optimal randomized strategy."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from advens.classifier import Classifier
from advens.defenses.ensembles import Ensemble, RandomizedEnsemble
from advens.defenses.resample import resampled
from advens.errors import InputError

EPS = 0.1


def half_plane(sign: float, margin: float) -> Classifier:
    """Class 0 where ``sign`` times the red channel's mean exceeds its value at grey by less than a margin."""
    net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
    with torch.no_grad():
        net[2].weight.copy_(torch.tensor([[sign, 0, 0], [-sign, 0, 0]]))
        net[2].bias.copy_(torch.tensor([margin - 0.5 * sign, 0.5 * sign - margin]))
    return Classifier(net, name=f"toys:plane{sign}", num_classes=2)


def grey(n: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.full((n, 3, 4, 4), 0.5), torch.zeros(n, dtype=torch.int64)


@pytest.mark.parametrize("start", [[0.9, 0.1], [0.2, 0.8], None])
def test_either_member_can_be_fooled_but_not_both(start: list[float] | None) -> None:
    """Brighter fools one, darker the other: each alone has risk 1, and equal probabilities have a half."""
    members = [half_plane(1, 0.05), half_plane(-1, 0.05)]
    ensemble: Any = Ensemble(members) if start is None else RandomizedEnsemble(members, start)
    found, said = resampled(ensemble, *grey(), eps=EPS)
    assert found.probabilities.tolist() == pytest.approx([0.5, 0.5], abs=1e-3)
    assert said["after"] == pytest.approx(0.5, abs=1e-3)
    assert said["before"] == pytest.approx(max(start or [0.5]), abs=1e-3)
    assert said["start"] == (start or [0.5, 0.5])
    assert said["images"] == 3


def test_a_member_that_cannot_be_fooled_is_drawn_always() -> None:
    found, said = resampled(Ensemble([half_plane(1, 0.05), half_plane(-1, 0.15)]), *grey(), eps=EPS)
    assert found.probabilities.tolist() == pytest.approx([0, 1], abs=1e-3)
    assert (said["before"], said["after"]) == pytest.approx((0.5, 0))


def test_risk_is_measured_on_the_images_between() -> None:
    """The first of every two images can be broken and chooses; the second cannot and measures."""
    x, y = grey()
    x[1::2, 0] = 0.0
    members = [half_plane(-1, 0.05), half_plane(-1, 0.05)]
    _, said = resampled(Ensemble(members), x, y, eps=EPS)
    assert (said["before"], said["after"]) == (0, 0)


def test_what_has_no_members() -> None:
    with pytest.raises(InputError, match="no members"):
        resampled(half_plane(1, 0.05), *grey(), eps=EPS)
    with pytest.raises(InputError, match="two images"):
        resampled(Ensemble([half_plane(1, 0.05)] * 2), *grey(1), eps=EPS)


def test_every_other_image_chooses() -> None:
    """Of three images only the third can be broken, in the first member: it counts; the second does not."""
    x, y = grey(3)
    x[0, 0] = x[1, 0] = 1.0
    sturdy, weak = half_plane(1, 0.15), half_plane(1, 0.05)
    found, said = resampled(Ensemble([weak, sturdy]), x, y, eps=EPS)
    assert found.probabilities.tolist() == pytest.approx([0, 1], abs=1e-3)
    assert said["images"] == 1
