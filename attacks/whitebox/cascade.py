"""Sequences of white-box attacks: a sample is broken when any of them breaks it."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

import torch
from torch import Tensor

from advens.attacks.interfaces import Attack, Job, Passes
from advens.attacks.parts import part, several
from advens.attacks.registry import create_attack, override, recipe
from advens.attacks.whitebox.engine import WhiteBox
from advens.attacks.whitebox.oracle import RowOracle
from advens.threat import Threat

AUTOATTACK = "Croce & Hein, ICML 2020 (AutoAttack)"
PMA_PAPER = "Xie et al., CVPR 2025 (PMA)"

RAND_EOT = 20

SEQUENCES: dict[str, dict[str, dict[str, Any]]] = {
    "autoattack": {"apgd-ce": {}, "apgd-t": {}, "fab-t": {}, "square": {"rescale": False}},
    "autoattack-plus": {
        "apgd-ce": {"restarts": 5}, "apgd-dlr": {"restarts": 5}, "fab": {"restarts": 5},
        "square": {"rescale": False}, "apgd-t": {}, "fab-t": {},
    },
    "autoattack-rand": {"apgd-ce": {"eot": RAND_EOT}, "apgd-dlr": {"eot": RAND_EOT}},
    "pma-plus": {"pma": {}, "apgd-t": {}},
    "pma-plus-plus": {
        "pma": {}, "apgd-ce": {}, "apgd-t": {}, "fab-t": {}, "square": {"rescale": False},
    },
}  # fmt: skip
"""Published sequences: the attacks in their order, and the options in which they differ from the
attacks alone. In ``autoattack-rand`` every answer averages 20 passes. In ``autoattack-plus`` targeted FAB
has no restarts, as in its authors' code, which takes the untargeted form's five back for it."""

IN_L1: dict[str, dict[str, Any]] = {"apgd-ce": {"restarts": 5}, "apgd-t": {"targets": 5}}
"""What the authors of AutoAttack change in l_1 (Croce & Hein, ICML 2021)."""

NORMS = ("linf", "l2", "l1")


@part("attack", "cascade", family="white-box", norms=NORMS, paper=AUTOATTACK, year=2020)
class Cascade(WhiteBox):
    """Attacks one after the other, each on the samples that are not broken yet.

    `advens robustness` keeps the result after each attack. Called on its own, every sample takes
    every attack, so that the passes are those of the formula.

    Args:
        threat: the ball, the same for all.
        attacks: in order.
    """

    threat: Threat = Threat("linf", "8/255")
    attacks: Annotated[tuple[Attack, ...], several("attack")] = ()

    def craft(self, job: Job) -> tuple[Tensor, Passes]:
        """Each attack in turn; of a sample, the image that leaves the least accuracy. There is no trace.

        The image of a broken sample is kept; where no attack succeeds, the image is the last attack's.
        """
        images, total = job.x, Passes(0, 0)
        left = torch.ones(len(job.x), dtype=torch.float64, device=job.x.device)
        for attack in self.stages():
            found, spent = attack.craft(replace(job, trace=None))
            oracle = RowOracle(job.models, self.threat, job.x, job.y, job.target)
            here = oracle.rows(torch.arange(len(job.x), device=job.x.device))
            accuracy = oracle.accuracy(found, here)
            better = (accuracy <= left) & (left > 0)
            images = torch.where(better.view(-1, 1, 1, 1), found, images)
            left = torch.where(better, accuracy, left)
            total = Passes(total.forward + spent.forward + len(job.models), total.backward + spent.backward)
        return images, total

    @property
    def random_start(self) -> bool:
        """Its attacks are repeated one by one."""
        return False

    def stages(self) -> list[Attack]:
        """The attacks, in this one's ball."""
        return [override(a, eps=self.threat.eps, norm=self.threat.norm) for a in self.attacks]

    def passes(self, surrogates: int) -> Passes:
        """The sum over the attacks, and one look at each one's images."""
        each = [attack.passes(surrogates) for attack in self.attacks]
        looks = surrogates * len(each)
        return Passes(sum(p.forward for p in each) + looks, sum(p.backward for p in each))


def members(name: str, norm: str) -> dict[str, dict[str, Any]]:
    """The attacks of a published sequence in a norm, and the options that are not their defaults."""
    changed = IN_L1 if norm == "l1" else {}
    return {attack: {**options, **changed.get(attack, {})} for attack, options in SEQUENCES[name].items()}


def sequence(name: str, norm: str = "linf") -> Cascade:
    """A published sequence."""
    attacks = members(name, norm).items()
    return Cascade(attacks=tuple(create_attack(attack, **options) for attack, options in attacks))


@recipe("autoattack", symbol="AutoAttack", family="white-box", norms=NORMS, paper=AUTOATTACK, year=2020,
        targeted=False)  # fmt: skip
def AutoAttack(norm: str) -> Cascade:
    """APGD on cross-entropy, targeted APGD, targeted FAB and Square, on what still stands."""
    return sequence("autoattack", norm)


@recipe("autoattack-plus", symbol="AutoAttackPlus", family="white-box", paper=AUTOATTACK, year=2020,
        targeted=False)  # fmt: skip
def AutoAttackPlus() -> Cascade:
    """APGD on cross-entropy and DLR and FAB, five restarts each, then Square, targeted APGD and FAB."""
    return sequence("autoattack-plus")


@recipe("autoattack-rand", symbol="AutoAttackRand", family="white-box", paper=AUTOATTACK, year=2020,
        targeted=False)  # fmt: skip
def AutoAttackRand() -> Cascade:
    """For models with randomness of their own: APGD on cross-entropy and DLR, each over 20 passes."""
    return sequence("autoattack-rand")


@recipe("pma-plus", symbol="PMAPlus", family="white-box", norms=NORMS, paper=PMA_PAPER, year=2025,
        targeted=False)  # fmt: skip
def PMAPlus(norm: str) -> Cascade:
    """PMA, then targeted APGD on what still stands."""
    return sequence("pma-plus", norm)


@recipe("pma-plus-plus", symbol="PMAPlusPlus", family="white-box", norms=NORMS, paper=PMA_PAPER, year=2025,
        targeted=False)  # fmt: skip
def PMAPlusPlus(norm: str) -> Cascade:
    """PMA, then AutoAttack's parts; the paper's largest ensemble, by our reading."""
    return sequence("pma-plus-plus", norm)
