"""Boosting: the loss of a member by its formulas, and when which probabilities are optimised."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from advens.defenses import create_defense
from advens.defenses.ensembles import Ensemble, RandomizedEnsemble
from advens.defenses.phases import Batch, Team
from tests.defenses.conftest import random_batch

C, SIDE, N, K = 4, 3, 5, 3
EPS, STEP, STEPS = 0.06, 0.025, 3


def member(seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        made = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE * SIDE, 7), nn.Tanh(), nn.Linear(7, C))
    return made.double()


def teams(*probabilities: float) -> Any:
    return Team([member(k) for k in range(K)], torch.tensor(probabilities, dtype=torch.float64))  # type: ignore[list-item]


@pytest.fixture
def batch() -> Batch:
    return random_batch(N, SIDE, C)


def penalised(p: Tensor, q: Tensor, y: int, margin: float) -> Tensor:
    """``-log p_y`` plus the margin times the mean of ``-log q_j`` over the wrong classes."""
    wrong = [j for j in range(C) if j != y]
    return -p[y].log() + margin * sum((-q[j].log() for j in wrong), torch.zeros(())) / len(wrong)


def wanted(team: Any, batch: Batch, m: int, shares: list[float] | None, margin: float) -> float:
    """Images that fool the mean of logits, or of probabilities by shares; then the newest member on them."""
    total = 0.0
    noise = batch.draws.uniform(batch.x, -EPS / 2, EPS / 2, "start")

    def loss(x: Tensor, i: int, alone: bool) -> Tensor:
        z = [f(x[None])[0] for f in team.members[: m + 1]]
        out = z[m] if alone else sum(z) / (m + 1)  # type: ignore[arg-type]
        if shares is not None and not alone:
            out = sum(a * torch.softmax(each, 0) for a, each in zip(shares, z, strict=True)).log()  # type: ignore[union-attr]
        return penalised(torch.softmax(out, 0), torch.softmax(-out, 0), int(batch.y[i]), margin)

    for i in range(N):
        x = batch.x[i]
        at = (x + noise[i]).clamp(0, 1)
        for _ in range(STEPS):
            leaf = at.clone().requires_grad_()
            (g,) = torch.autograd.grad(loss(leaf, i, False), leaf)
            at = torch.minimum(torch.maximum(at + STEP * g.sign(), x - EPS), x + EPS).clamp(0, 1)
        total += float(loss(at, i, True).detach()) / N
    return total


@pytest.mark.parametrize("margin", [0.0, 1.0, 0.3])
@pytest.mark.parametrize("m", [0, 1, 2])
def test_the_loss_of_a_member(m: int, margin: float, batch: Batch) -> None:
    options = {"members": K, "eps": EPS, "step_size": STEP, "steps": STEPS, "margin": margin}
    team = teams(0.5, 0.3, 0.2)
    boost = create_defense("mrboost", **options)
    found = float(boost.loss(team, batch, m=m).detach())
    assert found == pytest.approx(wanted(team, batch, m, None, margin), rel=1e-9)
    shares = {0: (1.0, 0.0, 0.0), 1: (0.75, 0.25, 0.0), 2: (0.5, 0.2, 0.3)}[m]
    team = teams(*shares)
    barre = create_defense("barre", **options)
    found = float(barre.loss(team, batch, m=m).detach())
    assert found == pytest.approx(wanted(team, batch, m, list(shares[: m + 1]), margin), rel=1e-9)


def test_a_member_that_is_never_drawn_is_not_run(batch: Batch) -> None:
    team = teams(0.4, 0.0, 0.6)
    z = create_defense("barre", members=K).mixed(team, batch.x, 2)
    p = [torch.softmax(team.members[k](batch.x), 1) for k in (0, 2)]
    torch.testing.assert_close(z.exp(), 0.4 * p[0] + 0.6 * p[1])
    team.members[1] = None
    torch.testing.assert_close(create_defense("barre", members=K).mixed(team, batch.x, 2), z)


def test_phases_are_named_by_their_member() -> None:
    phases = create_defense("mrboost", members=2).phases()
    assert [(phase.name, list(phase.learners)) for phase in phases] == [("member 0", [0]), ("member 1", [1])]


class Found:
    """Stands for OSP and ARC; remembers what they were asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.searched: list[dict[str, Any]] = []
        self.attacked: list[Any] = []
        monkeypatch.setattr("advens.defenses.boosting.optimal_sampling", self.search)
        monkeypatch.setattr("advens.defenses.boosting.arc_error_rates", self.rates)

    def rates(self, *given: Any, **options: Any) -> Tensor:
        members, a, *images = given
        self.attacked.append((members, a.tolist(), images, options))
        return torch.zeros(len(a))

    def search(self, rates: Any, start: Tensor, **options: Any) -> tuple[Tensor, float]:
        self.searched.append({"start": start.tolist(), **options})
        rates(start)
        return start.flip(0), 0.5


@pytest.mark.parametrize(
    ("options", "m", "epochs"),
    [
        ({"osp_every": 5, "epochs": 20}, 1, [15, 20]),
        ({"osp_every": 5, "epochs": 20}, 0, []),
        ({"osp_every": 1, "epochs": 6}, 2, [4, 5, 6]),
        ({"osp_every": 1, "epochs": 7}, 1, [4, 5, 6, 7]),
        ({"osp_every": 4, "epochs": 10}, 1, [6, 10]),
        ({"osp_every": 5, "epochs": 20, "osp_from": 3}, 1, []),
        ({"osp_every": 5, "epochs": 20, "osp_from": 3}, 2, [15, 20]),
        ({"osp_every": 5, "epochs": 20, "osp_from": 1}, 0, []),
    ],
)
def test_when_probabilities_are_optimised(
    options: dict[str, Any], m: int, epochs: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the second half of a phase, the last epoch among them, of two members or more."""
    found, team = Found(monkeypatch), teams(0.5, 0.3, 0.2)
    defense = create_defense("barre", members=K, **options)
    x, y = torch.zeros(1, 3, SIDE, SIDE, dtype=torch.uint8), torch.zeros(1, dtype=torch.long)
    done = []
    for epoch in range(1, options["epochs"] + 1):
        before = len(found.searched)
        defense.after_epoch(team, epoch, x, y, m=m)
        done += [epoch] * (len(found.searched) - before)
    assert done == epochs


def test_on_what_probabilities_are_optimised(monkeypatch: pytest.MonkeyPatch) -> None:
    found, team = Found(monkeypatch), teams(0.5, 0.3, 0.2)
    defense = create_defense(
        "barre", members=K, epochs=2, osp_every=1, osp_rounds=4, osp_lr=0.5, osp_patience=2, osp_images=3,
        arc_steps=6, eps=0.07,
    )  # fmt: skip
    g = torch.Generator().manual_seed(0)
    x = torch.randint(256, (5, 3, SIDE, SIDE), dtype=torch.uint8, generator=g)
    y = torch.randint(C, (5,), generator=g)
    defense.after_epoch(team, 2, x, y, m=1)
    assert found.searched == [{"start": [0.5, 0.3], "rounds": 4, "lr": 0.5, "patience": 2}]
    ((members, a, (images, labels), options),) = found.attacked
    assert members == team.members[:2]
    assert a == [0.5, 0.3]
    torch.testing.assert_close(images, x[:3].float() / 255, rtol=0, atol=0)
    assert torch.equal(labels, y[:3])
    assert options == {"eps": 0.07, "steps": 6}
    assert team.probabilities.tolist() == [0.3, 0.5, 0.2], "what was found, in place; the last stays"


def test_nested_probabilities_are_those_at_the_end_of_each_phase() -> None:
    history = [
        {"phase": "member 0", "probabilities": [1.0, 0.0, 0.0]},
        {"phase": "member 1", "probabilities": [0.5, 0.5, 0.0]},
        {"phase": "member 1", "probabilities": [0.25, 0.75, 0.0]},
        {"phase": "member 2", "probabilities": [0.2, 0.3, 0.5]},
    ]
    for name in ("barre", "mrboost"):
        nested = create_defense(name, members=3).nested(history)
        assert nested == [[1.0], [0.25, 0.75], [0.2, 0.3, 0.5]]


def test_what_is_made_of_the_members() -> None:
    for name, kind in (("mrboost", Ensemble), ("barre", RandomizedEnsemble)):
        team = teams(0.5, 0.3, 0.2)
        for f in team.members:
            f.num_classes = C
        made = create_defense(name, members=K).finish(team)
        assert type(made) is kind
        assert list(made.members) == team.members
        if isinstance(made, RandomizedEnsemble):
            assert made.probabilities.tolist() == [0.5, 0.3, 0.2]
        else:
            assert made.over == "logits"
            x = torch.rand(2, 3, SIDE, SIDE, dtype=torch.float64)
            torch.testing.assert_close(made(x), sum(f(x) for f in team.members) / K)
