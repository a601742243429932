"""The one place where surrogates are run: it answers logits and gradients, and counts passes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from advens.attacks.hooks import Changed, begin_step, runs_back, unchanged
from advens.attacks.interfaces import (
    Context,
    Feature,
    FeatureLoss,
    FeatureMix,
    Fused,
    FusedCopies,
    GradientEstimator,
    GradientFilter,
    InputTransform,
    Job,
    JointLoss,
    LearningTransform,
    Loss,
    OfOdds,
    Passes,
    Seen,
    Softmin,
    Walk,
)
from advens.attacks.losses import mean_odds
from advens.attacks.tap import Tap
from advens.classifier import check_channels, device_of, warn_of_probabilities
from advens.errors import InputError, RunError
from advens.threat import Threat

T = TypeVar("T")


@dataclass
class GradientOracle:
    """Answers for K surrogates: ``logits(x, k)`` and ``gradient(x, ...)``.

    The transforms, the estimator and then the filters are applied to every gradient. What a step draws
    is the same for all the gradients of the step.

    With a ``feature``, every surrogate has a tap among ``taps``; a feature loss takes the place of the loss.
    """

    job: Job
    threat: Threat
    loss: Loss
    estimator: GradientEstimator
    transforms: Sequence[InputTransform] = ()
    filters: Sequence[GradientFilter] = ()
    forwards: int = 0
    backwards: int = 0
    memory: dict[object, dict[str, Any]] = field(default_factory=dict)
    feature: Feature | None = None
    taps: Sequence[Tap] = ()

    def __post_init__(self) -> None:
        job = self.job
        self.context = Context(self.threat, job.draws, job.pool, job.x)
        self.k = len(job.models)
        self._copies = _fused_copies(self.transforms)
        self.copies = sum(len(copies) for copies in self._copies)
        self._devices = [device_of(model) or job.x.device for model in job.models]
        self._checked: set[int] = set()
        self._sound: Tensor | float = 0.0
        self._moved: Tensor | bool = True  # whether a sample had any gradient in the step at hand
        self._silent: Tensor | int = 0
        self._classes: int | None = None
        self._walks: dict[Walk, list[Tensor]] = {}
        self._begun = False
        self._runs = max((runs_back(model) for model in job.models), default=1)
        self._tapped = [TappedSurrogate(self, k) for k in range(len(self.taps))]
        if isinstance(self.feature, FeatureMix):
            for tap, surrogate in zip(self.taps, self._tapped, strict=True):
                tap.mixed = partial(self.feature.mixed, surrogate=surrogate)

    def begin(self, step: int, step_size: float, x_adv: Tensor | None = None) -> None:
        """Draw what this step draws, and prepare features at the iterate where there are any.

        Before the first step, changes that want to see clean images see them.
        """
        if not self._begun:
            self._begun = True
            for k, model in enumerate(self.job.models):
                if isinstance(model, Changed):
                    self.backwards += model.show(self.job, partial(self.seen, k=k))
        self._silent, self._moved = self.silent, False
        self.context.draws = self.job.draws.at(step)
        self.context.step_size = step_size
        for model in self.job.models:
            begin_step(model, self.context.draws)
        if self.feature is not None:
            for surrogate in self._tapped:
                self.feature.prepare(surrogate, self.job.x if x_adv is None else x_adv)
        at = self.job.x if x_adv is None else x_adv
        for k, model in enumerate(self.job.models):
            if isinstance(model, Changed) and not model.context.preceding:
                self.backwards += self._runs * model.look(partial(self._own, k=k), at, self.job.x)

    def _own(self, x: Tensor, k: int) -> Tensor:
        """The loss of surrogate ``k`` alone, without transforms, (N,)."""
        return self.of_logits(self.seen(x.detach().requires_grad_(), k).logits).term()

    @property
    def silent(self) -> Tensor:
        """Steps so far, (N,), in which every gradient a sample was given was zero throughout."""
        still = torch.logical_not(torch.as_tensor(self._moved, device=self.job.x.device))
        return (self._silent + still.long()).expand(len(self.job.x))

    @property
    def passes(self) -> Passes:
        """Passes per sample so far."""
        return Passes(self.forwards, self.backwards)

    @torch.no_grad()
    def logits(self, x: Tensor, k: int) -> Tensor:
        """Logits of surrogate ``k`` at ``x``, without transforms and without a graph.

        ``x`` may hold several candidates for every sample, (M N, C, H, W); they count M times.
        """
        return self.seen(x, k).logits

    def note(self, name: str, value: Tensor) -> None:
        """Tell the trace, when there is one; ``value`` is (N, ...)."""
        if self.job.trace is not None:
            self.job.trace.note(name, value)

    def state(self, name: str) -> dict[str, Any]:
        """A dictionary of this run for a fusion that remembers something from step to step."""
        return self.memory.setdefault(name, {})

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
        """Gradient at ``x`` of the loss of some surrogates fused into one, (N, C, H, W).

        Args:
            x: where, (N, C, H, W).
            members: which surrogates; all by default.
            over: ``logits`` (loss of the mean logits), ``probs`` (of the log of the mean
                probabilities), ``loss`` (mean of the losses; one surrogate's graph at a time) or a
                `Softmin` of the losses.
            weights: (N, len(members)) per sample, summing to 1; uniform by default.
            remember: by what name the estimator's memory is kept, where the members of one row of
                gradients change; by default it is that of these members.
            raw: without the filters, for a fusion that applies `filtered` itself.
        """
        members = range(self.k) if members is None else members
        memory = self.memory.setdefault(remember or (over, *members), {})
        plain = _Plain(self, members, over, weights)
        g = self.estimator.estimate(plain, x, memory, self.context)
        return g if raw else self.filtered(g)

    def filtered(self, g: Tensor) -> Tensor:
        """``g`` (N, C, H, W) through the attack's filters, in order."""
        for each in self.filters:
            g = each(g)
        return g

    def first(self, attack: Walk) -> list[Tensor]:
        """The iterates of another attack on the same images, run once; its passes are counted."""
        if attack not in self._walks:
            draws, step = self.job.draws.fork("first"), self.context.draws
            job = replace(self.job, draws=draws, trace=None, silent=[])
            changed = [model.context for model in self.job.models if isinstance(model, Changed)]
            for each in changed:
                each.preceding = True
            self._walks[attack], passes = attack.walk(job)
            self.forwards, self.backwards = self.forwards + passes.forward, self.backwards + passes.backward
            for each in changed:
                each.preceding = False
            for model in self.job.models:
                begin_step(model, step)
        return self._walks[attack]

    def tapped(self, k: int) -> TappedSurrogate:
        """Surrogate ``k`` with its taps."""
        return self._tapped[k]

    def gradients(
        self, points: Iterable[Tensor], members: Sequence[int], over: str | Softmin,
        weights: Tensor | None,
    ) -> Iterator[Tensor]:  # fmt: skip
        """Plain gradients at several points, (N, C, H, W) each; surrogates see some views of them at once."""
        for some in _batches(points, max(1, self.job.copies_at_once // self.copies)):
            sums: list[tuple[Tensor, Tensor] | None] = [None] * len(some)  # with logs of their scales
            views = [(i, copies) for i in range(len(some)) for copies in self._copies]
            for now in _batches(views, max(1, self.job.copies_at_once // len(self._copies[0]))):
                for i, found in self._seen(some, now, members, over, weights):
                    before = sums[i]
                    sums[i] = found if before is None else _sum(before, found)
            for each in sums:
                assert each is not None
                yield _scaled(each[0], _held(each[1], each[0].dtype)).div_(len(self._copies))

    def _seen(
        self, points: Sequence[Tensor], now: Sequence[tuple[int, list[int]]], members: Sequence[int],
        over: str | Softmin, weights: Tensor | None,
    ) -> Iterator[tuple[int, tuple[Tensor, Tensor]]]:  # fmt: skip
        """Gradients of some views, in one pass, with the number of the point and the log of their scale."""
        each: list[list[tuple[Tensor, Tensor]]] = [[] for _ in now]
        values = [self.job.x.new_zeros(()) for _ in now]
        for group in _groups(members, over):
            leaves = [points[i].detach().requires_grad_() for i, _ in now]  # so that sums have their order
            views = [self.view(leaf, copy) for leaf, (_, copies) in zip(leaves, now, strict=True)
                     for copy in copies]  # fmt: skip
            logits = [self._forward_all(views, members[k]) for k in group]
            share = None if weights is None else weights[:, group]
            size = len(now[0][1])
            fused = [[self._together(z[j : j + size]) for z in logits] for j in range(0, len(views), size)]
            losses = [self.fused(z, share, over, len(members)) for z in fused]
            slopes = self._slopes([loss.ascended for loss in losses], leaves, len(views) * len(group))
            for found, g, loss in zip(each, slopes, losses, strict=True):
                found.append((g, loss.log_scale))
            values = [value + loss.value for value, loss in zip(values, losses, strict=True)]
        for (i, copies), found, value in zip(now, each, values, strict=True):
            self._learn(copies, value)
            yield from ((i, pair) for pair in found)

    def _forward_all(self, views: Sequence[Tensor], k: int) -> list[Tensor]:
        """Logits of several views of the images, as many at once as is wanted."""
        found: list[Tensor] = []
        for some in _batches(views, self.job.copies_at_once):
            out = self.forward(some[0] if len(some) == 1 else torch.cat(some), k)
            found += out.split(len(out) // len(some)) if len(some) > 1 else [out]
        return found

    def _together(self, views: list[Tensor]) -> Tensor:
        """Of what one surrogate gives for views that are fused."""
        return self.feature.joint(views) if isinstance(self.feature, JointLoss) else _mean(views)

    def _learn(self, copies: list[int], value: Tensor) -> None:
        """Tell transforms that learn what the loss of some views was."""
        for copy in copies:
            for transform in self.transforms:
                copy, index = divmod(copy, transform.copies)
                if isinstance(transform, LearningTransform):
                    transform.learn(index, value, self.context)

    def backward(self, loss: Fused, leaf: Tensor, members: int, keep: bool = False) -> Tensor:
        """Gradient of the ``loss`` of some surrogates; the pass is counted, NaN and zeros are noticed.

        A confident surrogate does not make it zero: a slope below 1e-26 in float32 (log-odds of 60) is
        taken as 1e-26, which changes the gradient's length and nothing else.
        """
        g = self._slope(loss, leaf, members, keep)
        return _scaled(g, _held(loss.log_scale, g.dtype))

    def _slope(self, loss: Fused, leaf: Tensor, members: int, keep: bool = False) -> Tensor:
        """Gradient of what is ascended, off by the loss's scale."""
        return self._slopes([loss.ascended], [leaf], members, keep)[0]

    def _slopes(
        self, ascended: Sequence[Tensor], leaves: Sequence[Tensor], members: int, keep: bool = False
    ) -> tuple[Tensor, ...]:
        """Gradients of what is ascended at each of some leaves."""
        self.backwards += members * self._runs
        found = torch.autograd.grad([each.sum() for each in ascended], leaves, retain_graph=keep)
        for g in found:
            size = torch.linalg.vector_norm(g.flatten(1), 1, dim=1)
            self._sound = size.sum() * 0 + self._sound
            self._moved = (size != 0) | self._moved
        return found

    def check(self) -> None:
        """Raise RunError when a gradient was not finite: a sign would hide it."""
        check_finite(self._sound, "a surrogate's")

    def fused(
        self, logits: list[Tensor], weights: Tensor | None, over: str | Softmin, members: int = 1
    ) -> Fused:
        """Per-sample loss of one group of the ``members`` surrogates that are fused.

        ``logits`` is what `forward` gave. Losses of features are averaged, whatever they are fused ``over``.
        """
        if isinstance(self.feature, FeatureLoss):
            each = [z if z.dim() == 1 else self._together([z]) for z in logits]
            losses = torch.stack(each)  # (K, N)
            value = (losses / max(members, len(logits)) if weights is None else losses * weights.T).sum(0)
            return Fused(value.detach(), value, torch.zeros_like(value))
        if isinstance(over, Softmin):
            return _softmin([self.of_logits(z) for z in logits], over.temperature)
        if over == "loss":
            share = logits[0].new_tensor(1 / members) if weights is None else weights[:, 0]
            one = self.of_logits(logits[0])
            scale = one.log_scale + share.log().clamp_min(torch.finfo(share.dtype).min / 2)
            return Fused(one.value * share, one.ascended, scale)
        if len(logits) == 1 and weights is None:
            return self.of_logits(logits[0])
        stack = torch.stack(logits)  # (K, N, classes)
        w = stack.new_full((1, 1), 1 / len(logits)) if weights is None else weights.T  # (K, N)
        if over == "logits":
            return self.of_logits((stack * w[:, :, None]).sum(0))
        log_w = w.to(stack).log()
        if isinstance(self.loss, OfOdds):
            each = [self.loss.odds(z, self.job.y, self.job.target) for z in logits]
            return self._of_odds(self.loss, mean_odds(torch.stack(each), log_w))
        # log of the mean of probabilities; log-softmax of it is itself
        return self.of_logits(torch.logsumexp(stack.log_softmax(-1) + log_w[:, :, None], 0))

    def of_logits(self, logits: Tensor) -> Fused:
        """The loss of one network's logits, per sample."""
        y, target = self.job.y, self.job.target
        if isinstance(self.loss, OfOdds):
            return self._of_odds(self.loss, self.loss.odds(logits, y, target))
        value = self.loss(logits, y, target)
        return Fused(value.detach(), value, torch.zeros_like(value))

    def _of_odds(self, loss: OfOdds, odds: Tensor) -> Fused:
        value, log_slope = loss.at(odds.detach(), self.job.target is not None)
        return Fused(value, odds, log_slope)

    def view(self, x: Tensor, copy: int = 0) -> Tensor:
        """What the surrogates see of ``x``: its copy number ``copy`` under the transforms."""
        for transform in self.transforms:
            copy, index = divmod(copy, transform.copies)
            x = transform(x, index, self.context)
        return x

    def forward(self, x: Tensor, k: int) -> Tensor:
        """What `fused` takes of surrogate ``k``, with a graph where ``x`` has one; counted.

        Its logits; where a feature loss is ascended, that of its features (N,).
        """
        seen = self.seen(x, k)
        if not isinstance(self.feature, FeatureLoss):
            return seen.logits
        views, n = [seen], len(self.job.x)
        if len(x) > n:  # several views of the images in one pass
            parts = (part.split(n) for part in (seen.logits, *seen.features, x))
            views = [Seen(z, tuple(f), at) for z, *f, at in zip(*parts, strict=True)]
        return torch.cat([self.feature.loss(view, self._tapped[k]).to(x.device) for view in views])

    def seen(self, x: Tensor, k: int) -> Seen:
        """Logits of surrogate ``k``, and the features that are tapped; counted."""
        model, who = self.job.models[k], f"surrogate {k}"
        out = answer(model, x, self._devices[k], who)
        self.forwards += len(x) // max(1, len(self.job.x))
        if k not in self._checked:
            self._checked.add(k)
            labels = {"label": self.job.y, "target": self.job.target}
            self._classes = check_logits(out, len(x), who, labels, self._classes)
            name = getattr(model, "name", "")
            warn_of_probabilities(f"'{name}'" if name else who, out)
        return Seen(out.to(x.device), self.taps[k].take() if self.taps else (), x)


@dataclass
class TappedSurrogate:
    """Surrogate ``k`` of an oracle, as a feature part asks it before a step; see `Tapped`."""

    oracle: GradientOracle
    k: int
    memory: dict[str, Any] = field(default_factory=dict)

    @property
    def model(self) -> nn.Module:
        return unchanged(self.job.models[self.k])

    @property
    def job(self) -> Job:
        return self.oracle.job

    @property
    def context(self) -> Context:
        return self.oracle.context

    def run(self, x: Tensor) -> Seen:
        return self.oracle.seen(x, self.k)

    def gradient(
        self, score: Tensor, of: Sequence[Tensor], keep: bool = False
    ) -> tuple[Tensor, ...]:
        self.oracle.backwards += self.oracle._runs
        return torch.autograd.grad(score.sum(), of, retain_graph=keep)

    def loss(self, logits: Tensor) -> Fused:
        return self.oracle.of_logits(logits)

    def first(self, attack: Walk) -> list[Tensor]:
        return self.oracle.first(attack)


def answer(model: nn.Module, x: Tensor, device: torch.device, who: str) -> Tensor:
    """What a model answers on its device; ``who`` is what an error message calls it.

    Raises:
        InputError: the model refuses images with so many channels.
    """
    try:
        out: Tensor = model(x.to(device))
    except RuntimeError as error:
        check_channels(who, x, error)
        raise
    return out


def check_logits(
    out: object, n: int, who: str, labels: Mapping[str, Tensor | None], classes: int | None = None
) -> int:
    """The number of classes, of outputs that are finite logits (n, classes).

    Args:
        out: what the model returned.
        n: the number of images it was given.
        who: what an error message calls the model.
        labels: by what they are called; each must be one of the classes.
        classes: of the first surrogate, which all others must have, too.

    Raises:
        InputError: the outputs are something else.
    """
    if not isinstance(out, Tensor) or out.dim() != 2 or len(out) != n:
        shape = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise InputError(f"{who} must return logits (N, classes); it returned {shape}")
    found = out.shape[1]
    if classes is not None and found != classes:
        raise InputError(
            f"{who} has {found} classes and the first has {classes}; "
            "surrogates of one ensemble share their label space"
        )
    for what, given in labels.items():
        if given is not None and len(given) and int(given.max()) >= found:
            raise InputError(f"{what} {int(given.max())} is out of range; {who} has {found} classes")
    if not torch.isfinite(out).all():
        raise InputError(f"{who} returned logits that are NaN or infinite")
    return found


def check_finite(sound: Tensor | float, whose: str) -> None:
    """Raise RunError when a gradient was not finite, after which ``sound`` is NaN: a sign would hide it."""
    if not bool(torch.isfinite(torch.as_tensor(sound))):
        raise RunError(f"{whose} gradient is not finite: NaN or infinite")


def _softmin(losses: Sequence[Fused], temperature: float) -> Fused:
    """``-T log sum_k exp(-J_k / T)``: the gradient weighs each by softmax(-J / T)."""
    value = torch.stack([loss.value for loss in losses])  # (K, N)
    scale = torch.stack([loss.log_scale for loss in losses]) + (-value / temperature).log_softmax(0)
    top = scale.amax(0)
    ascended = torch.stack([loss.ascended for loss in losses]) * (scale - top).exp()
    return Fused(-temperature * torch.logsumexp(-value / temperature, 0), ascended.sum(0), top)


def _scaled(g: Tensor, log_scale: Tensor) -> Tensor:
    """``exp(log_scale) g``; log_scale (N,)."""
    return g * log_scale.to(g.dtype).exp().view(-1, *[1] * (g.dim() - 1))


def _held(log_scale: Tensor, dtype: torch.dtype) -> Tensor:
    """A scale, raised where it would bring a gradient close to the smallest number of ``dtype``."""
    return log_scale.to(dtype).clamp_min(0.69 * math.log(torch.finfo(dtype).tiny))


@dataclass(frozen=True)
class _Plain:
    """The gradient that an estimator asks for: at a point, or at several."""

    oracle: GradientOracle
    members: Sequence[int]
    over: str | Softmin
    weights: Tensor | None

    def __call__(self, at: Tensor) -> Tensor:
        return next(self.each([at]))

    def each(self, points: Iterable[Tensor]) -> Iterator[Tensor]:
        """At several points, one after the other."""
        return self.oracle.gradients(points, self.members, self.over, self.weights)


def _batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Items in their order, so many at once."""
    rest = iter(items)
    while some := list(islice(rest, size)):
        yield some


def _sum(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Of two gradients with the logs of their scales, on the larger scale; the first is written to."""
    higher = torch.maximum(a[1], b[1])
    return _scaled(a[0], a[1] - higher).add_(_scaled(b[0], b[1] - higher)), higher


def _mean(logits: list[Tensor]) -> Tensor:
    return logits[0] if len(logits) == 1 else torch.stack(logits).mean(0)


def _fused_copies(transforms: Sequence[InputTransform]) -> list[list[int]]:
    """Views by number, in groups whose logits are averaged: they differ in transforms that want it alone."""
    together: dict[tuple[int, ...], list[int]] = {}
    for copy in range(math.prod(transform.copies for transform in transforms)):
        rest, others = copy, []
        for transform in transforms:
            rest, index = divmod(rest, transform.copies)
            if not (isinstance(transform, FusedCopies) and transform.over == "logits"):
                others.append(index)
        together.setdefault(tuple(others), []).append(copy)
    return list(together.values())


def _groups(members: Sequence[int], over: str | Softmin) -> list[list[int]]:
    """Positions in ``members`` whose graphs are held together."""
    positions = list(range(len(members)))
    return [[i] for i in positions] if over == "loss" else [positions]


__all__ = ["Context", "GradientOracle", "Job", "Passes", "Softmin"]
