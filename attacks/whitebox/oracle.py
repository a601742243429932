"""The one place where a white-box attack runs the model: it answers, counts passes and records what breaks.

Every evaluated point counts: when a model is wrong on a point inside the ball, the sample is broken from
then on, whatever the attack does next. No attack has to record the points it evaluated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn

from advens.attacks.expectation import is_randomized, log_expected
from advens.attacks.oracle import answer, check_finite, check_logits
from advens.attacks.whitebox.rows import Rows
from advens.classifier import device_of, warn_of_probabilities
from advens.seeding import RowDraws, derive
from advens.threat import Threat, norms

INSIDE = 1e-5
"""How far, relative to eps, rounding may carry a float image out of the ball."""

RowLoss = Callable[[Tensor], Tensor]
"""Logits (N, classes) to a loss (N,) that the attack ascends."""


class Answer(NamedTuple):
    """Gradient (N, C, H, W), loss (N,) and logits (N, classes) at a point, all detached."""

    gradient: Tensor
    loss: Tensor
    logits: Tensor


class RowOracle:
    """Answers for the rows of a shard.

    Several models are one: the mean of their logits. A randomized ensemble, a module with
    ``members`` and ``probabilities``, answers with the log of its expected probabilities, and a
    point's accuracy is its expected one, exactly.

    Args:
        models: what is attacked, images in [0, 1] to logits.
        threat: the ball.
        x: clean images of the shard (N, C, H, W).
        y: labels (N,).
        target: wanted labels (N,), or None.
        seed: what all randomness is derived from.
        eot: forward passes that one answer averages, for models with randomness of their own; such a
            sample is broken when the mean of the logits is wrong, not by one lucky draw.
        eight_bit: whether a sample only counts as broken when its image rounded to 8 bits inside
            the ball breaks the model too. ``x`` must hold 8-bit values then.
        first: what is added to a row's place to name its random numbers.

    Attributes:
        correct: (N,) lowest accuracy of any point looked at; 1 stands, 0 is broken.
        x_adv: (N, C, H, W) where that was; the clean image before.
        forwards, backwards: (N,) passes spent on each sample.
        classes: of the model; None before it was asked.
        broken_at: (N,) iteration at which ``correct`` last fell, -1 before.
    """

    def __init__(
        self,
        models: Sequence[nn.Module],
        threat: Threat,
        x: Tensor,
        y: Tensor,
        target: Tensor | None = None,
        *,
        seed: int = 0,
        eot: int = 1,
        eight_bit: bool = False,
        first: int = 0,
    ) -> None:
        self.threat, self.x, self.y, self.target = threat, x, y, target
        self._draws, self._first = RowDraws(seed), first
        self.seed, self.eot, self.eight_bit = seed, eot, eight_bit
        self.members, self.probabilities = _members(models)
        self._judges: Sequence[nn.Module] | None = None
        self._beside = 0
        self._seen = list(range(len(self.members)))
        self._devices = [device_of(member) or x.device for member in self.members]
        n = len(x)
        self.correct = torch.ones(n, dtype=torch.float64, device=x.device)
        self.x_adv = x.clone()
        self.forwards = torch.zeros(n, dtype=torch.long, device=x.device)
        self.backwards = torch.zeros_like(self.forwards)
        self.broken_at = torch.full_like(self.forwards, -1)
        self._asked = 0
        self.classes: int | None = None
        self._sound: Tensor | float = 0.0

    @property
    def k(self) -> int:
        """Models that one query runs."""
        return len(self.members)

    def seen_through(self, members: Sequence[int], place: int) -> RowOracle:
        """An oracle whose answers are those of some members, while points count by what all of them say.

        What is found and spent stands in this one.

        Args:
            members: which, at least one; of a randomized ensemble by their own probabilities.
            place: of the view among others, the first being 0; each has random numbers of its own.
        """
        view = copy(self)
        view._seen = list(members)
        if place:
            view.seed = derive(self.seed, "view", place)
            view._draws = RowDraws(view.seed)
        return view

    def through(self, members: Sequence[nn.Module], *, judged: bool) -> RowOracle:
        """An oracle that answers with stand-ins of the members; what is found and spent stands in this one.

        Args:
            members: one for each, with the same probabilities.
            judged: whether points count by what the members themselves say, not by what the stand-ins do.
        """
        view = copy(self)
        view.members = list(members)
        view._judges = self.members if judged else None
        view._beside = self.k
        return view

    def rows(self, places: Tensor) -> Rows:
        """Fresh rows for some samples of the shard."""
        target = None if self.target is None else self.target[places]
        return Rows(self.x[places], self.y[places], target, places, torch.zeros_like(places))

    @torch.no_grad()
    def logits(self, x: Tensor, rows: Rows) -> Tensor:
        """Logits (N, classes) at ``x``; ``eot`` forward passes of every model."""
        out, each = self._look(x, rows)
        self._record(x, each, rows)
        return out

    def gradient(self, x: Tensor, rows: Rows, loss: RowLoss) -> Answer:
        """Gradient of the summed loss at ``x``, with loss and logits; averaged over ``eot`` passes."""
        return self.gradients(x, rows, [loss])[0]

    def gradients(self, x: Tensor, rows: Rows, losses: Sequence[RowLoss]) -> list[Answer]:
        """Several losses' gradients from the same forward pass; one backward pass each."""
        found: list[list[Answer]] = []
        total: Tensor | float = 0.0
        for _ in range(self.eot):
            answers, each = self._differentiated(x, self._run, losses)
            found.append(answers)
            self._count(rows, 1, len(losses))
            total = total + each
        self._record(x, torch.as_tensor(total) / self.eot, rows)
        if self.eot == 1:
            return found[0]
        return [
            Answer(*(torch.stack([draw[i][j] for draw in found]).mean(0) for j in range(3)))
            for i in range(len(losses))
        ]

    def member_gradients(
        self, x: Tensor, rows: Rows, member: int, losses: Sequence[RowLoss]
    ) -> list[Answer]:
        """``gradients`` of one member alone; the point does not count, as one member is not the defense."""

        def run(leaf: Tensor) -> tuple[Tensor, Tensor]:
            out = self._member(leaf, member)
            return out, out

        answers, _ = self._differentiated(x, run, losses)
        self.forwards[rows.place] += 1
        self.backwards[rows.place] += len(losses)
        return answers

    @torch.no_grad()
    def accuracy(self, x: Tensor, rows: Rows) -> Tensor:
        """(Expected) accuracy (N,) float64 at ``x``: 0 or 1 except for randomized ensembles. It counts."""
        _, each = self._look(x, rows)
        self._record(x, each, rows)
        return self._accuracy(each, rows)

    def numbers(self, rows: Rows, shape: tuple[int, ...], *tag: object) -> Tensor:
        """U(0, 1), float64 (N, *shape), of each row's own iteration and one purpose."""
        return self._draws.uniform(rows.place + self._first, rows.t, shape, *tag)

    def normals(self, rows: Rows, shape: tuple[int, ...], *tag: object) -> Tensor:
        """N(0, 1), float64 (N, *shape), of each row's own iteration and one purpose."""
        return self._draws.normal(rows.place + self._first, rows.t, shape, *tag)

    def random_start(self, rows: Rows, *tag: object) -> Tensor:
        """A uniform point of each row's ball, projected on [0, 1]."""
        threat, shape = self.threat, tuple(rows.x.shape[1:])
        if threat.norm == "linf":
            noise = (2 * self.numbers(rows, shape, "start", *tag) - 1) * threat.radius
            return threat.project(rows.x + noise.to(rows.x.dtype), rows.x)
        if threat.norm == "l1":
            u = 2 * self.numbers(rows, shape, "start", *tag) - 1
        else:
            u = self.normals(rows, shape, "start", *tag)
        noise = threat.inside(u, self.numbers(rows, (1, 1, 1), "radius", *tag))
        return threat.project(rows.x + noise.to(rows.x.dtype), rows.x)

    def on_sphere(self, rows: Rows, radius: float | Tensor, *tag: object) -> Tensor:
        """A random vector of length ``radius`` for each row, float64 (N, C, H, W)."""
        shape = tuple(rows.x.shape[1:])
        if self.threat.norm == "linf":
            t = 2 * self.numbers(rows, shape, *tag) - 1
        else:
            t = self.normals(rows, shape, *tag)
        return radius * t / norms(t, self.threat.norm)

    def begin(self, places: Tensor) -> Tensor:
        """The clean images: gives the places the model is right on, (expected) accuracy noted."""
        rows = self.rows(places)
        self.accuracy(rows.x, rows)
        return places[self.correct[places] > 0]

    def forget(self, places: Tensor, forwards: Tensor, backwards: Tensor) -> None:
        """Take back what was spent on samples that start again, to passes (N,) spent on all before."""
        self.forwards[places] = forwards[places]
        self.backwards[places] = backwards[places]

    def check(self) -> None:
        """Raise RunError when a gradient was not finite: a sign would hide it."""
        check_finite(self._sound, "the model's")

    def _count(self, rows: Rows, forward: int, backward: int) -> None:
        beside = self._beside if backward or self._judges is not None else 0
        self.forwards[rows.place] += forward * (self.k + beside)
        self.backwards[rows.place] += backward * len(self._seen)

    def _member(self, x: Tensor, k: int) -> Tensor:
        out = answer(self.members[k], x, self._devices[k], "the model")
        if self.classes is None:
            self.classes = check_logits(out, len(x), "the model", {"label": self.y, "target": self.target})
            warn_of_probabilities("the model", out)
        return out.to(x.device)

    def _run(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The logits an attack sees (N, classes), and each member's (K, N, classes)."""
        self._asked += 1
        if self.eot > 1:  # a model with randomness of its own: its stream is named, and put back
            with torch.random.fork_rng():
                torch.manual_seed(derive(self.seed, "eot", self._asked))
                each = self._each(x)
        else:
            each = self._each(x)
        said = each if self._judges is None else self._judged(x)
        seen, drawn = each, self.probabilities
        if len(self._seen) < self.k:
            seen = each[self._seen]
            drawn = None if drawn is None else drawn[self._seen] / drawn[self._seen].sum()
        if len(seen) == 1:
            return seen[0], said
        return seen.mean(0) if drawn is None else log_expected(seen, drawn), said

    @torch.no_grad()
    def _judged(self, x: Tensor) -> Tensor:
        """Logits of the members themselves (K, N, classes), where stand-ins answer."""
        pairs = zip(self._judges or (), self._devices, strict=True)
        return torch.stack([answer(member, x, device, "the model").to(x.device) for member, device in pairs])

    def _each(self, x: Tensor) -> Tensor:
        """Logits of every member (K, N, classes); those that are not seen through have no gradient."""
        outs = []
        for k in range(self.k):
            with torch.set_grad_enabled(torch.is_grad_enabled() and k in self._seen):
                outs.append(self._member(x, k))
        return torch.stack(outs)

    def _differentiated(
        self, x: Tensor, run: Callable[[Tensor], tuple[Tensor, Tensor]], losses: Sequence[RowLoss]
    ) -> tuple[list[Answer], Tensor]:
        """One forward pass by ``run`` and a backward pass for each loss; and each member's logits."""
        leaf = x.detach().requires_grad_()
        with torch.enable_grad():
            out, each = run(leaf)
            values = [loss(out) for loss in losses]
        answers = []
        for i, value in enumerate(values):
            (g,) = torch.autograd.grad(value.sum(), leaf, retain_graph=i + 1 < len(values))
            self._sound = g.sum() * 0 + self._sound
            answers.append(Answer(g, value.detach(), out.detach()))
        return answers, each.detach()

    def _look(self, x: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
        """`_run`, averaged over ``eot`` passes and counted."""
        outs, eaches = zip(*(self._run(x) for _ in range(self.eot)), strict=True)
        self._count(rows, self.eot, 0)
        if self.eot == 1:
            return outs[0], eaches[0]
        return torch.stack(outs).mean(0), torch.stack(eaches).mean(0)

    def _accuracy(self, each: Tensor, rows: Rows) -> Tensor:
        if self.probabilities is None:
            each = each.mean(0, keepdim=True)
        hit = each.argmax(-1) == (rows.y if rows.target is None else rows.target)
        right = hit if rows.target is None else ~hit
        if self.probabilities is None:
            return right[0].double()
        return (self.probabilities.to(right.device).double()[:, None] * right).sum(0)

    @torch.no_grad()
    def _record(self, x: Tensor, each: Tensor, rows: Rows) -> None:
        """Record the points with the lowest accuracy so far, where they lie inside the ball."""
        accuracy = self._accuracy(each, rows)
        lower = accuracy < self.correct[rows.place] - 1e-12
        if bool(lower.any()):
            lower[lower.clone()] = self._inside(x.detach()[lower], rows.x[lower])
        if not bool(lower.any()):
            return
        found = rows.pick(lower)
        images, accuracy = self.threat.project(x.detach()[lower], found.x), accuracy[lower]
        if self.eight_bit:
            images = self.threat.quantise(images.cpu(), found.x.cpu()).to(x.device, x.dtype) / 255
            accuracy = self._accuracy(self._look(images, found)[1], found)
        lower = accuracy < self.correct[found.place] - 1e-12
        place = found.place[lower]
        self.correct[place] = accuracy[lower]
        self.x_adv[place] = images[lower]
        self.broken_at[place] = found.t[lower]

    def _inside(self, x_adv: Tensor, x: Tensor) -> Tensor:
        size, flat = norms(x_adv - x, self.threat.norm).flatten(), x_adv.flatten(1)
        boxed = (flat.amin(1) >= -INSIDE) & (flat.amax(1) <= 1 + INSIDE)
        return boxed & (size <= self.threat.radius * (1 + INSIDE))


def _members(models: Sequence[nn.Module]) -> tuple[list[nn.Module], Tensor | None]:
    """Single models, and the probabilities of a randomized ensemble."""
    if len(models) == 1 and is_randomized(models[0]):
        return list(models[0].members), torch.as_tensor(models[0].probabilities)  # type: ignore[arg-type]
    return list(models), None
