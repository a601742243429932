"""Every fusion with every pair of a transform, an estimator, an update and a filter, all four at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from advens.attacks import attack_from_spec, create_attack
from advens.attacks.parts import PARTS
from tests.attacks.fusions.test_filters import short

TRANSFORMS: list[Any] = [
    {"name": "di", "p": 1.0, "rate": 1.3},
    {"name": "si", "copies": 2},
    {"name": "admix", "others": 1, "scales": 2},
    {"name": "ssa", "copies": 2},
    {"name": "bsr", "copies": 2},
    {"name": "sia", "copies": 2},
    {"name": "us-mm", "others": 1, "scales": 2},
    {"name": "dem", "rates": [1.4, 1.7]},
    {"name": "ops", "noises": 1, "operators": 2},
    {"name": "ssm-h", "copies": 2, "low": 0.4},
    {"name": "ssm-p", "copies": 2},
    {"name": "mfi", "others": 1, "scales": 2},
    {"name": "maskblock", "grid": 2},
    {"name": "l2t", "pairs": 2, "views": 1},
    {"name": "patchout", "grid": 2, "keep": 0.75},
    {"name": "noise"},
    {"name": "shifts", "grid": 2},
    {"name": "rdi", "rate": 1.4},
    {"name": "shrink", "p": 1.0, "rate": 0.7},
    {"name": "everywhere", "grid": 2, "regions": 2},
    {"name": "local", "area": 0.3},
]
ESTIMATORS: list[Any] = [
    {"name": "plain"}, {"name": "vmi", "copies": 1}, {"name": "pgn", "copies": 1},
    {"name": "emi", "copies": 2}, {"name": "ie"}, {"name": "gra", "copies": 1}, {"name": "mef", "copies": 2},
    {"name": "rap", "inner": 2, "late": 1}, {"name": "integrated", "copies": 2}, {"name": "gnp"},
    {"name": "fgsra", "copies": 1}, {"name": "mumodig", "copies": 1}, {"name": "walk", "copies": 2},
    {"name": "dta", "inner": 2}, {"name": "decowa", "copies": 1},
]  # fmt: skip
UPDATES: list[Any] = [
    "sign", "mi", "batch-mi", "ni", "sum", "pi", "decay-mi", "fgrm", "ai-fgtm", "staircase"
]  # fmt: skip
FILTERS: list[Any] = [[], [{"name": "ti", "size": 3}]]
SIDE, EPS = 6, 8 / 255


class Curved(nn.Module):
    """A model whose gradient differs from point to point, so that parts can be told apart."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(3 * SIDE * SIDE, 12, generator=generator) / 2)
        self.head = nn.Parameter(torch.randn(12, 5, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = torch.tanh((x - 0.5).flatten(1) @ self.weight) @ self.head
        return z


def covering(sizes: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Choices from four axes: every pair of choices, and each choice beside the same others, four times."""
    for beside, axis in product(range(4), range(len(sizes))):
        for i in range(sizes[axis]):
            yield tuple(i if axis == other else beside % size for other, size in enumerate(sizes))
    first, second, third, fourth = sizes
    for i in range(max(first, third)):
        for j in range(max(second, third)):
            yield i % first, j % second, (i + j) % third, (i + j // 2) % fourth


def test_every_pair_is_covered() -> None:
    for sizes in ((7, 3, 4, 2), (15, 14, 8, 2), (4, 9, 6, 3)):
        keys = set(covering(sizes))
        for a, b in combinations(range(4), 2):
            assert len({(key[a], key[b]) for key in keys}) == sizes[a] * sizes[b]


@pytest.mark.parametrize("name", list(PARTS["fusion"]))
def test_everything_goes_with_everything(name: str) -> None:
    """Runs, stays in the ball, is finite, moves, and takes the passes its formula says."""
    assert {t["name"] for t in TRANSFORMS} == set(PARTS["transform"])
    assert {e["name"] for e in ESTIMATORS} == set(PARTS["estimator"])
    assert set(UPDATES) == set(PARTS["update"])
    fusion = short(name)
    models = [Curved(0), Curved(1)]
    x = torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(2)) * 0.9 + 0.05
    y = torch.tensor([0, 3])
    seen = {"forward": 0, "backward": 0}

    def watch(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
        seen["forward"] += len(args[0])
        if out.requires_grad:
            out.register_hook(back)

    def back(g: Tensor) -> None:
        seen["backward"] += len(g)

    for model in models:
        model.register_forward_hook(watch)
    axes = (TRANSFORMS, ESTIMATORS, UPDATES, FILTERS)
    results: dict[tuple[int, ...], Tensor] = {}
    for key in dict.fromkeys(covering([len(axis) for axis in axes])):
        transform, estimator, update, filters = (axis[i] for axis, i in zip(axes, key, strict=True))
        attack = create_attack(
            "ifgsm", fusion=fusion, transforms=[transform], estimator=estimator, update=update,
            filters=filters, eps=EPS, step_size=EPS / 2, steps=3,
        )  # fmt: skip
        case = f"{transform} {estimator} {update} {filters}"
        seen.update(forward=0, backward=0)
        found = attack.run(models, x, y, seed=1)
        formula = attack.passes(2)
        assert found.passes == formula, case
        assert (seen["forward"], seen["backward"]) == (2 * formula.forward, 2 * formula.backward), case
        assert torch.isfinite(found.x_adv).all(), case
        assert (found.x_adv - x).abs().max() <= EPS + 1e-6, case
        assert (found.x_adv - x).abs().amax((1, 2, 3)).min() > EPS / 4, case
        assert found.x_adv.min() >= 0, case
        assert found.x_adv.max() <= 1, case
        assert attack_from_spec(attack.spec) == attack, case
        results[key] = found.x_adv
    for axis, parts in enumerate(axes):
        for a, b in combinations(range(len(parts)), 2):
            alike = {"mi", "batch-mi"} | ({"sum"} if name == "namea" else set())  # made of unit gradients
            if parts is UPDATES and {parts[a], parts[b]} <= alike:
                continue  # they weigh steps differently, which two steps need not show
            others = [(key, (*key[:axis], b, *key[axis + 1 :])) for key in results if key[axis] == a]
            pairs = [(results[key], results[other]) for key, other in others if other in results]
            assert not all(torch.equal(one, other) for one, other in pairs), f"{parts[a]} is {parts[b]}"


@dataclass(frozen=True)
class Halfway:
    """An estimator of one gradient, which is not the plain one."""

    queries = 1

    def estimate(self, gradient: Any, x: Tensor, memory: dict[str, Any], context: Any) -> Tensor:
        found: Tensor = gradient((x + context.clean.mean()) / 2)
        return found


@pytest.mark.parametrize("name", list(PARTS["fusion"]))
def test_an_estimator_of_one_gradient_is_asked(setting: Any, name: str) -> None:
    """Also by the fusions that share a forward pass where an estimate is one gradient."""
    at = setting(k=2)
    attack = at.attack("ifgsm", fusion=short(name), estimator=Halfway())
    found = attack.run(at.models, at.x, at.y)
    assert found.passes == attack.passes(2)
    assert not torch.allclose(found.x_adv, at.attack("ifgsm", fusion=short(name))(at.models, at.x, at.y))
