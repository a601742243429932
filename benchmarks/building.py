"""Surrogates that are built before they attack: ``{ build = "lgv", model = "digits:resnet" }``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from advens.errors import InputError
from advens.models import expand, training_data

if TYPE_CHECKING:
    from advens.benchmarks.progress import Progress
    from advens.datasets import Dataset

class Build(BaseModel):
    """A surrogate set that a builder makes; keys that are not listed here are the builder's options.

    Args:
        build: the builder.
        model: what it starts from, with wildcards.
        data: what it trains on or calibrates with; never the images that are attacked.
        seed: of the builder's randomness; without one, the set is built anew for every seed of the suite.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    build: str
    model: list[str] | str
    data: str | None = None
    seed: int | None = Field(None, ge=0)

    @property
    def models(self) -> tuple[str, ...]:
        """The models it starts from."""
        patterns = [self.model] if isinstance(self.model, str) else self.model
        return tuple(dict.fromkeys(name for pattern in patterns for name in expand(pattern)))

    @property
    def source(self) -> str:
        """The data. Raises InputError when there is none to take for granted."""
        if self.data is not None:
            return self.data
        sources = {training_data(name) for name in self.models}
        if len(sources) == 1 and (only := sources.pop()):
            return only
        raise InputError(f"build = '{self.build}' needs data = SOURCE, the images to train on")

    def builder(self) -> Any:
        """The builder. Raises InputError for an unknown one or a bad option."""
        from advens.attacks.parts import from_spec

        return from_spec("builder", {"name": self.build, **(self.model_extra or {})})

    def placeholders(self) -> tuple[str, ...]:
        """Names of what will be built, for a plan that builds nothing."""
        count = self.builder().members(len(self.models))
        return tuple(f"{self.build} of {', '.join(self.models)}, {i}" for i in range(count))


def build_sets(
    wanted: Mapping[str, Build],
    seeds: Sequence[int],
    attacked: Dataset | None,
    progress: Progress | None = None,
    device: str = "cpu",
) -> dict[tuple[str, int], tuple[str, ...]]:
    """The members of every set for every seed, by name; what is cached is not built again.

    Args:
        seeds: of the suite.
        attacked: images that nothing may be built on.

    Raises:
        InputError: a set would be built on images that are attacked.
    """
    from advens.benchmarks.progress import Progress as Bars
    from advens.datasets import find_data
    from advens.models import find_model

    found: dict[tuple[str, int], tuple[str, ...]] = {}
    bars = progress or Bars()
    trained_on = {name: find_data(each.source) for name, each in wanted.items()}
    for name, data in trained_on.items():
        if attacked is not None and (shared := images_of_both(data, attacked)):
            raise InputError(
                f"surrogates '{name}': {shared} of the images in '{data.name}' are attacked; "
                "build on others"
            )
    for name, each in wanted.items():
        models = [find_model(model).to(device) for model in each.models]
        builder = each.builder()
        ticks = getattr(builder, "ticks", builder.members)(len(models))
        ways = list(dict.fromkeys(seeds if each.seed is None else [each.seed]))
        with bars.task(f"building {name}", ticks * len(ways)) as say:
            for seed in ways:
                told = partial(_tell, say, f"{each.build}, seed {seed}")
                made = builder.build(models, trained_on[name], seed=seed, progress=told)
                found[name, seed] = tuple(model.name for model in made)
        found |= {(name, seed): found[name, ways[0]] for seed in seeds if (name, seed) not in found}
    return found


def images_of_both(one: Dataset, other: Dataset) -> int:
    """How many images of ``one`` are in ``other``: of the same name, and of the same content."""
    place = {name: i for i, name in enumerate(other.sample_ids)}
    named = ((i, place[name]) for i, name in enumerate(one.sample_ids) if name in place)
    return sum(_content(one, i) == _content(other, j) for i, j in named)


def _content(data: Dataset, index: int) -> bytes:
    return b"".join(data.source.content(data.rows[index : index + 1]))


def _tell(say: Callable[[str], None], what: str, done: int, total: int) -> None:
    say(what)
