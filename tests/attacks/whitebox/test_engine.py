"""What the engine and sequences give back of samples that are broken for some members only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from advens.attacks import create_attack
from advens.attacks.interfaces import Passes
from advens.attacks.whitebox.cascade import Cascade
from advens.attacks.whitebox.engine import WhiteBox, search
from advens.attacks.whitebox.oracle import RowOracle
from advens.attacks.whitebox.rows import Rows
from advens.defenses.ensembles import RandomizedEnsemble
from advens.errors import InputError, RunError
from advens.threat import Threat

BALL = Threat("linf", 0.5)


class Odd(nn.Module):
    """Answers with whatever a function makes of the images."""

    def __init__(self, answer: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x: Tensor) -> object:
        return self.answer(x)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda x: x, r"must return logits \(N, classes\); it returned \(2, 3, 4, 4\)"),
        (lambda x: x.flatten(1)[:1], r"must return logits .* returned \(1, 48\)"),
        (lambda x: (x, x), "must return logits .* returned tuple"),
        (lambda x: x.flatten(1)[:, :5], "label 5 is out of range; the model has 5 classes"),
        (lambda x: x.flatten(1)[:, :6] / 0, "NaN or infinite"),
    ],
)
def test_answers_that_are_no_logits(answer: Callable[[Tensor], object], message: str) -> None:
    x = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    with pytest.raises(InputError, match=message):
        create_attack("pma", steps=2)(Odd(answer), x, torch.tensor([0, 5]))
    create_attack("pma", steps=2)(Odd(lambda x: x.flatten(1)[:, :6]), x, torch.tensor([0, 5]))


class Below(nn.Module):
    """Says class 0 of an image whose first pixel is below an edge, else class 1."""

    def __init__(self, edge: float) -> None:
        super().__init__()
        self.edge = edge

    def forward(self, x: Tensor) -> Tensor:
        over = x[:, 0, 0, :1] - self.edge
        return torch.cat([-over, over], 1)


@dataclass(frozen=True)
class Walk(WhiteBox):
    """Looks at grey images of given values, one an iteration; the last word is the last of them."""

    values: tuple[float, ...]
    threat: Threat = BALL

    @property
    def iterations(self) -> int:
        return len(self.values)

    def passes(self, surrogates: int) -> Passes:
        return Passes(surrogates * len(self.values), 0)

    def begin(self, oracle: RowOracle, rows: Rows) -> None:
        rows.memory = {"x": rows.x.clone()}

    def advance(self, oracle: RowOracle, rows: Rows) -> None:
        values = torch.tensor(self.values, dtype=rows.x.dtype)[rows.t]
        rows.memory["x"] = values.view(-1, 1, 1, 1).expand_as(rows.x).clone()
        oracle.logits(rows.memory["x"], rows)

    def last(self, rows: Rows) -> Tensor:
        return rows.memory["x"]


@pytest.fixture
def ensemble() -> RandomizedEnsemble:
    """A member that errs from 0.6 on, drawn with 1/4; one from 0.7, with 1/4; one from 0.95, with 1/2."""
    return RandomizedEnsemble([Below(0.6), Below(0.7), Below(0.95)], [0.25, 0.25, 0.5], num_classes=2)


IMAGES, LABELS = torch.full((2, 3, 2, 2), 0.5, dtype=torch.float64), torch.zeros(2, dtype=torch.long)


@pytest.mark.parametrize(
    ("values", "kept", "accuracy"),
    [
        ((0.8, 0.65, 0.55), 0.8, 0.5),  # the best partial break comes first
        ((0.65, 0.8, 0.65), 0.8, 0.5),
        ((0.65, 0.75, 0.8), 0.75, 0.5),  # of equal ones the first
        ((0.55, 0.58), 0.58, 1.0),  # nothing is broken: the attack's last word
    ],
)
def test_the_best_partial_break_is_kept(
    values: tuple[float, ...], kept: float, accuracy: float, ensemble: RandomizedEnsemble
) -> None:
    oracle = RowOracle([ensemble], BALL, IMAGES, LABELS)
    search(Walk(values), oracle, oracle.begin(torch.arange(2)), batch=2)
    assert oracle.correct.tolist() == [accuracy] * 2
    assert torch.equal(oracle.x_adv, torch.full_like(IMAGES, kept))


@pytest.mark.parametrize(
    ("stages", "kept"),
    [
        (((0.8,), (0.65,)), 0.8),  # the second breaks fewer members
        (((0.65,), (0.8,)), 0.8),
        (((0.65,), (0.8,), (0.55,)), 0.8),
        (((0.96,), (0.98,)), 0.96),  # what is broken stays as it is
        (((0.55,), (0.58,)), 0.58),  # nothing is broken: the last attack's last word
    ],
)
def test_a_sequence_keeps_the_best_partial_break(
    stages: tuple[tuple[float, ...], ...], kept: float, ensemble: RandomizedEnsemble,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    walks = [Walk(values) for values in stages]
    monkeypatch.setattr(Cascade, "stages", lambda self: walks)
    found = Cascade(threat=BALL)(ensemble, IMAGES, LABELS)
    assert torch.equal(found, torch.full_like(IMAGES, kept))


def test_targets_are_checked() -> None:
    x, y = torch.full((2, 3, 2, 2), 0.9), torch.zeros(2, dtype=torch.long)
    attack = create_attack("pgd-ce", steps=2)
    with pytest.raises(InputError, match="target 2 is out of range; the model has 2 classes"):
        attack(Below(0.5), x, y, y + 2)


def test_an_oracle_that_was_not_asked() -> None:
    x, y = torch.full((2, 3, 2, 2), 0.9), torch.zeros(2, dtype=torch.long)
    oracle = RowOracle([Below(0.5)], BALL, x, y)
    assert oracle.broken_at.tolist() == [-1, -1]
    assert oracle.correct.tolist() == [1, 1]
    assert torch.equal(oracle.x_adv, x)
    assert oracle.forwards.tolist() == oracle.backwards.tolist() == [0, 0]


@dataclass(frozen=True)
class Greedy(Walk):
    """Runs out of memory on more images than a machine holds, after they were paid for."""

    held: int = 2

    def advance(self, oracle: RowOracle, rows: Rows) -> None:
        super().advance(oracle, rows)
        if len(rows.x) > self.held:
            raise MemoryError


def test_a_batch_that_does_not_fit_is_halved_and_paid_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples start again in batches of half, rounded up, and what they had spent is taken back."""
    monkeypatch.setattr("gc.collect", lambda: None)  # takes a second
    x, y = torch.full((7, 3, 2, 2), 0.5), torch.zeros(7, dtype=torch.long)
    found = []
    for attack in (Walk((0.55, 0.75, 0.9)), Greedy((0.55, 0.75, 0.9))):
        oracle = RowOracle([Below(0.7)], BALL, x, y)
        search(attack, oracle, torch.arange(7), batch=7, stop=False)
        assert oracle.forwards.tolist() == [3] * 7
        assert oracle.broken_at.tolist() == [1] * 7
        found.append(oracle.x_adv)
    assert torch.equal(*found)
    assert torch.equal(found[0], torch.full_like(x, 0.75))
    with pytest.raises(RunError, match=r"^out of memory with a single image$"):
        search(Greedy((0.9,), held=0), RowOracle([Below(0.7)], BALL, x, y), torch.arange(7), batch=4)


def test_only_what_was_spent_on_them_is_taken_back() -> None:
    oracle = RowOracle([Below(0.7)], BALL, torch.full((3, 3, 2, 2), 0.5), torch.zeros(3, dtype=torch.long))
    oracle.gradient(oracle.x, oracle.rows(torch.arange(3)), lambda z: z[:, 0])
    assert (oracle.forwards.tolist(), oracle.backwards.tolist()) == ([1, 1, 1], [1, 1, 1])
    before = oracle.forwards.clone(), oracle.backwards.clone()
    oracle.gradient(oracle.x, oracle.rows(torch.arange(3)), lambda z: z[:, 0])
    oracle.forget(torch.tensor([0, 2]), *before)
    assert (oracle.forwards.tolist(), oracle.backwards.tolist()) == ([1, 2, 1], [1, 2, 1])
