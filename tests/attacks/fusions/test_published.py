"""Published arithmetic that couples a batch or leaks between batches: options, and what they change."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from advens.attacks import create_attack
from advens.errors import InputError
from tests.attacks.fusions.conftest import CLASSES, mlp, pixels

Setting = tuple[list[nn.Module], Tensor, Tensor]


@pytest.fixture(scope="module")
def small() -> Setting:
    return [mlp(1), mlp(2)], pixels(0, 4), torch.arange(4) % CLASSES


def test_whole_batch_normalisation_mixes_steps_differently(small: Setting) -> None:
    """The sign of one step is the same; from the second step on momentum weighs samples otherwise."""
    models, x, y = small
    runs = {
        (steps, whole): create_attack(
            "mi-cwa", eps=0.1, steps=steps, step_size=0.01, beta=3.0,
            update="batch-mi" if whole else "mi",
        )(models, x, y)
        for steps in (1, 6) for whole in (False, True)
    }
    assert torch.equal(runs[1, False], runs[1, True])
    assert not torch.equal(runs[6, False], runs[6, True])


def test_whole_batch_normalisation_is_the_published_line(small: Setting) -> None:
    models, x, y = small
    mi = create_attack("mifgsm", eps=0.1, steps=3, update="batch-mi")
    at, m = x, torch.zeros_like(x)
    for _ in range(3):
        leaf = at.clone().requires_grad_()
        fused = (models[0](leaf) + models[1](leaf)) / 2
        (g,) = torch.autograd.grad(nn.functional.cross_entropy(fused, y, reduction="sum"), leaf)
        m = m + g / g.abs().mean()
        at = (at + 0.1 / 3 * m.sign()).clamp(x - 0.1, x + 0.1).clamp(0, 1)
    assert torch.allclose(mi(models, x, y), at, rtol=0, atol=1e-12)


def test_whole_batch_normalisation_couples(small: Setting) -> None:
    models, x, y = small
    for whole in (False, True):
        update = "batch-mi" if whole else "mi"
        attack = create_attack("mifgsm", eps=0.1, steps=8, step_size=0.01, update=update)
        alone, among = attack(models, x[:1], y[:1]), attack(models, x, y)[:1]
        assert torch.allclose(alone, among, atol=1e-12) != whole


def test_smer_scalars_leak_from_batch_to_batch(small: Setting) -> None:
    """With the leak the second batch begins where the first ended; without, both begin anew."""
    models, x, y = small
    for leaks in (False, True):
        attack = create_attack(
            "smer", eps=0.1, steps=4, lr=5.0, batch_coupled=True, leaks=leaks, step_size=0.01
        )
        together = attack.run(models, x, y, micro_batch=2).x_adv[2:]
        alone = attack.run(models, x, y, micro_batch=2)
        again = attack.run(models, x, y, micro_batch=2)
        assert torch.equal(alone.x_adv, again.x_adv)  # a run does not leak into the next
        first = attack.run(models, torch.cat([x[2:], x[2:]]), torch.cat([y[2:], y[2:]]), micro_batch=2)
        # the first batch has no batch before it; the second has one only with the leak
        assert torch.allclose(first.x_adv[:2], first.x_adv[2:], atol=1e-12) != leaks
        assert together.shape == x[2:].shape


def test_only_the_scalars_of_a_batch_leak() -> None:
    with pytest.raises(InputError, match="batch_coupled"):
        create_attack("smer", leaks=True)


def test_vmi_uses_the_step_before_in_an_inner_loop(small: Setting) -> None:
    """Within one step every gradient of a surrogate is corrected by the same variance."""
    from advens.attacks.estimators.vmi import VMI
    from advens.attacks.interfaces import Context
    from advens.seeding import Draws
    from advens.threat import Threat

    x = pixels(1, 2)
    context = Context(Threat("linf", 0.1), Draws(0, 2), x, x)
    memory: dict[str, object] = {}

    def gradient(at: Tensor) -> Tensor:
        return at**3

    for step in range(3):
        context.draws = Draws(0, 2).at(step)
        before = memory.get("v")
        for shift in (0.0, 0.1):
            tuned = VMI(copies=2).estimate(gradient, x + shift, memory, context)
            expected = gradient(x + shift) + (0 if before is None else before)
            assert torch.allclose(tuned, expected, atol=1e-12), step
