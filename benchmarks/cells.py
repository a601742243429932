"""The cell, the unit of work: one attack on one surrogate set for one shard and seed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pydantic import TypeAdapter
from torch import Tensor

from advens.digest import value_digest
from advens.errors import InputError
from advens.seeding import derive

if TYPE_CHECKING:
    from advens.attacks.attack import Attack
    from advens.classifier import Classifier
    from advens.models import ModelCard

CRAFT_VERSION = 2
"""Raised when the same cell would give other images, so that old cells are not taken for new."""
STORED_AS = {
    "params": "attack_params", "specs": "surrogate_specs", "digests": "surrogate_digests",
    "fingerprint": "data_fingerprint",
}  # fmt: skip
"""Fields of a cell that have another name in the description of an examples file."""


@dataclass(frozen=True)
class Cell:
    """One attack on one surrogate set for one shard and seed.

    Args:
        suite, attack, family: names for the rows; ``attack`` is the label.
        params: the attack's spec, which rebuilds it.
        surrogates: name of the set.
        specs, digests: its models and their weights, in order.
        seed: the suite's.
        shard: [start, stop) in the data.
        data, fingerprint: the data source, and the digest of the shard's images and labels.
        targeted: whether there are wanted classes.
        shard_size: of the plan; the shard's number is start // shard_size.
        goal: of the suite.
        after: the cell whose unbroken samples this one attacks; empty for none.
        bases: digests of its models' weights, and of the models that these were built from.
        round: which of the rounds that follow an attack until it has converged; 0 for the attack itself.
        until: the share of all images of which a round must break less to be the last.
    """

    suite: str
    attack: str
    family: str
    params: dict[str, Any]
    surrogates: str
    specs: tuple[str, ...]
    digests: tuple[str, ...]
    seed: int
    shard: tuple[int, int]
    data: str
    fingerprint: str
    targeted: bool
    shard_size: int
    goal: str = "transfer"
    after: str = ""
    bases: tuple[str, ...] = ()
    round: int = 0
    until: float | None = None

    @cached_property
    def key(self) -> str:
        """The hash of all that determines the cell's images: its name on disk."""
        determined = {field.name: getattr(self, field.name) for field in fields(self)}
        for name in ("data", "family", "specs", "bases"):  # said by fingerprint, params and digests
            determined.pop(name)
        del determined["until"]  # it decides whether there is a cell, not what is in it
        if not self.round:  # names of cells from before there were rounds
            del determined["round"]
        if self.goal == type(self).goal:  # names of cells from before there were other goals
            del determined["goal"], determined["after"]
        return value_digest([CRAFT_VERSION, determined], 32)

    @property
    def title(self) -> str:
        """What people call it."""
        return f"{self.attack} on {self.surrogates}"

    @property
    def chain(self) -> str:
        """Of a round: the attack, model and seed that it and other rounds follow."""
        return f"{self.attack.removesuffix(f', round {self.round}')} on {self.surrogates}, seed {self.seed}"

    @property
    def random_seed(self) -> int:
        """What the attack's randomness is derived from; in a round, the same for all shards."""
        attack = json.dumps(self.params, sort_keys=True)
        if self.round:
            return derive(self.seed, attack, "round", self.round)
        return derive(self.seed, attack, self.shard[0] // self.shard_size)

    def knows(self, model: Classifier | ModelCard) -> bool:
        """Whether a model has the weights of a surrogate, or of what one was built from: white-box."""
        return bool({model.digest, model.weights} & {*self.digests, *self.bases})

    def build(self) -> Attack:
        """The attack."""
        from advens.attacks import attack_from_spec

        attack: Attack = attack_from_spec(self.params)
        return attack

    def wanted(self, labels: Tensor, given: Tensor | None, classes: int) -> Tensor | None:
        """The classes the attacker wants (N,): the data's, else drawn; None when untargeted."""
        if not self.targeted:
            return None
        if given is None:
            return torch.from_numpy(
                target_labels(labels.numpy(), self.shard[0], classes, self.seed)
            )
        if int(given.max()) >= classes or int(given.min()) < 0:
            raise InputError(
                f"a target label in {self.data} is out of range; there are {classes} classes"
            )
        return given

    def to_json(self) -> dict[str, Any]:
        """The cell as an examples file describes it."""
        said = {
            STORED_AS.get(name, name): value
            for name, value in json.loads(json.dumps(asdict(self))).items()
        }
        return said if self.round else {k: v for k, v in said.items() if k not in ("round", "until")}

    @classmethod
    def from_json(cls, description: dict[str, Any]) -> Cell:
        """The cell an examples file describes. Raises ValueError when it describes none."""
        said = {
            "goal": cls.goal, "after": cls.after, "bases": cls.bases, "round": cls.round, **description
        }  # fmt: skip
        cell = _CELL.validate_python(
            {f.name: said.get(STORED_AS.get(f.name, f.name)) for f in fields(cls)}
        )
        start, stop = cell.shard
        if not 0 <= start < stop or cell.shard_size < 1:
            raise ValueError("its shard is empty")
        if not cell.specs or len(cell.specs) != len(cell.digests):
            raise ValueError("its surrogates do not have one digest each")
        if cell.round < 0 or bool(cell.round) != (cell.until is not None):
            raise ValueError("'round' and 'until' belong together")
        return cell


_CELL = TypeAdapter(Cell)


def target_labels(labels: np.ndarray, start: int, classes: int, seed: int) -> np.ndarray:
    """A wanted class for every sample of a shard: uniform over the others, (N,) int64.

    Drawn per sample from its place in the data, so that a shard's size changes nothing.
    """
    shifts = [
        np.random.RandomState((seed * 1_000_003 + start + i) % 2**32).randint(1, classes)
        for i in range(len(labels))
    ]
    return (labels + np.array(shifts, dtype=np.int64)) % classes


def by_depth(cells: Sequence[Cell], wanted: set[str]) -> list[list[Cell]]:
    """The wanted cells, those that need no other first, then those that need these, and so on.

    In a plan, a cell comes after the one it needs.
    """
    depths: dict[str, int] = {}
    found: list[list[Cell]] = []
    for cell in cells:
        depths[cell.key] = depth = depths.get(cell.after, -1) + 1
        if cell.key in wanted:
            found += [[] for _ in range(depth + 1 - len(found))]
            found[depth].append(cell)
    return found
