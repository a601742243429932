"""A lock: the digests that the models and data of a suite had, to which later runs are held.

``advens lock SUITE`` writes it beside the suite file; ``advens run SUITE`` refuses what has changed since.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal
from warnings import warn

import tomli_w
from pydantic import BaseModel, ConfigDict, Field

from advens.benchmarks.plan import named_models, surrogate_sets
from advens.benchmarks.suites import (
    AnySuite,
    DefenseSuite,
    SanityTable,
    built_sets,
    expanded,
    is_path,
    toml_table,
    validated,
)
from advens.datasets import find_data
from advens.errors import InputError, InputWarning
from advens.files import os_errors, read_regular, write_bytes
from advens.models import describe, revision

SHOWN = 12
"""Hexadecimal digits of a digest in messages."""
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class ModelPin(BaseModel):
    """What a model was.

    Args:
        digest: of its weights and of how images are prepared for them.
        weights: digest of the weights alone; empty where it is not told apart.
        revision: where the weights came from, and the revision there; empty where that is not known.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    digest: Digest
    weights: Digest | Literal[""] = ""
    revision: str = ""

    def change(self, now: ModelPin) -> str:
        """What another pin of the same name has changed; empty when it is the same model."""
        if self.digest == now.digest:
            return ""
        if self.weights and self.weights == now.weights:
            return "other preprocessing of the same weights"
        moved = f", {self.revision} is now {now.revision}"
        known = self.revision and now.revision and self.revision != now.revision
        return _digests(self.digest, now.digest) + (moved if known else "")


class DataPin(BaseModel):
    """What a data source held.

    Args:
        digest: fingerprint of all images, names and labels.
        images: how many there were.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    digest: Digest
    images: int

    def change(self, now: DataPin) -> str:
        """What another pin of the same source has changed; empty when it is the same data."""
        if self.digest == now.digest:
            return ""
        counted = f"{self.images:,} images are now {now.images:,}, "
        return (counted if self.images != now.images else "") + _digests(self.digest, now.digest)


class Lock(BaseModel):
    """The models and data of a suite.

    Args:
        format: of the file.
        suite: the suite's name.
        models, data: pins by source name.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    suite: str
    models: dict[str, ModelPin] = {}
    data: dict[str, DataPin] = {}

    def changes(self, now: Lock) -> list[str]:
        """A text for every model and data source of both that is not what it was."""
        pins: tuple[tuple[dict[str, Any], dict[str, Any]], ...] = (
            (self.models, now.models), (self.data, now.data),
        )  # fmt: skip
        return [
            f"{name} ({what})"
            for before, after in pins for name in after
            if name in before and (what := before[name].change(after[name]))
        ]  # fmt: skip

    def unlisted(self, suite: AnySuite) -> list[str]:
        """The models and data of a suite that the lock does not list."""
        return [
            *(name for name in models_of(suite) if name not in self.models),
            *(name for name in sources_of(suite) if name not in self.data),
        ]

    def toml(self) -> str:
        """The lock as the text of a file."""
        return tomli_w.dumps(self.model_dump(exclude_defaults=True) | {"format": self.format})


def lock_of(suite: AnySuite) -> Lock:
    """The models and data of a suite as they are now. Weights that are missing are downloaded.

    Raises:
        InputError: a model or the data cannot be loaded.
    """
    opened = {source: find_data(source) for source in sources_of(suite)}
    data = {name: DataPin(digest=each.digest, images=len(each)) for name, each in opened.items()}
    models = {}
    for name in models_of(suite):
        card = describe(name)
        models[name] = ModelPin(digest=card.digest, weights=card.weights, revision=revision(name))
    return Lock(suite=suite.name, models=models, data=data)


def held(suite: AnySuite, path: Path) -> dict[str, Any]:
    """Compare the models and data of a suite with a lock, before anything is made of them.

    What the lock does not list is used as it is, with a warning that names it.

    Returns:
        What a run records of the lock.

    Raises:
        InputError: some are not what the lock says, or it cannot be read.
    """
    lock = read_lock(path)
    if changed := lock.changes(lock_of(suite)):
        raise InputError(f"not what {path} pins: {'; '.join(changed)}; 'advens lock' pins what is there now")
    unlisted = lock.unlisted(suite)
    if unlisted:
        warn(f"{path} does not pin {', '.join(unlisted)}", InputWarning, stacklevel=2)
    return {"file": path.name, "unlisted": unlisted} | lock.model_dump()


def models_of(suite: AnySuite) -> tuple[str, ...]:
    """The models that a suite names; of sets that are built, those that they are built from."""
    return tuple(dict.fromkeys(_models(suite)))


def sources_of(suite: AnySuite) -> tuple[str, ...]:
    """The data that a suite names: those that are attacked, and those that are trained on."""
    if isinstance(suite, DefenseSuite):
        trained = [suite.training.data] if suite.training else []
        return tuple(dict.fromkeys([suite.data, *trained]))
    built = (each.source for each in built_sets(suite).values())
    return tuple(dict.fromkeys([suite.source, *built]))


def lock_path(suite: str) -> Path:
    """Where the lock of a suite is: beside its file, and of a bundled suite in the working folder."""
    return Path(suite).with_suffix(".lock") if is_path(suite) else Path(f"{suite}.lock")


def find_lock(suite: object, given: Path | str | None = None) -> Path | None:
    """The lock that a run is held to: the given one, else the one of a suite that is named, if it has one."""
    if given is not None or not isinstance(suite, (str, Path)):
        return None if given is None else Path(given)
    path = lock_path(str(suite))
    return path if path.is_file() else None


def read_lock(path: Path) -> Lock:
    """The lock in a file. Raises InputError when it is missing or not a lock."""
    with os_errors("read", path):
        data = read_regular(path)
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not TOML: {error.reason}") from None
    return validated(Lock, toml_table(text, str(path)), str(path), text)


def write_lock(path: Path, lock: Lock) -> None:
    """Write a lock; one that is there is replaced."""
    write_bytes(path, lock.toml().encode())


def _models(suite: AnySuite) -> Iterator[str]:
    if isinstance(suite, DefenseSuite):
        yield from (*expanded(suite.surrogates), *expanded(suite.models))
    else:
        for name, models in surrogate_sets(suite, {}).items():
            yield from named_models(suite, name, models)
        yield from expanded(suite.targets)
    if isinstance(suite.sanity, SanityTable):
        yield from expanded(suite.sanity.surrogates)


def _digests(before: str, now: str) -> str:
    return f"{before[:SHOWN]} is now {now[:SHOWN]}"
