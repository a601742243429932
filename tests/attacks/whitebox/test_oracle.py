"""What the oracle of white-box attacks answers, counts and records, on models that are computed by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from advens.attacks.whitebox.oracle import RowOracle
from advens.errors import InputError, RunError
from advens.seeding import RowDraws, derive
from advens.threat import Threat

BALL = Threat("linf", 0.1)
N, SHAPE = 3, (3, 2, 2)


class Linear(nn.Module):
    """Logits ``(w . x - b, 0)`` of the mean over pixels."""

    def __init__(self, w: float, b: float) -> None:
        super().__init__()
        self.w, self.b = w, b

    def forward(self, x: Tensor) -> Tensor:
        score = self.w * x.flatten(1).mean(1) - self.b
        return torch.stack([score, torch.zeros_like(score)], 1)


class Noisy(Linear):
    """The same, with noise of torch's own generator."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + torch.rand(2, dtype=x.dtype)


def images(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).view(-1, 1, 1, 1).expand(-1, *SHAPE).clone()


def oracle(models: Sequence[nn.Module], *values: float, threat: Threat = BALL, **options: Any) -> RowOracle:
    x = images(*values)
    return RowOracle(models, threat, x, torch.zeros(len(x), dtype=torch.long), **options)


def randomized() -> nn.Module:
    """Of three members two say class 0 above 0.5, and one above 0.45."""
    made = nn.Module()
    made.members = nn.ModuleList([Linear(1, 0.5), Linear(2, 1.0), Linear(4, 1.8)])
    made.probabilities = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    return made


def label(logits: Tensor) -> Tensor:
    """The loss of these tests: minus the logit of class 0."""
    return -logits[:, 0]


def test_answers_and_counts() -> None:
    """Several models are the mean of their logits; a pass of each counts; several losses share one."""
    at = oracle([Linear(1, 0.5), Linear(3, 0.5)], 0.6, 0.7, 0.8)
    rows = at.rows(torch.tensor([2, 0]))
    assert rows.place.tolist() == [2, 0]
    assert torch.equal(rows.x, images(0.8, 0.6))
    first, second = at.gradients(images(0.8, 0.6), rows, [label, lambda z: 2 * z[:, 0]])
    score = [2 * 0.8 - 0.5, 2 * 0.6 - 0.5]
    assert first.logits[:, 0].tolist() == pytest.approx(score)
    assert first.loss.tolist() == pytest.approx([-s for s in score])
    assert torch.allclose(first.gradient, torch.full_like(first.gradient, -2 / 12))
    assert torch.allclose(second.gradient, torch.full_like(second.gradient, 4 / 12))
    assert not any(t.requires_grad for t in (*first, *second))
    assert (at.forwards.tolist(), at.backwards.tolist()) == ([2, 0, 2], [4, 0, 4])
    at.logits(images(0.8, 0.6), rows)
    at.accuracy(images(0.8, 0.6), rows)
    assert (at.forwards.tolist(), at.backwards.tolist()) == ([6, 0, 6], [4, 0, 4])
    (own,) = at.member_gradients(images(0.8, 0.6), rows, 1, [label])
    assert torch.allclose(own.gradient, torch.full_like(own.gradient, -3 / 12))
    assert own.logits[:, 0].tolist() == pytest.approx([1.9, 1.3])
    assert (at.forwards.tolist(), at.backwards.tolist()) == ([7, 0, 7], [5, 0, 5])
    assert (at.k, at.classes) == (2, 2)


def test_a_point_of_one_member_is_not_recorded() -> None:
    at = oracle([Linear(1, 0.5), Linear(3, 0.5)], 0.55)
    at.member_gradients(images(0.46), at.rows(torch.arange(1)), 0, [label])
    assert at.correct.tolist() == [1]
    at.gradient(images(0.46), at.rows(torch.arange(1)), label)
    assert at.correct.tolist() == [1], "the mean of logits is right there"


@pytest.mark.parametrize("asked", ["gradient", "logits", "accuracy"])
def test_the_lowest_accuracy_is_recorded_with_its_place_and_time(asked: str) -> None:
    """Of a randomized ensemble the expected one; a point as good as the best is not better."""
    at = oracle([randomized()], 0.52, 0.52, 0.52)
    for t, (a, b) in enumerate([(0.51, 0.47), (0.48, 0.48), (0.44, 0.46), (0.43, 0.49)]):
        rows = at.rows(torch.tensor([2, 0]))
        rows.t = torch.full_like(rows.t, t)
        if asked == "gradient":
            at.gradient(images(a, b), rows, label)
        elif asked == "logits":
            at.logits(images(a, b), rows)
        else:
            found = at.accuracy(images(a, b), rows).tolist()
            assert found == pytest.approx([[1, 0.5], [0.5, 0.5], [0, 0.5], [0, 0.5]][t])
    assert at.correct.tolist() == pytest.approx([0.5, 1, 0])
    assert torch.allclose(at.x_adv, images(0.47, 0.52, 0.44))
    assert at.broken_at.tolist() == [0, -1, 2]
    assert at.begin(torch.arange(3)).tolist() == [0, 1], "of the third nothing is left"


def test_expected_logits_are_the_logarithm_of_expected_probabilities() -> None:
    at = oracle([randomized()], 0.52)
    found = at.logits(images(0.5), at.rows(torch.arange(1)))
    shares = [1 / (1 + math.exp(-s)) for s in (0.0, 0.0, 0.2)]
    p = 0.2 * shares[0] + 0.3 * shares[1] + 0.5 * shares[2]
    torch.testing.assert_close(found.exp(), torch.tensor([[p, 1 - p]], dtype=torch.float64))
    assert at.forwards.tolist() == [3]


@pytest.mark.parametrize(
    ("value", "eps", "counts"),
    [
        (0.5 - 0.1 * (1 + 5e-6), 0.1, True), (0.5 - 0.1 * (1 + 2e-5), 0.1, False), (0.3, 0.1, False),
        (-5e-6, 0.6, True), (-2e-5, 0.6, False), (0.2, 0.6, True),
    ],
)  # fmt: skip
def test_a_point_outside_does_not_count(value: float, eps: float, counts: bool) -> None:
    """Rounding may carry a float image out by a little; what is kept is projected."""
    at = oracle([Linear(1, 0.45)], 0.5, threat=Threat("linf", eps))
    at.logits(images(value), at.rows(torch.arange(1)))
    assert at.correct.tolist() == [0 if counts else 1]
    low = max(0.5 - eps, 0)
    assert float(at.x_adv.min()) >= low
    if counts:
        assert float(at.x_adv.max()) == pytest.approx(max(value, low))
    radius = 0.1 * math.sqrt(12)
    for factor, inside in ((1 + 5e-6, True), (1 + 2e-5, False)):
        at = oracle([Linear(1, 0.45)], 0.5, threat=Threat("l2", radius))
        at.logits(images(0.5 - 0.1 * factor), at.rows(torch.arange(1)))
        assert at.correct.tolist() == [0 if inside else 1]


def test_rounding_to_eight_bits_decides() -> None:
    """A point that is right again once it is rounded does not count; looking again is paid for."""
    x = 128 / 255
    edge = (126.4 / 255, 126.6 / 255, 126.9 / 255)
    for b, counts in zip(edge, (True, False, False), strict=True):  # wrong below b
        at = oracle([Linear(1, b)], x, eight_bit=True)
        point = b - 0.05 / 255
        at.logits(images(point), at.rows(torch.arange(1)))
        assert at.correct.tolist() == [0 if counts else 1]
        assert at.forwards.tolist() == [2]
        assert float(at.x_adv[0, 0, 0, 0]) * 255 == pytest.approx(126 if counts else 128)
    at = oracle([Linear(1, 0.4)], x, eight_bit=True)
    at.logits(images(x), at.rows(torch.arange(1)))
    assert at.forwards.tolist() == [1], "nothing was better"


def test_targets() -> None:
    """A sample stands until the model says the target."""
    at = oracle([Linear(1, 0.5)], 0.55, 0.55, target=torch.tensor([1, 1]))
    assert at.correct.tolist() == [1, 1]
    at.logits(images(0.47, 0.53), at.rows(torch.arange(2)))
    assert at.correct.tolist() == [0, 1]
    assert at.rows(torch.tensor([1])).target.tolist() == [1]  # type: ignore[union-attr]


def test_an_answer_over_several_draws() -> None:
    """Each draw's stream is named by the seed and its number; global randomness stays; means count."""
    at = oracle([Noisy(1, 0.5)], 0.55, eot=3, seed=7)
    rows = at.rows(torch.arange(1))
    torch.manual_seed(1)
    before = torch.get_rng_state()
    answer = at.gradient(images(0.5), rows, label)
    noises = []
    for asked in range(1, 7):
        generator = torch.Generator().manual_seed(derive(7, "eot", asked))
        noises.append(torch.rand(2, dtype=torch.float64, generator=generator))
    torch.testing.assert_close(answer.logits[0], sum(noises[:3]) / 3)  # type: ignore[arg-type]
    assert float(answer.loss) == pytest.approx(-float(answer.logits[0, 0]))
    assert torch.allclose(answer.gradient, torch.full_like(answer.gradient, -1 / 12))
    assert (at.forwards.tolist(), at.backwards.tolist()) == ([3], [3])
    torch.testing.assert_close(at.logits(images(0.5), rows)[0], sum(noises[3:]) / 3)  # type: ignore[arg-type]
    assert (at.forwards.tolist(), at.backwards.tolist()) == ([6], [3])
    assert torch.equal(torch.get_rng_state(), before)


def test_several_draws_break_a_sample_together() -> None:
    """By the mean of their logits; one of them alone may say something else."""
    outcomes = set()
    for seed in range(20):
        at = oracle([Noisy(1, 0.5)], 0.55, eot=3, seed=seed)
        at.logits(images(0.5), at.rows(torch.arange(1)))
        noises = [
            torch.rand(2, generator=torch.Generator().manual_seed(name), dtype=torch.float64)
            for name in (derive(seed, "eot", asked) for asked in (1, 2, 3))
        ]
        mean = sum(noises) / 3  # type: ignore[arg-type]
        assert at.correct.tolist() == [float(mean[0] >= mean[1])]
        outcomes.add((bool(mean[0] >= mean[1]), sum(bool(noise[0] >= noise[1]) for noise in noises)))
    assert {right for right, _ in outcomes} == {True, False}
    assert {(True, 2), (False, 1)} & outcomes


def test_random_numbers_are_named_by_place_time_and_purpose() -> None:
    at = oracle([Linear(1, 0.5)], 0.05, 0.5, 0.97, seed=5, first=10)
    rows = at.rows(torch.tensor([2, 0]))
    rows.t = torch.tensor([4, 1])
    place, t = torch.tensor([12, 10]), torch.tensor([4, 1])
    draws = RowDraws(5)
    assert torch.equal(at.numbers(rows, (2,), "a", 1), draws.uniform(place, t, (2,), "a", 1))
    assert torch.equal(at.normals(rows, (2,), "a"), draws.normal(place, t, (2,), "a"))
    noise = 0.1 * (2 * draws.uniform(place, t, SHAPE, "start", "x") - 1)
    wanted = (images(0.97, 0.05) + noise).clamp(0, 1)
    torch.testing.assert_close(at.random_start(rows, "x"), wanted, rtol=0, atol=1e-12)
    sphere = 2 * draws.uniform(place, t, SHAPE, "p") - 1
    length = sphere.flatten(1).abs().amax(1).view(-1, 1, 1, 1)
    torch.testing.assert_close(at.on_sphere(rows, 0.3, "p"), 0.3 * sphere / length)
    at.threat = Threat("l2", 0.2)
    direction = draws.normal(place, t, SHAPE, "start", "x")
    direction = direction / direction.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    radius = 0.2 * draws.uniform(place, t, (1, 1, 1), "radius", "x") ** (1 / 12)
    wanted = (images(0.97, 0.05) + radius * direction).clamp(0, 1)
    torch.testing.assert_close(at.random_start(rows, "x"), wanted, rtol=0, atol=1e-12)
    sphere = draws.normal(place, t, SHAPE, "p")
    length = sphere.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    torch.testing.assert_close(at.on_sphere(rows, 0.3, "p"), 0.3 * sphere / length)


class Broken(Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 0 * (x.flatten(1)[:, :1] - x.flatten(1)[:, :1]).sqrt()


def test_gradients_that_are_not_finite() -> None:
    at = oracle([Broken(1, 0.5)], 0.6)
    at.check()
    at.gradient(images(0.6), at.rows(torch.arange(1)), label)
    with pytest.raises(RunError, match=r"^the model's gradient is not finite: NaN or infinite$"):
        at.check()


def test_what_a_model_refuses_is_told() -> None:
    at = RowOracle([nn.Conv2d(3, 4, 2)], BALL, torch.zeros(1, 1, 2, 2), torch.zeros(1, dtype=torch.long))
    with pytest.raises(InputError, match=r"^the model refuses images \(1, 1, 2, 2\): "):
        at.logits(torch.zeros(1, 1, 2, 2), at.rows(torch.arange(1)))
