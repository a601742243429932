"""What all builders share: trained surrogates in, more surrogates out, each kept as soon as it is made.

A builder is a part of kind ``builder``: a frozen dataclass of options that knows how to make its members
from a `Work`. `build` checks what is given, finds what was built before, and goes on where a build
that was killed had stopped.
"""

from __future__ import annotations

import io
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Protocol, runtime_checkable

import torch
from pydantic import BeforeValidator
from torch import Tensor

from advens.attacks.parts import from_spec, to_spec
from advens.attacks.surrogates.builders.cached import FORMAT, described
from advens.attacks.surrogates.builders.drawn import DrawnSnapshot, drawn_digest
from advens.attacks.surrogates.builders.snapshot import Snapshot, bare
from advens.attacks.surrogates.builders.train import Images
from advens.cache import Folder, cache_root
from advens.classifier import Classifier
from advens.datasets import Dataset
from advens.datasets.classes import check_classes
from advens.digest import value_digest
from advens.errors import InputError, RunError
from advens.models import origins

if TYPE_CHECKING:
    import pandas as pd

HISTORY = "history.parquet"
"""What was noted of a build, beside its members."""
Progress = Callable[[int, int], object]
"""Called with the members that are there and how many there will be."""


class Builder(Protocol):
    """A part of kind ``builder``."""

    def members(self, models: int) -> int:
        """How many surrogates come of so many models."""
        ...

    def build(
        self,
        models: Sequence[Classifier],
        data: Dataset,
        *,
        seed: int = 0,
        cache: Path | str | None = None,
        progress: Progress | None = None,
    ) -> list[Classifier]:
        """The surrogates, on the device of the models, named ``built:DIGEST/INDEX``.

        Args:
            models: trained surrogates; they are left as they are.
            data: training images with labels.
            seed: of all that is random.
            cache: the folder of all builds; ``$ADVENS_CACHE/built`` or ``~/.cache/advens/built``.
            progress: told of every member.

        Raises:
            InputError: the models or the data do not fit, or the cached build is damaged.
            RunError: weights became NaN or infinite.
        """
        ...


@runtime_checkable
class Method(Builder, Protocol):
    """A builder of sets of weights, as `build` needs it."""

    def collect(self, work: Work) -> None:
        """Commit all members that are not there yet."""
        ...


class Trained(ABC):
    """A builder whose members are sets of weights that `build` keeps in the cache: a base of frozen parts."""

    jointly: ClassVar[bool] = False
    """Whether all models together make one build, and not each its own."""

    @abstractmethod
    def members(self, models: int) -> int:
        """How many surrogates come of so many models."""

    @abstractmethod
    def collect(self, work: Work) -> None:
        """Commit all members that are not there yet."""

    def check(self, models: Sequence[Classifier]) -> None:
        """Raise InputError for models that do not go together; by default all do."""
        return None

    def build(
        self, models: Sequence[Classifier], data: Dataset, *, seed: int = 0,
        cache: Path | str | None = None, progress: Progress | None = None,
    ) -> list[Classifier]:  # fmt: skip
        """The surrogates; see `Builder.build`."""
        self.check(models)
        return build(self, models, data, seed, cache, progress, jointly=self.jointly)

    def history(
        self, models: Sequence[Classifier], data: Dataset, *, seed: int = 0, cache: Path | str | None = None
    ) -> pd.DataFrame:
        """What was noted of a build that was made, of what its members are made of where it noted nothing.

        A row for every collection or trial: model, call, and the numbers. Empty for builds of older versions.

        Raises:
            InputError: it was not made yet.
        """
        import pandas as pd

        models = list(models)
        groups = [models] if self.jointly else [[model] for model in models]
        found = [read_history(self, group, data, seed, cache) for group in groups]
        rows: pd.DataFrame = pd.concat(found, ignore_index=True)
        inner = getattr(self, "of", None)
        if rows.empty and isinstance(inner, Trained) and not self.jointly:
            return inner.history(models, data, seed=seed, cache=cache)
        return rows


def read_history(
    method: object, models: Sequence[Classifier], data: Dataset, seed: int, cache: Path | str | None
) -> pd.DataFrame:
    """The history of one build in the cache; empty where it has none. Raises InputError for no build."""
    import pandas as pd

    root = Path(cache) if cache is not None else cache_root("built")
    folder = Folder(root / value_digest(identity(method, models, data, seed), 20))
    if described(folder) is None:
        raise InputError(f"{folder.path} is not there: build first")
    if not (folder.path / HISTORY).is_file():
        return pd.DataFrame()
    with folder.sound():
        return pd.read_parquet(folder.path / HISTORY)


def write_history(folder: Folder, rows: Sequence[Mapping[str, Any]]) -> None:
    """Keep the history of a build."""
    import pandas as pd

    buffer = io.BytesIO()
    pd.DataFrame(rows).to_parquet(buffer, index=False)
    folder.write(HISTORY, buffer.getvalue())


def other(value: Any) -> Any:
    """The builder of sets of weights that a name, a table or a builder stands for."""
    made = from_spec("builder", value)
    if not isinstance(made, Method):
        raise ValueError("it makes no weights to work with")
    if getattr(made, "redraw", False):
        raise ValueError("it makes no weights to work with unless redraw is false")
    return made


Of = Annotated[Any, BeforeValidator(other)]
"""Another builder that makes sets of weights: a name, a table or the builder itself."""


@dataclass
class Work:
    """One build under way.

    Args:
        models: the surrogates it starts from; the first one's architecture is that of all members.
        data: training images with labels.
        seed: of all that is random.
        folder: where members are kept.
        cache: the folder of all builds.
        progress: told of every member.
        drawn: how many surrogates draw their weights at every step of an attack; the two sets that are
            committed are then the mean and the standard deviations. None of them do by default.
    """

    models: list[Classifier]
    data: Dataset
    seed: int
    folder: Folder
    cache: Path
    progress: Callable[[int], object]
    drawn: int = 0
    digests: list[str] = field(default_factory=list)
    history: list[dict[str, Any]] = field(default_factory=list)
    kept: dict[str, Any] = field(default_factory=dict)

    def resume(self) -> None:
        """Find what an earlier attempt kept."""
        self.kept = self.folder.state() or {}
        self.digests = list(self.kept.get("digests", []))
        self.history = list(self.kept.get("history", []))

    @property
    def done(self) -> int:
        """Members that are there."""
        return len(self.digests)

    def note(self, model: str, **numbers: float) -> None:
        """A collection or a trial is over; kept when the next member is committed."""
        self.history.append({"model": model, "call": len(self.history), **numbers})

    def commit(self, state: Mapping[str, Tensor], **kept: Any) -> None:
        """The next member is there, and this is what is needed to go on from it.

        Raises:
            RunError: some weights are NaN or infinite.
        """
        floats = {name: tensor for name, tensor in state.items() if tensor.is_floating_point()}
        sums = torch.stack([tensor.detach().sum(dtype=torch.float64) for tensor in floats.values()])
        for name, total in zip(floats, sums.tolist(), strict=True):  # not finite where a weight is not
            if not math.isfinite(total):
                raise RunError(f"weights became NaN or infinite ('{name}'); a lower lr may help")
        self.digests.append(self.folder.write_member(self.done, state))
        self.folder.keep({"digests": self.digests, "history": self.history, **kept})
        self.progress(self.done)

    @cached_property
    def images(self) -> Images:
        """The training images."""
        return Images(self.data)

    @cached_property
    def _bare(self) -> torch.nn.Module:
        return bare(self.models[0].net)

    def snapshot(self, state: Mapping[str, Tensor]) -> Snapshot:
        """A surrogate with some weights, which it holds as they are."""
        return Snapshot(self._bare, self.models[0], state, name="snapshot")

    def made_by(self, builder: Builder, rows: Tensor | None = None) -> list[Classifier]:
        """What another builder makes of the same models and seed, and the same data or some rows of it."""
        data = self.data
        if rows is not None:
            data = Dataset(data.source, data.name, data.rows[rows.numpy()], data.resized)
        return builder.build(self.models, data, seed=self.seed, cache=self.cache)

    def sets_by(self, method: Method) -> Iterator[dict[str, Tensor]]:
        """The sets of weights that another builder makes, read one after the other: one is held at a time."""
        for model in self.models:
            _, folder, about = finished(method, [model], self.data, self.seed, self.cache, lambda done: None)
            yield from (folder.member(k, digest) for k, digest in enumerate(about["members"]))


@torch.inference_mode(False)
@torch.enable_grad()
def build(
    method: Method,
    models: Sequence[Classifier],
    data: Dataset,
    seed: int,
    cache: Path | str | None,
    progress: Progress | None,
    *,
    jointly: bool = False,
) -> list[Classifier]:
    """All members; arguments as in `Builder.build`. The caller may be under ``inference_mode``.

    Args:
        jointly: one build from all models together, not one of each model.
    """
    models = list(models)
    check(models, data)
    if seed < 0:
        raise InputError(f"seed = {seed} is below 0")
    root, total = Path(cache) if cache is not None else cache_root("built"), method.members(len(models))
    made: list[Classifier] = []
    for group in [models] if jointly else [[model] for model in models]:
        before = len(made)

        def tell(done: int, before: int = before) -> None:
            if progress is not None:
                progress(before + done, total)

        made += members(*finished(method, group, data, seed, root, tell), group[0])
    return made


def finished(
    method: Method,
    models: list[Classifier],
    data: Dataset,
    seed: int,
    cache: Path,
    progress: Callable[[int], object],
) -> tuple[str, Folder, dict[str, Any]]:
    """A build that is whole: its name, its folder and what it is. It is made where it was not there."""
    what = identity(method, models, data, seed)
    key = value_digest(what, 20)
    folder = Folder(cache / key)
    about = described(folder)
    if about is None:
        with folder.locked():
            about = described(folder)  # another process may have finished it meanwhile
            if about is None:
                work = Work(models, data, seed, folder, cache, progress)
                work.resume()
                method.collect(work)
                if work.history:
                    write_history(folder, work.history)
                about = what | finding(models, data, work.digests) | {"drawn": work.drawn}
                folder.finish(about)
                if not work.drawn:
                    return key, folder, about
    progress(len(digests(key, about)))
    return key, folder, about


def members(key: str, folder: Folder, about: Mapping[str, Any], base: Classifier) -> list[Classifier]:
    """All members of a finished build, sharing one network."""
    shared, count = bare(base.net), len(digests(key, about))
    return [member(key, folder, about, index, base, shared) for index in range(count)]


def digests(key: str, about: Mapping[str, Any]) -> list[str]:
    """The digest of every member of a finished build."""
    stored: list[str] = about["members"]
    if not about.get("drawn"):
        return stored
    return [drawn_digest(stored, f"built:{key}/{index}") for index in range(about["drawn"])]


def member(
    key: str,
    folder: Folder,
    about: Mapping[str, Any],
    index: int,
    base: Classifier,
    shared: torch.nn.Module,
) -> Snapshot:
    """One member of a finished build."""
    name, bases = f"built:{key}/{index}", about["bases"]
    if about.get("drawn"):
        mean, spread = (folder.member(k, digest) for k, digest in enumerate(about["members"]))
        return DrawnSnapshot(shared, base, mean, spread, name=name, bases=bases, digests=about["members"])
    return Snapshot(shared, base, folder.member(index, about["members"][index]), name=name, bases=bases)


def identity(method: object, models: Sequence[Classifier], data: Dataset, seed: int) -> dict[str, Any]:
    """All that decides what a build makes; its digest is the build's name."""
    return {
        "format": FORMAT, "builder": to_spec(method), "models": [_card(model) for model in models],
        "data": data.digest, "seed": seed,
    }  # fmt: skip


def _card(model: Classifier) -> dict[str, Any]:
    """Weights and preprocessing: what decides what is learned from a model."""
    return {
        "digest": model.digest, "input_size": model.input_size, "interpolation": model.interpolation,
        "mean": model.mean.flatten().tolist(), "std": model.std.flatten().tolist(),
    }  # fmt: skip


def finding(models: Sequence[Classifier], data: Dataset, digests: list[str]) -> dict[str, Any]:
    """What a finished build tells beside what decides it; ``digests`` are its members'."""
    first = models[0]
    came_from = [d for model in models for d in (model.digest, *origins(model))]
    return {
        "names": [model.name for model in models], "data_name": data.name, "family": first.family,
        "num_classes": first.num_classes, "input_size": first.input_size,
        "bases": list(dict.fromkeys(came_from)), "members": digests,
    }  # fmt: skip


def check(models: Sequence[object], data: Dataset) -> None:
    """Raise InputError for models that cannot be built from, or data with other classes."""
    if not models:
        raise InputError("a builder needs at least one model")
    for k, model in enumerate(models):
        if not isinstance(model, Classifier):
            raise InputError(f"model {k} is a {type(model).__name__}; a builder takes Classifiers")
        if type(model).forward is not Classifier.forward:
            raise InputError(f"model '{model.name}' is no single network; give a builder its members")
        if not any(p.is_floating_point() for p in model.net.parameters()):
            raise InputError(f"model '{model.name}' has no weights that could be trained")
        low, high = int(data.labels.min()), int(data.labels.max())
        if low < 0 or high >= model.num_classes:
            raise InputError(
                f"data '{data.name}' has label {low if low < 0 else high}, out of range: "
                f"model '{model.name}' has {model.num_classes} classes"
            )
        check_classes(data, model.num_classes)
