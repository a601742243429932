"""The attack loop: an attack is a value made of parts, and the loop is as short as the idea."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pydantic import ValidationInfo, field_validator
from torch import Tensor

from advens.attacks.estimators import Plain
from advens.attacks.hooks import Changed
from advens.attacks.interfaces import (
    Attack,
    AttackResult,
    Fusion,
    GradientEstimator,
    Job,
    Models,
    Passes,
    Update,
)
from advens.attacks.losses import CrossEntropy
from advens.attacks.oracle import GradientOracle
from advens.attacks.parts import FIELD_KINDS, from_spec, part, to_spec
from advens.attacks.running import run
from advens.attacks.starts import Clean
from advens.attacks.steps import StepSize
from advens.attacks.tracing import conclude, observe
from advens.attacks.uniform import EnsLogits
from advens.attacks.updates import Sign
from advens.threat import Threat


@part("attack", "composed", paper="Kurakin et al., ICLR workshop 2017 (I-FGSM)", year=2017)
class ComposedAttack:
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
    steps: int = 10
    loss: Any = CrossEntropy()
    transforms: tuple[Any, ...] = ()
    estimator: Any = Plain()
    fusion: Any = EnsLogits()
    filters: tuple[Any, ...] = ()
    update: Any = Sign()
    step_size: Any = StepSize()
    start: Any = Clean()
    changes: tuple[Any, ...] = ()

    @field_validator("loss", "estimator", "fusion", "update", "step_size", "start", mode="before")
    @classmethod
    def _built(cls, value: Any, info: ValidationInfo) -> Any:
        """A part from its name, as everywhere."""
        if info.field_name == "step_size" and isinstance(value, (str, float, int)):
            return StepSize(value)
        return from_spec(FIELD_KINDS[str(info.field_name)], value)

    @field_validator("changes", "transforms", "filters", mode="before")
    @classmethod
    def _all_built(cls, values: Any, info: ValidationInfo) -> tuple[Any, ...]:
        if not isinstance(values, (tuple, list)):
            raise ValueError(f"a list of {info.field_name} is wanted")
        return tuple(from_spec(FIELD_KINDS[str(info.field_name)], value) for value in values)

    @field_validator("steps")
    @classmethod
    def _some_steps(cls, steps: int) -> int:
        if steps < 1:
            raise ValueError("an attack takes at least one step")
        return steps

    def __call__(
        self, models: Models, x: Tensor, y: Tensor, target: Tensor | None = None, *, seed: int = 0
    ) -> Tensor:
        """Adversarial images for ``x``.

        Args:
            models: one surrogate or a sequence of them; images in [0, 1] to logits. They come back
                as they were.
            x: (N, C, H, W) in [0, 1].
            y: labels (N,).
            target: wanted labels (N,); untargeted when None.
            seed: what all randomness is derived from; the global generators are not touched.

        Raises:
            InputError: shapes, ranges or label spaces that do not fit.
        """
        return self.run(models, x, y, target, seed=seed).x_adv

    def run(
        self,
        models: Models,
        x: Tensor,
        y: Tensor,
        target: Tensor | None = None,
        *,
        seed: int = 0,
        micro_batch: int | None = None,
        trace: bool = False,
    ) -> AttackResult:
        """The images with the passes spent, at most ``micro_batch`` images at once.

        With ``trace`` also what happened, see `advens.attacks.tracing.Trace`.
        """
        return run(self, models, x, y, target, seed=seed, micro_batch=micro_batch, trace=trace)

    def craft(self, job: Job) -> tuple[Tensor, Passes]:
        """The loop, on some rows of a shard."""
        fusion: Fusion = self.fusion
        update: Update = self.update
        x, threat = job.x, self.threat
        oracle = self.oracle(job)
        x_adv = self.start.place(x, threat, job.draws)
        memory: dict[str, Tensor] = {}
        for step in range(self.steps):
            alpha = self.step_size.at(step, self.steps, threat)
            oracle.begin(step, alpha)
            at = update.look(x_adv, memory, alpha, threat)
            if job.trace is not None:
                observe(self, job, at)
            direction = fusion.direction(oracle, at)
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
        estimator: GradientEstimator = self.estimator
        gradients = estimator.queries
        for transform in self.transforms:
            gradients *= transform.copies
        step = self.fusion.passes(surrogates, gradients)
        return Passes(self.steps * step.forward, self.steps * step.backward)

    @property
    def spec(self) -> dict[str, Any]:
        """JSON-able description; `attack_from_spec` builds the same value from it."""
        described: dict[str, Any] = to_spec(self)
        if not self.changes:  # as it was before there were any: names of stored cells depend on it
            del described["changes"]
        return described


__all__ = ["Attack", "ComposedAttack"]
