"""Input transforms: what a surrogate sees, against plain transcriptions with the same draws."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from scipy.fft import dctn, idctn
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import rotate as torchvision_rotate

from advens.attacks import create_attack
from advens.attacks.estimators import Plain
from advens.attacks.geometry import rotate
from advens.attacks.losses import CrossEntropy
from advens.attacks.oracle import Context, GradientOracle, Job
from advens.attacks.transforms.admix import Admix
from advens.attacks.transforms.bsr import BSR, cuts, sizes
from advens.attacks.transforms.di import DI
from advens.attacks.transforms.noise import Noise
from advens.attacks.transforms.si import SI
from advens.attacks.transforms.ssa import SSA
from advens.errors import InputError
from advens.seeding import Draws
from advens.threat import Threat

Images = Callable[..., Tensor]
EPS = 16 / 255


def context_of(x: Tensor, seed: int = 0, step: int = 0, norm: str = "linf") -> Context:
    return Context(Threat(norm, EPS), Draws(seed, len(x)).at(step), x, x)


def oracle_of(model: nn.Module, x: Tensor, y: Tensor, *transforms: Any) -> GradientOracle:
    job = Job([model], x, y, None, Draws(0, len(x)), x)
    oracle = GradientOracle(job, Threat(eps=EPS), CrossEntropy(), Plain(), transforms)
    oracle.begin(0, 0.01)
    return oracle


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-9)


def gradient(model: nn.Module, x: Tensor, y: Tensor, view: Callable[[Tensor], Tensor]) -> Tensor:
    leaf = x.clone().requires_grad_()
    (g,) = torch.autograd.grad(F.cross_entropy(model(view(leaf)), y, reduction="sum"), leaf)
    return g


# --- SI and Admix ---------------------------------------------------------------------------------


def test_si_is_the_mean_over_scales(net: Any, images: Images) -> None:
    model, x, y = net(0), images(0), torch.tensor([0, 1, 2, 3])
    scales = [gradient(model, x, y, lambda v, i=i: v / 2**i) for i in range(5)]
    wanted = torch.stack(scales).mean(0)
    close(oracle_of(model, x, y, SI()).gradient(x), wanted)
    close(SI()(x, 3, context_of(x)), x / 8)


def test_si_about_grey_is_si_in_the_authors_range(net: Any, images: Images) -> None:
    """Images in [-1, 1], divided there."""
    model, x, y = net(0), images(0), torch.tensor([0, 1, 2, 3])
    scales = [gradient(model, x, y, lambda v, i=i: ((2 * v - 1) / 2**i + 1) / 2) for i in range(4)]
    close(oracle_of(model, x, y, SI(copies=4, about="grey")).gradient(x), torch.stack(scales).mean(0))
    with pytest.raises(InputError, match="about"):
        create_attack("sifgsm", about="white")


@pytest.mark.parametrize("about", ["black", "grey"])
def test_admix_of_adversarial_images(about: Any, net: Any, images: Images) -> None:
    """The batch of this step shuffled, as a constant, in [0, 1] or [-1, 1]; written for whole batches."""
    model, clean, y = net(0), images(0), torch.tensor([0, 1, 2, 3])
    x, total = (clean + 0.05).clamp(0, 1), torch.zeros_like(clean)
    for m in range(3):
        order = Draws(0, 4).at(0).permutation(4, "admix", m)
        for i in range(2):

            def view(v: Tensor, order: list[int] = order, i: int = i) -> Tensor:
                if about == "black":
                    return (v + 0.2 * x[order]) / 2**i
                return ((2 * v - 1 + 0.2 * (2 * x[order] - 1)) / 2**i + 1) / 2

            total += gradient(model, x, y, view) / 6
    job = Job([model], clean, y, None, Draws(0, 4), clean)
    admix = Admix(others=3, scales=2, mixed="adversarial", about=about)
    oracle = GradientOracle(job, Threat(eps=EPS), CrossEntropy(), Plain(), [admix])
    oracle.begin(0, 0.01)
    close(oracle.gradient(x), total)


def test_admix(net: Any, images: Images) -> None:
    """Mean over 3 other images and 2 scales of (x + 0.2 other) / 2^i, sample by sample."""
    model, x, y = net(0), images(0), torch.tensor([0, 1, 2, 3])
    draws, total = Draws(0, len(x)).at(0), torch.zeros_like(x)
    chosen: set[tuple[int, int]] = set()
    for m in range(3):
        others = draws.others("admix", m).tolist()
        for i in range(2):
            for n, other in enumerate(others):
                chosen.add((n, other))
                total[n] += gradient(
                    model, x[n : n + 1], y[n : n + 1],
                    lambda v, o=other, i=i: (v + 0.2 * x[o]) / 2**i,
                )[0] / 6  # fmt: skip
    assert all(n != other for n, other in chosen), "another image, never itself"
    close(oracle_of(model, x, y, Admix(others=3, scales=2)).gradient(x), total)


def test_admix_couples_batches_on_request(net: Any, images: Images) -> None:
    """Clean images come from the shard whatever the micro-batch; adversarial ones from the batch."""
    model, x, y = net(0), images(0), torch.tensor([0, 1, 2, 3])
    for mixed in ("clean", "adversarial"):
        attack: Any = create_attack("admix", eps=EPS, steps=2, mixed=mixed)
        whole = attack.run([model], x, y).x_adv
        halves = attack.run([model], x, y, micro_batch=2).x_adv
        assert torch.allclose(halves, whole, rtol=0, atol=1e-12) == (mixed == "clean")


def test_admix_draws_others_anew_each_step(images: Images) -> None:
    x = images(0, n=16)
    views = [Admix()(x, 0, context_of(x, step=t)) for t in range(2)]
    assert not torch.equal(*views)
    assert Admix(others=2, scales=3).copies == 6


def test_admix_of_a_single_image_mixes_it_with_itself(images: Images) -> None:
    x = images(0, n=1)
    close(Admix()(x, 1, context_of(x)), 1.2 * x / 2)


# --- SSA --------------------------------------------------------------------------------------------


def spectrum_noise(x: Tensor, context: Context, rho: float, copy: int) -> tuple[Tensor, Tensor]:
    noise = context.threat.gaussian(x, 1.0, context.draws, "ssa-noise", copy)
    mask = context.draws.uniform(x, 1 - rho, 1 + rho, "ssa-mask", copy)
    return noise, mask


def cosine(x: Tensor, back: bool = False) -> Tensor:
    transform = idctn if back else dctn
    return torch.from_numpy(transform(x.numpy(), type=2, norm="ortho", axes=(-2, -1)))


@pytest.mark.parametrize("straight", [True, False])
@pytest.mark.parametrize("shape", [(8, 8), (7, 12)])
def test_ssa(straight: bool, shape: tuple[int, int], images: Images) -> None:
    x = images(0, side=12)[..., : shape[0], : shape[1]].contiguous()
    context = context_of(x)
    transform = SSA(rho=0.5, straight_through=straight)
    for copy in range(3):
        noise, mask = spectrum_noise(x, context, 0.5, copy)
        assert mask.min() >= 0.5
        assert mask.max() <= 1.5
        leaf = x.clone().requires_grad_()
        view = transform(leaf, copy, context)
        close(view.detach(), cosine(cosine(x + noise) * mask, back=True))
        weight = images(copy + 1, side=12)[..., : shape[0], : shape[1]]
        (g,) = torch.autograd.grad((view * weight).sum(), leaf)
        # the transform is its own transpose; straight through it counts as the identity
        exact = cosine(cosine(weight) * mask, back=True)
        close(g, weight if straight else exact)


def test_ssa_noise_has_the_budgets_deviation() -> None:
    x = torch.zeros(64, 3, 8, 8, dtype=torch.float64)
    noise, mask = spectrum_noise(x, context_of(x), 0.5, 0)
    assert noise.std().item() == pytest.approx(EPS, rel=0.05)
    assert mask.mean().item() == pytest.approx(1, abs=0.02)
    quiet = SSA(rho=0)(x, 0, context_of(x))
    close(quiet, noise)


# --- BSR --------------------------------------------------------------------------------------------


def cut(length: int, pieces: int, draws: Draws, *tag: object) -> list[int]:
    """Sizes in proportion to U(1, 2); the largest takes what rounding leaves."""
    shares = torch.tensor([draws.number(1, 2, "size", *tag, i) for i in range(pieces)])
    sizes = (shares / shares.sum() * length).round().int()
    sizes[sizes.argmax()] += length - sizes.sum()
    return [int(size) for size in sizes]


@pytest.mark.parametrize("shape", [(16, 16), (13, 20)])
@pytest.mark.parametrize("blocks", [2, 3])
def test_bsr_rotates_strips(blocks: int, shape: tuple[int, int], images: Images) -> None:
    """Shuffled strips along either axis, each rotated as a whole, then cut the other way."""
    x = images(0, side=20)[..., : shape[0], : shape[1]]
    axes = set()
    for copy in range(6):
        context = context_of(x)
        draws = context.draws.fork("bsr", copy)
        axis = draws.integers(2, 1, "axis")[0]
        axes.add(axis)
        down = x if axis == 0 else x.mT
        wanted, top = torch.zeros_like(down), 0
        starts = [sum(cut(down.shape[2], blocks, draws, "first")[:i]) for i in range(blocks + 1)]
        for i, j in enumerate(draws.permutation(blocks, "order", "first")):
            strip = down[:, :, starts[j] : starts[j + 1]]
            angle = draws.number(-24, 24, "angle", i)
            strip = rotate(strip, angle) if axis == 0 else rotate(strip.mT, angle).mT
            bounds = [sum(cut(down.shape[3], blocks, draws, "second", i)[:k]) for k in range(blocks + 1)]
            left, height = 0, strip.shape[2]
            for k in draws.permutation(blocks, "order", "second", i):
                piece = strip[..., bounds[k] : bounds[k + 1]]
                wanted[:, :, top : top + height, left : left + piece.shape[3]] = piece
                left += piece.shape[3]
            top += height
        close(BSR(blocks=blocks)(x, copy, context), wanted if axis == 0 else wanted.mT)
    assert axes == {0, 1}


def test_bsr_sizes_are_a_partition() -> None:
    draws = Draws(0, 1)
    for length in range(1, 14):
        for pieces in range(1, length + 1):
            found = sizes(length, pieces, draws, length)
            assert (len(found), sum(found)) == (pieces, length)
            assert min(found) >= 1
    assert sizes(2, 5, draws) == [1, 1], "not more pieces than pixels"
    thirds = {sizes(30, 2, draws.at(step))[0] for step in range(500)}
    assert set(range(11, 20)) <= thirds <= set(range(10, 21)), "a strip is at most twice as wide as another"


@pytest.mark.parametrize("rotated", ["strips", "blocks"])
@pytest.mark.parametrize(("blocks", "side"), [(2, 8), (3, 8), (3, 11), (1, 8)])
def test_bsr_without_rotation_moves_whole_pixels(blocks: int, side: int, rotated: Any) -> None:
    """With angle 0 a permutation of pixels, the same for all images and channels."""
    places = torch.arange(side * side, dtype=torch.float64).view(1, 1, side, side)
    x = places / side**2 + torch.arange(6).view(2, 3, 1, 1)
    context = context_of(x)
    seen = set()
    for copy in range(8):
        view = BSR(blocks=blocks, angle=0, rotated=rotated)(x, copy, context)
        assert view.shape == x.shape
        where = ((view - torch.arange(6).view(2, 3, 1, 1)) * side**2).round()
        close(view, where / side**2 + torch.arange(6).view(2, 3, 1, 1))
        assert (where == where[:1, :1]).all()
        assert sorted(where[0, 0].flatten().tolist()) == list(range(side * side))
        # within a block neighbours stay neighbours: at most blocks - 1 seams in a row or a column
        across = (where[0, 0].diff(dim=1) != 1).sum(1).max()
        down = (where[0, 0].diff(dim=0) != side).sum(0).max()
        assert min(across, down) <= blocks - 1
        seen.add(tuple(where[0, 0].flatten().tolist()))
    assert len(seen) == 1 if blocks == 1 else len(seen) > 3


def test_bsr_cuts_are_a_partition() -> None:
    draws, first = Draws(0, 1), set()
    for step in range(200):
        sizes = cuts(9, 3, draws.at(step), "rows")
        assert len(sizes) == 3
        assert sum(sizes) == 9
        assert min(sizes) >= 1
        first.add(sizes[0])
    assert first == set(range(1, 8)), "every cut is possible"
    assert cuts(2, 5, draws, "rows") == [1, 1], "not more pieces than pixels"


@pytest.mark.parametrize("shape", [(16, 16), (12, 20), (15, 9)])
@pytest.mark.parametrize("degrees", [24.0, -17.5, 90.0])
def test_rotation_is_torchvisions(degrees: float, shape: tuple[int, int], images: Images) -> None:
    x = images(0, side=20)[..., : shape[0], : shape[1]]
    wanted = torchvision_rotate(x, degrees, InterpolationMode.BILINEAR)
    found = rotate(x, degrees)
    interior = torchvision_rotate(torch.ones_like(x), degrees, InterpolationMode.BILINEAR) == 1
    assert interior.double().mean() > 0.3
    torch.testing.assert_close(found[interior], wanted[interior], rtol=0, atol=1e-6)


def test_rotation_keeps_the_blocks_and_stays_in_range(images: Images) -> None:
    x = images(0, side=16)
    view = BSR(copies=2, blocks=2, angle=24)(x, 0, context_of(x))
    assert view.shape == x.shape
    assert view.min() >= 0
    assert view.max() <= 1
    assert not torch.equal(view, BSR(blocks=2, angle=0)(x, 0, context_of(x)))
    with pytest.raises(InputError, match="at least one block"):
        create_attack("bsr", blocks=0)


def test_bsr_rotates_blocks_on_request(images: Images) -> None:
    """Earlier form: rows first, each cut on its own, every block with its own angle."""
    x, context = images(0, side=16), context_of(images(0, side=16))
    draws = context.draws.fork("bsr", 3)
    rows = x.split(cuts(16, 2, draws, "rows"), 2)
    strips = []
    for i, j in enumerate(draws.permutation(2, "order", "rows")):
        pieces = rows[j].split(cuts(16, 2, draws, "columns", i), 3)
        order = draws.permutation(2, "order", "columns", i)
        angles = [draws.number(-24, 24, "angle", i, c) for c in range(2)]
        strips.append(torch.cat([rotate(pieces[k], a) for k, a in zip(order, angles, strict=True)], 3))
    close(BSR(rotated="blocks")(x, 3, context), torch.cat(strips, 2))


def test_bsr_gradient_is_the_mean_over_copies(net: Any, images: Images) -> None:
    model, x, y = net(0), images(0), torch.tensor([0, 1, 2, 3])
    transform, context = BSR(copies=3), context_of(x)
    each = [gradient(model, x, y, lambda v, c=c: transform(v, c, context)) for c in range(3)]
    close(oracle_of(model, x, y, transform).gradient(x), torch.stack(each).mean(0))


# --- DI ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(8, 8), (16, 16), (13, 17)])
@pytest.mark.parametrize("rate", [1.0, 1.1, 1.5])
def test_di(shape: tuple[int, int], rate: float, images: Images) -> None:
    """Enlarge, pad to the largest size, back: with the draws of the step, pixel for pixel."""
    x = images(0, side=20)[..., : shape[0], : shape[1]]
    for step in range(6):
        context = context_of(x, step=step)
        draws = context.draws
        factor = draws.number(1, rate, "di", "size")
        height, width = round(shape[0] * factor), round(shape[1] * factor)
        tall, wide = round(shape[0] * rate), round(shape[1] * rate)
        assert shape[0] <= height <= tall
        top = draws.integers(tall - height + 1, 1, "di", "top")[0]
        left = draws.integers(wide - width + 1, 1, "di", "left")[0]
        canvas = torch.zeros(len(x), 3, tall, wide, dtype=torch.float64)
        inner = F.interpolate(x, (height, width), mode="bilinear", align_corners=False)
        canvas[..., top : top + height, left : left + width] = inner
        wanted = F.interpolate(canvas, shape, mode="bilinear", align_corners=False)
        view = DI(p=1.0, rate=rate)(x, 0, context)
        assert view.shape == x.shape
        close(view, wanted)


def test_di_probability(images: Images) -> None:
    x = images(0, n=1, side=16)
    never, always, half = (
        [torch.equal(DI(p=p, rate=1.3)(x, 0, context_of(x, step=t)), x) for t in range(200)]
        for p in (0.0, 1.0, 0.5)
    )
    assert all(never)
    assert not any(always)
    assert 70 <= sum(half) <= 130
    with pytest.raises(InputError, match="rate is at least 1"):
        create_attack("difgsm", rate=0.9)


def test_di_lets_gradients_through(net: Any, images: Images) -> None:
    model, x, y = net(0, side=16), images(0, side=16), torch.tensor([0, 1, 2, 3])
    transform, context = DI(p=1.0, rate=1.4), context_of(x)
    wanted = gradient(model, x, y, lambda v: transform(v, 0, context))
    close(oracle_of(model, x, y, transform).gradient(x), wanted)
    assert not torch.allclose(wanted, gradient(model, x, y, lambda v: v))


# --- noise ------------------------------------------------------------------------------------------


def test_noise_moves_where_gradients_are_taken(net: Any, images: Images) -> None:
    """x + U(-r eps, r eps), neither projected nor kept: each sample's own, the step's own."""
    model, x, y = net(0), images(0), torch.tensor([0, 1, 2, 3])
    u = Draws(0, len(x)).at(0).uniform(x, -0.5 * EPS, 0.5 * EPS, "noise")
    found = oracle_of(model, x, y, Noise(radius=0.5)).gradient(x)
    close(found, gradient(model, x + u, y, lambda v: v))
    black = torch.zeros(4, 3, 8, 8, dtype=torch.float64)
    view = Noise()(black, 0, context_of(black))
    assert -EPS <= view.min() < -0.9 * EPS
    assert EPS >= view.max() > 0.9 * EPS
    assert not torch.equal(view[0], view[1])
    with pytest.raises(InputError, match="above 0"):
        create_attack("noise-linbp", radius=0.0)


# --- together ---------------------------------------------------------------------------------------


@dataclass
class Recorder:
    """A transform that remembers which of its copies were asked for."""

    copies: int
    asked: list[int] = field(default_factory=list)

    def __call__(self, x: Tensor, copy: int, context: Context) -> Tensor:
        self.asked.append(copy)
        return x


def test_every_pair_of_copies_is_visited_once(net: Any, images: Images) -> None:
    one, two, three = Recorder(3), Recorder(1), Recorder(4)
    x = images(0)
    oracle_of(net(0), x, torch.tensor([0, 1, 2, 3]), one, two, three).gradient(x)
    pairs = list(zip(one.asked, three.asked, strict=True))
    assert sorted(pairs) == [(a, b) for a in range(3) for b in range(4)]
    assert two.asked == [0] * 12


@pytest.mark.parametrize("transform", [DI(p=0.5, rate=1.5), SSA(), BSR(), Admix(), Noise()])
def test_draws_belong_to_the_step(transform: Any, net: Any, images: Images) -> None:
    """Two gradients of one step see the same draw; another step sees another."""
    x, y = images(0), torch.tensor([0, 1, 2, 3])
    oracle = oracle_of(net(0), x, y, transform)
    first, second = oracle.gradient(x), oracle.gradient(x)
    assert torch.equal(first, second)
    later = []
    for step in range(1, 6):
        oracle.begin(step, 0.01)
        later.append(oracle.gradient(x))
    assert any(not torch.equal(first, other) for other in later)


@pytest.mark.parametrize("transform", [SSA(), BSR(angle=0), Admix(scales=1)])
def test_copies_differ(transform: Any, images: Images) -> None:
    x = images(0)
    views = [transform(x, copy, context_of(x)) for copy in range(transform.copies)]
    assert len({tuple(view.flatten().tolist()) for view in views}) > 1
