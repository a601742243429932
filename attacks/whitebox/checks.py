"""What a careful evaluator asks of a model before believing that it is robust.

Each check gives one line to read, or None. The models come back as they were, and so do the global
random states.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from advens.attacks.expectation import is_randomized
from advens.attacks.losses import CrossEntropy
from advens.attacks.starts import Clean
from advens.attacks.whitebox.descent import Descent
from advens.attacks.whitebox.oracle import Answer, RowOracle
from advens.classifier import ROUNDING, borrowed, device_of, looks_like_probabilities
from advens.errors import InputWarning
from advens.threat import Threat

CHANCE = 1e-4
"""Relative difference between forward passes that is no rounding: AutoAttack's bound."""
STUCK = 0.25
"""Part of the samples whose loss may fail to rise."""

NO_GRADIENT = ("does not require grad", "not have been used in the graph")


def inspect(
    model: nn.Module, x: Tensor, y: Tensor, threat: Threat, *, eot: int = 1, steps: int = 10
) -> list[str]:
    """Warnings about a model, from a few images; an empty list when nothing is suspicious.

    Args:
        model: images in [0, 1] to logits, or a randomized ensemble: ``members``, ``probabilities``.
        x: images (N, C, H, W).
        y: labels (N,).
        threat: the ball of the evaluation.
        eot: passes that the attack averages; above 1 randomness is allowed for.
        steps: of the short PGD.
    """
    if not len(x):
        return []
    members = _members(model)
    found: list[str | None] = []
    with borrowed([model]), torch.inference_mode(False), same_chance(x.device, *members):
        for place, member in enumerate(members):
            said = [wrong_outputs(member, x), random_outputs(member, x) if eot == 1 else None]
            which = f"member {place}: " if len(members) > 1 else ""
            found += [which + line for line in said if line]
        found.append(few_classes(_outputs(members[0], x[:1]).shape[1]))
        zero = zero_gradients(model, x, y, threat, eot=eot)
        found.append(zero)
        if zero is None or "no gradient" not in zero:
            found.append(no_rise(model, x, y, threat, eot=eot, steps=steps))
    return [line for line in found if line]


def wrong_outputs(model: nn.Module, x: Tensor) -> str | None:
    """Probabilities or their logarithms where logits are expected.

    Logarithms are no mistake where a model says by ``log_probabilities`` that nothing was rounded.
    """
    with borrowed([model]), same_chance(x.device, model):
        out = _outputs(model, x).double()
    if out.shape[1] < 2:
        return f"the model has {out.shape[1]} outputs a sample, not logits of at least two classes"
    if looks_like_probabilities(out):
        return (
            "the outputs look like probabilities, not logits: cross-entropy would take the softmax "
            "twice; leave the softmax out"
        )
    logarithms = bool((out <= ROUNDING).all()) and bool((out.logsumexp(1).abs() <= ROUNDING).all())
    if logarithms and not getattr(model, "log_probabilities", False):
        return (
            "the outputs look like log-probabilities: where those were computed from probabilities "
            "that round to 0 or 1, gradients vanish; give logits"
        )
    return None


def random_outputs(model: nn.Module, x: Tensor, passes: int = 5) -> str | None:
    """Outputs that differ between forward passes, which a plain attack is not made for."""
    with borrowed([model]), same_chance(x.device, model):
        outs = [_outputs(model, x).double() for _ in range(passes)]
    units = [out / out.norm(dim=1, keepdim=True).clamp_min(1e-12) for out in outs]
    difference = max(float((unit - units[0]).norm(dim=1).max()) for unit in units)
    changed = sum(bool((out.argmax(1) != outs[0].argmax(1)).any()) for out in outs)
    if difference <= CHANCE and not changed:
        return None
    return (
        f"the outputs are random (they differ by {difference:.2g} of their length between forward "
        "passes): average gradients with eot, or give members and probabilities"
    )


def zero_gradients(
    model: nn.Module, x: Tensor, y: Tensor, threat: Threat, *, eot: int = 1
) -> str | None:
    """Samples whose cross-entropy has a gradient of exactly zero, or none at all, where attacks start."""
    counts = silent(model, x, y, threat, eot=eot)
    if counts is None:
        return "no gradient reaches the images: only attacks without gradients mean anything"
    if not any(counts):
        return None
    return (
        f"the cross-entropy's gradient is exactly zero for {counts[0]} of {len(x)} clean images and "
        f"{counts[1]} random starts: gradients are masked; try the margin losses"
    )


def silent(
    model: nn.Module, x: Tensor, y: Tensor, threat: Threat, *, eot: int = 1
) -> tuple[int, int] | None:
    """How many clean images and random starts have a gradient of zero; None when none is connected."""
    with borrowed([model]), same_chance(x.device, model):
        oracle = RowOracle([model], threat, x, y, eot=eot)
        rows = oracle.rows(torch.arange(len(x), device=x.device))
        counts = []
        for at in (rows.x, oracle.random_start(rows)):
            answer = _answer(oracle, at, y)
            if answer is None:
                return None
            counts.append(int((answer.gradient.flatten(1) == 0).all(1).sum()))
    return counts[0], counts[1]


def no_rise(
    model: nn.Module, x: Tensor, y: Tensor, threat: Threat, *, eot: int = 1, steps: int = 10
) -> str | None:
    """A cross-entropy that a short PGD from the clean images, steps of eps/4, does not raise."""
    count = stuck(model, x, y, threat, eot=eot, steps=steps)
    if count is None:
        return "no gradient reaches the images, so that no gradient step raises the loss"
    if count <= STUCK * len(x):
        return None
    return (
        f"the loss does not rise for {count} of {len(x)} images over {steps} steps of PGD: gradients "
        "lead nowhere, so that gradient attacks overrate robustness"
    )


def stuck(
    model: nn.Module, x: Tensor, y: Tensor, threat: Threat, *, eot: int = 1, steps: int = 10
) -> int | None:
    """How many losses a short PGD does not raise; None when no gradient is connected with the images."""
    with borrowed([model]), same_chance(x.device, model):
        oracle = RowOracle([model], threat, x, y, eot=eot)
        rows = oracle.rows(torch.arange(len(x), device=x.device))
        first = _answer(oracle, rows.x, y)
        if first is None:
            return None
        pgd = Descent(threat=threat, start=Clean(), steps=steps)
        pgd.begin(oracle, rows)
        for _ in range(steps):
            pgd.advance(oracle, rows)
            rows.t = rows.t + 1
        last = CrossEntropy()(oracle.logits(rows.memory["x"], rows), y, None)
    return int((last <= first.loss).sum())


def few_classes(classes: int) -> str | None:
    """Fewer classes than the difference of logits ratio is made of."""
    if classes >= 4:
        return None
    untargeted = "needs 3" if classes < 3 else "works without targets only"
    return (
        f"the model has {classes} classes; the DLR loss {untargeted} (4 with targets): APGD-T, and "
        "AutoAttack with it, cannot run as published"
    )


def _members(model: nn.Module) -> list[nn.Module]:
    """What answers: the model, or the members of a randomized ensemble."""
    return list(model.members) if is_randomized(model) else [model]  # type: ignore[arg-type]


@torch.no_grad()
def _outputs(model: nn.Module, x: Tensor) -> Tensor:
    out: Tensor = model(x.to(device_of(model) or x.device))
    return out


def _answer(oracle: RowOracle, x: Tensor, y: Tensor) -> Answer | None:
    """The gradient of cross-entropy; None when the images are not connected with the outputs."""
    try:
        rows = oracle.rows(torch.arange(len(x), device=x.device))
        return oracle.gradient(x, rows, lambda logits: CrossEntropy()(logits, y, None))
    except RuntimeError as error:
        if any(text in str(error) for text in NO_GRADIENT):
            return None
        raise


@contextmanager
def same_chance(device: torch.device, *models: nn.Module) -> Iterator[None]:
    """The same random numbers every time, and afterwards the global states as they were.

    What the attacks' oracle would warn of is for the checks to say.
    """
    devices: Sequence[torch.device] = [device, *(d for m in models if (d := device_of(m)))]
    gpus = sorted({d.index or 0 for d in devices if d.type == "cuda"})
    states = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=gpus), warnings.catch_warnings():
            warnings.simplefilter("ignore", InputWarning)
            torch.default_generator.manual_seed(0)
            for gpu in gpus:
                torch.cuda.default_generators[gpu].manual_seed(0)
            random.seed(0)
            np.random.seed(0)
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
