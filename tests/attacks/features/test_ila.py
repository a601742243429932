"""ILA against its formulas, with the first attack written out; its first attack; passes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from advens.attacks import create_attack
from advens.errors import InputError
from advens.seeding import Draws
from tests.attacks.gradient.conftest import SEED

EPS = 16 / 255
MI = {"name": "composed", "update": "mi", "steps": 3}


def first(at: Any, mi: Any, i: int, steps: int) -> list[Any]:
    """Iterates of momentum on the loss of the mean logits, whose sign is the goal's."""
    x, memory, found = at.x[i], {}, []
    for _ in range(steps):

        def loss(leaf: Any) -> Any:
            return at.ce(sum(at.logits(k, leaf) for k in range(at.k)) / at.k, i)

        x = at.project(x + EPS / steps * mi(at.input_gradient(loss, x), memory).sign(), i)
        found.append(x)
    return found


@pytest.mark.parametrize("objective", ["projection", "flexible"])
def test_ila(any_goal: Any, mi: Any, n2: Any, objective: str) -> None:
    at, alpha = any_goal, 0.7

    def step(t: int, i: int, x: Any, memory: dict[str, Any]) -> Any:
        if t == 0:
            memory["x1"] = first(at, mi, i, 3)[-1]

        def loss(leaf: Any) -> Any:
            total = 0
            for k in range(at.k):
                clean = at.features(k, at.x[i], 2).detach()
                v, d = at.features(k, memory["x1"], 2).detach() - clean, at.features(k, leaf, 2) - clean
                if objective == "projection" or t == 0:
                    total = total + (d * n2(v)).sum()
                else:
                    lengths = [torch.sqrt((each * each).sum()) for each in (d, v)]
                    total = total + alpha * lengths[0] / lengths[1] + (d * v).sum() / lengths[0] / lengths[1]
            return total / at.k

        return EPS / 3 * at.input_gradient(loss, x).sign()

    at.same(step, "ila", 3, **{"first": MI, "objective": objective, "feature.alpha": alpha})


def test_the_first_attack_has_draws_of_its_own_in_the_same_ball(any_goal: Any) -> None:
    """One random step, whose features are then followed by a step as long: hardly anything else is left."""
    at, where = any_goal, []
    handle = at.models[0].register_forward_pre_hook(lambda module, args: where.append(args[0].detach()))
    still = {"name": "step-size", "alpha": 1e-9}
    noisy = {"name": "composed", "start": "uniform", "steps": 1, "step_size": still}
    create_attack("ila", eps=EPS, steps=1, first=noisy).run(at.models, at.x, at.y, at.target, seed=SEED)
    handle.remove()
    start = where[0]
    noise = create_attack("pgd", eps=EPS).start.place(  # type: ignore[attr-defined]
        at.x, create_attack("pgd", eps=EPS).threat, Draws(SEED, len(at.x)).fork("first")
    )
    torch.testing.assert_close(start, noise, rtol=0, atol=1e-12)


def test_the_first_attack_is_run_once_for_all_surrogates() -> None:
    assert create_attack("ila").passes(1) == (10 + 2 + 10, 20)
    assert create_attack("ila", steps=2, first=MI).passes(3) == (9 + 6 + 6, 9 + 6)


def test_a_first_attack_of_features_and_changes_at_named_layers(any_goal: Any) -> None:
    ilpd = {"name": "ilpd", "layer": "stages.1"}
    first = {"name": "composed", "fusion": "ens-loss", "feature": ilpd, "steps": 2}
    any_goal.run("ila", first=first, steps=2, layer="stages.2")


def test_refusals(any_goal: Any) -> None:
    with pytest.raises(InputError, match="'ila': first = 'square': an attack that is composed of parts"):
        create_attack("ila", first="square")
    if any_goal.target is not None:
        fia = {"name": "composed", "fusion": "ens-loss", "feature": "fia"}
        with pytest.raises(InputError, match="'fia' is defined without targets only"):
            any_goal.run("ila", first=fia)
