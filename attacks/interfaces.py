"""The job of an attack, what it costs, and the protocol of every kind of part.

All other modules of this package may import this one; it imports none of them. A part satisfies its
protocol by having the methods: nothing has to be inherited.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor, nn

from advens.seeding import Draws
from advens.threat import Threat, unit_l1

Models: TypeAlias = nn.Module | Sequence[nn.Module]
"""One surrogate or several, each mapping images (N, C, H, W) in [0, 1] to logits (N, classes)."""

Gradient: TypeAlias = Callable[[Tensor], Tensor]
"""A point (N, C, H, W) to the gradient there."""


def gradients(gradient: Gradient, points: Iterable[Tensor]) -> Iterator[Tensor]:
    """Gradients at several points, in their order.

    Points are taken from the iterator when they are needed. Where an attack runs with ``copies_at_once``, so
    many are taken together, and the surrogates see them in one pass.
    """
    each: Callable[[Iterable[Tensor]], Iterator[Tensor]] | None = getattr(gradient, "each", None)
    return map(gradient, points) if each is None else each(points)


class Passes(NamedTuple):
    """Forward and backward passes of a surrogate, per sample."""

    forward: int
    backward: int


@dataclass
class Trace:
    """Named observations of each step, (N, ...) each.

    ``loss`` (N, K): every surrogate's loss where the gradient was asked for, ascended. ``cosine`` (N,):
    mean pairwise cosine between their gradients (1 for one surrogate). Fusions note more: AdaEA its
    ``weights`` (N, K) and the fraction ``filtered`` (N,). Once, of the result: ``flatness`` and
    ``closeness`` (N, K), CWA's two quantities. White-box attacks note, (N,) each, how much of a sample's
    accuracy is ``broken``, and more of their own, as the ``loss`` or the ``step_size``; NaN where there is
    nothing.

    Attributes:
        recorded: the iterations that there are observations of, when it is not all of them.
    """

    steps: dict[str, list[Tensor]] = field(default_factory=dict)
    recorded: tuple[int, ...] = ()

    def note(self, name: str, value: Tensor) -> None:
        """Add this step's observation."""
        self.steps.setdefault(name, []).append(value.detach().cpu())

    def stacked(self) -> dict[str, Tensor]:
        """Every observation as (steps, N, ...)."""
        return {name: torch.stack(values) for name, values in self.steps.items()}


@dataclass
class Job:
    """What one attack works on: some rows of a shard.

    Args:
        models: the surrogates, each mapping (N, C, H, W) in [0, 1] to logits.
        x: clean images of the rows at hand, (N, C, H, W).
        y: labels (N,).
        target: wanted labels (N,), or None when untargeted.
        draws: the randomness of the shard, sliced to the rows.
        pool: clean images of the whole shard, for transforms that mix images.
        trace: where to note what happens at every step; None when no trace was asked for.
        carried: what a method takes from one micro-batch to the next, where its published code does.
        silent: where an attack that counts them leaves (N,): the steps without any gradient.
        copies_at_once: how many views or neighbours of the images a surrogate sees in one pass.
        pool_y: labels of the images of ``pool``.
    """

    models: Sequence[nn.Module]
    x: Tensor
    y: Tensor
    target: Tensor | None
    draws: Draws
    pool: Tensor
    trace: Trace | None = None
    carried: dict[str, Tensor] = field(default_factory=dict)
    silent: list[Tensor] = field(default_factory=list)
    copies_at_once: int = 1
    pool_y: Tensor | None = None


@dataclass(frozen=True)
class AttackResult:
    """Adversarial images and what they cost.

    Args:
        x_adv: (N, C, H, W), inside the ball and [0, 1].
        passes: forward and backward passes of surrogates, per sample.
        micro_batch: the number of images that were worked on at once in the end.
        trace: observations by name, (steps, N, ...), when asked for; see `Trace`.
        silent: (N,), the number of steps in which every gradient of a sample was zero throughout, so that
            no direction was known; None where an attack does not count them.
        recorded: the iterations that the trace is of, when it is not all of them.
    """

    x_adv: Tensor
    passes: Passes
    micro_batch: int
    trace: dict[str, Tensor] | None = None
    silent: Tensor | None = None
    recorded: tuple[int, ...] = ()


@dataclass
class Context:
    """What transforms, estimators and fusions may know beside the images they are given.

    ``memory`` is what transforms remember from step to step.
    """

    threat: Threat
    draws: Draws
    pool: Tensor
    clean: Tensor
    step_size: float = 0.0
    memory: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def bounds(self) -> tuple[Tensor, Tensor] | None:
        """The box that an l_inf ball is, computed once; None in l_2."""
        return self.threat.bounds(self.clean) if self.threat.norm == "linf" else None

    def project(self, x_adv: Tensor) -> Tensor:
        """Onto the ball around the clean images."""
        if self.bounds is not None:
            return x_adv.clamp(*self.bounds)
        return self.threat.project(x_adv, self.clean)

    def unit(self, g: Tensor) -> Tensor:
        """``g / mean|g|`` in l_inf, ``g / ||g||_2`` in l_2, per sample: on average as long as a unit step."""
        return unit_l1(g) * g[0].numel() if self.threat.norm == "linf" else self.threat.steepest(g)

    def step(self, x: Tensor, length: float, direction: Tensor) -> Tensor:
        """``Π(x + length * unit step along direction)``."""
        unit = self.threat.steepest(direction)
        return self._held(torch.add(x, unit, alpha=length, out=unit))  # one new tensor, not three

    def move(self, x: Tensor, length: float, along: Tensor) -> Tensor:
        """``Π(x + length * along)``."""
        return self._held(torch.add(x, along, alpha=length))

    def _held(self, moved: Tensor) -> Tensor:
        """A new tensor, projected in place where that is possible."""
        if self.bounds is not None:
            return moved.clamp_(*self.bounds)
        return self.threat.project(moved, self.clean)


@dataclass
class ChangeContext:
    """What a change may know while a surrogate runs: the random numbers of the current step.

    Args:
        draws: of the step, sliced to the rows at hand; None outside an attack.
        member: which copy of the model this is, so that copies draw differently.
        steps: of the attack.
        memory: what a change keeps from step to step, of the rows at hand; empty when an attack begins.
        shown: which of the clean images that a change wants to see is at hand; see `PreparedOnClean`.
        kept: what changes keep of them, of the rows at hand.
        labels: of the rows at hand, (N,); known when clean images have been shown.
        looking: the change that takes a gradient at the iterate; see `PreparedEveryStep`.
        preceding: another attack on the surrogate is running first.
    """

    draws: Draws | None = None
    member: int = 0
    steps: int = 1
    memory: dict[Any, Any] = field(default_factory=dict)
    shown: int | None = None
    kept: dict[Any, Any] = field(default_factory=dict)
    labels: Tensor | None = None
    looking: ModelChange | None = None
    preceding: bool = False

    def begin(self, draws: Draws | None) -> None:
        """A step begins: these are its draws; None when the attack is over."""
        last = self.draws
        if draws is None or last is None or not 0 != draws.step >= last.step or draws != last.at(draws.step):
            self.memory.clear()
        self.draws = draws

    def uniform(self, like: Tensor, low: float, high: float, *tag: object) -> Tensor:
        """U(low, high) of the shape, type and device of ``like`` (N, ...), a sample's own.

        Within a step the same tag and shape give the same numbers, however often a model runs; a
        batch that holds every sample M times has them M times.
        """
        draws, rows = self._rows(like)
        return _repeated(draws.uniform(like[:rows], low, high, "change", self.member, *tag), like)

    def normal(self, like: Tensor, *tag: object) -> Tensor:
        """N(0, 1) likewise."""
        draws, rows = self._rows(like)
        return _repeated(draws.normal(like[:rows], 1.0, "change", self.member, *tag), like)

    def _rows(self, like: Tensor) -> tuple[Draws, int]:
        """The draws, and how many samples are at hand."""
        draws = self.draws or Draws(0, len(like))
        return draws, draws.rows_at_hand

    def numbers(self, n: int, low: float, high: float, *tag: object) -> Tensor:
        """n numbers from U(low, high) for all samples of the step, float64."""
        generator = (self.draws or Draws(0, 1)).generator("change", self.member, *tag)
        return low + (high - low) * torch.rand(n, generator=generator, dtype=torch.float64)

    def permutation(self, n: int, *tag: object) -> list[int]:
        """A permutation of range(n) for all samples of the step."""
        return (self.draws or Draws(0, 1)).permutation(n, "change", self.member, *tag)


def _repeated(once: Tensor, like: Tensor) -> Tensor:
    """Numbers of every sample, as often as a batch holds the sample."""
    if len(like) == len(once):
        return once
    return once.repeat(len(like) // len(once), *[1] * (like.dim() - 1))


class Softmin(NamedTuple):
    """A way to fuse surrogates: the soft minimum of their losses at a temperature."""

    temperature: float


class Fused(NamedTuple):
    """The loss of fused surrogates, per sample, and what is differentiated in its place.

    Args:
        value: the loss (N,).
        ascended: (N,); the gradient of the loss is ``exp(log_scale)`` times that of this.
        log_scale: (N,).
    """

    value: Tensor
    ascended: Tensor
    log_scale: Tensor

    def term(self) -> Tensor:
        """The loss as a term of a sum, (N,). A slope too small for a float is taken as a small one."""
        lowest = 0.69 * math.log(torch.finfo(self.ascended.dtype).tiny)
        scale = self.log_scale.to(self.ascended).clamp_min(lowest).exp()
        return self.value + scale * (self.ascended - self.ascended.detach())


class Loss(Protocol):
    """What the attack ascends; a part of kind ``loss``."""

    def __call__(self, logits: Tensor, y: Tensor, target: Tensor | None) -> Tensor:
        """(N, classes), (N,), (N,) or None -> (N,)."""
        ...


@runtime_checkable
class OfOdds(Protocol):
    """A loss f(m) of the log-odds m of what the attack wants: any class but the label, or the target.

    Its slope f'(m) can be too small for a float, so that its logarithm is given apart.
    """

    def odds(self, logits: Tensor, y: Tensor, target: Tensor | None) -> Tensor:
        """m, (N,)."""
        ...

    def at(self, odds: Tensor, targeted: bool) -> tuple[Tensor, Tensor]:
        """f(m) and log f'(m), (N,) each."""
        ...


class InputTransform(Protocol):
    """What a surrogate sees instead of the image; a part of kind ``transform``.

    Differentiable, (N, C, H, W) to the same shape.
    """

    @property
    def copies(self) -> int:
        """How many views of the image one gradient averages over."""
        ...

    def __call__(self, x: Tensor, copy: int, context: Context) -> Tensor:
        """View number ``copy`` of ``x``."""
        ...


@runtime_checkable
class FusedCopies(Protocol):
    """A transform that says what is averaged over its copies; over others it is the gradient of the loss."""

    @property
    def over(self) -> str:
        """``logits`` for the loss of the mean logits, ``loss`` for the mean of the losses."""
        ...


@runtime_checkable
class LearningTransform(Protocol):
    """A transform that learns from the losses of its views; what it remembers is in the context's memory."""

    def learn(self, copy: int, loss: Tensor, context: Context) -> None:
        """Note the loss (N,) of the surrogates, fused, at view number ``copy``."""
        ...


class GradientEstimator(Protocol):
    """A gradient at a point from gradients around it; a part of kind ``estimator``.

    State of a run lives in ``memory``, one dictionary per set of surrogates asked for.
    """

    @property
    def queries(self) -> int:
        """Plain gradients one estimate takes."""
        ...

    def estimate(
        self, gradient: Gradient, x: Tensor, memory: dict[str, Any], context: Context
    ) -> Tensor:
        """The estimate at ``x``, (N, C, H, W)."""
        ...


@runtime_checkable
class VaryingQueries(Protocol):
    """An estimator whose number of plain gradients depends on the step; ``queries`` is the largest."""

    def queries_at(self, step: int) -> int:
        """Plain gradients one estimate takes in a step; steps before 0 are those of a warm start."""
        ...


def queries_at(estimator: GradientEstimator, step: int) -> int:
    """Plain gradients one estimate takes in a step."""
    return estimator.queries_at(step) if isinstance(estimator, VaryingQueries) else estimator.queries


class GradientFilter(Protocol):
    """What is done to every gradient before a fusion sees it; a part of kind ``filter``."""

    def __call__(self, g: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        ...


class Oracle(Protocol):
    """What a fusion asks for logits and gradients; `advens.attacks.oracle.GradientOracle` answers."""

    @property
    def k(self) -> int:
        """The number of surrogates."""
        ...

    @property
    def job(self) -> Job:
        """What is attacked."""
        ...

    @property
    def threat(self) -> Threat:
        """The ball."""
        ...

    @property
    def context(self) -> Context:
        """Draws and step size of the current step."""
        ...

    @property
    def copies(self) -> int:
        """Views of the image that one gradient averages over, of all transforms together."""
        ...

    @property
    def estimator(self) -> GradientEstimator:
        """What makes an estimate of plain gradients."""
        ...

    @property
    def memory(self) -> dict[object, dict[str, Any]]:
        """State of the run by name."""
        ...

    def logits(self, x: Tensor, k: int) -> Tensor:
        """Logits of surrogate ``k`` at ``x``, without transforms and without a graph."""
        ...

    def gradient(
        self,
        x: Tensor,
        members: Sequence[int] | None = None,
        *,
        over: str | Softmin = "logits",
        weights: Tensor | None = None,
        remember: str = "",
        raw: bool = False,
    ) -> Tensor:
        """Gradient at ``x`` of the loss of some surrogates fused into one, (N, C, H, W)."""
        ...

    def filtered(self, g: Tensor) -> Tensor:
        """``g`` (N, C, H, W) through the attack's filters, in order."""
        ...

    def tapped(self, k: int) -> Tapped:
        """Surrogate ``k`` with its taps, for a fusion that says at which ``layers``."""
        ...

    def note(self, name: str, value: Tensor) -> None:
        """Add an observation (N, ...) of this step to the trace, when there is one."""
        ...

    def state(self, name: str) -> dict[str, Any]:
        """A dictionary of this run for a fusion that remembers something from step to step."""
        ...

    def view(self, x: Tensor, copy: int = 0) -> Tensor:
        """What the surrogates see of ``x``: its copy number ``copy`` under the transforms."""
        ...

    def forward(self, x: Tensor, k: int) -> Tensor:
        """Logits of surrogate ``k``, with a graph where ``x`` has one; counted."""
        ...

    def fused(
        self, logits: list[Tensor], weights: Tensor | None, over: str | Softmin, members: int = 1
    ) -> Fused:
        """Per-sample loss of one group of the ``members`` surrogates that are fused."""
        ...

    def backward(self, loss: Fused, leaf: Tensor, members: int, keep: bool = False) -> Tensor:
        """Gradient of the ``loss`` of some surrogates; counted."""
        ...


class Fusion(Protocol):
    """One direction from K surrogates; a part of kind ``fusion``. It asks the oracle, never a model."""

    def direction(self, oracle: Oracle, x: Tensor) -> Tensor:
        """The direction at ``x``, (N, C, H, W)."""
        ...

    def passes(self, surrogates: int, gradients: int) -> Passes:
        """Passes per sample and step.

        Args:
            surrogates: K.
            gradients: plain gradients behind one estimate (estimator x copies of the transforms).
        """
        ...


class Update(Protocol):
    """How directions become a step; a part of kind ``update``. State lives in ``memory``, of one run."""

    def look(
        self, x_adv: Tensor, memory: dict[str, Tensor], alpha: float, threat: Threat
    ) -> Tensor:
        """Where the gradient is wanted."""
        ...

    def direction(self, g: Tensor, memory: dict[str, Tensor]) -> Tensor:
        """The direction of the step, from this step's gradient and those before."""
        ...


@runtime_checkable
class OwnStep(Protocol):
    """An update whose step is not the norm's unit step along its direction; defined for l_inf alone."""

    def displacement(self, ahead: Tensor, memory: dict[str, Tensor], context: Context) -> Tensor:
        """The step in units of alpha, from what ``direction`` gave; (N, C, H, W)."""
        ...


class StepRule(Protocol):
    """How long each step is; a part of kind ``step``."""

    def at(self, step: int, steps: int, threat: Threat) -> float:
        """alpha of one step, on images in [0, 1]."""
        ...


class Start(Protocol):
    """The first iterate; a part of kind ``start``."""

    def place(self, x: Tensor, threat: Threat, draws: Draws) -> Tensor:
        """A point of the ball around ``x``, same shape."""
        ...


class Handle(Protocol):
    """What takes a hook away again, as torch's handles do."""

    def remove(self) -> None:
        """Leave everything as it was."""
        ...


@runtime_checkable
class Stepped(Protocol):
    """A surrogate that draws something at every step of an attack."""

    def at_step(self, draws: Draws | None) -> None:
        """A step begins, with these draws; None when the attack is over."""
        ...


class ModelChange(Protocol):
    """What happens inside a surrogate while it runs; a part of kind ``change``."""

    def attach(self, model: nn.Module, context: ChangeContext, /) -> Sequence[Handle]:
        """Put hooks on ``model``, which read ``context`` when they run.

        Gradients are changed by hooks on tensors, set while the model runs: they outlive the handles.

        Raises:
            InputError: there is nothing in ``model`` that this changes.
        """
        ...


@runtime_checkable
class PreparedOnClean(ModelChange, Protocol):
    """A change that sees its surrogate at clean images once, before an attack begins.

    It is then alone on the surrogate, and attached while ``context.shown`` is the number of an image; what it
    needs of it goes to ``context.kept``.
    """

    @property
    def views(self) -> int:
        """How many images it wants to see for each sample; each is a forward pass."""
        ...

    def clean(self, job: Job, i: int) -> Tensor:
        """Image number i of the samples at hand, (N, C, H, W)."""
        ...


@runtime_checkable
class PreparedWithGradients(PreparedOnClean, Protocol):
    """A change that also wants gradients at the clean images; each image is a backward pass, too."""

    def ask(self, logits: Tensor, context: ChangeContext) -> None:
        """Take a gradient of the surrogate's logits, whose graph begins at what the change has kept."""
        ...


@runtime_checkable
class PreparedEveryStep(ModelChange, Protocol):
    """A change that takes gradients of its surrogate's own loss before every step.

    All changes are attached then, and ``context.looking`` is the change. What it finds goes to
    ``context.memory``.
    """

    @property
    def looks(self) -> int:
        """Forward passes, and backward passes, of a step."""
        ...

    def look(
        self, loss: Callable[[Tensor], Tensor], x_adv: Tensor, clean: Tensor, context: ChangeContext
    ) -> None:
        """Take gradients of the loss (N,) of images, (N, C, H, W); ``x_adv`` is the iterate."""
        ...


@runtime_checkable
class OwnBackward(ModelChange, Protocol):
    """A change that takes a backward pass of its own, from the logits, before each of the attack's.

    It says so in ``OF_LOGITS``, and does not go with a loss of features, whose gradients begin inside.
    """

    OF_LOGITS: str


class Seen(NamedTuple):
    """What a surrogate gives for images x: logits (N, classes) and features (N, ...) of tapped layers."""

    logits: Tensor
    features: tuple[Tensor, ...]
    x: Tensor


class Walk(Protocol):
    """An attack that goes from one image to the next."""

    def walk(self, job: Job) -> tuple[list[Tensor], Passes]:
        """The images after every step, and what they cost."""
        ...


class Tapped(Protocol):
    """One surrogate with its taps, as a part of kind ``feature`` asks it. All passes are counted."""

    @property
    def memory(self) -> dict[str, Any]:
        """What was prepared for this surrogate; of one run."""
        ...

    @property
    def model(self) -> nn.Module:
        """The surrogate itself, to look at its modules; its passes are those of `run`."""
        ...

    @property
    def job(self) -> Job:
        """What is attacked. Its ``draws`` are those of the run."""
        ...

    @property
    def context(self) -> Context:
        """Draws and step size of the current step."""
        ...

    def run(self, x: Tensor) -> Seen:
        """Logits and features at ``x``, without transforms.

        The graph begins at ``x`` where that requires a gradient, else at the features.
        """
        ...

    def gradient(self, score: Tensor, of: Sequence[Tensor], keep: bool = False) -> tuple[Tensor, ...]:
        """The gradient of each sample's ``score`` (N,) with respect to tensors of its graph."""
        ...

    def loss(self, logits: Tensor) -> Fused:
        """The attack's loss of these logits."""
        ...

    def first(self, attack: Walk) -> list[Tensor]:
        """The iterates of another attack on all surrogates, which is run once, with draws of its own."""
        ...


class Feature(Protocol):
    """An objective on features inside the surrogates; a part of kind ``feature``.

    It has ``loss`` (`FeatureLoss`) or ``mixed`` (`FeatureMix`) besides. What it prepares for a surrogate
    depends on the images, the labels and named draws, and is kept in ``surrogate.memory``.
    """

    @property
    def layers(self) -> Sequence[float | str]:
        """Where surrogates are tapped; see `advens.attacks.layers`."""
        ...

    def prepare(self, surrogate: Tapped, x_adv: Tensor) -> None:
        """Before every step, for every surrogate; ``x_adv`` is the iterate."""
        ...

    def preparation(self, surrogates: int, copies: int, steps: range) -> Passes:
        """What ``prepare`` takes in all these steps, per sample; those below 0 are a warm start's.

        Args:
            surrogates: K.
            copies: views of the image that one gradient averages over.
            steps: of the run.
        """
        ...


@runtime_checkable
class FeatureLoss(Feature, Protocol):
    """What is ascended in the place of the loss of logits; of several surrogates, the mean."""

    def loss(self, seen: Seen, surrogate: Tapped) -> Tensor:
        """(N,)."""
        ...


@runtime_checkable
class SecondStage(Feature, Protocol):
    """A feature part whose attack goes on where a first one ended, whatever its start is."""

    def begin(self, surrogate: Tapped) -> Tensor:
        """The first iterate, (N, C, H, W); the surrogate is the first of several."""
        ...


@runtime_checkable
class JointLoss(FeatureLoss, Protocol):
    """A feature loss of several views of an image together; ``loss`` gives what it needs of one, (N, M)."""

    def joint(self, views: Sequence[Tensor]) -> Tensor:
        """The loss (N,) of views that a transform wants fused (`FusedCopies`), or of one alone."""
        ...


@runtime_checkable
class FeatureMix(Feature, Protocol):
    """What a surrogate goes on with instead of its features, wherever it is asked for a gradient."""

    def mixed(self, features: Tensor, surrogate: Tapped) -> Tensor:
        """Features (N, ...) of the tapped layer to the same shape."""
        ...


@runtime_checkable
class Attack(Protocol):
    """What every attack is, whatever its loop: a value that can be called, run and written down."""

    @property
    def threat(self) -> Threat:
        """The ball."""
        ...

    @property
    def spec(self) -> dict[str, Any]:
        """JSON-able description that rebuilds the attack."""
        ...

    def __call__(
        self, models: Models, x: Tensor, y: Tensor, target: Tensor | None = None, *, seed: int = 0
    ) -> Tensor:
        """Adversarial images for ``x``; same shape, type and device, inside the ball."""
        ...

    def run(
        self, models: Models, x: Tensor, y: Tensor, target: Tensor | None = None, *,
        seed: int = 0, micro_batch: int | None = None, trace: bool = False, copies_at_once: int = 1,
    ) -> AttackResult:  # fmt: skip
        """The same with the passes spent, and a trace on request."""
        ...

    def craft(self, job: Job) -> tuple[Tensor, Passes]:
        """The attack on some rows of a shard."""
        ...

    def passes(self, surrogates: int) -> Passes:
        """Forward and backward passes per sample, as a formula."""
        ...
