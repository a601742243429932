"""What parts are given: the context of a step, and the random numbers of a change."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from advens.attacks.interfaces import ChangeContext, Context
from advens.seeding import Draws
from advens.threat import Threat

CLEAN = torch.tensor([0.02, 0.5, 0.97], dtype=torch.float64).view(1, 3, 1, 1)


def at(norm: str) -> Context:
    eps = 0.1 if norm == "linf" else 0.2
    return Context(Threat(norm, eps), Draws(0, 1), CLEAN, CLEAN)  # type: ignore[arg-type]


def close(found: Tensor, *wanted: float) -> None:
    torch.testing.assert_close(found.flatten(), torch.tensor(wanted, dtype=torch.float64))


def test_in_a_box() -> None:
    """The ball of radius 0.1 and [0, 1] are one box; a step goes along signs."""
    context = at("linf")
    assert context.bounds is not None
    close(context.bounds[0], 0.0, 0.4, 0.87)
    close(context.bounds[1], 0.12, 0.6, 1.0)
    far = torch.tensor([-1.0, 0.55, 2.0], dtype=torch.float64).view_as(CLEAN)
    close(context.project(far), 0.0, 0.55, 1.0)
    along = torch.tensor([5.0, -0.3, 0.0], dtype=torch.float64).view_as(CLEAN)
    close(context.step(CLEAN, 0.05, along), 0.07, 0.45, 0.97)
    close(context.step(CLEAN, 0.3, along), 0.12, 0.4, 0.97)
    close(context.move(CLEAN, 0.1, along), 0.12, 0.47, 0.97)
    close(CLEAN, 0.02, 0.5, 0.97)


def test_in_a_sphere() -> None:
    """The nearest point of the ball; a step goes along the gradient at length one."""
    context = at("l2")
    assert context.bounds is None
    middle = torch.full_like(CLEAN, 0.5)
    context.clean = middle
    far = torch.tensor([0.5 + 0.24, 0.5 - 0.32, 0.5], dtype=torch.float64).view_as(CLEAN)
    close(context.project(far), 0.62, 0.34, 0.5)
    along = torch.tensor([3.0, -4.0, 0.0], dtype=torch.float64).view_as(CLEAN)
    close(context.step(middle, 0.1, along), 0.56, 0.42, 0.5)
    close(context.step(middle, 0.4, along), 0.62, 0.34, 0.5)
    close(context.move(middle, 0.01, along), 0.53, 0.46, 0.5)


def test_draws_of_a_change_are_named_by_member_and_tag() -> None:
    """As stored images were crafted: another name is another image."""
    draws, like = Draws(7, 3).at(2), torch.empty(3, 2, dtype=torch.float64)
    wanted = draws.uniform(like, -1, 3, "change", 4, "layer", 0)
    change = ChangeContext(draws, member=4)
    assert torch.equal(change.uniform(like, -1, 3, "layer", 0), wanted)
    assert -1 <= float(wanted.min()) < 0 < 2 < float(wanted.max()) <= 3
    twice = torch.empty(6, 2, dtype=torch.float64)
    assert torch.equal(change.uniform(twice, -1, 3, "layer", 0), torch.cat([wanted, wanted]))
    generator = draws.generator("change", 4, "rate")
    numbers = -1 + 4 * torch.rand(5, generator=generator, dtype=torch.float64)
    assert torch.equal(change.numbers(5, -1, 3, "rate"), numbers)
    assert change.permutation(9, "perm") == draws.permutation(9, "change", 4, "perm")
    for other in (ChangeContext(draws, member=5), ChangeContext(Draws(7, 3).at(1), member=4)):
        assert not torch.equal(other.uniform(like, -1, 3, "layer", 0), wanted)
        assert other.permutation(9, "perm") != change.permutation(9, "perm")
        assert not torch.equal(other.numbers(5, -1, 3, "rate"), numbers)


def test_outside_an_attack_draws_are_those_of_seed_nothing() -> None:
    like, change = torch.empty(2, 3), ChangeContext()
    assert torch.equal(change.uniform(like, 0, 1, "t"), Draws(0, 2).uniform(like, 0, 1, "change", 0, "t"))
    assert change.permutation(6, "t") == Draws(0, 1).permutation(6, "change", 0, "t")
    generator = Draws(0, 1).generator("change", 0, "t")
    assert torch.equal(change.numbers(2, 0, 1, "t"), torch.rand(2, generator=generator, dtype=torch.float64))


@pytest.mark.parametrize("rows", [slice(0, 2), slice(1, 3)])
def test_rows_at_hand_are_a_slice_of_the_shard(rows: slice) -> None:
    like = torch.empty(2, 4)
    whole = Draws(1, 3).uniform(torch.empty(3, 4), 0, 1, "change", 0, "t")
    part = ChangeContext(Draws(1, 3, rows))
    assert torch.equal(part.uniform(like, 0, 1, "t"), whole[rows])
    assert math.isclose(float(whole.mean()), 0.5, abs_tol=0.3)
