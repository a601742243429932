"""SMER against its published arithmetic, with every graph kept and an optimiser for the scalars."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from advens.attacks import create_attack
from advens.attacks.fusions.smer import SMER

ROUNDS = 2


class Scalars:
    """As coded: a parameter under SGD, the fused loss's graph through every network."""

    def __init__(self, at: Any, lr: float, decay: float) -> None:
        self.at = at
        self.w = torch.ones(at.k, dtype=torch.float64, requires_grad=True)
        self.optimiser = torch.optim.SGD([self.w], lr=lr, weight_decay=decay)

    def learn(self, members: dict[int, Tensor], ce: Any) -> None:
        """One step on -log of the (mean) fused cross-entropy of some images; +log for targets."""
        at, total = self.at, torch.zeros((), dtype=torch.float64)
        for i, x in members.items():
            leaf = x.clone().requires_grad_()
            fused = sum(self.w[k] * at.logits(k, leaf) for k in range(at.k)) / at.k
            total = total + ce(fused, at.wanted(i))
        objective = -torch.log(total / len(members))
        self.optimiser.zero_grad()
        (objective if at.target is None else -objective).backward()
        self.optimiser.step()


@pytest.fixture
def transcribed(gradient_of: Any, cross_entropy: Any) -> Callable[..., Any]:
    """Images, directions and, in ``trajectory``, the scalars after every inner step (N, K)."""

    def run(
        at: Any,
        rounds: int = ROUNDS,
        mu: float = 1.0,
        lr: float = 2e-2,
        decay: float = 2e-3,
        coupled: bool = False,
        trajectory: list[Tensor] | None = None,
    ) -> Any:
        n = len(at.x)
        shared = Scalars(at, lr, decay)
        owned = [shared if coupled else Scalars(at, lr, decay) for _ in range(n)]

        def direction(t: int, points: list[Tensor], state: dict[str, Any]) -> list[Tensor]:
            order = []
            for turn in range(rounds):
                order += at.draws(t).permutation(at.k, "smer", turn)
            inner = [x.clone() for x in points]
            momenta = [torch.zeros_like(x) for x in points]
            for k in order:
                gradients = [
                    gradient_of(
                        lambda leaf, i=i, k=k: at.j(owned[i].w[k].detach() * at.logits(k, leaf), i),
                        x,
                    )
                    for i, x in enumerate(inner)
                ]
                if coupled:
                    shared.learn(dict(enumerate(inner)), cross_entropy)
                else:
                    for i, x in enumerate(inner):
                        owned[i].learn({i: x}, cross_entropy)
                if trajectory is not None:
                    trajectory.append(torch.stack([own.w.detach().clone() for own in owned]))
                for i, g in enumerate(gradients):
                    momenta[i] = mu * momenta[i] + g / g.abs().mean()
                    inner[i] = at.step(inner[i], i, at.alpha, momenta[i])
            return momenta

        found = at.together(direction)
        for model in at.models:
            for p in model.parameters():
                p.grad = None
        return found

    return run


@pytest.fixture
def learned(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The attack's scalars (N, K), after every inner step."""
    seen: list[Tensor] = []
    original = SMER.learned

    def spy(self: SMER, v: Tensor, z: Tensor, oracle: Any) -> Tensor:
        found = original(self, v, z, oracle)
        seen.append(found.clone())
        return found

    monkeypatch.setattr(SMER, "learned", spy)
    return seen


def test_formula(at: Any, same: Any, transcribed: Any, learned: list[Tensor]) -> None:
    """Images, directions and the scalars' trajectory."""
    trajectory: list[Tensor] = []
    wanted = transcribed(at, trajectory=trajectory)
    same(at.run("smer", rounds=ROUNDS), wanted)
    assert len(learned) == len(trajectory) == at.steps * ROUNDS * at.k
    torch.testing.assert_close(
        torch.stack(learned), torch.stack(trajectory), rtol=0, atol=1e-9
    )
    assert (learned[-1] - 1).abs().min() > 1e-4, "the scalars stood still"


@pytest.mark.parametrize("k", [1, 4])
def test_recipe_has_the_papers_constants(
    setting: Any, same: Any, transcribed: Any, learned: list[Tensor], k: int
) -> None:
    """eps 16/255, 10 steps, beta = alpha = eps / 10, 4 rounds, lr 0.02, decay 0.002, clean start."""
    at = setting(k=k, n=1, eps=16 / 255, alpha=1.6 / 255, steps=10)
    trajectory: list[Tensor] = []
    same(at.run(create_attack("smer")), transcribed(at, rounds=4, trajectory=trajectory))
    torch.testing.assert_close(torch.stack(learned), torch.stack(trajectory), rtol=0, atol=1e-9)


def test_options(setting: Any, same: Any, transcribed: Any) -> None:
    at = setting(k=3)
    options = {"rounds": 1, "lr": 0.3, "weight_decay": 0.1}
    found = at.run("smer", **options, **{"fusion.mu": 0.5})
    same(found, transcribed(at, rounds=1, lr=0.3, decay=0.1, mu=0.5))
    assert not torch.allclose(found.x_adv, at.run("smer", rounds=1).x_adv)


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("k", [2, 5])
def test_batch_coupled(
    setting: Any, same: Any, transcribed: Any, learned: list[Tensor], k: int, targeted: bool
) -> None:
    """One weight vector for the batch, from its mean loss."""
    at = setting(k=k, n=7, targeted=targeted)
    trajectory: list[Tensor] = []
    same(
        at.run("smer", rounds=ROUNDS, batch_coupled=True),
        transcribed(at, coupled=True, trajectory=trajectory),
    )
    found = torch.stack(learned)
    torch.testing.assert_close(found, torch.stack(trajectory), rtol=0, atol=1e-9)
    assert torch.equal(found, found[:, :1].expand_as(found))
    learned.clear()
    at.run("smer", rounds=ROUNDS)
    apart = torch.stack(learned)
    assert (apart[-1, 0] - apart[-1, 1]).abs().max() > 1e-6
    assert not torch.allclose(apart, found, atol=1e-6)


@pytest.mark.parametrize("batch_coupled", [False, True])
def test_neighbours_matter_when_coupled_only(
    setting: Any, learned: list[Tensor], batch_coupled: bool
) -> None:
    at, other = setting(k=3, n=4), setting(k=3, n=4, seed=5)
    mixed = at.but(x=at.x.clone(), y=at.y.clone())
    mixed.x[1:], mixed.y[1:] = other.x[1:], other.y[1:]
    seen = []
    for each in (at, mixed):
        learned.clear()
        found = each.run("smer", rounds=ROUNDS, batch_coupled=batch_coupled)
        seen.append((found.x_adv[0], torch.stack(learned)[:, 0]))
    far = (seen[0][1] - seen[1][1]).abs().max()
    assert (far > 1e-6) == batch_coupled
    assert (far < 1e-12) == (not batch_coupled)
    assert torch.allclose(seen[0][0], seen[1][0], rtol=0, atol=1e-12) or batch_coupled


@pytest.mark.parametrize("batch_coupled", [False, True])
def test_scalars_start_anew_each_run(
    setting: Any, learned: list[Tensor], batch_coupled: bool
) -> None:
    """At 1, whatever ran before; within a run they last from step to step."""
    at, other = setting(k=3), setting(k=3, seed=4)
    attack = at.attack("smer", rounds=ROUNDS, batch_coupled=batch_coupled)
    first = attack(at.models, at.x, at.y, seed=11)
    once = torch.stack(learned)
    attack(other.models, other.x, other.y, seed=11)
    learned.clear()
    assert torch.equal(attack(at.models, at.x, at.y, seed=11), first)
    assert torch.equal(torch.stack(learned), once)
    moves = (once[1:] - once[:-1]).abs().amax((1, 2))
    from_one = (once - 1).abs().amax((1, 2))
    assert moves.max() < 0.5 * from_one[-1], "they went back to 1 in between"


@pytest.mark.parametrize("targeted", [False, True])
def test_scalars_help_the_attack(setting: Any, targeted: bool, cross_entropy: Any) -> None:
    """A step raises the fused loss of the label, or lowers that of the target."""
    at = setting(k=3, n=5, targeted=targeted)
    fusion = SMER(weight_decay=0.0)
    oracle = at.oracle(at.attack("smer"))
    z = torch.stack([oracle.logits(at.x, k) for k in range(3)])
    before = torch.ones(5, 3, dtype=torch.float64)
    after = fusion.learned(before, z, oracle)
    for i in range(5):
        loss = [float(cross_entropy((v[i][:, None] * z[:, i]).mean(0), at.wanted(i)))
                for v in (before, after)]  # fmt: skip
        assert (loss[1] < loss[0]) == targeted
        assert loss[1] != loss[0]


def test_loss_of_nothing_moves_nothing_to_nan(setting: Any, learned: list[Tensor]) -> None:
    """-log of a loss that is 0: the scalars stay finite, and so does the image."""
    at = setting(k=2)
    for dtype in (torch.float64, torch.float32):
        for model in at.models:
            model.to(dtype)
            with torch.no_grad():
                model[3].weight.mul_(1e3)
        found = at.but(x=at.x.to(dtype)).run("smer")
        assert torch.isfinite(torch.stack(learned)).all()
        assert torch.isfinite(found.x_adv).all()
        learned.clear()


@pytest.mark.parametrize("k", [1, 2, 5])
@pytest.mark.parametrize("rounds", [1, 4])
def test_passes(setting: Any, count: Any, k: int, rounds: int) -> None:
    """The k-th forward gives its logits too: rounds K K forward, rounds K backward a step."""
    at = setting(k=k, steps=2)
    attack = at.attack("smer", rounds=rounds)
    wanted = 2 * rounds * k * k, 2 * rounds * k
    with count(at.models) as seen:
        found = attack.run(at.models, at.x, at.y)
    assert found.passes == attack.passes(k) == wanted
    assert (seen.forward, seen.backward) == (wanted[0] * len(at.x), wanted[1] * len(at.x))


def test_passes_with_copies(setting: Any, count: Any) -> None:
    """Where an estimate takes several gradients, the logits are a pass of their own."""
    at = setting(k=2, steps=2)
    attack = at.attack("smer", rounds=1, transforms=[{"name": "si", "copies": 3}])
    with count(at.models) as seen:
        found = attack.run(at.models, at.x, at.y)
    wanted = 2 * 2 * (3 + 1 + 1), 2 * 2 * 3
    assert found.passes == attack.passes(2) == wanted
    assert (seen.forward, seen.backward) == (wanted[0] * len(at.x), wanted[1] * len(at.x))
