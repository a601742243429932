"""The attack loop: an attack is a value made of parts, and the loop is as short as the idea."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, ValidationInfo, field_validator
from torch import Tensor

from advens.attacks.estimators import Plain
from advens.attacks.hooks import Changed
from advens.attacks.interfaces import (
    Attack,
    Feature,
    FeatureLoss,
    Fusion,
    GradientEstimator,
    GradientFilter,
    InputTransform,
    Job,
    Loss,
    ModelChange,
    OwnBackward,
    OwnStep,
    Passes,
    PreparedEveryStep,
    PreparedOnClean,
    PreparedWithGradients,
    SecondStage,
    Start,
    Update,
    queries_at,
)
from advens.attacks.losses import CrossEntropy
from advens.attacks.oracle import GradientOracle
from advens.attacks.parts import PARTS, name_of, one, part, perhaps, several
from advens.attacks.running import Runnable
from advens.attacks.starts import Clean
from advens.attacks.steps import Rule, StepSize
from advens.attacks.tap import Tap
from advens.attacks.tracing import conclude, observe
from advens.attacks.uniform import EnsLogits
from advens.attacks.updates import Sign, stepped
from advens.errors import InputError
from advens.fields import Positive, Whole
from advens.threat import Threat


def _some_steps(steps: int) -> int:
    if steps < 1:
        raise ValueError("an attack takes at least one step")
    return steps


def _refuse_beside(changes: Sequence[ModelChange], *others: object) -> None:
    """Where a change stands alone on a surrogate, no other change does, and nothing taps it."""
    for change in changes:
        reason = getattr(change, "ALONE", "")
        for other in others if reason else ():
            if other is not change:
                raise ValueError(f"'{name_of(change)}' does not go with '{name_of(other)}': it {reason}")


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
        warm_up: steps that are taken first and forgotten, but for what the update remembers (its momentum).
        warm_up_scale: the length of those steps, relative to alpha.
        feature: what is done with features inside the surrogates; most ascend a loss of features instead.

    Source: Kurakin et al. 2017 (the iteration), Dong et al. 2018 (momentum), Liu et al. 2017 (fusion),
    Wang et al. 2022 (the warm start).
    """

    LATER: ClassVar = ("warm_up", "warm_up_scale", "feature")

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
    warm_up: Whole = 0
    warm_up_scale: Positive = 10.0
    feature: Annotated[Feature | None, perhaps("feature")] = None

    @field_validator("update")
    @classmethod
    def _defined(cls, update: Update, info: ValidationInfo) -> Update:
        if isinstance(update, OwnStep) and "threat" in info.data and info.data["threat"].norm != "linf":
            raise ValueError(f"the step of '{name_of(update)}' is its own, and defined for l_inf alone")
        return update

    @field_validator("changes")
    @classmethod
    def _alone(cls, changes: tuple[ModelChange, ...], info: ValidationInfo) -> tuple[ModelChange, ...]:
        if any(hasattr(change, "ALONE") for change in changes):
            fusion = info.data.get("fusion")
            _refuse_beside(changes, *changes, *([fusion] if hasattr(fusion, "layers") else []))
        return changes

    @field_validator("feature")
    @classmethod
    def _of_logits(cls, feature: Feature | None, info: ValidationInfo) -> Feature | None:
        _refuse_beside(info.data.get("changes", ()), *([] if feature is None else [feature]))
        for change in info.data.get("changes", ()):
            if isinstance(feature, FeatureLoss) and isinstance(change, OwnBackward):
                raise ValueError(
                    f"'{name_of(feature)}' does not go with the change '{name_of(change)}', which "
                    f"{change.OF_LOGITS}"
                )
        return feature

    @field_validator("feature")
    @classmethod
    def _fused(cls, feature: Feature | None, info: ValidationInfo) -> Feature | None:
        reason, taps = getattr(fusion := info.data.get("fusion"), "OF_LOGITS", ""), hasattr(fusion, "layers")
        if reason and (isinstance(feature, FeatureLoss) or (feature is not None and taps)):
            raise ValueError(
                f"'{name_of(feature)}' does not go with the fusion '{name_of(fusion)}', which "
                f"{reason}; 'ens-loss' takes the mean of the surrogates' losses"
            )
        return feature

    def craft(self, job: Job) -> tuple[Tensor, Passes]:
        """The last of the iterates, on some rows of a shard."""
        oracle = self.oracle(job)
        for iterate in self.iterates(job, oracle):
            x_adv = iterate
        job.silent.append(oracle.silent)
        if job.trace is not None:
            conclude(self, job, x_adv)
        return x_adv, oracle.passes

    def walk(self, job: Job) -> tuple[list[Tensor], Passes]:
        """All iterates, and what they cost."""
        oracle = self.oracle(job)
        return list(self.iterates(job, oracle)), oracle.passes

    def iterates(self, job: Job, oracle: GradientOracle) -> Iterator[Tensor]:
        """The loop: the image after every step."""
        x, threat, update = job.x, self.threat, self.update
        start = self.start.place(x, threat, job.draws)
        if isinstance(self.feature, SecondStage):
            start = self.feature.begin(oracle.tapped(0))
        x_adv = start
        memory: dict[str, Tensor] = {}
        for step in range(-self.warm_up, self.steps):
            if step == 0:  # what a warm start found is forgotten
                x_adv = start
                oracle.memory.clear()
                oracle.context.memory.clear()
            alpha = self._alpha(step)
            oracle.begin(step, alpha, x_adv)
            at = update.look(x_adv, memory, alpha, threat)
            if job.trace is not None:
                observe(self, job, at)
            direction = self.fusion.direction(oracle, at)
            x_adv = stepped(update, x_adv, direction, memory, oracle.context)
            if step >= 0:
                yield x_adv
        oracle.check()

    def oracle(self, job: Job) -> GradientOracle:
        """The surrogates of a job, changed, behind this attack's loss, transforms, estimator and filters."""
        taps: list[Tap] = []
        tapping: Any = self.feature or self.fusion
        if getattr(tapping, "layers", ()):
            taps = [Tap(tapping.layers, name_of(tapping)) for _ in job.models]
        if self.feature is not None:
            name, info = name_of(self.feature), PARTS["feature"].info(name_of(self.feature))
            if job.target is not None and not info.targeted:
                raise InputError(f"'{name}' is defined without targets only")
            if job.target is None and not info.untargeted:
                raise InputError(f"'{name}' has no untargeted form: it needs targets")
        if self.changes or taps:
            models = [
                Changed(m, (*self.changes, *taps[k : k + 1]), k, self.steps) for k, m in enumerate(job.models)
            ]
            job = replace(job, models=models)
        return GradientOracle(
            job, self.threat, self.loss, self.estimator, self.transforms, self.filters,
            feature=self.feature, taps=taps,
        )  # fmt: skip

    def passes(self, surrogates: int) -> Passes:
        """Passes per sample on ``surrogates`` models."""
        copies = math.prod(transform.copies for transform in self.transforms)
        every = range(-self.warm_up, self.steps)
        estimates = Counter(queries_at(self.estimator, step) for step in every)
        shown = [change for change in self.changes if isinstance(change, PreparedOnClean)]
        forward = surrogates * sum(change.views for change in shown)
        asked = [change for change in shown if isinstance(change, PreparedWithGradients)]
        backward = surrogates * sum(change.views for change in asked)
        if self.feature is not None:
            prepared = self.feature.preparation(surrogates, copies, every)
            forward, backward = forward + prepared.forward, backward + prepared.backward
        runs = 1 + sum(isinstance(change, OwnBackward) for change in self.changes)
        each = sum(change.looks for change in self.changes if isinstance(change, PreparedEveryStep))
        looks = surrogates * len(every) * each
        forward, backward = forward + looks, backward + looks * runs
        for queries, steps in estimates.items():
            step = self.fusion.passes(surrogates, queries * copies)
            forward, backward = forward + steps * step.forward, backward + steps * step.backward * runs
        return Passes(forward, backward)

    def _alpha(self, step: int) -> float:
        """alpha of one step; those of the warm start are as long as the first, times their scale."""
        alpha = self.step_size.at(max(step, 0), self.steps, self.threat)
        return alpha if step >= 0 else self.warm_up_scale * alpha

    @property
    def spec(self) -> dict[str, Any]:
        """JSON-able description; `attack_from_spec` builds the same value from it."""
        described = super().spec
        if not self.changes:  # as it was before there were any: names of stored cells depend on it
            del described["changes"]
        return described


__all__ = ["Attack", "ComposedAttack"]
