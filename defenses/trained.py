"""Trained defenses in the cache: each is trained once, and found as ``trained:DIGEST``.

``<cache>/<digest>/ensemble`` is a saved ensemble, ``ensemble.training`` beside it an unfinished one. The
digest is that of the defense with its options, the architecture, the data and the seed. Defenses that train
member by member contain the smaller ensembles too: ``trained:DIGEST?members=2``. One member alone is
``trained:DIGEST?member=2``.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

from advens.cache import Folder, cache_root
from advens.classifier import Classifier
from advens.defenses import saved
from advens.defenses.phases import Defense
from advens.defenses.saved import is_ensemble as is_ensemble
from advens.defenses.training import Progress, train, what
from advens.digest import value_digest
from advens.errors import InputError
from advens.spec import Spec
from advens.threads import threads

if TYPE_CHECKING:
    from advens.datasets import Dataset

VERSION = 2
"""Raised when the same training would give other weights."""


def trained(
    defense: Defense,
    arch: str,
    data: Dataset,
    *,
    seed: int = 0,
    device: str = "cpu",
    on_epoch: Progress | None = None,
) -> str:
    """The name of an ensemble, which is trained unless the cache has it; see `advens.defenses.training`.

    On a CPU one thread trains: with another number of threads sums, and with them the weights, would differ.
    """
    name = name_of(defense, arch, data, seed)
    key = Spec.parse(name, "model").rest
    folder = Folder(_cache() / key)
    with folder.locked():
        if not _ensemble(key).is_dir():
            with threads(1):
                train(defense, arch, data, _ensemble(key), seed=seed, device=device, on_epoch=on_epoch)
    return name


def name_of(defense: Defense, arch: str, data: Dataset, seed: int = 0) -> str:
    """The name of an ensemble in the cache, whether or not it is there."""
    return f"trained:{value_digest([VERSION, json.loads(json.dumps(what(defense, arch, data, seed)))], 20)}"


def load(spec: Spec) -> Classifier:
    """The model source ``trained:DIGEST``.

    Raises:
        InputError: the cache holds no such training, or as `advens.defenses.saved.load`.
    """
    check(spec)
    return saved.named(spec, folder_of(spec))


def check(spec: Spec) -> None:
    """Raise InputError when the cache has no such training."""
    spec.only(*saved.PARTS)
    if not re.fullmatch(r"[0-9a-f]+", spec.rest):
        raise InputError(f"model '{spec.text}': write trained:DIGEST, as a suite of defenses names them")
    if not folder_of(spec).is_dir():
        raise InputError(f"model '{spec.text}': {_cache()} holds no such training; train it again")


def _cache() -> Path:
    return cache_root("trained")


def folder_of(spec: Spec) -> Path:
    """The folder in which the ensemble of a name is stored, whether or not it is there yet."""
    return _ensemble(spec.rest)


def _ensemble(key: str) -> Path:
    return _cache() / key / "ensemble"
