"""The attack loop: an attack is a value made of parts, and the loop is as short as the idea."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

from pydantic import AfterValidator
from torch import Tensor

from advens.attacks.estimators import Plain
from advens.attacks.hooks import Changed
from advens.attacks.interfaces import (
    Attack,
    Fusion,
    GradientEstimator,
    GradientFilter,
    InputTransform,
    Job,
    Loss,
    ModelChange,
    Passes,
    Start,
    Update,
)
from advens.attacks.losses import CrossEntropy
from advens.attacks.oracle import GradientOracle
from advens.attacks.parts import one, part, several
from advens.attacks.running import Runnable
from advens.attacks.starts import Clean
from advens.attacks.steps import Rule, StepSize
from advens.attacks.tracing import conclude, observe
from advens.attacks.uniform import EnsLogits
from advens.attacks.updates import Sign
from advens.threat import Threat


def _some_steps(steps: int) -> int:
    if steps < 1:
        raise ValueError("an attack takes at least one step")
    return steps


@part("attack", "composed", paper="Kurakin et al., ICLR workshop 2017 (I-FGSM)", year=2017)
class ComposedAttack(Runnable):
    """Iterative gradient attack composed of parts.

    Args:
        threat: the ball.
        steps: iterations.
        loss: what is ascended.
        transforms: what the surrogates see instead of the image, in order.
        estimator: how a gradient is estimated from gradients around a point.
        fusion: how the surrogates agree on one direction.
        filters: what is done to every gradient a fusion asks for, in order.
        update: how directions become a step (sign, momentum, Nesterov).
        step_size: the rule for alpha.
        start: where the loop begins.
        changes: what is done inside every surrogate, to what it computes or to its gradient.

    Source: Kurakin et al. 2017 (the iteration), Dong et al. 2018 (momentum), Liu et al. 2017 (fusion).
    """

    threat: Threat = Threat()
    steps: Annotated[int, AfterValidator(_some_steps)] = 10
    loss: Annotated[Loss, one("loss")] = CrossEntropy()
    transforms: Annotated[tuple[InputTransform, ...], several("transform")] = ()
    estimator: Annotated[GradientEstimator, one("estimator")] = Plain()
    fusion: Annotated[Fusion, one("fusion")] = EnsLogits()
    filters: Annotated[tuple[GradientFilter, ...], several("filter")] = ()
    update: Annotated[Update, one("update")] = Sign()
    step_size: Rule = StepSize()
    start: Annotated[Start, one("start")] = Clean()
    changes: Annotated[tuple[ModelChange, ...], several("change")] = ()

    def craft(self, job: Job) -> tuple[Tensor, Passes]:
        """The loop, on some rows of a shard."""
        x, threat, update = job.x, self.threat, self.update
        oracle = self.oracle(job)
        x_adv = self.start.place(x, threat, job.draws)
        memory: dict[str, Tensor] = {}
        for step in range(self.steps):
            alpha = self.step_size.at(step, self.steps, threat)
            oracle.begin(step, alpha)
            at = update.look(x_adv, memory, alpha, threat)
            if job.trace is not None:
                observe(self, job, at)
            direction = self.fusion.direction(oracle, at)
            ahead = update.direction(direction, memory)
            x_adv = oracle.context.step(x_adv, alpha, ahead)
        oracle.check()
        job.silent.append(oracle.silent)
        if job.trace is not None:
            conclude(self, job, x_adv)
        return x_adv, oracle.passes

    def oracle(self, job: Job) -> GradientOracle:
        """The surrogates of a job, changed, behind this attack's loss, transforms, estimator and filters."""
        if self.changes:
            models = [Changed(model, self.changes, k) for k, model in enumerate(job.models)]
            job = replace(job, models=models)
        return GradientOracle(
            job, self.threat, self.loss, self.estimator, self.transforms, self.filters
        )

    def passes(self, surrogates: int) -> Passes:
        """Passes per sample on ``surrogates`` models."""
        gradients = self.estimator.queries
        for transform in self.transforms:
            gradients *= transform.copies
        step = self.fusion.passes(surrogates, gradients)
        return Passes(self.steps * step.forward, self.steps * step.backward)

    @property
    def spec(self) -> dict[str, Any]:
        """JSON-able description; `attack_from_spec` builds the same value from it."""
        described = super().spec
        if not self.changes:  # as it was before there were any: names of stored cells depend on it
            del described["changes"]
        return described


__all__ = ["Attack", "ComposedAttack"]
