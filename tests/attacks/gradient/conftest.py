"""What the gradient methods' papers write, one image at a time, to be held against the attacks.

Nothing here or in the tests of this folder is taken from `advens` but the draws, so that the same random
choices are made, and `create_attack` to run what is compared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from advens.attacks import create_attack
from advens.seeding import Draws

SIDE, CLASSES, SEED, EPS = 6, 4, 11, 16 / 255

Memory = dict[str, Any]
Step = Callable[[int, int, Tensor, Memory], Tensor]
"""(step, sample, iterate, memory of the sample's run) -> displacement, before projection."""


def smooth_net(seed: int) -> nn.Module:
    """A curved net for (N, 3, 6, 6), float64."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        net = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE**2, 10), nn.Tanh(), nn.Linear(10, CLASSES))
    with torch.no_grad():
        for p in net.parameters():
            noise = torch.randn(p.shape, generator=generator, dtype=torch.float64)
            p.copy_(noise * 2.5 / p[0].numel() ** 0.5)
    return net.double()


@dataclass
class Scene:
    """K surrogates fused over their logits, N images, labels and perhaps targets."""

    models: Sequence[nn.Module]
    x: Tensor
    y: Tensor
    target: Tensor | None

    def own(self, i: int) -> int:
        return int(self.y[i]) if self.target is None else int(self.target[i])

    def loss(self, z: Tensor, i: int) -> Tensor:
        """Cross-entropy of the label, or minus that of the target."""
        log_p = z[self.own(i)] - torch.log(torch.exp(z).sum())
        return -log_p if self.target is None else log_p

    def logit(self, z: Tensor, i: int) -> Tensor:
        return -z[self.own(i)] if self.target is None else z[self.own(i)]

    def probability(self, z: Tensor, i: int) -> Tensor:
        p = torch.exp(z[self.own(i)]) / torch.exp(z).sum()
        return -p if self.target is None else p

    def g(self, i: int, at: Tensor, loss: Any = None) -> Tensor:
        """Gradient at one image of the loss of the mean logits."""
        leaf = at.clone().requires_grad_()
        z = sum(model(leaf[None])[0] for model in self.models) / len(self.models)
        (found,) = torch.autograd.grad((loss or self.loss)(z, i), leaf)
        return found

    def draws(self, t: int) -> Draws:
        return Draws(SEED, len(self.x)).at(t)

    def uniform(self, t: int, i: int, reach: float, *tag: object) -> Tensor:
        """U(-reach, reach) of a step, the row of sample i."""
        found = self.draws(t).uniform(self.x, -reach, reach, *tag)[i]
        assert 0.8 * reach < float(found.abs().max()) <= reach
        return found

    def project(self, at: Tensor, i: int) -> Tensor:
        return torch.clamp(torch.clamp(at, self.x[i] - EPS, self.x[i] + EPS), 0, 1)

    def transcribed(self, step: Step, steps: int) -> Tensor:
        results = []
        for i, x in enumerate(self.x):
            at, memory = x.clone(), Memory()
            for t in range(steps):
                at = self.project(at + step(t, i, at, memory), i)
            results.append(at)
        return torch.stack(results)

    def run(self, name: str, **options: Any) -> Tensor:
        attack = create_attack(name, **{"eps": EPS, **options})
        result = attack.run(self.models, self.x, self.y, self.target, seed=SEED)
        assert result.passes == attack.passes(len(self.models))
        return result.x_adv

    def same(self, step: Step, name: str, steps: int, **options: Any) -> None:
        """The attack's images are those of its formulas, and not MI's."""
        wanted = self.transcribed(step, steps)
        found = self.run(name, steps=steps, **options)
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-9)
        assert float((found - self.x).abs().amax()) > EPS / 2


def labelled_images(
    models: Sequence[nn.Module], n: int, targeted: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """N images, what the models name together, and perhaps another class of each as its target."""
    generator = torch.Generator().manual_seed(7)
    x = torch.randint(0, 256, (n, 3, SIDE, SIDE), generator=generator).double() / 255
    x[:, 0, 0, :2], x[:, 1, 1, :2] = 0, 1
    with torch.no_grad():
        y = sum(model(x) for model in models).argmax(1)  # type: ignore[union-attr]
    return x, y, (y + 1 + torch.arange(n) % 3) % CLASSES if targeted else None


CASES = [(1, 1, False), (7, 3, True), (7, 1, True), (1, 3, False)]


@pytest.fixture(params=CASES, ids=[f"N{n}-K{k}-{'targeted' if t else 'away'}" for n, k, t in CASES])
def at(request: pytest.FixtureRequest) -> Scene:
    n, k, targeted = request.param
    models = [smooth_net(seed) for seed in range(k)]
    return Scene(models, *labelled_images(models, n, targeted))


def mean_one(g: Tensor) -> Tensor:
    return g / g.abs().mean()


def momentum(g: Tensor, memory: Memory, mu: float = 1.0) -> Tensor:
    """``m <- mu m + g / mean|g|``."""
    memory["m"] = mu * memory.get("m", torch.zeros_like(g)) + mean_one(g)
    found: Tensor = memory["m"]
    return found


@pytest.fixture
def u() -> Callable[[Tensor], Tensor]:
    return mean_one


@pytest.fixture
def mi() -> Callable[..., Tensor]:
    return momentum
