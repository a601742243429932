"""One surrogate a step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from advens.attacks import create_attack
from advens.errors import InputError


class Noted(nn.Module):
    """A model that writes down when it is asked."""

    def __init__(self, net: nn.Module, name: int, seen: list[int]) -> None:
        super().__init__()
        self.net, self.name, self.seen = net, name, seen

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(self.name)
        out: Tensor = self.net(x)
        return out


def asked(at: Any, seed: int = 0, **options: Any) -> list[int]:
    seen: list[int] = []
    models = [Noted(model, k, seen) for k, model in enumerate(at.models)]
    create_attack("lgv", eps=at.eps, **options)(models, at.x, at.y, seed=seed)
    return seen


def test_without_replacement(setting: Any) -> None:
    at = setting(k=5)
    seen = asked(at, steps=15)
    first, *others = [seen[i : i + 5] for i in (0, 5, 10)]
    assert sorted(first) == [0, 1, 2, 3, 4]
    assert others == [first, first]  # the published order repeats
    anew = asked(at, steps=15, reshuffle=True)
    rounds = [anew[i : i + 5] for i in (0, 5, 10)]
    assert all(sorted(turn) == [0, 1, 2, 3, 4] for turn in rounds)
    assert rounds[0] == first
    assert len({tuple(turn) for turn in rounds}) > 1
    assert asked(at, steps=15) == seen
    assert asked(at, seed=1, steps=15) != seen


def test_several_copies_of_a_step_ask_one_surrogate(setting: Any) -> None:
    seen = asked(setting(k=3), steps=6, transforms=["si"])
    assert all(len(set(seen[i : i + 5])) == 1 for i in range(0, 30, 5))


@pytest.mark.parametrize("members", [1, 2, 9])
def test_passes(setting: Any, count: Callable[..., Any], members: int) -> None:
    at = setting(k=3)
    attack = create_attack("lgv", eps=at.eps, steps=4, members=members)
    with count(at.models) as seen:
        found = attack.run(at.models, at.x, at.y)
    wanted = 4 * min(members, 3)
    assert found.passes == attack.passes(3) == (wanted, wanted)
    assert (seen.forward, seen.backward) == (wanted * len(at.x), wanted * len(at.x))


def test_all_members_are_the_mean_of_losses(setting: Any) -> None:
    at = setting(k=3)
    every = create_attack("lgv", eps=at.eps, steps=3, members=3)
    mean = create_attack("ens-loss", eps=at.eps, steps=3, step_size="eps/10")
    torch.testing.assert_close(every(at.models, at.x, at.y), mean(at.models, at.x, at.y), rtol=0, atol=1e-12)


def test_variance_goes_from_surrogate_to_surrogate(setting: Any) -> None:
    """VMI's variance of the last step is used though another surrogate was asked there."""
    at = setting(k=4)
    one = create_attack("vmi-lgv", eps=at.eps, steps=4)
    plain = create_attack("lgv", eps=at.eps, steps=4)
    assert not torch.equal(one(at.models, at.x, at.y), plain(at.models, at.x, at.y))


def test_some_members() -> None:
    with pytest.raises(InputError, match="at least 1"):
        create_attack("lgv", members=0)
