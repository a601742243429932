"""Ghosts: their sums against forward passes written out, and what is drawn when."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet18, resnet50, resnet101, resnet152

import advens
from advens.attacks import attack_from_spec, create_attack
from advens.attacks.surrogates.changes import ChangeContext, Changed, attached
from advens.attacks.surrogates.changes.ghost import Ghost, published_scale
from advens.attacks.surrogates.changes.sgm import residual_blocks
from advens.errors import InputError
from advens.seeding import Draws
from tests.attacks.surrogates.changes.conftest import gradient

MAP = (3, 8, 6, 6)
DROPS, SCALES = Ghost(keep=0.7, scale=0.0), Ghost(keep=1.0, scale=0.22)


def ghost(
    net: nn.Module, change: Ghost, draws: Draws | None = None, member: int = 0
) -> Changed:
    changed = Changed(net, [change], member)
    changed.at_step(draws or Draws(5, 3).at(0))
    return changed


def conv() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.ReLU(inplace=True), nn.Conv2d(8, 8, 3), nn.GELU(),
            nn.Flatten(), nn.Linear(128, 5),
        )  # fmt: skip
    return net.double().eval().requires_grad_(False)


def same_images() -> Tensor:
    """Three times one image."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand(1, 3, 8, 8, generator=generator, dtype=torch.float64).repeat(3, 1, 1, 1)


# factors of the skip connections


def test_formula_of_the_sums(residual_block: Any) -> None:
    """One factor for every channel: the second dimension of maps, the last of tokens."""
    draws = Draws(5, 3).at(0)

    def factors(z: Tensor, i: int) -> Tensor:
        dim = 1 if residual_block.x.shape == MAP else -1
        drawn = draws.generator("change", 0, "ghost", "skip", 0, i)
        lam = 0.78 + 0.44 * torch.rand(z.shape[dim], generator=drawn, dtype=torch.float64)
        return lam.view(-1, 1, 1) if dim == 1 else lam

    def written(x: Tensor) -> Tensor:
        out: Tensor = residual_block.written(x, lambda z, b, i: factors(z, i) * z + b)
        return out

    found = gradient(ghost(residual_block.block, SCALES), residual_block.x)
    for mine, wanted in zip(found, gradient(written, residual_block.x), strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(
    ("make", "scale"), [(resnet50, 0.22), (resnet101, 0.16), (resnet152, 0.12), (resnet18, 0.22)]
)
def test_published_figures(make: Callable[[], nn.Module], scale: float) -> None:
    """By depth: what ResNets are given, and the nearest of these for others."""
    with torch.device("meta"):
        blocks = residual_blocks(make())
    assert published_scale(len(blocks)) == scale


def test_published_ghosts_have_factors_or_dropout(block_of: Any) -> None:
    """A network with skip connections gets no dropout, one without them no factors."""
    skips, plain = nn.Sequential(block_of("tv-bottleneck").block), conv()
    for net, x, same, other in (
        (skips, block_of("tv-bottleneck").x, SCALES, Ghost(keep=0.994, scale=0.22)),
        (plain, same_images(), Ghost(keep=0.994, scale=0.0), Ghost(keep=1.0, scale=0.22)),
    ):
        found = gradient(ghost(net, Ghost()), x)
        assert all(map(torch.equal, found, gradient(ghost(net, same), x)))
        assert not torch.equal(found[1], gradient(ghost(net, other), x)[1])


def test_factors_differ_between_blocks_and_lie_in_range(block_of: Any) -> None:
    """Sums without a branch's value: the product of the factors is what remains of the image."""

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fn = nn.Conv2d(1, 1, 1)
            nn.init.zeros_(self.fn.weight)
            assert self.fn.bias is not None
            nn.init.zeros_(self.fn.bias)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.fn(x) + x
            return out

    x = torch.ones(2, 1, 1, 1)
    seen = []
    for seed in range(200):
        a, b = Residual(), Residual()
        values = []
        a.register_forward_hook(lambda m, args, out, keep=values: keep.append(out.detach()))
        out = ghost(nn.Sequential(a, b), SCALES, Draws(seed, 2).at(0))(x).detach()
        assert torch.equal(out[0], out[1])
        first = float(values[0][0])
        seen.append((first, float(out[0]) / first))
    pairs = torch.tensor(seen)
    assert pairs.min() >= 0.78 - 1e-6
    assert pairs.max() <= 1.22 + 1e-6
    assert pairs.amin(0).max() < 0.8
    assert pairs.amax(0).min() > 1.2
    torch.testing.assert_close(pairs.mean(0), torch.ones(2), atol=0.03, rtol=0)
    assert abs(float(torch.corrcoef(pairs.T)[0, 1])) < 0.25


# dropout


def test_formula_of_dropout() -> None:
    """Masks of the step after both activations, values kept in the mean."""
    net, x = conv(), same_images()
    context = ChangeContext(Draws(5, 3).at(0))

    def written(x: Tensor) -> Tensor:
        for place, (layer, act) in enumerate(((net[0], torch.relu), (net[2], nn.functional.gelu))):
            x = act(layer(x))
            noise = context.uniform(x.flatten(1), 0, 1, "ghost", place, 0).view_as(x)
            x = torch.where(noise < 0.7, x / 0.7, torch.zeros_like(x))
        out: Tensor = net[5](x.flatten(1))
        return out

    for mine, wanted in zip(gradient(ghost(net, DROPS), x), gradient(written, x), strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-10, atol=1e-12)


def test_as_many_values_are_kept() -> None:
    net = nn.Sequential(nn.ReLU())
    kept = ghost(net, Ghost(keep=0.9, scale=0.0))(torch.ones(3, 40_000))
    assert set(kept.unique().tolist()) <= {0.0, float(torch.tensor(1 / 0.9))}
    torch.testing.assert_close((kept > 0).double().mean(1), torch.full((3,), 0.9).double(), atol=0.01, rtol=0)


def test_a_module_used_twice_draws_twice() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act = nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([self.act(x), self.act(x)])

    once, again = ghost(Twice(), DROPS)(torch.ones(3, 100))
    assert not torch.equal(once, again)


def test_position_biases_are_left_alone() -> None:
    """A network inside that sees positions has as many rows as it likes: they are no samples."""
    model = advens.load_model("digits:vit-relpos")
    seen: list[Tensor] = []
    biases = [m for name, m in model.named_modules() if name.endswith("rel_pos.mlp")]
    assert biases
    handles = [m.register_forward_hook(lambda m, a, out: seen.append(out)) for m in biases]
    x = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    model(x)
    ghost(model, DROPS)(x)
    for handle in handles:
        handle.remove()
    assert all(map(torch.equal, seen[: len(biases)], seen[len(biases) :]))


# what is drawn when


@pytest.mark.parametrize("change", [DROPS, SCALES])
def test_draws(change: Ghost, block_of: Any) -> None:
    net = nn.Sequential(block_of("basic", 1).block, block_of("bottleneck", 2).block)
    x = block_of("basic").x[:1].repeat(3, 1, 1, 1)
    draws = Draws(5, 3).at(0)
    here = ghost(net, change, draws)
    first = gradient(here, x)
    assert all(map(torch.equal, gradient(here, x), first))
    with torch.no_grad():
        assert torch.equal(here(x), first[0])
    for other in (
        ghost(net, change, draws.at(1)),
        ghost(net, change, draws, member=1),
        ghost(net, change, Draws(6, 3).at(0)),
    ):
        assert not torch.allclose(other(x), first[0], rtol=1e-4)
    alike = torch.allclose(first[0][0], first[0][1], rtol=1e-9)
    assert alike == (change is SCALES)  # masks are a sample's own


@pytest.mark.parametrize("change", [DROPS, SCALES])
def test_no_batch_neighbours(change: Ghost) -> None:
    """A slice of the shard gives what the shard gives; so do several candidates of every sample."""
    model = advens.load_model("digits:swin").double()
    x = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)).double()
    draws = Draws(5, 3).at(0)
    whole = gradient(ghost(model, change, draws), x)
    part = gradient(ghost(model, change, Draws(5, 3, slice(1, 3)).at(0)), x[1:])
    many = gradient(ghost(model, change, draws), x.repeat(2, 1, 1, 1))
    for i in range(2):
        torch.testing.assert_close(part[i], whole[i][1:], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(many[i], whole[i].repeat(2, *[1] * (x.dim() - 1 if i else 1)))


def test_windows_stay_with_their_sample() -> None:
    """Where a network folds windows into the batch, a sample still has masks of its own."""

    class Windows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act = nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.act(x.view(len(x) * 4, 2, 8)).view(len(x), -1)
            return out

    x = torch.rand(3, 64, generator=torch.Generator().manual_seed(0))
    whole = ghost(Windows(), DROPS)(x)
    part = ghost(Windows(), DROPS, Draws(5, 3, slice(1, 3)).at(0))(x[1:])
    assert torch.equal(part, whole[1:])
    assert not torch.equal(whole[0] > 0, whole[1] > 0)


def test_passes_under_one_attachment_are_alike() -> None:
    net, x = conv(), same_images()
    with attached(net, [DROPS], ChangeContext(Draws(5, 3).at(0))):
        assert torch.equal(net(x), net(x))


def test_nothing_to_do_changes_nothing(residual_block: Any) -> None:
    found = gradient(ghost(residual_block.block, Ghost(keep=1.0, scale=0.0)), residual_block.x)
    assert all(map(torch.equal, found, gradient(residual_block.block, residual_block.x)))
    assert list(Ghost(keep=1.0, scale=0.0).attach(residual_block.block, ChangeContext())) == []


@pytest.mark.parametrize("name", [n for n in advens.list_models("digits:*") if n != "digits:barre3"])
def test_embedded_models(name: str) -> None:
    model = advens.load_model(name)
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    draws = Draws(5, 2).at(0)
    plain = gradient(model, x)
    for change in (Ghost(keep=0.994, scale=0.0), Ghost(keep=1.0)):
        bare = change.keep == 1 and name == "digits:efficientnet"  # it has no sums
        found = gradient(ghost(model, change, draws), x)
        assert torch.equal(found[1], plain[1]) == bare
    assert all(map(torch.equal, gradient(model, x), plain))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


# the attack


def test_one_ghost_a_step(count: Any) -> None:
    """Members have ghosts of their own, and the whole run repeats."""
    net = conv()
    images, labels = same_images(), torch.tensor([0, 1, 2])
    attack: Any = create_attack("ghost", steps=2, keep=0.7)
    assert attack.spec["changes"] == [{"name": "ghost", "keep": 0.7, "scale": "published"}]
    assert attack_from_spec(attack.spec) == attack
    with count([net]) as counter:
        found = attack.run([net, net], images, labels, seed=1)
    assert (counter.forward, counter.backward) == (12, 12)
    assert torch.equal(attack([net, net], images, labels, seed=1), found.x_adv)
    assert not torch.equal(attack([net, net], images, labels, seed=2), found.x_adv)
    assert not torch.equal(attack([net], images, labels, seed=1), found.x_adv)
    small = attack.run([net, net], images, labels, seed=1, micro_batch=2)
    torch.testing.assert_close(small.x_adv, found.x_adv, rtol=0, atol=1e-9)


def test_refusals() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 5)).double()
    with pytest.raises(InputError, match=r"'ghost' finds neither .* in 'Sequential'"):
        create_attack("ghost")(net, same_images(), torch.arange(3))
    for wrong in ({"keep": 0.0}, {"keep": 1.1}, {"scale": 1.0}, {"scale": -0.1}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            create_attack("ghost", **wrong)
