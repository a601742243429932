"""The sanity report: does a model react to attacks as a model does whose gradients can be trusted?

Robust accuracy under gradient attacks means something only where gradients lead somewhere. A model that
masks its gradients shows it: attacks with a larger budget, more steps or more restarts do not break more,
attacks that see less break more, and some image survives a budget that allows any other image (Athalye et
al., ICML 2018; Carlini et al., 2019, "On evaluating adversarial robustness"). Each of these signs is a check
that passes or fails.

All checks use one gradient attack, PGD on the probability margin with cosine steps from 2 eps, and the same
images, so that accuracies are compared image by image. A difference fails a check when it is both

* larger than the slack: a share of the images (3 %), at least two of them; and
* unlikely by chance: the one-sided exact sign test over images that differ gives p < 1 %, divided by the
  number of comparisons of the check.

On 64 images these are at least seven images that change in one direction and none in the other. Where chance
plays no part, the slack alone decides: what is left at the trivial radius, and images that a black-box attack
breaks and the gradient attack does not.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from advens.attacks.expectation import is_randomized
from advens.attacks.registry import attack_info, create_attack
from advens.attacks.steps import StepSize
from advens.attacks.whitebox.adaptive import adapted
from advens.attacks.whitebox.checks import (
    STUCK,
    random_outputs,
    same_chance,
    silent,
    stuck,
    wrong_outputs,
)
from advens.attacks.whitebox.descent import Descent
from advens.attacks.whitebox.engine import RowAttack, search
from advens.attacks.whitebox.margins import ProbabilityMargin
from advens.attacks.whitebox.oracle import RowOracle
from advens.attacks.whitebox.square import SquareAttack
from advens.classifier import borrowed
from advens.threat import Threat

STEPS = (1, 5, 10, 50, 100)
"""Steps of the gradient attack in the curve over steps; over eps and restarts it takes 50."""
USUAL = 50
RESTARTS = 4
QUERIES = 500
"""Queries of Square."""
RADII = 5
"""Most radii between that of the evaluation and the trivial one, each at least twice the one before."""


@dataclass(frozen=True)
class Limits:
    """When a difference fails a check; see the module.

    Args:
        images: how many are looked at.
        share: part of the images that may differ.
        level: of the sign test.
    """

    images: int = 64
    share: float = 0.03
    level: float = 0.01

    def slack(self, n: int) -> float:
        """Images that may differ."""
        return max(2.0, self.share * n)


@dataclass(frozen=True)
class Check:
    """A line of the report.

    Args:
        name: of the check.
        passed: whether it passed.
        value: what was measured: images, or their share.
        bound: the largest value that passes whatever the test says.
        detail: one line for people, which also holds warnings of checks that passed.
    """

    name: str
    passed: bool
    value: float
    bound: float
    detail: str


@dataclass(frozen=True)
class Curve:
    """The accuracy that the gradient attack leaves as one of its settings grows.

    Args:
        over: ``eps``, ``steps`` or ``restarts``.
        at: values of the setting, ascending; eps 0 and 0 steps are the clean images.
        accuracy: over all images, at each.
    """

    over: str
    at: tuple[float, ...]
    accuracy: tuple[float, ...]


@dataclass(frozen=True)
class SanityReport:
    """What came of the checks.

    Args:
        checks: a line each.
        curves: over eps, steps and restarts.
        images: that were looked at.
        forwards, backwards: passes spent per image.
    """

    checks: tuple[Check, ...]
    curves: tuple[Curve, ...]
    images: int
    forwards: float
    backwards: float

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return all(check.passed for check in self.checks)

    def __str__(self) -> str:
        return "\n".join(
            f"{'passed' if check.passed else 'FAILED'}  {check.name}: {check.detail}" for check in self.checks
        )


def sanity_report(
    model: nn.Module, x: Tensor, y: Tensor, threat: Threat, *, surrogates: Sequence[nn.Module] = (),
    eot: int = 1, seed: int = 0, limits: Limits | None = None, stand_in: tuple[str, str] | None = None,
    batch: int = 64,
) -> SanityReport:  # fmt: skip
    """Check that a model can be evaluated with gradient attacks.

    Args:
        model: images in [0, 1] to logits, or a randomized ensemble: ``members``, ``probabilities``.
        x: images (N, C, H, W); the first ``limits.images`` of them are used.
        y: labels (N,).
        threat: the ball of the evaluation.
        surrogates: models that images are transferred from; Square alone is the black-box attack without.
        eot: passes that an answer averages, for models with randomness of their own.
        seed: of all randomness.
        limits: when a difference fails a check.
        stand_in: name and digest of the stand-in through which gradients are taken; see `Adaptive`.
        batch: images at once.

    Raises:
        InputError: the model does not fit the images.
        RunError: a gradient is not finite.
    """
    limits = limits or Limits()
    x, y = x[: limits.images], y[: limits.images]
    model = adapted(model, *stand_in) if stand_in else model
    look = _Look(model, x, y, threat, eot, seed, batch)
    models = [model, *surrogates]
    with borrowed(models), torch.inference_mode(False), same_chance(x.device, *models):
        return _report(look, surrogates, limits)


def trivial_radius(norm: str, numel: int) -> float:
    """The radius at which every image may become any other."""
    return {"linf": 1.0, "l2": math.sqrt(numel)}.get(norm, float(numel))


def radii(threat: Threat, numel: int) -> list[float]:
    """Half the radius of the evaluation, that radius, and larger ones up to the trivial one."""
    eps, last = threat.radius, trivial_radius(threat.norm, numel)
    if eps >= last:
        return [last / 2, last]
    steps = max(1, min(RADII, math.floor(math.log2(last / eps))))
    return [eps / 2, *(eps * (last / eps) ** (k / steps) for k in range(steps)), last]


@dataclass
class _Look:
    """The model under attacks on the same images, and what they cost."""

    model: nn.Module
    x: Tensor
    y: Tensor
    threat: Threat
    eot: int
    seed: int
    batch: int
    connected: bool = True
    forwards: float = 0.0
    backwards: float = 0.0

    def left(self, attack: RowAttack, *, seed: int = 0, of: Tensor | None = None) -> Tensor:
        """Accuracy (N,) that an attack leaves on each image.

        Args:
            seed: 0 for the start that all attacks share, others for restarts.
            of: accuracy that attacks before left; what is broken is not attacked again.
        """
        oracle = self._oracle(attack.threat, self.seed + seed)
        places = oracle.begin(torch.arange(len(self.x), device=self.x.device))
        if of is not None:
            places = places[of[places] > 0]
        if self.connected or isinstance(attack, SquareAttack):
            search(attack, oracle, places, batch=self.batch)
        self._count(oracle)
        return oracle.correct if of is None else torch.minimum(of, oracle.correct)

    def at(self, images: Tensor) -> Tensor:
        """Accuracy (N,) at some images."""
        oracle = self._oracle(self.threat, self.seed)
        parts = torch.arange(len(self.x), device=self.x.device).split(self.batch)
        found = [oracle.accuracy(images[part], oracle.rows(part)) for part in parts]
        self._count(oracle)
        return torch.cat(found)

    def _oracle(self, threat: Threat, seed: int) -> RowOracle:
        return RowOracle([self.model], threat, self.x, self.y, seed=seed, eot=self.eot)

    def _count(self, oracle: RowOracle) -> None:
        self.forwards += float(oracle.forwards.double().mean())
        self.backwards += float(oracle.backwards.double().mean())


def gradient_attack(threat: Threat, steps: int = USUAL, eot: int = 1) -> Descent:
    """The attack of the report."""
    return Descent(
        threat=threat, loss=ProbabilityMargin(), steps=steps, step_size=StepSize("2eps", "cosine"), eot=eot
    )


def _report(look: _Look, surrogates: Sequence[nn.Module], limits: Limits) -> SanityReport:
    checks = [*_own_checks(look, limits)]
    clean = look.at(look.x)

    def over(settings: Sequence[tuple[float, Descent]]) -> dict[float, Tensor]:
        return {0.0: clean} | {at: look.left(attack) for at, attack in settings}

    eot, threat = look.eot, look.threat
    eps = over([(r, gradient_attack(replace(threat, eps=r), eot=eot))
                for r in radii(threat, look.x[0].numel())])  # fmt: skip
    usual = eps.get(threat.radius, clean)
    others = over([(s, gradient_attack(threat, s, eot)) for s in STEPS if s != USUAL])
    steps = dict(sorted((others | {float(USUAL): usual}).items()))
    restarts = {1.0: usual}
    for k in range(1, RESTARTS):
        restarts[k + 1.0] = look.left(gradient_attack(threat, eot=eot), seed=k, of=restarts[float(k)])
    curves = {"eps": eps, "steps": steps, "restarts": restarts}
    checks += _curve_checks(curves, look, limits)
    white = torch.minimum(restarts[float(RESTARTS)], steps[float(STEPS[-1])])
    checks += _black_box_checks(white, look, surrogates, limits)
    return SanityReport(
        tuple(checks),
        tuple(Curve(name, tuple(found), tuple(float(left.mean()) for left in found.values()))
              for name, found in curves.items()),
        len(look.x), look.forwards, look.backwards,
    )  # fmt: skip


def _own_checks(look: _Look, limits: Limits) -> Iterator[Check]:
    """What the model's outputs and gradients say before any attack."""
    model, x, y, threat, n = look.model, look.x, look.y, look.threat, len(look.x)
    members: list[nn.Module] = list(model.members) if is_randomized(model) else [model]  # type: ignore[arg-type]
    said = [text for member in members if (text := wrong_outputs(member, x))]
    wrong = [text for text in said if "log-probabilities" not in text]
    warned = f"warning: {said[0]}" if said else "the outputs are logits"
    yield Check("logits", not wrong, len(wrong), 0, wrong[0] if wrong else warned)
    chance = [text for member in members if look.eot == 1 and (text := random_outputs(member, x))]
    same = "the outputs are the same in every pass" if look.eot == 1 else f"attacks average {look.eot} passes"
    yield Check("repeatable outputs", not chance, len(chance), 0, chance[0] if chance else same)
    counts, bound = silent(model, x, y, threat, eot=look.eot), limits.slack(n)
    look.connected = counts is not None
    if counts is None:
        yield Check("gradients", False, n, bound, "no gradient reaches the images")
    else:
        yield Check(
            "gradients", max(counts) <= bound, max(counts), bound,
            f"cross-entropy has a gradient of exactly zero at {counts[0]} of {n} images and at {counts[1]} "
            "random starts",
        )  # fmt: skip
    count = stuck(model, x, y, threat, eot=look.eot) if look.connected else None
    value = n if count is None else count
    yield Check(
        "loss rises", value <= STUCK * n, value, STUCK * n,
        f"ten steps of PGD do not raise the cross-entropy of {value} of {n} images",
    )  # fmt: skip


def _curve_checks(
    curves: dict[str, dict[float, Tensor]], look: _Look, limits: Limits
) -> Iterator[Check]:
    eps, steps, restarts = curves.values()
    yield _never_rises("accuracy over eps", "radius", eps, limits)
    last, left = list(eps.items())[-1]
    bound, rest = limits.slack(len(left)), float(left.sum())
    yield Check(
        "zero at the trivial radius", rest <= bound, rest, bound,
        f"PGD leaves {_percent(left)} at {look.threat.norm} radius {last:g}, where any image is allowed",
    )  # fmt: skip
    yield _never_rises("accuracy over steps", "number of steps", steps, limits)
    for name, what, curve in (
        ("converged in steps", "steps", steps), ("converged in restarts", "restarts", restarts),
    ):  # fmt: skip
        (a, before), (b, after) = list(curve.items())[-2:]
        passed, net = _compare(before, after, limits, 1)
        yield Check(
            name, passed, net, limits.slack(len(after)),
            f"{a:g} {what} leave {_percent(before)}, {b:g} leave {_percent(after)}",
        )  # fmt: skip


def _never_rises(name: str, what: str, curve: dict[float, Tensor], limits: Limits) -> Check:
    """Whether accuracy falls, or stays, along a curve."""
    points = list(curve.items())
    pairs = list(pairwise(points))
    found = [_compare(after, before, limits, len(pairs)) for (_, before), (_, after) in pairs]
    worst = max(range(len(pairs)), key=lambda k: (not found[k][0], found[k][1]))
    (a, before), (b, after) = pairs[worst]
    passed, net = found[worst]
    falls = f"accuracy falls from {_percent(points[0][1])} to {_percent(points[-1][1])}"
    rises = f"{what} {a:g} leaves {_percent(before)}, {b:g} leaves {_percent(after)}"
    return Check(name, passed, max(net, 0.0), limits.slack(len(after)), falls if passed else rises)


def _black_box_checks(
    white: Tensor, look: _Look, surrogates: Sequence[nn.Module], limits: Limits
) -> Iterator[Check]:
    """Attacks that see less of the model than PGD must not break more."""
    norm, bound = look.threat.norm, limits.slack(len(white))
    found: dict[str, Tensor] = {}
    if surrogates and norm in attack_info("mifgsm").norms:
        attack: Any = create_attack("mifgsm", eps=look.threat.eps, norm=norm)
        found["transfer"] = look.at(attack(list(surrogates), look.x, look.y))
    if norm in attack_info("square").norms:
        found["Square"] = look.left(SquareAttack(threat=look.threat, queries=QUERIES, eot=look.eot))
    if found:
        black = torch.stack(list(found.values())).amin(0)
        missed = float((white - black).clamp_min(0).sum())
        yield Check(
            "black-box below white-box", missed <= bound, missed, bound,
            f"{missed:g} of {len(white)} images that PGD does not break are broken by {' or '.join(found)}",
        )  # fmt: skip
    if "Square" in found:
        passed, net = _compare(white, found["Square"], limits, 1)
        yield Check(
            "gradient-free beside gradient-based", passed, max(net, 0.0), bound,
            f"Square left {_percent(found['Square'])}, PGD {_percent(white)}",
        )  # fmt: skip


def _compare(high: Tensor, low: Tensor, limits: Limits, comparisons: int) -> tuple[bool, float]:
    """Whether ``low`` is not below ``high`` beyond slack and chance; and the images that it is below by."""
    down = (high - low).double()
    net = float(down.sum())
    fell, rose = int((down > 1e-9).sum()), int((down < -1e-9).sum())
    beyond = net > limits.slack(len(down)) and sign_test(fell, rose) < limits.level / comparisons
    return not beyond, net


def sign_test(up: int, down: int) -> float:
    """The chance that at least ``up`` of ``up + down`` fair coins show heads."""
    n = up + down
    return float(sum(math.comb(n, k) for k in range(up, n + 1)) / 2**n)


def _percent(left: Tensor) -> str:
    return f"{100 * float(left.mean()):.0f} %"
