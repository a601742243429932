"""PatchOut: which patches of a perturbation a surrogate sees, against loops over pixels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from advens.attacks import attack_from_spec, create_attack
from advens.attacks.estimators import Plain
from advens.attacks.losses import CrossEntropy
from advens.attacks.oracle import Context, GradientOracle, Job
from advens.attacks.parts import to_spec
from advens.attacks.transforms.patchout import PatchOut
from advens.errors import InputError
from advens.seeding import Draws
from advens.threat import Threat

Images = Callable[..., Tensor]
EPS = 16 / 255


def pair(*shape: int) -> tuple[Tensor, Tensor]:
    """Clean images (N, 3, H, W) and others that differ from them in every value."""
    generator = torch.Generator().manual_seed(0)
    clean = torch.rand(shape, generator=generator, dtype=torch.float64)
    return clean, clean + 0.01 + 0.05 * torch.rand(shape, generator=generator, dtype=torch.float64)


def context_of(clean: Tensor, draws: Draws | None = None) -> Context:
    return Context(Threat("linf", EPS), draws or Draws(0, len(clean)).at(0), clean, clean)


def chosen(draws: Draws, n: int, grid: int, kept: int) -> list[list[int]]:
    """The patches that stay, of every image: those with the smallest numbers."""
    noise = draws.uniform(torch.empty(n, grid**2, dtype=torch.float64), 0, 1, "patchout")
    return [sorted(range(grid**2), key=row.__getitem__)[:kept] for row in noise.tolist()]


@pytest.mark.parametrize("side", [(8, 8), (12, 8), (9, 10), (7, 13), (3, 4)])
@pytest.mark.parametrize(("grid", "keep", "kept"), [(4, 0.5, 8), (4, 0.01, 1), (2, 0.7, 3), (5, 0.3, 8)])
def test_formula(side: tuple[int, int], grid: int, keep: float, kept: int) -> None:
    """Pixel by pixel; also where patches do not divide the image, or are smaller than a pixel."""
    clean, x = pair(4, 3, *side)
    found = PatchOut(grid, keep)(x, 0, context_of(clean))
    wanted = clean.clone()
    for n, patches in enumerate(chosen(Draws(0, 4).at(0), 4, grid, kept)):
        for row in range(side[0]):
            for column in range(side[1]):
                if row * grid // side[0] * grid + column * grid // side[1] in patches:
                    wanted[n, :, row, column] = x[n, :, row, column]
    assert torch.equal(found, wanted)


def test_default_is_the_published_one() -> None:
    """130 of the 196 patches of 16 x 16 pixels, whole."""
    clean, x = pair(3, 3, 224, 224)
    found = PatchOut()(x, 0, context_of(clean))
    stays = (found == x).view(3, 3, 14, 16, 14, 16).double().mean((1, 3, 5))
    assert set(stays.unique().tolist()) == {0.0, 1.0}
    assert stays.sum((1, 2)).tolist() == [130] * 3
    assert torch.equal(found, torch.where(found == x, x, clean))
    assert not torch.equal(stays[0], stays[1])


def test_all_kept_is_the_identity() -> None:
    clean, x = pair(3, 3, 8, 8)
    assert torch.equal(PatchOut(4, 1.0)(x, 0, context_of(clean)), x)
    assert torch.equal(PatchOut(1, 0.1)(x, 0, context_of(clean)), x)
    assert torch.equal(PatchOut(4, 0.3)(clean, 0, context_of(clean)), clean)


def test_every_patch_is_as_likely() -> None:
    clean, x = pair(2000, 1, 4, 4)
    stays = (PatchOut(4, 0.25)(x, 0, context_of(clean)) == x).double()
    assert stays.sum((1, 2, 3)).unique().tolist() == [4]
    torch.testing.assert_close(stays.mean(0), torch.full((1, 4, 4), 0.25).double(), atol=0.04, rtol=0)


def test_draws() -> None:
    """A sample's own every step; the same within a step, at any part of the shard."""
    clean, x = pair(6, 3, 8, 8)
    patchout, draws = PatchOut(4, 0.5), Draws(3, 6).at(2)
    whole = patchout(x, 0, context_of(clean, draws))
    assert torch.equal(patchout(x, 0, context_of(clean, draws)), whole)
    part = context_of(clean[2:4], Draws(3, 6, slice(2, 4)).at(2))
    assert torch.equal(patchout(x[2:4], 0, part), whole[2:4])
    for other in (draws.at(3), Draws(4, 6).at(2)):
        assert not torch.equal(patchout(x, 0, context_of(clean, other)), whole)
    masks = (whole == x)[:, 0]
    assert len({tuple(mask.flatten().tolist()) for mask in masks}) > 1


# gradients and attacks


def oracle_of(model: nn.Module, clean: Tensor, y: Tensor, *transforms: Any) -> GradientOracle:
    job = Job([model], clean, y, None, Draws(0, len(clean)), clean)
    oracle = GradientOracle(job, Threat(eps=EPS), CrossEntropy(), Plain(), transforms)
    oracle.begin(0, 0.01)
    return oracle


def test_gradient(net: Any) -> None:
    """That of the loss at what is seen, on the patches that stay, and 0 elsewhere."""
    model, y = net(0), torch.tensor([0, 1, 2, 3])
    clean, x = pair(4, 3, 8, 8)
    oracle = oracle_of(model, clean, y, PatchOut(4, 0.5))
    seen = PatchOut(4, 0.5)(x, 0, oracle.context)
    leaf = seen.clone().requires_grad_()
    (g,) = torch.autograd.grad(F.cross_entropy(model(leaf), y, reduction="sum"), leaf)
    wanted = torch.where(seen == x, g, torch.zeros_like(g))
    torch.testing.assert_close(oracle.gradient(x), wanted, rtol=0, atol=1e-12)
    assert torch.equal(oracle.gradient(x), oracle.gradient(x))
    first = oracle.gradient(x)
    oracle.begin(1, 0.01)
    assert not torch.equal(oracle.gradient(x), first)


def test_one_step_moves_what_is_seen(net: Any, images: Images) -> None:
    """One step of signs moves the patches that stay, and no others."""
    model, x, y = net(0), images(0), torch.tensor([0, 1, 2, 3])
    attack: Any = create_attack("patchout-pgd", steps=1, grid=4, keep=0.5, start="clean")
    found = attack(model, x, y, seed=5)
    moved = (found != x).any(1)
    for n, patches in enumerate(chosen(Draws(5, 4).at(0), 4, 4, 8)):
        for row in range(8):
            for column in range(8):
                if row // 2 * 4 + column // 2 not in patches:
                    assert not moved[n, row, column]
    assert moved.double().mean() > 0.4


def test_attack(net: Any, images: Images, count: Any) -> None:
    models, x, y = [net(0), net(1)], images(0), torch.tensor([0, 1, 2, 3])
    attack: Any = create_attack("patchout-mifgsm", steps=3, grid=4, keep=0.5)
    assert attack.spec["transforms"] == [{"name": "patchout", "grid": 4, "keep": 0.5}]
    assert attack_from_spec(attack.spec) == attack
    with count(models) as counter:
        found = attack.run(models, x, y, seed=1)
    assert (counter.forward, counter.backward) == (24, 24)
    for size in (1, 3):
        small = attack.run(models, x, y, seed=1, micro_batch=size)
        torch.testing.assert_close(small.x_adv, found.x_adv, rtol=0, atol=1e-9)
    assert not torch.equal(attack(models, x, y, seed=2), found.x_adv)
    full = create_attack("patchout-mifgsm", steps=3, keep=1.0)
    assert torch.equal(full(models, x, y, seed=1), create_attack("mifgsm", steps=3)(models, x, y, seed=1))


def test_options() -> None:
    assert to_spec(PatchOut()) == {"name": "patchout", "grid": 14, "keep": 130 / 196}
    for wrong in ({"grid": 0}, {"grid": 2.5}, {"keep": 0.0}, {"keep": 1.01}, {"keep": float("nan")}):
        with pytest.raises(InputError, match=f"'patchout': {next(iter(wrong))} = ") as caught:
            create_attack("patchout-mifgsm", **wrong)
        assert "\n" not in str(caught.value)
