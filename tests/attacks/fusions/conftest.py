"""Plain transcriptions of the fusions' papers run against the attacks: one image at a time.

The arithmetic below and in the tests is written from the formulas. It uses nothing of `advens` but the
draws (to make the same random choices), and `create_attack` to run what it is compared with.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from advens.attacks import create_attack
from advens.attacks.attack import ComposedAttack
from advens.attacks.oracle import GradientOracle, Job, Passes
from advens.attacks.parts import changed
from advens.seeding import Draws

CLASSES = 5
SEED = 11

State = dict[str, Any]
Alone = Callable[[int, int, Tensor, State], Tensor]
"""(step, sample, point, state of the sample's run) -> direction."""
Together = Callable[[int, list[Tensor], State], list[Tensor]]
"""(step, points of all samples, state of the run) -> directions."""


def mlp(seed: int, side: int = 8, gain: float = 1.5) -> nn.Module:
    """A small smooth net for (N, 3, side, side)."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        net = nn.Sequential(
            nn.Flatten(), nn.Linear(3 * side * side, 12), nn.Tanh(), nn.Linear(12, CLASSES)
        ).double()
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=p.dtype))
            p.mul_(gain / math.sqrt(p[0].numel()))
        net[3].weight.mul_(2)
    return net


def pixels(seed: int, n: int, side: int = 8) -> Tensor:
    """8-bit images, float64, some pixels black or white."""
    generator = torch.Generator().manual_seed(1000 + seed)
    x = torch.randint(0, 256, (n, 3, side, side), generator=generator).double()
    x[:, :, 0, :2], x[:, :, 1, :2] = 0, 255
    return x / 255


def ce(z: Tensor, label: int) -> Tensor:
    """Cross-entropy of one image's logits (classes,): log(1 + sum over the others of e^(z_o - z_y))."""
    others = torch.cat([z[:label], z[label + 1 :]])
    return torch.log1p(torch.exp(others - z[label]).sum())


def grad(f: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    """Gradient of a scalar function at one image."""
    leaf = at.clone().requires_grad_()
    (g,) = torch.autograd.grad(f(leaf), leaf)
    return g


def length(g: Tensor) -> float:
    return math.sqrt(float((g**2).sum()))


def mean_one(g: Tensor) -> Tensor:
    """``g / mean|g|``; zero stays zero."""
    size = float(g.abs().mean())
    return g / size if size > 0 else g


@dataclass
class Recorder:
    """A fusion that remembers where it was asked and what it answered."""

    part_name = "recorder"

    fusion: Any
    points: list[Tensor] = field(default_factory=list)
    seen: list[Tensor] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        if name == "layers":  # where the fusion taps the surrogates, if it does
            return self.fusion.layers
        raise AttributeError(name)

    def direction(self, oracle: GradientOracle, x: Tensor) -> Tensor:
        self.points.append(x.clone())
        found: Tensor = self.fusion.direction(oracle, x)
        self.seen.append(found.clone())
        return found

    def passes(self, surrogates: int, gradients: int) -> Passes:
        found: Passes = self.fusion.passes(surrogates, gradients)
        return found


@dataclass
class Run:
    """What an attack or a transcription did: the result and each outer step's direction."""

    x_adv: Tensor
    directions: Tensor
    points: Tensor | None = None


@dataclass
class Setting:
    """K surrogates, N images, and the ball; and the plain pieces every paper shares."""

    models: Sequence[nn.Module]
    x: Tensor
    y: Tensor
    target: Tensor | None
    norm: str = "linf"
    eps: float = 16 / 255
    alpha: float = 7 / 255
    steps: int = 3
    start: Tensor | None = None

    # what the papers write

    @property
    def k(self) -> int:
        return len(self.models)

    def wanted(self, i: int) -> int:
        """The class whose cross-entropy the attack changes."""
        return int(self.y[i]) if self.target is None else int(self.target[i])

    def logits(self, k: int, at: Tensor) -> Tensor:
        z: Tensor = self.models[k](at[None])[0]
        return z

    def j(self, z: Tensor, i: int) -> Tensor:
        """What is ascended: cross-entropy of the label, or minus that of the target."""
        return ce(z, self.wanted(i)) if self.target is None else -ce(z, self.wanted(i))

    def own(self, i: int, k: int, at: Tensor) -> Tensor:
        """Gradient of surrogate k's own loss."""
        return grad(lambda leaf: self.j(self.logits(k, leaf), i), at)

    def fused(self, i: int, at: Tensor) -> Tensor:
        """Gradient of the loss of the mean logits."""
        return grad(
            lambda leaf: self.j(sum(self.logits(k, leaf) for k in range(self.k)) / self.k, i), at
        )

    def project(self, at: Tensor, i: int) -> Tensor:
        if self.norm == "linf":
            return torch.clamp(torch.clamp(at, self.x[i] - self.eps, self.x[i] + self.eps), 0, 1)
        delta = torch.clamp(at, 0, 1) - self.x[i]
        size = length(delta)
        return self.x[i] + delta * min(1.0, self.eps / size) if size > 0 else self.x[i].clone()

    def unit(self, g: Tensor) -> Tensor:
        """The sign; in l_2 the gradient over its length."""
        if self.norm == "linf":
            return torch.sign(g)
        return g / length(g) if length(g) > 0 else g

    def step(self, at: Tensor, i: int, size: float, g: Tensor) -> Tensor:
        return self.project(at + size * self.unit(g), i)

    def draws(self, t: int) -> Draws:
        return Draws(SEED, len(self.x)).at(t)

    # the outer loop: MI

    def together(self, direction: Together, mu: float = 1.0) -> Run:
        """The outer loop on all samples side by side, for what couples them."""
        start = self.x if self.start is None else self.start
        points = [p.clone() for p in start]
        momenta = [torch.zeros_like(p) for p in points]
        state: State = {}
        directions = []
        for t in range(self.steps):
            found = direction(t, points, state)
            directions.append(torch.stack(found))
            momenta = [mu * m + mean_one(g) for m, g in zip(momenta, found, strict=True)]
            points = [self.step(p, i, self.alpha, momenta[i]) for i, p in enumerate(points)]
        return Run(torch.stack(points), torch.stack(directions))

    def alone(self, direction: Alone, mu: float = 1.0) -> Run:
        """The outer loop, each sample by itself."""
        own: list[State] = [{} for _ in self.x]

        def each(t: int, points: list[Tensor], state: State) -> list[Tensor]:
            return [direction(t, i, at, own[i]) for i, at in enumerate(points)]

        return self.together(each, mu)

    # what is compared with it

    def attack(self, name: str, **options: Any) -> ComposedAttack:
        """``name`` with this setting's ball and steps, outer MI and a clean start unless said otherwise."""
        made = create_attack(
            name,
            **{"norm": self.norm, "eps": self.eps, "steps": self.steps, "step_size": self.alpha,
               "update": {"name": "mi", "mu": 1.0}, "start": "clean"} | options,
        )  # fmt: skip
        assert isinstance(made, ComposedAttack)
        return made

    def run(self, attack: ComposedAttack | str, **options: Any) -> Run:
        """An attack's result and the directions its fusion gave."""
        made = self.attack(attack, **options) if isinstance(attack, str) else attack
        watched = changed(made, fusion=Recorder(made.fusion))
        x_adv = watched.run(self.models, self.x, self.y, self.target, seed=SEED).x_adv
        recorder = watched.fusion
        return Run(x_adv, torch.stack(recorder.seen), torch.stack(recorder.points))

    def oracle(self, attack: ComposedAttack, step: int = 0) -> GradientOracle:
        """The oracle the attack's loop would hold at a step."""
        draws = Draws(SEED, len(self.x))
        job = Job(self.models, self.x, self.y, self.target, draws, self.x)
        oracle = attack.oracle(job)
        oracle.begin(step, self.alpha)
        return oracle

    def but(self, **changes: Any) -> Setting:
        return replace(self, **changes)


def make(
    k: int = 2,
    n: int = 3,
    norm: str = "linf",
    targeted: bool = False,
    side: int = 8,
    seed: int = 0,
    models: Sequence[nn.Module] | None = None,
    **options: Any,
) -> Setting:
    """K nets (or the models given), N images that the mean logits name, another class as target."""
    models = models or [mlp(10 * seed + each, side) for each in range(k)]
    x = pixels(seed, n, side)
    with torch.no_grad():
        y = torch.stack([model(x) for model in models]).mean(0).argmax(1)
    target = (y + 1 + torch.arange(n) % (CLASSES - 1)) % CLASSES if targeted else None
    ball = {"eps": 16 / 255, "alpha": 7 / 255} if norm == "linf" else {"eps": 0.9, "alpha": 0.4}
    return Setting(models, x, y, target, norm, **(ball | options))


def agree(found: Run, wanted: Run) -> None:
    """The same images and the same directions, to 1e-9."""
    assert torch.isfinite(wanted.x_adv).all()
    assert wanted.directions.abs().amax((0, 2, 3, 4)).min() > 1e-4, "the transcription is vacuous"
    torch.testing.assert_close(found.directions, wanted.directions, rtol=0, atol=1e-9)
    torch.testing.assert_close(found.x_adv, wanted.x_adv, rtol=0, atol=1e-9)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Tests that take ``case`` run for every K, batch, norm and goal."""
    if "case" in metafunc.fixturenames:
        metafunc.parametrize(
            "case",
            [
                pytest.param((k, n, norm, targeted),
                             id=f"K{k}-N{n}-{norm}-{'targeted' if targeted else 'away'}")
                for k in (2, 3, 5) for n in (1, 7) for norm in ("linf", "l2")
                for targeted in (False, True)
            ],
        )  # fmt: skip


@pytest.fixture
def setting() -> Callable[..., Setting]:
    """``setting(k=2, n=3, norm="linf", targeted=False, side=8, seed=0, **fields)``."""
    return make


@pytest.fixture
def at(case: tuple[int, int, str, bool]) -> Setting:
    """The setting of a case."""
    k, n, norm, targeted = case
    return make(k, n, norm, targeted, seed=k)


@pytest.fixture
def same() -> Callable[[Run, Run], None]:
    """``same(found, wanted)``: images and directions agree to 1e-9."""
    return agree


@pytest.fixture
def gradient_of() -> Callable[..., Tensor]:
    """``gradient_of(f, at)``: autograd of a scalar function at one image."""
    return grad


@pytest.fixture
def cross_entropy() -> Callable[[Tensor, int], Tensor]:
    """``cross_entropy(z, label)`` of one image's logits."""
    return ce
