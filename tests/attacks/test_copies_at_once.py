"""Several copies in one pass: the same images, the same passes, larger batches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import advens
from advens.attacks.attack import ComposedAttack
from advens.errors import InputError
from tests.attacks.conftest import Counter
from tests.attacks.fusions.conftest import Setting, make

MANY: dict[str, dict[str, Any]] = {
    "vmifgsm": {"copies": 4}, "pgn": {"copies": 3}, "gra": {"copies": 4}, "mef": {"copies": 4},
    "fgsra": {"copies": 4}, "mig": {"copies": 4}, "taig-r": {"copies": 4}, "anda": {"grid": 2}, "sifgsm": {},
    "admix": {}, "ssa": {"copies": 4}, "bsr": {"copies": 4}, "sia": {"copies": 4}, "us-mm": {}, "dem": {},
    "ops": {"noises": 2, "operators": 2}, "ssm-h": {"copies": 4}, "ssm-p": {"copies": 4}, "mfi": {},
    "maskblock": {"grid": 2}, "l2t": {"views": 2, "lr": 2.0}, "decowa": {"copies": 2},
    "everywhere-cfm": {"partners": 2},
}  # fmt: skip
"""Attacks whose copies do not wait for each other, and one (DeCoWA) whose copies do."""


def same(at: Setting, attack: ComposedAttack) -> None:
    """One copy, two, five or all at a time, and with micro-batches: sums are taken in the same order."""
    one = attack.run(at.models, at.x, at.y, at.target)
    for at_once, micro_batch in ((2, None), (5, 2), (100, None)):
        found = attack.run(
            at.models, at.x, at.y, at.target, copies_at_once=at_once, micro_batch=micro_batch
        )  # fmt: skip
        assert found.passes == one.passes == attack.passes(at.k)
        torch.testing.assert_close(found.x_adv, one.x_adv, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", MANY)
def test_the_same_images(name: str) -> None:
    at = make(2, 3, targeted=name == "ssa")
    same(at, at.attack(name, steps=2, **MANY[name]))


@pytest.mark.parametrize("fusion", ["ens-probs", "ens-loss", "reweighted", "adaea", "smer", "svre", "cwa"])
def test_with_any_fusion(fusion: str) -> None:
    """With two scales of three copies whose logits are averaged, at two neighbours."""
    at = make(2, 3)
    transforms = [{"name": "si", "copies": 2}, {"name": "dem", "rates": [1.3, 1.5, 1.6]}]
    attack = at.attack(fusion, steps=2, transforms=transforms, estimator={"name": "pgn", "copies": 2})
    same(at, attack)


class Sure(nn.Module):
    """A surrogate whose cross-entropy has slopes of e^-300."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.inner(x)
        return z + 300 * torch.nn.functional.one_hot(z.argmax(1), z.shape[1])


def test_of_sure_surrogates() -> None:
    """The sizes of gradients span hundreds of orders from copy to copy."""
    at = make(1, 3)
    same(at.but(models=[Sure(model) for model in at.models]), at.attack("sifgsm"))


def test_what_a_surrogate_draws_in_a_step_is_the_same_for_all_copies(net: Any, images: Any) -> None:
    models, x, y = [net(0, batch_norm=True)], images(0), torch.tensor([0, 1, 2, 3])
    attack: Any = advens.create_attack("ssa", copies=4, steps=2, changes=["ghost"])
    one, all_ = (attack.run(models, x, y, copies_at_once=n).x_adv for n in (1, 4))
    torch.testing.assert_close(one, all_, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "options", "at_once", "sizes"),
    [("ssa", {"copies": 5}, 2, [6, 6, 3]), ("ssa", {"copies": 5}, 1, [3] * 5), ("ssa", {}, 20, [60]),
     ("dem", {}, 3, [9, 6]), ("dem", {}, 5, [15]), ("pgn", {"copies": 3}, 2, [6, 6, 3, 3]),
     ("vmifgsm", {"copies": 3}, 3, [3, 9]), ("mef", {"copies": 4}, 4, [12]),
     ("decowa", {"copies": 2}, 4, [3] * 4)],
)  # fmt: skip
def test_batches(name: str, options: dict[str, Any], at_once: int, sizes: list[int]) -> None:
    at, seen = make(1, 3), []
    at.models[0].register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    at.attack(name, steps=1, **options).run(at.models, at.x, at.y, copies_at_once=at_once)
    assert seen == sizes


def test_copies_of_transforms_at_several_neighbours() -> None:
    """Six views at once: both views of three neighbours."""
    at, seen = make(1, 3), []
    at.models[0].register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    attack = at.attack("mef", steps=1, copies=4, transforms=[{"name": "si", "copies": 2}])
    attack.run(at.models, at.x, at.y, copies_at_once=6)
    assert seen == [18, 6]


def test_neighbours_do_not_matter() -> None:
    """A sample's image is the same among others, with all copies of all of them in one pass."""
    at, other = make(2, 4), make(2, 4, seed=9)
    x, y = other.x.clone(), other.y.clone()
    x[1], y[1] = at.x[1], at.y[1]
    for name in ("ssa", "sia", "mef", "dem"):
        attack = at.attack(name, steps=2)
        here, there = [attack.run(at.models, a, b, copies_at_once=40).x_adv
                       for a, b in ((at.x, at.y), (x, y))]  # fmt: skip
        torch.testing.assert_close(here[1], there[1], rtol=0, atol=1e-12)
        assert not torch.equal(here[0], there[0])


def test_passes_are_counted_at_the_models() -> None:
    at, counter = make(2, 3), Counter()
    for model in at.models:
        model.register_forward_hook(counter)
    attack = at.attack("sia", steps=2, copies=5)
    attack.run(at.models, at.x, at.y, copies_at_once=3)
    assert (counter.forward, counter.backward) == tuple(3 * n for n in attack.passes(2))


def test_bad_numbers() -> None:
    at = make(1, 1)
    with pytest.raises(InputError, match="copies_at_once = 0: at least 1"):
        at.attack("ssa").run(at.models, at.x, at.y, copies_at_once=0)
