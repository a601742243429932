"""What the papers of feature-level attacks write, one image and one surrogate at a time.

Nothing here or in the tests of this folder is taken from `advens` but the draws, so that the same random
choices are made, and `create_attack` to run what is compared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from advens.seeding import Draws
from tests.attacks.gradient.conftest import CLASSES, SEED, labelled_images
from tests.attacks.gradient.conftest import Scene as Formulas
from tests.attacks.gradient.conftest import mi as mi


class Staged(nn.Module):
    """A curved net of four stages for (N, 3, 6, 6), float64; stages have names of their own."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng(devices=[]):
            self.stages = nn.Sequential(
                nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Tanh()),
                nn.Sequential(nn.Conv2d(4, 4, 3, stride=2, padding=1), nn.Tanh()),
                nn.Sequential(nn.Conv2d(4, 5, 3, padding=1), nn.Softplus()),
                nn.Sequential(nn.Flatten(), nn.Linear(45, 10), nn.Tanh()),
            )
            self.head = nn.Linear(10, CLASSES)
        self.double()
        with torch.no_grad():
            for p in self.parameters():
                noise = torch.randn(p.shape, generator=generator, dtype=torch.float64)
                p.copy_(noise * 2 / p[0].numel() ** 0.5)

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.head(self.stages(x - 0.5))
        return z


@dataclass
class Scene(Formulas):
    """K surrogates whose losses are averaged, N images, labels and perhaps targets."""

    models: Sequence[Staged]  # type: ignore[assignment]

    @property
    def k(self) -> int:
        return len(self.models)

    def features(self, k: int, x: Tensor, stage: int) -> Tensor:
        """F of one image: what the first ``stage`` stages give."""
        f: Tensor = self.models[k].stages[:stage](x[None] - 0.5)[0]
        return f

    def rest(self, k: int, f: Tensor, stage: int) -> Tensor:
        """Logits of one image's features."""
        z: Tensor = self.models[k].head(self.models[k].stages[stage:](f[None]))[0]
        return z

    def logits(self, k: int, x: Tensor) -> Tensor:
        z: Tensor = self.models[k](x[None])[0]
        return z

    def label_score(self, z: Tensor, i: int, score: str) -> Tensor:
        own = z[int(self.y[i])]
        return own if score == "logit" else torch.exp(own) / torch.exp(z).sum()

    def ce(self, z: Tensor, i: int) -> Tensor:
        """What is ascended: cross-entropy of the label, or minus that of the target."""
        own = int(self.y[i] if self.target is None else self.target[i])
        loss = torch.exp(z).sum().log() - z[own]
        return loss if self.target is None else -loss

    def importance(self, i: int, k: int, x: Tensor, stage: int, score: str) -> Tensor:
        """ds_y/dF at one image."""
        leaf = self.features(k, x, stage).detach().requires_grad_()
        (g,) = torch.autograd.grad(self.label_score(self.rest(k, leaf, stage), i, score), leaf)
        return g

    def input_gradient(self, f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        leaf = x.clone().requires_grad_()
        (g,) = torch.autograd.grad(f(leaf), leaf)
        return g

    def guided(self, guides: Sequence[Tensor], x: Tensor, stage: int) -> Tensor:
        """Gradient of ``-mean_k <A_k, F_k>`` at one image."""

        def loss(leaf: Tensor) -> Tensor:
            each = [(a * self.features(k, leaf, stage)).sum() for k, a in enumerate(guides)]
            return -torch.stack(each).mean()

        return self.input_gradient(loss, x)

    def once(self) -> Draws:
        """The draws of the run."""
        return Draws(SEED, len(self.x))

    def at_step(self, t: int) -> Draws:
        return self.once().at(t)


def scene(n: int, k: int, targeted: bool = False) -> Scene:
    models = [Staged(seed) for seed in range(k)]
    return Scene(models, *labelled_images(models, n, targeted))


@pytest.fixture(params=[(1, 1), (7, 3)], ids=["N1-K1", "N7-K3"])
def at(request: pytest.FixtureRequest) -> Scene:
    return scene(*request.param)


@pytest.fixture(params=[(1, 1, False), (7, 3, True), (7, 1, True), (1, 3, False)])
def any_goal(request: pytest.FixtureRequest) -> Scene:
    return scene(*request.param)


@pytest.fixture
def n2() -> Callable[[Tensor], Tensor]:
    return lambda a: a / torch.sqrt((a * a).sum())
