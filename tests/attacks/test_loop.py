"""The loop, its updates, estimators and filters against plain transcriptions of the formulas.

The transcriptions work on one image at a time, in double precision, with nothing of `advens.attacks`
but the draws. They agree to 1e-9.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.signal import convolve2d
from torch import Tensor, nn

from advens.attacks import create_attack
from advens.attacks.filters import TI
from advens.attacks.updates import unit_mean
from advens.seeding import Draws
from advens.threat import Threat

EPS = 16 / 255
SEED, N = 5, 3

Net = Callable[..., nn.Module]
Gradient = Callable[[Tensor], Tensor]
Step = Callable[[int, int, Tensor, Gradient, dict[str, Tensor]], Tensor]


class Setting:
    """One surrogate, three images, their labels and targets."""

    def __init__(self, model: nn.Module, x: Tensor, y: Tensor, target: Tensor | None) -> None:
        self.model, self.x, self.y, self.target = model, x, y, target

    def gradient(self, i: int) -> Gradient:
        """Of the cross-entropy of sample i, written out."""

        def at(x: Tensor) -> Tensor:
            leaf = x.clone().requires_grad_()
            z = self.model(leaf[None])[0]
            log_p = z - torch.log(torch.exp(z).sum())
            own = int(self.y[i]) if self.target is None else int(self.target[i])
            loss = -log_p[own] if self.target is None else log_p[own]
            (g,) = torch.autograd.grad(loss, leaf)
            return g

        return at

    def transcribed(self, step: Step, steps: int, norm: str = "linf", eps: float = EPS) -> Tensor:
        """Images after ``steps`` of x' <- project(x' + displacement)."""
        results = []
        for i in range(len(self.x)):
            x, memory = self.x[i], dict[str, Tensor]()
            at = x.clone()
            for t in range(steps):
                moved = at + step(t, i, at, self.gradient(i), memory)
                if norm == "linf":
                    at = torch.clamp(torch.clamp(moved, x - eps, x + eps), 0, 1)
                else:
                    delta = torch.clamp(moved, 0, 1) - x
                    length = math.sqrt(float((delta**2).sum()))
                    at = x + delta * min(1.0, eps / length)
            results.append(at)
        return torch.stack(results)

    def run(self, name: str, **options: Any) -> Tensor:
        attack = create_attack(name, **{"eps": EPS, **options})
        return attack(self.model, self.x, self.y, self.target, seed=SEED)


@pytest.fixture(params=[False, True], ids=["away", "targeted"])
def at(request: pytest.FixtureRequest, net: Net, images: Any, labelled: Any) -> Setting:
    model, x = net(0), images(1, n=N)
    y, target = labelled([model], x)
    return Setting(model, x, y, target if request.param else None)


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-9)


def mean_one(g: Tensor) -> Tensor:
    return g / g.abs().mean()


def momentum(g: Tensor, memory: dict[str, Tensor], mu: float) -> Tensor:
    memory["m"] = mu * memory.get("m", torch.zeros_like(g)) + mean_one(g)
    return memory["m"]


def test_fgsm(at: Setting) -> None:
    wanted = [
        torch.clamp(x + EPS * at.gradient(i)(x).sign(), 0, 1) for i, x in enumerate(at.x)
    ]
    close(at.run("fgsm"), torch.stack(wanted))


@pytest.mark.parametrize(
    ("rule", "alpha"), [("eps/T", EPS / 7), ("2eps/T", 2 * EPS / 7), ("3/255", 3 / 255)]
)
def test_ifgsm(at: Setting, rule: str, alpha: float) -> None:
    wanted = at.transcribed(lambda t, i, x, g, memory: alpha * g(x).sign(), 7)
    close(at.run("ifgsm", steps=7, step_size=rule), wanted)


def test_ifgsm_annealed(at: Setting) -> None:
    wanted = at.transcribed(
        lambda t, i, x, g, memory: EPS * (1 + math.cos(math.pi * t / 5)) / 2 * g(x).sign(), 5
    )
    close(at.run("ifgsm", steps=5, step_size={"alpha": "eps", "anneal": "cosine"}), wanted)


def test_ifgsm_in_l2(at: Setting) -> None:
    wanted = at.transcribed(
        lambda t, i, x, g, memory: 0.3 * g(x) / math.sqrt(float((g(x) ** 2).sum())), 6, "l2", 0.9
    )
    close(at.run("ifgsm", steps=6, norm="l2", eps=0.9, step_size=0.3), wanted)


def test_pgd(at: Setting) -> None:
    """From a uniform point: the start is the draw, the rest is I-FGSM around the clean image."""
    begin = Threat(eps=EPS).random_start(at.x, Draws(SEED, N))

    def step(t: int, i: int, x: Tensor, g: Gradient, memory: dict[str, Tensor]) -> Tensor:
        jump = begin[i] - x if t == 0 else torch.zeros_like(x)
        return jump + EPS / 4 * g(x + jump).sign()

    close(at.run("pgd", steps=4), at.transcribed(step, 4))


@pytest.mark.parametrize("mu", [1.0, 0.9, 0.0])
def test_mifgsm(at: Setting, mu: float) -> None:
    wanted = at.transcribed(
        lambda t, i, x, g, memory: EPS / 6 * momentum(g(x), memory, mu).sign(), 6
    )
    close(at.run("mifgsm", steps=6, mu=mu), wanted)
    if mu == 0:
        close(at.run("ifgsm", steps=6), wanted)


def test_mifgsm_in_l2(at: Setting) -> None:
    def step(t: int, i: int, x: Tensor, g: Gradient, memory: dict[str, Tensor]) -> Tensor:
        m = momentum(g(x), memory, 1.0)
        return 0.2 * m / math.sqrt(float((m**2).sum()))

    wanted = at.transcribed(step, 5, "l2", 1.0)
    close(at.run("mifgsm", steps=5, norm="l2", eps=1.0), wanted)


@pytest.mark.parametrize("mu", [1.0, 0.7])
def test_nifgsm(at: Setting, mu: float) -> None:
    alpha = EPS / 6

    def step(t: int, i: int, x: Tensor, g: Gradient, memory: dict[str, Tensor]) -> Tensor:
        ahead = x + alpha * mu * memory.get("m", torch.zeros_like(x))
        return alpha * momentum(g(ahead), memory, mu).sign()

    close(at.run("nifgsm", steps=6, mu=mu), at.transcribed(step, 6))


def unit(g: Tensor) -> Tensor:
    """``g / ||g||_2`` of one image."""
    return g / math.sqrt(float((g**2).sum()))


@pytest.mark.parametrize("mu", [1.0, 0.7])
def test_nifgsm_in_l2_looks_one_step_ahead(at: Setting, mu: float) -> None:
    alpha = 0.2

    def step(t: int, i: int, x: Tensor, g: Gradient, memory: dict[str, Tensor]) -> Tensor:
        ahead = x + alpha * mu * unit(memory["m"]) if t else x
        return alpha * unit(momentum(g(ahead), memory, mu))

    wanted = at.transcribed(step, 5, "l2", 1.0)
    close(at.run("nifgsm", steps=5, norm="l2", eps=1.0, mu=mu), wanted)


def test_pgd_in_l2(at: Setting) -> None:
    begin = Threat("l2", 0.9).random_start(at.x, Draws(SEED, N))

    def step(t: int, i: int, x: Tensor, g: Gradient, memory: dict[str, Tensor]) -> Tensor:
        jump = begin[i] - x if t == 0 else torch.zeros_like(x)
        return jump + 0.3 * unit(g(x + jump))

    close(at.run("pgd", steps=3, norm="l2", eps=0.9), at.transcribed(step, 3, "l2", 0.9))


def noise(t: int, i: int, copy: int, radius: float, tag: str, x: Tensor) -> Tensor:
    """U(-radius eps, radius eps) of step t and copy, the row of sample i."""
    like = torch.empty(N, *x.shape, dtype=x.dtype)
    reach = radius * EPS
    drawn = Draws(SEED, N).at(t).uniform(like, -reach, reach, tag, copy)[i]
    assert drawn.abs().max() <= reach
    assert drawn.abs().max() > 0.9 * reach
    return drawn


def test_vmifgsm(at: Setting) -> None:
    """v of the step before: mean gradient of 4 neighbours minus the gradient."""

    def step(t: int, i: int, x: Tensor, g: Gradient, memory: dict[str, Tensor]) -> Tensor:
        here = g(x)
        tuned = here + memory.get("v", torch.zeros_like(x))
        near = [g(x + noise(t, i, c, 1.5, "vmi", x)) for c in range(4)]
        memory["v"] = sum(near, torch.zeros_like(x)) / 4 - here
        return EPS / 4 * momentum(tuned, memory, 1.0).sign()

    close(at.run("vmifgsm", steps=4, copies=4), at.transcribed(step, 4))


def test_pgn(at: Setting) -> None:
    """(1 - delta) g1 + delta g2, g2 a step of alpha against g1, mean over neighbours in 3 eps."""
    alpha, delta = EPS / 3, 0.4

    def step(t: int, i: int, x: Tensor, g: Gradient, memory: dict[str, Tensor]) -> Tensor:
        total = torch.zeros_like(x)
        for copy in range(4):
            near = x + noise(t, i, copy, 3.0, "pgn", x)
            g1 = g(near)
            g2 = g(near - alpha * mean_one(g1))
            total += (1 - delta) * g1 + delta * g2
        return alpha * momentum(total / 4, memory, 1.0).sign()

    close(at.run("pgn", steps=3, copies=4, delta=delta), at.transcribed(step, 3))


def shell(t: int, i: int, copy: int, length: float, tag: str, x: Tensor) -> Tensor:
    """A neighbour in l_2: along a uniform point of the cube, of a given length."""
    like = torch.empty(N, *x.shape, dtype=x.dtype)
    return length * unit(Draws(SEED, N).at(t).uniform(like, -1, 1, tag, copy)[i])


def test_vmifgsm_in_l2(at: Setting) -> None:
    """Neighbours at 1.5 eps."""

    def step(t: int, i: int, x: Tensor, g: Gradient, memory: dict[str, Tensor]) -> Tensor:
        here = g(x)
        tuned = here + memory.get("v", torch.zeros_like(x))
        near = [g(x + shell(t, i, c, 1.5 * 0.8, "vmi", x)) for c in range(3)]
        memory["v"] = sum(near, torch.zeros_like(x)) / 3 - here
        return 0.2 * unit(momentum(tuned, memory, 1.0))

    wanted = at.transcribed(step, 4, "l2", 0.8)
    close(at.run("vmifgsm", steps=4, copies=3, norm="l2", eps=0.8), wanted)


def test_pgn_in_l2(at: Setting) -> None:
    """Neighbours at 3 eps; the second gradient is taken alpha away from each."""
    alpha, delta = 0.8 / 3, 0.4

    def step(t: int, i: int, x: Tensor, g: Gradient, memory: dict[str, Tensor]) -> Tensor:
        total = torch.zeros_like(x)
        for copy in range(3):
            near = x + shell(t, i, copy, 3 * 0.8, "pgn", x)
            g1 = g(near)
            total += (1 - delta) * g1 + delta * g(near - alpha * unit(g1))
        return alpha * unit(momentum(total / 3, memory, 1.0))

    wanted = at.transcribed(step, 3, "l2", 0.8)
    close(at.run("pgn", steps=3, copies=3, delta=delta, norm="l2", eps=0.8), wanted)


def kernel(size: int, sigma: float) -> Any:
    """The gaussian, pixel by pixel, sum 1."""
    middle = size // 2
    raw = [
        [math.exp(-((a - middle) ** 2 + (b - middle) ** 2) / (2 * sigma**2)) for b in range(size)]
        for a in range(size)
    ]
    return np.array(raw) / np.array(raw).sum()


@pytest.mark.parametrize(("size", "sigma"), [(7, 3.0), (5, 1.0), (15, 7 / 3), (1, 2.0)])
def test_tifgsm(at: Setting, size: int, sigma: float) -> None:
    window = kernel(size, sigma)

    def step(t: int, i: int, x: Tensor, g: Gradient, memory: dict[str, Tensor]) -> Tensor:
        channels = [
            # the plane is padded by hand: "same" of a larger kernel has the kernel's size
            convolve2d(np.pad(c.numpy(), size // 2), window, mode="valid")
            for c in g(x)
        ]
        smooth = torch.from_numpy(np.stack(channels))
        return EPS / 4 * momentum(smooth, memory, 1.0).sign()

    close(at.run("tifgsm", steps=4, size=size, sigma=sigma), at.transcribed(step, 4))


def test_ti_keeps_what_does_not_vary() -> None:
    flat = torch.ones(2, 3, 20, 20, dtype=torch.float64)
    smooth = TI(7, 3.0)(flat)
    torch.testing.assert_close(smooth[:, :, 3:-3, 3:-3], flat[:, :, 3:-3, 3:-3])
    assert smooth[0, 0, 0, 0] < 0.5, "zeros beyond the border"


def test_targeted_momentum_of_a_zero_gradient_is_finite() -> None:
    """A surrogate that does not answer to the image leaves the image where it is."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 4, dtype=torch.float64))
    nn.init.zeros_(model[1].weight)
    x, y = torch.rand(2, 3, 4, 4, dtype=torch.float64), torch.tensor([0, 1])
    for name in ("mifgsm", "nifgsm", "vmifgsm", "pgn", "tifgsm"):
        for norm in ("linf", "l2"):
            attack = create_attack(name, norm=norm, steps=2)
            assert torch.equal(attack(model, x, y), x)


def test_unit_mean() -> None:
    g = torch.randn(3, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    g[1] = 0
    g[2] *= 1e-200
    unit = unit_mean(g)
    assert unit[0].abs().mean().item() == pytest.approx(1)
    assert torch.equal(unit[1], torch.zeros_like(unit[1]))
    assert unit[2].abs().mean().item() == pytest.approx(1)


def test_parts_by_name_in_the_constructor() -> None:
    """As everywhere: what is written is what the spec says."""
    from advens.attacks import ComposedAttack, attack_from_spec

    attack = ComposedAttack(loss="dlr", update="mi", transforms=("di",), step_size="2eps/T")
    assert attack == create_attack("mifgsm", loss="dlr", transforms=["di"], step_size="2eps/T")
    assert attack_from_spec(attack.spec) == attack
    with pytest.raises(ValueError, match="unknown loss 'dll'; did you mean 'dlr'"):
        ComposedAttack(loss="dll")
    with pytest.raises(ValueError, match="a list of transforms is wanted"):
        ComposedAttack(transforms="di")


def test_the_default_kernel_is_the_published_one() -> None:
    """A normal density on evenly spaced points from -3 to 3 standard deviations."""
    from scipy.stats import norm

    line = norm.pdf(np.linspace(-3, 3, 7))
    kernel = np.outer(line, line) / line.sum() ** 2
    spot = torch.zeros(1, 1, 15, 15).double()
    spot[0, 0, 7, 7] = 1
    assert np.abs(TI()(spot)[0, 0, 4:11, 4:11].numpy() - kernel).max() < 1e-12
