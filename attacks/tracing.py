"""Why an attack did what it did: what its surrogates said at every step, and what the result is like.

Passes spent on looking are not counted as the attack's.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from advens.attacks.estimators.plain import Plain
from advens.attacks.interfaces import Job, Loss
from advens.attacks.interfaces import Trace as Trace
from advens.attacks.oracle import GradientOracle
from advens.threat import Threat, norms, unit_l2


class Ascent(Protocol):
    """What is asked of an attack here."""

    @property
    def threat(self) -> Threat:
        """The ball."""
        ...

    @property
    def loss(self) -> Loss:
        """What is ascended."""
        ...


def joined(traces: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The traces of micro-batches as one."""
    return {name: torch.cat([trace[name] for trace in traces], 1) for name in traces[0]}


def observe(attack: Ascent, job: Job, x: Tensor) -> None:
    """Note loss and agreement of the surrogates at ``x``."""
    assert job.trace is not None
    oracle = _quiet(attack, job)
    losses, units = [], []
    for k in range(oracle.k):
        leaf = x.detach().requires_grad_()
        loss = oracle.fused([oracle.forward(leaf, k)], None, "logits")
        losses.append(loss.value)
        units.append(unit_l2(oracle.backward(loss, leaf, 1)))
    job.trace.note("loss", torch.stack(losses, 1))
    k, total = len(units), torch.stack(units).sum(0).flatten(1).square().sum(1)
    alive = torch.stack([u.flatten(1).square().sum(1) for u in units]).sum(0)
    job.trace.note("cosine", (total - alive) / (k * (k - 1)) if k > 1 else torch.ones_like(total))


def conclude(attack: Ascent, job: Job, x_adv: Tensor) -> None:
    """Note CWA's two quantities of the result, once."""
    assert job.trace is not None
    job.trace.note("flatness", flatness(attack, job, x_adv))
    job.trace.note("closeness", closeness(attack, job, x_adv))


def flatness(
    attack: Ascent, job: Job, x_adv: Tensor, radius: float = 0.1, samples: int = 10
) -> Tensor:
    """Mean rise of each surrogate's loss in a small ball around ``x_adv``, (N, K); 0 is flat.

    Args:
        radius: of the ball, relative to eps.
        samples: random points.
    """
    oracle, draws = _quiet(attack, job), job.draws.fork("flatness")
    here = _losses(oracle, x_adv)
    around = [
        _losses(oracle, (x_adv + attack.threat.noise(x_adv, radius, draws, i)).clamp(0, 1))
        for i in range(samples)
    ]
    return torch.stack(around).mean(0) - here


def closeness(attack: Ascent, job: Job, x_adv: Tensor, steps: int = 10) -> Tensor:
    """How far each surrogate's own local optimum is from ``x_adv``, l_2, (N, K).

    The optimum is where ``steps`` steps of eps/10 along that surrogate's gradient lead within the ball.
    """
    oracle, threat = _quiet(attack, job), attack.threat
    distances = []
    for k in range(oracle.k):
        at = x_adv
        for _ in range(steps):
            at = oracle.context.step(at, threat.radius / 10, oracle.gradient(at, [k]))
        distances.append(norms(at - x_adv, "l2").flatten())
    return torch.stack(distances, 1)


def _losses(oracle: GradientOracle, x: Tensor) -> Tensor:
    each = [oracle.fused([oracle.logits(x, k)], None, "logits").value for k in range(oracle.k)]
    return torch.stack(each, 1)


def _quiet(attack: Ascent, job: Job) -> GradientOracle:
    """The surrogates behind the attack's loss alone; its passes are not counted as the attack's."""
    return GradientOracle(replace(job, trace=None), attack.threat, attack.loss, Plain())
