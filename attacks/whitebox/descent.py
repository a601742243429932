"""Scheduled PGD, row by row: one loss or its terms by halves, with restarts and starts.

``pgd-ce``, ``cw``, ``pgd-dlr`` and ``pma-simple`` differ in the loss alone: 100 steps of eps/4 from a
uniform point. ``md`` and ``pma`` take their loss apart: each restart is two runs of 100 steps.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache
from typing import Annotated

import torch
from pydantic import AfterValidator, ValidationInfo, field_validator
from torch import Tensor

from advens.attacks.interfaces import Loss, Passes, Start
from advens.attacks.losses import DLR, CrossEntropy, Margin
from advens.attacks.parts import name_of, one, part
from advens.attacks.registry import recipe
from advens.attacks.starts import Clean, Uniform
from advens.attacks.steps import Length, Rule, StepSize
from advens.attacks.whitebox.engine import WhiteBox
from advens.attacks.whitebox.margins import TERMS, ProbabilityMargin, note_nearest
from advens.attacks.whitebox.oracle import RowLoss, RowOracle
from advens.attacks.whitebox.rows import Rows, per_row
from advens.errors import InputError
from advens.fields import Count
from advens.seeding import Draws
from advens.threat import Threat

NORMS = ("linf", "l2", "l1")


@part("start", "odi", family="white-box", norms=NORMS, paper="Tashiro et al., NeurIPS 2020", year=2020)
class ODI:
    """A uniform point, then steps of eps along a random direction of the logits.

    The direction ``w ~ U(-1, 1)`` over classes is drawn once per sample and run; ``w . z`` is ascended.

    Args:
        steps: of length eps, before the attack's own.
    """

    steps: Count = 2

    def place(self, x: Tensor, threat: Threat, draws: Draws) -> Tensor:
        """Refused: a start that asks the model needs an attack that offers it one."""
        raise InputError(
            "start 'odi' asks the model; only white-box attacks such as 'pgd-ce' take it"
        )


@part("step", "halves", paper="Ma et al., Machine Learning 2023 (MD)", year=2023)
class Halves:
    """A cosine from alpha to 0 in each half of the steps.

    As published, counted from the second step: with ``h = steps // 2``, step ``i`` is
    ``alpha/2 (1 + cos(pi (i - 1) / (steps - h)))`` up to ``i = h`` and the same of ``i - h`` after.

    Args:
        alpha: the longest step, written as for ``step-size``.
    """

    alpha: Length = "2eps"

    def at(self, step: int, steps: int, threat: Threat) -> float:
        """alpha of one step, on images in [0, 1]."""
        half = steps // 2
        since = (step if step <= half else step - half) - 1
        longest = StepSize(self.alpha).at(0, steps, threat)
        return longest * (1 + math.cos(math.pi * since / (steps - half))) / 2


def _known(start: Start) -> Start:
    if not isinstance(start, (Uniform, Clean, ODI)):
        raise ValueError("the start is 'uniform', 'clean' or 'odi'")
    return start


@part("attack", "descent", family="white-box", norms=NORMS, paper="Madry et al., ICLR 2018 (PGD)", year=2018)
class Descent(WhiteBox):
    """Projected gradient ascent of a loss on the model itself, by sign or unit steps.

    Every step's point is evaluated where its gradient is taken, and the last point of a run by one more
    forward pass.

    Args:
        threat: the ball.
        loss: what is ascended.
        steps: of one run.
        restarts: runs, or pairs of runs when the loss is decomposed, each from a start of its own.
        step_size: the rule for alpha.
        start: ``uniform``, ``clean`` or ``odi``.
        decomposed: whether the first half of a run ascends one term of the loss: in the first run of
            a pair minus the label's, in the second the best other class's.
        first_on_label: whether the very first step of a run ascends the label's own term.
        eot: gradients averaged at each step, for models with randomness of their own.

    Source: Madry et al. 2018 (PGD), Ma et al. 2023 (decomposed), Xie et al. 2025 (on probabilities).
    """

    threat: Threat = Threat()
    loss: Annotated[Loss, one("loss")] = CrossEntropy()
    steps: Count = 100
    restarts: Count = 1
    step_size: Rule = StepSize("eps/4")
    start: Annotated[Start, one("start"), AfterValidator(_known)] = Uniform()
    decomposed: bool = False
    first_on_label: bool = False
    eot: Count = 1

    @field_validator("decomposed", "first_on_label")
    @classmethod
    def _has_terms(cls, wanted: bool, info: ValidationInfo) -> bool:
        loss = info.data.get("loss")
        if wanted and loss is not None and type(loss) not in TERMS:
            names = " or ".join(f"'{kind.part_name}'" for kind in TERMS)  # type: ignore[attr-defined]
            raise ValueError(f"loss '{name_of(loss)}' has no terms to take apart; use {names}")
        if wanted and info.data.get("steps", 2) < 2:
            raise ValueError("this takes at least 2 steps")
        return wanted

    @property
    def runs(self) -> int:
        """Runs of a sample that is never broken."""
        return self.restarts * (2 if self.decomposed else 1)

    @property
    def iterations(self) -> int:
        """Gradients of a sample that is never broken."""
        return self.runs * (self._before + self.steps)

    @property
    def random_start(self) -> bool:
        """Not from the clean image."""
        return not isinstance(self.start, Clean)

    def passes(self, surrogates: int) -> Passes:
        """Passes per sample: every gradient's, and a last look at the end of every run."""
        gradients = self.iterations * self.eot
        return Passes(surrogates * (gradients + self.runs * self.eot), surrogates * gradients)

    def alphas(self) -> list[float]:
        """Step lengths of one run, those of the start first."""
        own = [self.step_size.at(i, self.steps, self.threat) for i in range(self.steps)]
        return [self.threat.radius] * self._before + own

    def weights(self, run: int) -> list[tuple[float, float]]:
        """Coefficients of minus the label's term and of the other's, in every step of a run."""
        one = [(-1.0, 0.0)] if self.first_on_label else []
        if self.decomposed:
            half = (1.0, 0.0) if run % 2 == 0 else (0.0, 1.0)
            one += [half] * (self.steps // 2 - len(one))
        return [(0.0, 0.0)] * self._before + one + [(1.0, 1.0)] * (self.steps - len(one))

    def begin(self, oracle: RowOracle, rows: Rows) -> None:
        """Room for the point at hand and for the best one; runs start in ``advance``."""
        rows.memory = {
            "x": rows.x.clone(),
            "near_x": rows.x.clone(),
            "near": torch.full_like(rows.x[:, 0, 0, 0], -torch.inf),
            "loss": torch.zeros_like(rows.x[:, 0, 0, 0]),
        }

    def advance(self, oracle: RowOracle, rows: Rows) -> None:
        """A gradient step; before it a start where a run begins, after it a look where one ends."""
        length = self._before + self.steps
        run, at = rows.t // length, rows.t % length
        plan = torch.tensor(_plan(self), dtype=torch.float64, device=at.device)
        alpha, a, b = plan[run % 2, at].unbind(1)
        starts, ends, memory = at == 0, at == length - 1, rows.memory
        if bool(starts.any()):
            memory["x"][starts] = self._placed(oracle, rows.pick(starts))
        x = memory["x"]
        answer = oracle.gradient(x, rows, self._loss(oracle, rows, a, b))
        memory["loss"] = answer.loss.to(x.dtype).masked_fill(at < self._before, torch.nan)
        note_nearest(rows, answer.logits, torch.ones_like(ends))
        moved = self.threat.steepest(answer.gradient).mul_(per_row(alpha, x)).add_(x)
        memory["x"] = self.threat.project_(moved, rows.x)
        if bool(ends.any()):
            ended = rows.pick(ends)
            note_nearest(rows, oracle.logits(ended.memory["x"], ended), ends)

    def last(self, rows: Rows) -> Tensor:
        """The points nearest to breaking the model, by the logit margin."""
        return rows.memory["near_x"]

    def observed(self, rows: Rows) -> dict[str, Tensor]:
        """The loss at the point, and the largest logit margin so far."""
        return {"loss": rows.memory["loss"], "margin": rows.memory["near"]}

    @property
    def _before(self) -> int:
        return self.start.steps if isinstance(self.start, ODI) else 0

    def _placed(self, oracle: RowOracle, rows: Rows) -> Tensor:
        return rows.x if isinstance(self.start, Clean) else oracle.random_start(rows)

    def _loss(self, oracle: RowOracle, rows: Rows, a: Tensor, b: Tensor) -> RowLoss:
        """The loss of this iteration, which each row sees through its own coefficients a and b."""
        at = rows.t % (self._before + self.steps)
        y, target = rows.y, rows.target
        terms = TERMS.get(type(self.loss)) if self.decomposed or self.first_on_label else None

        def loss(logits: Tensor) -> Tensor:
            if terms is None:
                value: Tensor = self.loss(logits, y, target)
            else:
                value = terms(logits, y, target, a, b)
            if not self._before:
                return value
            named = replace(rows, t=rows.t - at)  # the same direction in every step of a start
            w = 2 * oracle.numbers(named, (logits.shape[1],), "odi") - 1
            return torch.where(at < self._before, (w.to(logits) * logits).sum(1), value)

        return loss


@lru_cache(maxsize=64)
def _plan(attack: Descent) -> list[list[tuple[float, float, float]]]:
    """Step length and coefficients of every step, of an even run and of an odd one."""
    alphas = attack.alphas()
    return [
        [(alpha, *pair) for alpha, pair in zip(alphas, attack.weights(run), strict=True)]
        for run in (0, 1)
    ]


@recipe("pgd-ce", family="white-box", norms=NORMS, paper="Madry et al., ICLR 2018", year=2018)
def PGDCE() -> Descent:
    """White-box PGD on cross-entropy."""
    return Descent(loss=CrossEntropy(), step_size=StepSize("eps/4"))


@recipe("cw", family="white-box", norms=NORMS, paper="Carlini & Wagner, S&P 2017", year=2017)
def CW() -> Descent:
    """White-box PGD on the logit margin of Carlini and Wagner."""
    return Descent(loss=Margin(), step_size=StepSize("eps/4"))


@recipe("pgd-dlr", family="white-box", norms=NORMS, paper="Croce & Hein, ICML 2020", year=2020)
def PGDDLR() -> Descent:
    """White-box PGD on the difference of logits ratio."""
    return Descent(loss=DLR(), step_size=StepSize("eps/4"))


@recipe("pma-simple", family="white-box", norms=NORMS, paper="Xie et al., CVPR 2025", year=2025)
def PMASimple() -> Descent:
    """White-box PGD on the probability margin."""
    return Descent(loss=ProbabilityMargin(), step_size=StepSize("eps/4"))


@recipe("md", family="white-box", norms=NORMS, paper="Ma et al., Machine Learning 2023", year=2023)
def MD() -> Descent:
    """Margin decomposition: half a run on one logit, half on the logit margin."""
    return Descent(loss=Margin(), step_size=Halves(), decomposed=True)


@recipe("pma", family="white-box", norms=NORMS, paper="Xie et al., CVPR 2025", year=2025)
def PMA() -> Descent:
    """Probability margin attack: half a run on one probability, half on their margin."""
    return Descent(
        loss=ProbabilityMargin(), step_size=Halves(), decomposed=True, first_on_label=True
    )
