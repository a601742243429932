"""Attacks on randomized ensembles through their members."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from advens.attacks import create_attack
from advens.attacks.whitebox.engine import search
from advens.attacks.whitebox.members import MemberAware, groups
from advens.attacks.whitebox.oracle import RowOracle
from advens.defenses.ensembles import RandomizedEnsemble
from advens.threat import Threat

BALL = Threat("linf", 0.3)
MEMBERS = 3


class Margin(nn.Module):
    """Two classes: the first leads by ``margin + slope (mean - 1/2)``."""

    def __init__(self, margin: float, slope: float) -> None:
        super().__init__()
        self.margin, self.slope = margin, slope

    def forward(self, x: Tensor) -> Tensor:
        lead = self.margin + self.slope * (x.mean((1, 2, 3)) - 0.5)
        return torch.stack([lead, torch.zeros_like(lead)], 1)


def grey(n: int = 2) -> tuple[Tensor, Tensor]:
    return torch.full((n, 3, 4, 4), 0.5), torch.zeros(n, dtype=torch.int64)


def left(attack: Any, model: Any) -> list[float]:
    """The expected accuracy that an attack leaves to every image."""
    x, y = grey()
    oracle = RowOracle([model], attack.threat, x, y, seed=1)
    search(attack, oracle, oracle.begin(torch.arange(len(x))), batch=2)
    return list(oracle.correct.tolist())


def test_a_weak_member_behind_a_steep_one() -> None:
    """Darker costs the steep member most, yet breaks nobody; brighter breaks the flat one."""
    steep, flat = Margin(1.2, 3.0), Margin(0.02, -0.2)
    both = RandomizedEnsemble([steep, flat], num_classes=2)
    alone: Any = create_attack("pgd-ce", eps=BALL.eps, norm="linf", steps=10)
    assert left(alone, both) == [1, 1]
    assert left(MemberAware(threat=BALL, attack=alone), both) == [0.5, 0.5]


def test_groups() -> None:
    assert groups([0, 1, 2], 2) == [[0], [1], [2], [0, 1], [0, 2], [1, 2]]
    assert groups([4, 7], 2) == [[4], [7]], "the pair is the whole"
    assert groups([5], 2) == []


@pytest.mark.parametrize("largest", [1, 2])
def test_passes(largest: int) -> None:
    """Every point is shown to all members; gradients are those of the members that are attacked."""
    models = [Margin(50 + k, 0.1) for k in range(MEMBERS)]
    calls = {"forward": 0}
    for model in models:
        model.register_forward_pre_hook(lambda *_: calls.__setitem__("forward", calls["forward"] + 1))
    attack: Any = create_attack("pma-members", eps=BALL.eps, norm="linf", largest=largest)
    inner = attack.attack.passes(1)
    x, y = grey(1)
    oracle = RowOracle([RandomizedEnsemble(models, num_classes=2)], BALL, x, y)
    search(attack, oracle, torch.arange(1), batch=1)
    views = [3, 1, 1, 1] + [2, 2, 2] * (largest == 2)
    wanted = (len(views) * MEMBERS * inner.forward, sum(views) * inner.backward)
    assert (int(oracle.forwards), int(oracle.backwards)) == wanted == tuple(attack.passes(MEMBERS))
    assert calls["forward"] == wanted[0]


def test_a_member_that_is_never_drawn_is_left_out() -> None:
    models = [Margin(50, 0.1), Margin(60, 0.1), Margin(70, 0.1)]
    ensemble = RandomizedEnsemble(models, [0.5, 0.5, 0.0], num_classes=2)
    attack: Any = create_attack("pma-members", eps=BALL.eps, norm="linf")
    oracle = RowOracle([ensemble], BALL, *grey())
    assert [view._seen for _, view in attack.rounds(oracle)] == [[0, 1], [0], [1]]


def test_groups_answer_by_their_own_probabilities() -> None:
    """Members 0 and 2 with 1/2 and 1/6 are drawn as 3/4 and 1/4 once 1 is out of the picture."""
    models = [Margin(0.3, 1), Margin(-2, 0), Margin(1.5, -2)]
    ensemble = RandomizedEnsemble(models, [1 / 2, 1 / 3, 1 / 6], num_classes=2)
    x, y = grey()
    oracle = RowOracle([ensemble], BALL, x, y)
    rows = oracle.rows(torch.arange(2))
    answer = oracle.seen_through([0, 2], 1).gradient(x + 0.1, rows, lambda z: z[:, 0])
    leaf = (x + 0.1).requires_grad_()
    p = 3 / 4 * models[0](leaf).softmax(1) + 1 / 4 * models[2](leaf).softmax(1)
    (g,) = torch.autograd.grad(p[:, 0].log().sum(), leaf)
    assert torch.allclose(answer.gradient, g, rtol=1e-5, atol=1e-9)
    assert oracle.correct.tolist() == pytest.approx([1 / 2 + 1 / 6] * 2), "all three say what is right"


def test_a_model_without_members_meets_it_twice() -> None:
    """The first time exactly as without this attack, the second from another start."""
    model, (x, y) = Margin(50, 1.0), grey()
    attack: Any = create_attack("pma-members", eps=BALL.eps, norm="linf")
    oracle = RowOracle([model], BALL, x, y)
    (inner, first), (_, second) = attack.rounds(oracle)
    assert attack.passes(1) == (2 * inner.passes(1).forward, 2 * inner.passes(1).backward)
    rows = oracle.rows(torch.arange(2))
    assert torch.equal(first.random_start(rows), oracle.random_start(rows))
    assert not torch.equal(second.random_start(rows), oracle.random_start(rows))
    assert left(attack, Margin(0.02, 1.0)) == [0, 0]
