"""The sanity report passes models whose gradients can be trusted, and fails those that mask them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from math import comb

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import advens
from advens.attacks.whitebox import sanity
from advens.attacks.whitebox.sanity import Limits, radii, sanity_report, sign_test, trivial_radius
from advens.datasets.digits import digits_arrays
from advens.defenses.ensembles import RandomizedEnsemble
from advens.threat import Threat

THREAT, LIMITS = Threat("linf", 0.15), Limits(images=20)


def images(part: str) -> tuple[Tensor, Tensor]:
    pixels, labels, _ = digits_arrays(part)
    return torch.tensor(pixels).float() / 255, torch.tensor(labels)


class Centroid(nn.Module):
    """Nearest class means of the grey levels, with something before and after."""

    def __init__(
        self, before: Callable[[Tensor], Tensor] | None = None,
        after: Callable[[Tensor], Tensor] | None = None, seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        x, y = images("train")
        grey = self.grey(x)
        means = torch.stack([grey[y == c].mean(0) for c in range(10)])
        means = means + 0.05 * torch.randn(means.shape, generator=torch.Generator().manual_seed(seed))
        self.register_buffer("weight", 6 * means)
        self.register_buffer("bias", -3 * means.square().sum(1))
        self.before, self.after = before, after

    @staticmethod
    def grey(x: Tensor) -> Tensor:
        return F.avg_pool2d(x.mean(1, keepdim=True), 4).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.before is None else self.before(x)
        out = F.linear(self.grey(x), self.weight, self.bias)
        return out if self.after is None else self.after(out)


def median(x: Tensor) -> Tensor:
    """A median filter, as a denoising defense has it, through which no gradient flows."""
    patches = F.unfold(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3).view(len(x), 3, 9, -1)
    return patches.median(2).values.view_as(x).detach()


def quantised(x: Tensor) -> Tensor:
    return (x * 8).round() / 8


def noisy(x: Tensor) -> Tensor:
    return x + 0.2 * torch.randn_like(x)


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    x, y = images("test")
    return x[:60], y[:60]


MASKED = {
    "quantised input": (
        {"before": quantised},
        {"gradients", "loss rises", "zero at the trivial radius", "black-box below white-box",
         "gradient-free beside gradient-based"},
    ),
    "saturated": ({"after": lambda z: z * 1e6}, {"gradients", "loss rises"}),
    "noise": ({"before": noisy}, {"repeatable outputs"}),
    "median": (
        {"before": median},
        {"gradients", "loss rises", "zero at the trivial radius", "black-box below white-box",
         "gradient-free beside gradient-based"},
    ),
    "probabilities": ({"after": partial(torch.softmax, dim=1)}, {"logits"}),
}  # fmt: skip


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_sound_models_pass(norm: str, digits: tuple[Tensor, Tensor]) -> None:
    eps = {"linf": 0.1, "l2": 1.0}[norm]
    report = sanity_report(Centroid(), *digits, Threat(norm, eps), limits=LIMITS)
    assert report.passed, report
    assert report.images == 20
    assert {curve.over: curve.at[-1] for curve in report.curves} == {
        "eps": trivial_radius(norm, 3 * 32 * 32), "steps": 100, "restarts": 4,
    }  # fmt: skip
    for curve in report.curves:
        assert list(curve.at) == sorted(curve.at)
        assert all(b <= a + 0.05 for a, b in zip(curve.accuracy, curve.accuracy[1:], strict=False))
    assert report.curves[0].accuracy[0] > 0.8
    assert report.curves[0].accuracy[-1] == 0


@pytest.mark.parametrize("mask", MASKED)
def test_masked_gradients_fail(mask: str, digits: tuple[Tensor, Tensor]) -> None:
    options, wanted = MASKED[mask]
    report = sanity_report(Centroid(**options), *digits, THREAT, limits=LIMITS)  # type: ignore[arg-type]
    assert {check.name for check in report.checks if not check.passed} >= wanted, report
    assert not report.passed
    assert f"FAILED  {sorted(wanted)[0]}" in str(report)


def test_log_softmax_is_a_warning(digits: tuple[Tensor, Tensor]) -> None:
    report = advens.sanity_report(
        Centroid(after=partial(torch.log_softmax, dim=1)), *digits, THREAT, limits=LIMITS
    )
    (said,) = [check for check in report.checks if check.name == "logits"]
    assert report.passed
    assert said.detail.startswith("warning: the outputs look like log-probabilities")


def test_transfer_is_compared(digits: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    """Images of an unmasked surrogate break what PGD on the masked model does not."""
    monkeypatch.setattr(sanity, "QUERIES", 1)
    masked = Centroid(before=quantised)
    report = sanity_report(masked, *digits, THREAT, surrogates=[Centroid(seed=1)], limits=LIMITS)
    (said,) = [check for check in report.checks if check.name == "black-box below white-box"]
    assert not said.passed
    assert "transfer" in said.detail


def test_randomized_ensembles_and_averaged_passes(
    digits: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sanity, "QUERIES", 20)
    drawn = RandomizedEnsemble([Centroid(seed=1), Centroid(seed=2)], [0.25, 0.75], num_classes=10)
    assert sanity_report(drawn, *digits, THREAT, limits=LIMITS).passed
    report = sanity_report(Centroid(before=noisy), *digits, THREAT, eot=2, limits=Limits(images=4))
    assert {c.name: c.passed for c in report.checks}["repeatable outputs"]


def test_the_model_comes_back_and_chance_is_named(
    digits: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sanity, "QUERIES", 20)
    model = nn.Sequential(Centroid(), nn.Dropout(0.5)).train()
    state = torch.get_rng_state()
    one, other = (sanity_report(model, *digits, THREAT, limits=Limits(images=6)) for _ in range(2))
    assert one == other
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("up", "down"), [(7, 0), (6, 0), (9, 2), (0, 0), (3, 8)])
def test_sign_test(up: int, down: int) -> None:
    n = up + down
    assert sign_test(up, down) == pytest.approx(sum(comb(n, k) for k in range(up, n + 1)) / 2**n)


def test_what_fails_beside_what_chance_explains() -> None:
    """Seven of 64 images in one direction fail; six do not, and neither do seven that others outweigh."""
    high = torch.ones(64, dtype=torch.float64)
    for fell, rose, fails in ((7, 0, True), (6, 0, False), (9, 5, False), (15, 3, True)):
        low = high.clone()
        low[:fell] = 0
        both = high.clone()
        both[fell : fell + rose] = 0
        passed, net = sanity._compare(both, low, Limits(), 1)
        assert passed is not fails
        assert net == fell - rose


def test_radii() -> None:
    assert radii(Threat("linf", 0.2), 3072) == pytest.approx([0.1, 0.2, 0.2 * 5**0.5, 1.0])
    many = radii(Threat("linf", "8/255"), 3072)
    assert many[1] == 8 / 255
    assert many[-1] == 1.0
    assert all(b >= 1.9 * a for a, b in pairwise(many))
    assert len(radii(Threat("l2", 0.5), 150528)) == 7
    assert radii(Threat("linf", 1.0), 3072) == [0.5, 1.0]
    assert trivial_radius("l1", 12) == 12


def test_an_adversarially_trained_network_passes(
    digits: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All embedded models pass the whole report; this is one of them, on few images."""
    monkeypatch.setattr(sanity, "QUERIES", 20)
    model = advens.load_model("digits:resnet-at")
    report = sanity_report(model, *digits, Threat("linf", 0.2), limits=Limits(images=8))
    assert report.passed, report
