"""The frame of model changes: what they may know, and that they leave nothing behind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from advens.attacks.attack import ComposedAttack
from advens.attacks.surrogates.changes import ChangeContext, Changed, Swap, attached, on_gradient
from advens.seeding import Draws


class Note:
    """A change that writes down when it comes and goes; it fails when told to."""

    def __init__(self, log: list[str], name: str, fails: bool = False) -> None:
        self.log, self.name, self.fails = log, name, fails

    def attach(self, model: nn.Module, context: ChangeContext) -> Sequence[Any]:
        if self.fails:
            raise KeyError(self.name)
        self.log.append(f"+{self.name}")
        return [self]

    def remove(self) -> None:
        self.log.append(f"-{self.name}")


def test_changes_go_in_reverse() -> None:
    log: list[str] = []
    with attached(nn.Identity(), [Note(log, "a"), Note(log, "b")], ChangeContext()):
        log.append("run")
    assert log == ["+a", "+b", "run", "-b", "-a"]


def test_changes_go_when_something_fails() -> None:
    log: list[str] = []
    with pytest.raises(ValueError, match="run"), attached(nn.Identity(), [Note(log, "a")], ChangeContext()):
        raise ValueError("run")
    notes = [Note(log, "b"), Note(log, "c", True)]
    with pytest.raises(KeyError), attached(nn.Identity(), notes, ChangeContext()):
        log.append("never")
    assert log == ["+a", "-a", "+b", "-b"]


def test_changed_attaches_for_every_call() -> None:
    log: list[str] = []
    changed = Changed(nn.Identity(), [Note(log, "a")])
    x = torch.rand(2, 3)
    assert torch.equal(changed(x), x)
    assert torch.equal(changed(x), x)
    assert log == ["+a", "-a", "+a", "-a"]


@pytest.mark.parametrize("own", [False, True])
def test_swap(own: bool) -> None:
    module = nn.ReLU()
    if own:
        module.forward = lambda x: x + 1  # type: ignore[method-assign]
    before = dict(vars(module))
    outer = Swap(module, "forward", lambda x: x + 2)
    inner = Swap(module, "forward", lambda x: x + 3)
    inplace = Swap(module, "inplace", True)
    assert (float(module(torch.zeros(1))), module.inplace) == (3, True)
    inplace.remove()
    inner.remove()
    assert float(module(torch.zeros(1))) == 2
    outer.remove()
    assert float(module(torch.zeros(1))) == own
    assert vars(module) == before


def test_swapping_a_module_leaves_the_modules() -> None:
    net = nn.Sequential(nn.ReLU(), nn.ReLU())
    net.norm = nn.Identity()
    swap = Swap(net, "norm", nn.Sigmoid())
    swap.remove()
    assert isinstance(net.norm, nn.Identity)
    assert "norm" not in vars(net)


def test_on_gradient() -> None:
    x = torch.ones(3, requires_grad=True)
    y = x * 2
    on_gradient(y, lambda g: g * 5)
    assert torch.equal(torch.autograd.grad(y.sum(), x)[0], torch.full((3,), 10.0))
    with torch.no_grad():
        on_gradient(x * 2, lambda g: g * 5)
    on_gradient(torch.ones(3), lambda g: g * 5)


# moments


def test_uniform() -> None:
    """A sample's own numbers, whatever part of the shard is at hand and however often."""
    draws = Draws(3, 6).at(2)
    like = torch.empty(6, 50, dtype=torch.float64)
    whole = ChangeContext(draws).uniform(like, -1, 2, "tag")
    assert whole.dtype == torch.float64
    assert -1 <= float(whole.min()) < -0.8
    assert 1.8 < float(whole.max()) < 2
    assert not torch.equal(whole[0], whole[1])
    part = ChangeContext(Draws(3, 6, slice(2, 4)).at(2))
    assert torch.equal(part.uniform(like[:2], -1, 2, "tag"), whole[2:4])
    assert torch.equal(part.uniform(like, -1, 2, "tag"), whole[2:4].repeat(3, 1))


def test_moments_differ() -> None:
    """By step, member, tag and seed, and by nothing else."""
    like = torch.empty(4, 5)
    base = ChangeContext(Draws(3, 4).at(0))
    again = ChangeContext(Draws(3, 4).at(0))
    others = [
        (ChangeContext(Draws(3, 4).at(1)), "a"), (ChangeContext(Draws(3, 4).at(0), 1), "a"), (base, "b"),
        (ChangeContext(Draws(4, 4).at(0)), "a"),
    ]  # fmt: skip
    assert torch.equal(base.uniform(like, 0, 1, "a"), again.uniform(like, 0, 1, "a"))
    assert torch.equal(base.numbers(3, 0, 1, "a"), again.numbers(3, 0, 1, "a"))
    assert base.permutation(20, "a") == again.permutation(20, "a")
    for context, tag in others:
        assert not torch.equal(base.uniform(like, 0, 1, "a"), context.uniform(like, 0, 1, tag))
        assert not torch.equal(base.numbers(3, 0, 1, "a"), context.numbers(3, 0, 1, tag))
        assert base.permutation(20, "a") != context.permutation(20, tag)
    numbers = base.numbers(2000, 2, 4, "a")
    assert 2 <= float(numbers.min()) < 2.1
    assert 3.9 < float(numbers.max()) < 4
    assert sorted(base.permutation(20, "a")) == list(range(20))


def test_outside_an_attack() -> None:
    like = torch.empty(4, 5)
    assert torch.equal(ChangeContext().uniform(like, 0, 1, "a"), ChangeContext().uniform(like, 0, 1, "a"))
    assert torch.equal(ChangeContext().numbers(3, 0, 1, "a"), ChangeContext().numbers(3, 0, 1, "a"))


def test_steps_are_told_through_wrappers() -> None:
    inner = Changed(nn.Identity(), [], member=1)
    outer = Changed(inner, [])
    draws = Draws(1, 2).at(4)
    outer.at_step(draws)
    assert outer.context.draws is draws
    assert inner.context.draws is draws


# attacks


class Shift:
    """A change that adds its member's number to the logits of the first class."""

    def attach(self, model: nn.Module, context: ChangeContext) -> Sequence[Any]:
        def shift(module: nn.Module, args: Any, out: Tensor) -> Tensor:
            seen.append((context.member, context.draws.step if context.draws else None))
            return out

        return [model.register_forward_hook(shift)]


seen: list[tuple[int, int | None]] = []


def test_an_attack_tells_member_and_step(net: Any, images: Any) -> None:
    seen.clear()
    attack = ComposedAttack(steps=2)
    object.__setattr__(attack, "changes", (Shift(),))
    model = net(0)
    attack([model, model], images(1, 3), torch.arange(3), seed=1)
    assert seen == [(0, 0), (1, 0), (0, 1), (1, 1)]
    assert not model._forward_hooks


def test_spec_without_changes_is_as_before() -> None:
    assert "changes" not in ComposedAttack().spec
