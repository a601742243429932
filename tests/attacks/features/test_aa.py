"""AA against its formulas: the distance from the features of an image of the target class."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from advens.attacks import create_attack
from advens.errors import InputError
from tests.attacks.features.conftest import scene

EPS = 16 / 255


def labelled(n: int, k: int) -> Any:
    """A scene with images of two classes, several of each, every one led to the other class."""
    at = scene(n, k, targeted=True)
    at.y = torch.arange(n) % 2
    at.target = 1 - at.y
    return at


def guide(at: Any, i: int) -> Tensor:
    """The image of the target class that sample i comes near."""
    having = [j for j in range(len(at.x)) if int(at.y[j]) == int(at.target[i])]
    u = at.once().uniform(at.x.new_zeros(len(at.x)), 0, 1, "aa")[i]
    return at.x[having[int(u * len(having))]]  # type: ignore[no-any-return]


@pytest.mark.parametrize(("n", "k"), [(2, 1), (7, 3)])
@pytest.mark.parametrize(("layer", "stage"), [(0.5, 2), ("stages.2", 3)])
def test_aa(n: int, k: int, mi: Any, layer: Any, stage: int) -> None:
    at = labelled(n, k)

    def step(t: int, i: int, x: Tensor, memory: dict[str, Any]) -> Tensor:
        def loss(leaf: Tensor) -> Tensor:
            goal = guide(at, i)
            away = [at.features(m, leaf, stage) - at.features(m, goal, stage).detach() for m in range(k)]
            return -sum((d**2).sum().sqrt() for d in away) / k  # type: ignore[return-value]

        return EPS / 3 * mi(at.input_gradient(loss, x), memory).sign()

    at.same(step, "aa", 3, layer=layer, step_size=EPS / 3)
    assert create_attack("aa").passes(k) == (301 * k, 300 * k)


def test_features_come_near() -> None:
    at = labelled(6, 1)
    x = at.run("aa", steps=10, step_size="eps/8", eps=0.3)
    for i in range(6):
        goal = at.features(0, guide(at, i), 2)
        before, after = ((at.features(0, image, 2) - goal).norm() for image in (at.x[i], x[i]))
        assert after < 0.8 * before


def test_images_are_those_of_the_whole_shard() -> None:
    """With one image at a time, too; each sample has its own draw."""
    at = labelled(7, 2)
    attack = create_attack("aa", eps=EPS, steps=2)
    whole = attack.run(at.models, at.x, at.y, at.target, seed=1).x_adv
    alone = attack.run(at.models, at.x, at.y, at.target, seed=1, micro_batch=1).x_adv
    torch.testing.assert_close(alone, whole, rtol=0, atol=1e-12)
    other = attack.run(at.models, at.x, at.y, at.target, seed=2).x_adv
    assert not torch.equal(other, whole)


def test_refusals() -> None:
    at = labelled(4, 1)
    at.target = torch.tensor([1, 0, 2, 0])
    with pytest.raises(InputError, match=r"'aa' needs an image of every target class .* none of class 2"):
        at.run("aa", steps=1)
    at.target = None
    with pytest.raises(InputError, match="'aa' has no untargeted form: it needs targets"):
        at.run("aa", steps=1)
