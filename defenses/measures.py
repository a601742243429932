"""Measures of an ensemble beside its accuracy: diversity, transfer between members, cost.

Members are in eval mode and frozen meanwhile, and restored afterwards. Global random generators are not
touched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from advens.attacks.attack import Attack
from advens.attacks.registry import create_attack, override
from advens.classifier import Classifier, borrowed
from advens.defenses.cost import cost
from advens.defenses.layers import layers
from advens.defenses.registry import create_defense
from advens.errors import InputError, nearest
from advens.seeding import Draws, RowDraws, derive
from advens.threat import Threat

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Diversity", "Transfer", "cost", "diversity", "transfer_between"]

THREAT, PUBLISHED = Threat("linf", 0.03), {"steps": 50, "step_size": "eps/5"}
"""The ball, and the PGD, of DVERGE's transfer between members."""


@dataclass(frozen=True)
class Diversity:
    """How little members share the features that fool them.

    Args:
        seen: (K, K) float64, row i, column j: mean cross-entropy in nats, with the target's label, of
            member j on images distilled from member i. The diagonal is the member's own.
        n: images distilled from each member.
    """

    seen: Tensor
    n: int

    @property
    def pairs(self) -> Tensor:
        """DVERGE's ``d(f_i, f_j)``, (K, K) symmetric, its diagonal 0; higher is more diverse."""
        return ((self.seen + self.seen.T) / 2).fill_diagonal_(0)

    @property
    def value(self) -> float:
        """The mean over all ordered pairs of different members."""
        k = len(self.seen)
        return float(self.pairs.sum()) / (k * (k - 1))


@torch.inference_mode(False)
@torch.enable_grad()
def diversity(
    members: Sequence[Classifier],
    x: Tensor,
    y: Tensor,
    x_source: Tensor | None = None,
    *,
    layer: int | None = None,
    eps: float = 0.07,
    step_size: float | None = None,
    steps: int = 10,
    seed: int = 0,
    micro_batch: int | None = None,
) -> Diversity:
    """DVERGE's diversity: cross-entropy of a member on images with the target's features in another member.

    ``d(f_i, f_j) = E[CE(f_i(x'_j), y) + CE(f_j(x'_i), y)] / 2``, where ``x'_i`` lies near a source and has
    the target's features in a layer of member i. Targets are the images that all members get right.
    The published evaluation draws a layer for every ten images; here a layer is drawn for each image, by
    its index in ``x``. A source may be of the target's class, as published.

    Args:
        members: at least two.
        x: targets (N, C, H, W) in [0, 1], on the members' device.
        y: their labels (N,).
        x_source: a source (N, C, H, W) for each; by default another target that all get right, drawn.
        layer: the layer of all images, as `advens.defenses.layers.layers` counts them, -1 for the logits;
            by default drawn from the layers of each member, at the same part of its depth for all.
        eps: radius of the l_inf ball around the source.
        step_size: of the distillation; a tenth of eps by default.
        steps: of the distillation.
        seed: of the draws.
        micro_batch: images worked on at once; all of a layer by default.

    Raises:
        InputError: one member, shapes that do not fit, an unknown layer, or no image all get right.

    Source: Yang et al., NeurIPS 2020, section 3; sources and targets as in the authors' evaluation.
    """
    if len(members) < 2:
        raise InputError("diversity needs at least two members")
    step_size = eps / 10 if step_size is None else step_size
    how = create_defense("dverge", eps=eps, step_size=step_size, steps=steps, train_mode=False)
    known = [_layers(member, x, layer) for member in members]
    with borrowed(members):
        kept = _right(members, x, y, micro_batch).all(0).nonzero().flatten()
        if len(kept) < (2 if x_source is None else 1):
            raise InputError(f"all members get {len(kept)} of {len(x)} images right: too few")
        if x_source is None:
            others = Draws(seed, len(kept)).others("source").to(kept.device)
            x_source = torch.zeros_like(x).index_copy(0, kept, x[kept[others]])
        elif x_source.shape != x.shape:
            raise InputError(f"{tuple(x.shape)} targets need as many sources; got {tuple(x_source.shape)}")
        place = kept.cpu()
        depth = RowDraws(seed).uniform(place, torch.zeros_like(place), (), "layer").to(kept.device)
        seen = torch.zeros(len(members), len(members), dtype=torch.float64)
        for i, member in enumerate(members):
            drawn = (depth * len(known[i])).long()
            for at in drawn.unique().tolist():
                for rows in kept[drawn == at].split(micro_batch or len(kept)):
                    distilled = how.distil(member, known[i][at], x_source[rows], x[rows])
                    with torch.no_grad():
                        for j, other in enumerate(members):
                            seen[i, j] += float(F.cross_entropy(other(distilled), y[rows], reduction="sum"))
    return Diversity(seen / len(kept), len(kept))


@dataclass(frozen=True)
class Transfer:
    """How often images crafted on one member break another.

    Args:
        broken: (K, K) int64, row i, column j: images crafted on member i that member j gets wrong.
        counted: (K,) int64: images that count for member j.
    """

    broken: Tensor
    counted: Tensor

    @property
    def rates(self) -> Tensor:
        """Success rates in [0, 1], (K, K) float64; the diagonal is white-box."""
        return self.broken / self.counted.double()

    def frame(self) -> pd.DataFrame:
        """One row per pair: ``source, target, white_box, n, broken, rate, low, high`` (Wilson, 95 %)."""
        import pandas as pd

        from advens.results.statistics import wilson

        k = len(self.counted)
        table: pd.DataFrame = pd.DataFrame({
            "source": [i for i in range(k) for _ in range(k)], "target": list(range(k)) * k,
            "n": self.counted.tolist() * k, "broken": self.broken.flatten().tolist(),
            "rate": self.rates.flatten().tolist(),
        })  # fmt: skip
        table.insert(2, "white_box", table["source"] == table["target"])
        table["low"], table["high"] = wilson(table["broken"], table["n"])
        return table


def transfer_between(
    members: Sequence[nn.Module],
    x: Tensor,
    y: Tensor,
    threat: Threat | None = None,
    *,
    attack: str | Attack = "pgd",
    restarts: int = 5,
    denominator: Literal["common", "target"] = "common",
    seed: int = 0,
    micro_batch: int | None = None,
    **options: Any,
) -> Transfer:
    """Images crafted on each member, evaluated on all members.

    An image breaks a member when any of its restarts does. The defaults are DVERGE's: l_inf 0.03, 50 steps
    of PGD of a fifth of eps from 5 uniform points, on images that all members classify correctly. Images
    are evaluated as crafted, not rounded to 8 bits.

    Args:
        members: at least one, each deterministic.
        x: images (N, C, H, W) in [0, 1], on the members' device.
        y: their labels (N,).
        threat: the ball; an attack that is given as a value keeps its own by default.
        attack: a name, or an attack; untargeted.
        restarts: runs of the attack, run r with the seed ``derive(seed, "restart", r)``.
        denominator: images that count for a member: those that all members get right, ``common``, or
            those that it gets right itself, ``target``.
        seed: of the attack.
        micro_batch: images worked on at once; all by default.
        options: of a named attack, see `advens.attacks.create_attack`.

    Raises:
        InputError: no image counts, or input that the attack refuses.

    Source: Yang et al., NeurIPS 2020, figure 3.
    """
    if denominator not in ("common", "target"):
        raise InputError(f"denominator '{denominator}'{nearest(str(denominator), ('common', 'target'))}")
    if not members or restarts < 1:
        raise InputError("transfer needs at least one member and one restart")
    made = _attack(attack, threat, options)
    with borrowed(members):
        counts = _right(members, x, y, micro_batch)
        if denominator == "common":
            counts = counts.all(0).expand_as(counts)
        if not bool(counts.any(1).all()):
            raise InputError(f"of {len(x)} images none counts for some member: they get them wrong")
        used = counts.any(0)
        x, y, counts = x[used], y[used], counts[:, used]
        wrong = torch.zeros(len(members), *counts.shape, dtype=torch.bool, device=counts.device)
        for i, member in enumerate(members):
            for r in range(restarts):
                name = derive(seed, "restart", r)
                x_adv = made.run(member, x, y, seed=name, micro_batch=micro_batch).x_adv
                wrong[i] |= ~_right(members, x_adv, y, micro_batch)
    return Transfer((wrong & counts).sum(-1).cpu(), counts.sum(-1).cpu())


def _attack(attack: str | Attack, threat: Threat | None, options: dict[str, Any]) -> Attack:
    if isinstance(attack, str):
        ball = THREAT if threat is None else threat
        settings = (PUBLISHED if attack == "pgd" else {}) | options
        return create_attack(attack, norm=ball.norm, eps=ball.eps, **settings)
    if options:
        raise InputError(f"options ({', '.join(options)}) go with an attack's name; this one is made already")
    return attack if threat is None else override(attack, norm=threat.norm, eps=threat.eps)


def _layers(member: Classifier, x: Tensor, layer: int | None) -> list[int]:
    known = layers(member, x)
    if layer is None:
        return known
    if layer not in known:
        raise InputError(f"layer = {layer}: a member has layers 0 to {len(known) - 2}, and -1, the logits")
    return [layer]


@torch.no_grad()
def _right(members: Sequence[nn.Module], x: Tensor, y: Tensor, micro_batch: int | None) -> Tensor:
    """Which images each member gets right, (K, N)."""
    if len(x) != len(y) or not len(x):
        raise InputError(f"{len(x)} images and {len(y)} labels")
    size = micro_batch or len(x)
    return torch.stack([
        torch.cat([member(some).argmax(-1) for some in x.split(size)]) == y for member in members
    ])  # fmt: skip
