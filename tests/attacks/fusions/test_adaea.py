"""AdaEA against its paper and, where its options say so, against its published code."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from advens.attacks import create_attack
from advens.attacks.fusions.adaea import disparity
from advens.seeding import Draws

BETA, ETA, GUARD = 10.0, -0.3, 1e-6


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """(C, H, W) twice -> (H, W), over channels; a pixel without a gradient agrees with none: 0."""
    lengths = torch.sqrt((a**2).sum(0)) * torch.sqrt((b**2).sum(0))
    return torch.where(lengths > 0, (a * b).sum(0) / lengths.clamp_min(1e-300), 0.0)


def pair_map(g: list[Tensor]) -> Tensor:
    """The paper's: each surrogate's mean cosine to the others, and the mean of those."""
    k, total = len(g), torch.zeros_like(g[0][0])
    for i in range(k):
        row = torch.zeros_like(total)
        for j in range(k):
            if j != i:
                row = row + cosine(g[i], g[j])
        total = total + row / (k - 1)
    return total / k


def published_map(g: list[Tensor]) -> Tensor:
    """The published double loop: ``j`` is what the inner loop left behind, the last surrogate."""
    k, shape = len(g), g[0][0].shape
    pairs = torch.zeros(k, k, *shape, dtype=g[0].dtype)
    rows = torch.zeros(k, *shape, dtype=g[0].dtype)
    for i in range(k):
        for j in range(k):
            if i >= j:
                continue
            pairs[i][j] = cosine(g[i], g[j])
        if i < j:
            rows[i] = (pairs[i, :].sum(0) + pairs[:, i].sum(0)) / (k - 1)
    return rows.mean(0)


def trial_losses(at: Any, i: int, g: list[Tensor], x: Tensor, ce: Any) -> list[list[float]]:
    """``[a][b]``: cross-entropy of surrogate a on the trial step along surrogate b's gradient."""
    trials = [at.step(x, i, at.alpha, g[b]) for b in range(at.k)]
    return [
        [float(ce(at.logits(a, trial).detach(), at.wanted(i))) for trial in trials]
        for a in range(at.k)
    ]


def weights_from(at: Any, losses: list[list[float]], mean_ratio: bool = True) -> list[float]:
    rho = []
    for b in range(at.k):
        total = 0.0
        for a in range(at.k):
            if a != b:
                there, home = losses[a][b] + GUARD, losses[a][a] + GUARD
                total += there / home if at.target is None else home / there
        rho.append(BETA * total / (at.k - 1) if mean_ratio and at.k > 1 else BETA * total)
    largest = max(rho)
    shares = [math.exp(r - largest) for r in rho]
    return [share / sum(shares) for share in shares]


def directions(
    at: Any,
    i: int,
    x: Tensor,
    g: list[Tensor],
    weights: list[float],
    gradient_of: Any,
    filtered: Callable[[list[Tensor]], Tensor] | None,
    eta: float = ETA,
) -> Tensor:
    fused: Tensor = gradient_of(
        lambda leaf: at.j(sum(w * at.logits(k, leaf) for k, w in enumerate(weights)), i), x
    )
    if filtered is None or at.k == 1:
        return fused
    return fused * (filtered(g) >= eta)


@pytest.fixture
def transcribed(gradient_of: Any, cross_entropy: Any) -> Callable[..., Any]:
    """The paper, one image at a time; keywords are the published code's differences."""

    def run(
        at: Any,
        mean_ratio: bool = True,
        filtered: Callable[[list[Tensor]], Tensor] | None = pair_map,
        agm: bool = True,
        mu: float = 1.0,
        eta: float = ETA,
    ) -> Any:
        def direction(t: int, i: int, x: Tensor, state: dict[str, Any]) -> Tensor:
            g = [at.own(i, k, x) for k in range(at.k)]
            weights = [1 / at.k] * at.k
            if agm:
                weights = weights_from(at, trial_losses(at, i, g, x, cross_entropy), mean_ratio)
            return directions(at, i, x, g, weights, gradient_of, filtered, eta)

        return at.alone(direction, mu)

    return run


@pytest.fixture
def coupled(gradient_of: Any, cross_entropy: Any) -> Callable[..., Any]:
    """As published: losses averaged over the batch before the ratio, one weight vector for all."""

    def run(at: Any) -> Any:
        def direction(t: int, points: list[Tensor], state: dict[str, Any]) -> list[Tensor]:
            g = [[at.own(i, k, x) for k in range(at.k)] for i, x in enumerate(points)]
            each = [trial_losses(at, i, g[i], x, cross_entropy) for i, x in enumerate(points)]
            mean = [
                [sum(losses[a][b] for losses in each) / len(points) for b in range(at.k)]
                for a in range(at.k)
            ]
            weights = weights_from(at, mean)
            return [
                directions(at, i, x, g[i], weights, gradient_of, pair_map)
                for i, x in enumerate(points)
            ]

        return at.together(direction)

    return run


def filtered_share(directions: Tensor) -> float:
    return (directions == 0).all(2).double().mean().item()


def test_formula(at: Any, same: Any, transcribed: Any) -> None:
    found, wanted = at.run("adaea"), transcribed(at)
    same(found, wanted)
    assert torch.equal(found.directions == 0, wanted.directions == 0)
    if at.k < 5:
        assert 0.01 < filtered_share(wanted.directions) < 0.9, "the filter is not at work"


@pytest.mark.parametrize(
    ("name", "mu"), [("adaea", None), ("mi-adaea", 0.9)], ids=["adaea", "mi-adaea"]
)
def test_recipe_has_the_papers_constants(
    setting: Any, same: Any, transcribed: Any, name: str, mu: float | None
) -> None:
    """eps 8/255, 20 steps of 2/255, from 0.001 of normal noise; momentum 0.9 in ``mi-adaea``."""
    at = setting(k=3, n=2, eps=8 / 255, alpha=2 / 255, steps=20)
    noise = Draws(11, 2).normal(at.x, 0.001, "start")
    at.start = torch.stack([at.project(at.x[i] + noise[i], i) for i in range(2)])
    assert not torch.equal(at.start, at.x)
    same(at.run(create_attack(name)), transcribed(at, mu=mu or 0.0))


@pytest.mark.parametrize("start", ["clean", "gaussian", "uniform"])
def test_one_surrogate_is_ifgsm(setting: Any, start: str) -> None:
    at = setting(k=1)
    found = at.run("adaea", update="sign", start=start)
    wanted = at.run("ifgsm", update="sign", start=start)
    assert torch.equal(found.x_adv, wanted.x_adv)
    assert torch.equal(found.directions, wanted.directions)


# options


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("k", [3, 5])
def test_published_ratio(setting: Any, same: Any, transcribed: Any, k: int, targeted: bool) -> None:
    at = setting(k=k, targeted=targeted)
    found = at.run("adaea", mean_ratio=False)
    same(found, transcribed(at, mean_ratio=False))
    assert not torch.allclose(found.directions, at.run("adaea").directions, atol=1e-6)


def test_ratio_of_two_is_the_same_either_way(setting: Any, same: Any) -> None:
    at = setting(k=2)
    same(at.run("adaea", mean_ratio=False), at.run("adaea"))


@pytest.mark.parametrize("k", [2, 3, 5])
def test_published_filter(setting: Any, same: Any, transcribed: Any, k: int) -> None:
    at, eta = setting(k=k, n=7, seed=k), ETA if k < 5 else 0.0
    found = at.run("adaea", published_filter=True, eta=eta)
    same(found, transcribed(at, filtered=published_map, eta=eta))
    plain = at.run("adaea", eta=eta)
    assert not torch.equal(found.directions == 0, plain.directions == 0)
    if k == 2:
        assert filtered_share(found.directions) < filtered_share(plain.directions)


@pytest.mark.parametrize("k", [2, 3, 5])
@pytest.mark.parametrize("zeros", [False, True])
def test_filter_without_pairs_equals_pairs(k: int, zeros: bool) -> None:
    generator = torch.Generator().manual_seed(k)
    g = torch.randn(k, 4, 3, 8, 8, generator=generator, dtype=torch.float64)
    if zeros:
        g[0, :, :, 0] = 0  # one surrogate
        g[-2:, :, :, 1] = 0  # two of them
        g[:, :, :, 2] = 0  # all
        g[:, 3] = 0  # a whole image
    for name, published, by_pairs in (
        ("paper", False, pair_map), ("published", True, published_map)
    ):  # fmt: skip
        wanted = torch.stack([by_pairs([g[j, i] for j in range(k)]) for i in range(4)])[:, None]
        found = disparity(g, published)
        assert found.shape == (4, 1, 8, 8)
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12, msg=name)
    if zeros:
        assert (disparity(g)[3] == 0).all()
        assert (disparity(g)[:, :, 2] == 0).all()


def test_filter_knows_directions_not_sizes() -> None:
    """Also of gradients so small that their squares are zero in single precision."""
    generator = torch.Generator().manual_seed(0)
    g = torch.randn(3, 2, 3, 8, 8, generator=generator)
    wanted = disparity(g)
    for scale in (1e-3, 1e-25, 1e15):
        torch.testing.assert_close(disparity(g * scale), wanted, rtol=1e-4, atol=1e-5)


def test_published_map_of_two_equal_gradients_is_a_half() -> None:
    generator = torch.Generator().manual_seed(0)
    g = torch.randn(1, 4, 3, 8, 8, generator=generator, dtype=torch.float64).repeat(2, 1, 1, 1, 1)
    one, half = torch.ones(4, 1, 8, 8).double(), torch.full((4, 1, 8, 8), 0.5).double()
    torch.testing.assert_close(disparity(g), one)
    torch.testing.assert_close(disparity(g, published=True), half)
    torch.testing.assert_close(disparity(torch.stack([g[0], -g[0]])), -one)


@pytest.mark.parametrize(("k", "never"), [(2, False), (3, False), (5, True)])
def test_mean_cosine_has_a_floor(setting: Any, k: int, never: bool) -> None:
    """Mean pairwise cosines are at least -1/(K-1): the paper's eta filters nothing from 5 surrogates on."""
    at = setting(k=k, n=7, seed=k)
    assert (filtered_share(at.run("adaea").directions) == 0) == never
    opposed = torch.zeros(k, 1, 2, 1, 1, dtype=torch.float64)
    for i in range(k):  # the corners of a regular polygon
        opposed[i, 0, :, 0, 0] = torch.tensor([math.cos(i * math.tau / k), math.sin(i * math.tau / k)])
    assert float(disparity(opposed)) == pytest.approx(-1 / (k - 1))


def weights(at: Any, **options: Any) -> Tensor:
    """(steps, N, K), as the trace has them."""
    found = at.attack("adaea", **options).run(at.models, at.x, at.y, at.target, trace=True)
    return found.trace["weights"]  # type: ignore[no-any-return]


@pytest.mark.parametrize("targeted", [False, True])
def test_batch_coupled(setting: Any, same: Any, coupled: Any, targeted: bool) -> None:
    at = setting(k=3, n=7, targeted=targeted)
    same(at.run("adaea", batch_coupled=True), coupled(at))
    together, apart = weights(at, batch_coupled=True), weights(at)
    assert together.shape == apart.shape == (3, 7, 3)
    torch.testing.assert_close(apart.sum(2), torch.ones(3, 7).double())
    assert torch.equal(together, together[:, :1].expand_as(together))
    assert (apart[:, 0] - apart[:, 1]).abs().min() > 1e-6


def test_batch_coupled_alone_is_per_sample(setting: Any, same: Any) -> None:
    at = setting(k=3, n=1)
    same(at.run("adaea", batch_coupled=True), at.run("adaea"))


@pytest.mark.parametrize("batch_coupled", [False, True])
def test_neighbours_matter_when_coupled_only(setting: Any, batch_coupled: bool) -> None:
    at, other = setting(k=3, n=4), setting(k=3, n=4, seed=5)
    mixed = at.but(x=at.x.clone(), y=at.y.clone())
    mixed.x[1:], mixed.y[1:] = other.x[1:], other.y[1:]
    found, among = (each.run("adaea", batch_coupled=batch_coupled) for each in (at, mixed))
    far = (found.directions[:, 0] - among.directions[:, 0]).abs().max()
    assert (far > 1e-4) == batch_coupled
    assert (far < 1e-12) == (not batch_coupled)


@pytest.mark.parametrize(
    "off", [{"agm": False}, {"drf": False}, {"agm": False, "drf": False}], ids=["agm", "drf", "both"]
)
def test_halves_can_be_switched_off(
    setting: Any, same: Any, transcribed: Any, count: Any, off: dict[str, bool]
) -> None:
    at = setting(k=3)
    found = at.run("adaea", **off)
    same(found, transcribed(at, agm="agm" not in off, filtered=None if "drf" in off else pair_map))
    assert not torch.allclose(found.directions, at.run("adaea").directions, atol=1e-6)
    if len(off) == 2:
        same(found, at.run("ens-logits"))
    attack = at.attack("adaea", **off)
    with count(at.models) as seen:
        passes = attack.run(at.models, at.x, at.y).passes
    wanted = 3 * (3 + (0 if "agm" in off else 9)), 3 * 6
    assert passes == attack.passes(3) == wanted
    assert (seen.forward, seen.backward) == (wanted[0] * len(at.x), wanted[1] * len(at.x))


def test_other_beta_and_eta(setting: Any, same: Any, transcribed: Any) -> None:
    """A threshold no pixel reaches, one all reach; weights that follow the best alone or nobody."""
    at = setting(k=3)
    same(at.run("adaea", eta=0.2), transcribed(at, eta=0.2))
    same(at.run("adaea", eta=-1.1), at.run("adaea", drf=False))
    same(at.run("adaea", beta=0.0), at.run("adaea", agm=False))
    assert weights(at, beta=1e4).amax(2).min() > 0.99


# trouble


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("update", ["sign", "mi", "ni"])
@pytest.mark.parametrize("start", ["clean", "gaussian"])
def test_fully_filtered_image_rests(setting: Any, norm: str, update: str, start: str) -> None:
    at = setting(k=3, norm=norm)
    found = at.run("adaea", eta=2.0, update=update, start=start)
    assert (found.directions == 0).all()
    assert torch.isfinite(found.x_adv).all()
    torch.testing.assert_close(found.x_adv, found.points[0], rtol=0, atol=1e-12)
    if start == "clean":
        assert torch.equal(found.x_adv, at.x)


def test_one_filtered_image_does_not_hold_up_the_others(setting: Any, same: Any) -> None:
    """Surrogates that pull apart on dark images alone: those rest, the bright ones move."""
    at = setting(k=1, n=4)
    at.x = torch.cat([at.x[:2] * 0.3, 0.7 + at.x[2:] * 0.3])

    class Contrary(nn.Module):
        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Tensor:
            dark = (x.detach().mean((1, 2, 3), keepdim=True) < 0.5).double()
            mirrored = x.detach() - (x - x.detach())
            return self.net(dark * mirrored + (1 - dark) * x)  # type: ignore[no-any-return]

    pair = at.but(models=[at.models[0], Contrary(at.models[0])])
    found = pair.run("adaea")
    assert torch.isfinite(found.x_adv).all()
    assert torch.equal(found.x_adv[:2], pair.x[:2])
    alone = at.run("ifgsm", update="mi")
    torch.testing.assert_close(found.x_adv[2:], alone.x_adv[2:], rtol=0, atol=1e-9)


class Sure(nn.Module):
    """A net that adds a margin to the class it names, or has its logits far apart."""

    def __init__(self, net: nn.Module, margin: float = 0.0, factor: float = 1.0) -> None:
        super().__init__()
        self.net, self.margin, self.factor = net, margin, factor

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.net(x)
        return self.factor * z + self.margin * (z.detach() == z.detach().amax(1, keepdim=True))


def sure_of_itself(setting: Any, **how: float) -> Any:
    """Three surrogates, the first with a loss of almost nothing."""
    at = setting(k=3, eps=4 / 255, alpha=1 / 255)
    with torch.no_grad():
        at.y = at.models[0](at.x).argmax(1)
    at.models[0] = Sure(at.models[0], **how)
    with torch.no_grad():
        assert nn.functional.cross_entropy(at.models[0](at.x), at.y) < 1e-12
    return at


@pytest.mark.parametrize("mean_ratio", [True, False])
def test_ratio_is_guarded_where_a_loss_is_nothing(
    setting: Any, transcribed: Any, mean_ratio: bool
) -> None:
    at = sure_of_itself(setting, margin=40.0)
    found, wanted = at.run("adaea", mean_ratio=mean_ratio), transcribed(at, mean_ratio=mean_ratio)
    torch.testing.assert_close(found.x_adv, wanted.x_adv, rtol=0, atol=1e-9)
    torch.testing.assert_close(found.directions, wanted.directions, rtol=1e-6, atol=1e-15)
    assert (found.x_adv - at.x).abs().amax((1, 2, 3)).min() > 1 / 255


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("options", [{}, {"mean_ratio": False}, {"batch_coupled": True}])
def test_weights_are_finite_where_a_loss_and_its_gradient_are_zero(
    setting: Any, dtype: torch.dtype, options: dict[str, bool]
) -> None:
    at = sure_of_itself(setting, factor=1e4)
    for model in at.models:
        model.to(dtype)
    at.x = at.x.to(dtype)
    share = weights(at, **options)
    assert torch.isfinite(share).all()
    torch.testing.assert_close(share.sum(2), torch.ones(3, 3, dtype=dtype))
    assert torch.isfinite(at.run("adaea", **options).x_adv).all()


@pytest.mark.parametrize("k", [1, 2, 5])
@pytest.mark.parametrize("transforms", [[], ["di"], [{"name": "si", "copies": 2}]], ids=["", "di", "si"])
def test_passes(setting: Any, count: Any, k: int, transforms: list[Any]) -> None:
    """K forward for the gradients and K² for the trials, 2K backward; copies ask anew for each."""
    at = setting(k=k, steps=2)
    attack = at.attack("adaea", transforms=transforms)
    copied = len(transforms) and transforms != ["di"]
    wanted = 2 * ((4 * k if copied else k) + k * k), 2 * (4 * k if copied else 2 * k)
    with count(at.models) as seen:
        found = attack.run(at.models, at.x, at.y)
    assert found.passes == attack.passes(k) == wanted
    assert (seen.forward, seen.backward) == (wanted[0] * len(at.x), wanted[1] * len(at.x))


@pytest.mark.parametrize("k", [2, 3])
def test_one_graph_or_many_make_no_difference(setting: Any, same: Any, k: int) -> None:
    """Gradients from one forward pass, and from a fresh estimate each (one scale of two the same)."""
    at = setting(k=k)
    twice = {"name": "si", "copies": 1}
    same(at.run("adaea", transforms=[twice]), at.run("adaea"))


def test_trials_build_no_graph_and_see_no_transform(setting: Any) -> None:
    at = setting(k=2, n=1, steps=1)
    seen: list[tuple[int, bool]] = []
    handle = at.models[0].register_forward_hook(
        lambda module, args, out: seen.append((len(args[0]), out.requires_grad))
    )
    at.run("adaea", transforms=[{"name": "di", "p": 1.0, "rate": 1.5}])
    handle.remove()
    assert seen == [(1, True), (2, False)]
