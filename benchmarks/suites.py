"""Suites: what is attacked or trained, with what, and what it is tried on; a TOML file, validated.

The key ``goal`` says which kind of suite a file is: `Suite` for ``transfer`` and ``robustness``,
`DefenseSuite` for ``defense``. Every mistake is one line that names the key, its line in the file, and the
nearest valid choice.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args
from warnings import warn

import tomli_w
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from advens.digest import value_digest
from advens.errors import InputError, InputWarning, first_line, nearest, unknown
from advens.files import os_errors, read_regular
from advens.printable import printable
from advens.spec import literal
from advens.threat import Threat, parse_eps

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"
M = TypeVar("M", bound=BaseModel)
LONGEST = 100
PAPER = "paper-"
"""How the names of bundled suites begin that repeat the settings of a paper."""


def _title(name: str) -> str:
    """What rows are called by, and folders. Raises ValueError for what cannot be shown."""
    if len(name) > LONGEST:
        raise ValueError(f"'{name[:20]}...': a name has at most {LONGEST} characters")
    if not name.isprintable():
        raise ValueError(f"'{printable(name)}': a name has no control characters")
    return name


Title = Annotated[str, AfterValidator(_title)]


class BuiltSet(BaseModel):
    """A surrogate set that a builder makes; keys that are not listed here are options of the builder.

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
        return expanded([self.model] if isinstance(self.model, str) else self.model)

    @property
    def source(self) -> str:
        """The data. Raises InputError when none is given and the models' source does not imply one."""
        if self.data is not None:
            return self.data
        from advens.models import training_data

        sources = {training_data(name) for name in self.models}
        if len(sources) == 1 and (only := sources.pop()):
            return only
        raise InputError(f"build = '{self.build}' needs data = SOURCE, the images to train on")

    def builder(self) -> Any:
        """The builder. Raises InputError for an unknown one or a bad option."""
        from advens.attacks.parts import from_spec

        return from_spec("builder", {"name": self.build, **(self.model_extra or {})})

    def placeholders(self) -> tuple[str, ...]:
        """Names of what will be built, for an outline that builds nothing."""
        count = self.builder().members(len(self.models))
        return tuple(f"{self.build} of {', '.join(self.models)}, {i}" for i in range(count))


def expanded(patterns: Sequence[str]) -> tuple[str, ...]:
    """The models of names with wildcards, each once. Raises InputError for a name that matches none."""
    from advens.models import expand

    return tuple(dict.fromkeys(name for pattern in patterns for name in expand(pattern)))


Surrogates = list[str] | str | BuiltSet
Stored = Literal["differences", "images"]


class ThreatTable(BaseModel):
    """The ``[threat]`` table: which images are allowed, and the iterations that every attack gets.

    Args:
        norm: ``linf``, ``l2`` or ``l1``.
        eps: radius of the ball, images being in [0, 1]; a fraction such as ``"8/255"`` is kept as written.
        steps: iterations; each attack's own without. Attacks of a single step stay so.
        targeted: whether the attacker wants a class: that of the data, or one drawn for every image.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    norm: str = "linf"
    eps: float | str = "8/255"
    steps: int | None = Field(None, ge=1)
    targeted: bool = False

    def threat(self) -> Threat:
        """The ball."""
        return Threat(self.norm, self.eps)


class SanityTable(BaseModel):
    """The ``[sanity]`` table: when a check of the sanity report fails.

    Args:
        images: how many, evenly spread over the data, each model is checked on at most.
        share: part of them that may differ before a check fails; two always may.
        level: of the exact sign test that a difference must also pass.
        surrogates: models that images are transferred from, as a black-box attack beside Square.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    images: Annotated[int, Field(ge=1)] = 64
    share: Annotated[float, Field(ge=0, lt=1)] = 0.03
    level: Annotated[float, Field(gt=0, lt=1)] = 0.01
    surrogates: list[str] = []


ROUNDS = ("until", "most_rounds", "round_attack")
"""The keys of an entry that are about rounds."""


class AttackEntry(BaseModel):
    """One ``[[attacks]]`` entry; keys that are not listed here are options of the attack.

    Args:
        name: an attack, a composition, or a sequence ``a+b`` under ``robustness``.
        label: its name on boards; ``name`` without.
        budget: backward passes per image instead of iterations.
        surrogates: the sets it attacks; all of the suite without.
        until: under ``robustness``, rounds follow the attack: each repeats one attack from new starts on the
            images that withstood everything before, until a round breaks less than this share of all images.
        most_rounds: the most rounds that follow.
        round_attack: the attack that rounds repeat; without, the last of the sequence that takes gradients
            and starts at random.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str
    label: Title | None = None
    budget: int | None = Field(None, ge=1)
    surrogates: list[str] | None = None
    until: float | None = None
    most_rounds: int = Field(10, ge=1)
    round_attack: str | None = None

    @field_validator("until")
    @classmethod
    def _share(cls, until: float | None) -> float | None:
        if until is not None and not 0 < until < 1:
            raise ValueError("a share of all images, above 0 and below 1, such as 0.01")
        return until

    @model_validator(mode="after")
    def _rounds(self) -> AttackEntry:
        if self.until is None and {"most_rounds", "round_attack"} & self.model_fields_set:
            raise ValueError("most_rounds and round_attack are of the rounds that 'until' asks for")
        return self

    @model_serializer(mode="wrap")
    def _written(self, written: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Suites without rounds are written, and have digests, as before there were any."""
        found: dict[str, Any] = written(self)
        if self.until is None:
            for name in ROUNDS:
                found.pop(name, None)
        return found

    @property
    def title(self) -> str:
        """How the attack is called on boards."""
        return self.label or self.name

    @property
    def options(self) -> dict[str, Any]:
        """Overrides for `create_attack`."""
        return dict(self.model_extra or {})


@dataclass(frozen=True)
class Origin:
    """Where a suite was read from, for messages; suites are equal wherever they come from."""

    where: str = field(default="", compare=False)
    text: str = field(default="", compare=False)


class Suite(BaseModel):
    """A suite of attacks as it is written; `advens.benchmarks.plan` resolves its names.

    Args:
        name: of the suite: letters, digits, dots, dashes and underscores.
        version: a number that is raised when settings of a published suite change.
        goal: ``transfer``, or ``robustness``: every set is one model, attacked white-box. Broken samples
            leave at once, and ``a+b`` is a sequence of attacks in which ``b`` takes what withstood ``a``.
        crossed: whether, under ``robustness``, every model is also evaluated on the images that were
            crafted on the others.
        data: the source of the images that are attacked.
        limit: how many images are taken, the first of a shuffle seeded with 0.
        seeds: seeds of the attacks' randomness; rates are means over them.
        targets: the models that the images are tried on, with wildcards.
        threat: the threat model: norm, radius, iterations, targeted or not.
        budget: backward passes per image that every attack gets instead of iterations.
        defaults: options that every attack gets, so that a comparison holds them equal.
        surrogates: sets of models to attack, by name. Each model that the set ``each`` lists is a set of
            its own, and a table with ``build`` is a set that is built first.
        attacks: the attacks; an entry whose ``name`` is a list stands for one entry of each name, and
            ``{name}`` in its label stands for that name.
        sanity: whether, under ``robustness``, every model gets a sanity report, and when its checks fail.
        shard: images of one cell, which are crafted, kept, or lost in a crash together.
        batch_size: images worked on at once; it does not change results.
        store: ``differences`` from the clean images, from which adversarial images are restored while the
            data are at hand, or whole ``images``, which take more room; it does not change results.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Title = Field(pattern=NAME)
    version: int = Field(1, ge=1)
    goal: Literal["transfer", "robustness"] = "transfer"
    crossed: bool = True
    data: str
    limit: int | None = Field(None, ge=1)
    seeds: list[int] = Field([0], min_length=1)
    targets: list[str] = Field(min_length=1)
    threat: ThreatTable = ThreatTable(steps=None)
    budget: int | None = Field(None, ge=1)
    defaults: dict[str, Any] = {}
    surrogates: dict[str, Surrogates]
    attacks: list[AttackEntry] = Field(min_length=1)
    sanity: bool | SanityTable = True
    shard: int = Field(250, ge=1)
    batch_size: int | None = Field(None, ge=1)
    store: Stored = "differences"
    _origin: Origin = PrivateAttr(Origin())

    @contextmanager
    def located(self) -> Iterator[None]:
        """Says in an InputError raised inside in which file and line of it the mistake stands."""
        try:
            yield
        except InputError as error:
            line = line_of(self._origin.text, str(error))
            if line is None:
                raise
            raise InputError(f"{self._origin.where} line {line}: {error}") from error

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, seeds: list[int]) -> list[int]:
        if len(set(seeds)) < len(seeds) or min(seeds) < 0:
            raise ValueError("seeds are distinct and not negative")
        return seeds

    @field_validator("surrogates")
    @classmethod
    def _some_surrogates(cls, sets: dict[str, Surrogates]) -> dict[str, Surrogates]:
        if not sets:
            raise ValueError("a suite needs at least one surrogate set")
        for name, models in sets.items():
            if models != [name]:  # a set that is called by its only model
                _title(name)
            if not models or (isinstance(models, BuiltSet) and not models.model):
                raise ValueError(f"surrogate set '{name}' is empty")
            if isinstance(models, BuiltSet) and name == "each":
                raise ValueError("the set 'each' lists models; give what is built another name")
        return sets

    @field_validator("attacks", mode="before")
    @classmethod
    def _one_name_each(cls, entries: Any) -> Any:
        if not isinstance(entries, list):
            return entries
        return [one for entry in entries for one in _expanded(entry)]

    @property
    def source(self) -> str:
        """The data source with the limit in it."""
        if self.limit is None:
            return self.data
        first, query = ("&", self.data.partition("?")[2]) if "?" in self.data else ("?", "")
        seeded = any(part.startswith("seed=") for part in query.split("&"))
        return f"{self.data}{first}limit={self.limit}{'' if seeded else '&seed=0'}"

    def restricted(self, attacks: Sequence[str]) -> Suite:
        """The suite with these attacks alone, by label. Raises InputError for an unknown one."""
        entries = {entry.title: entry for entry in self.attacks}
        chosen = [entries[name] for name in _known_labels(attacks, entries)]
        return self.model_copy(update={"attacks": chosen})

    def toml(self) -> str:
        """The suite with every default written out."""
        return tomli_w.dumps(self.model_dump(exclude_none=True))


def _known_labels(names: Sequence[str], allowed: Iterable[str]) -> Sequence[str]:
    """The names. Raises InputError for one that no attack of a suite has."""
    allowed = list(allowed)
    for name in names:
        if name not in allowed:
            raise unknown("attack in this suite", name, allowed)
    return names


class TrainingTable(BaseModel):
    """The ``[training]`` table; keys that are not listed here are options of all defenses.

    Args:
        arch: architecture of the members.
        data: training images.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    arch: str
    data: str


class DefenseEntry(BaseModel):
    """One ``[[defenses]]`` entry; keys that are not listed here are options of the defense.

    Args:
        name: of the defense.
        members: the numbers of members it is trained with.
        label: its name on the tables.
        table: the table it stands on.
        control: what is trained with the same compute to compare it with: adversarial training (``at``),
            ``plain`` training or ``none``. Without, it is ``at`` for defenses that learn on adversarial
            images, else ``plain``.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str
    members: list[int] = Field(min_length=1)
    label: Title | None = None
    table: Title = "defenses"
    control: Literal["at", "plain", "none"] | None = None

    @field_validator("members", mode="before")
    @classmethod
    def _listed(cls, members: Any) -> Any:
        return [members] if isinstance(members, int) else members

    @property
    def title(self) -> str:
        """Its name on the tables."""
        return self.label or self.name


class TransferTable(BaseModel):
    """The ``[transfer]`` table: how the attacks of a suite of defenses are run on its surrogates.

    An image is broken when any of the images that are crafted from it breaks the model.

    Args:
        losses: every attack is run with each of these; without any, with its own.
        starts: uniform points of the ball from which every attack is started; without, its own start, once.
        steps: iterations; each attack's own without. Attacks of a single step stay so.
        step_size: as ``"eps/5"``; each attack's own without.
        singles: whether every surrogate is also attacked alone, beside all of them together.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    losses: list[str] = []
    starts: Annotated[int | None, Field(ge=1)] = None
    steps: Annotated[int | None, Field(ge=1)] = None
    step_size: float | str | None = None
    singles: bool = False

    @field_validator("losses")
    @classmethod
    def _distinct(cls, losses: list[str]) -> list[str]:
        if len(set(losses)) < len(losses):
            raise ValueError("losses are distinct")
        return losses


TRANSFERS: dict[str, dict[str, Any]] = {
    "dverge": {
        "attacks": ["mifgsm", "difgsm", "sgm-mifgsm"],
        "transfer": {
            "losses": ["ce", "margin"], "starts": 2, "steps": 100, "step_size": "eps/5", "singles": True,
        },
    },
}  # fmt: skip
"""Ways to measure transfer, by the names that ``transfer`` may have.

``dverge``: in its authors' evaluation (Yang et al., NeurIPS 2020) an image is broken by the worst of 30: from
each of three surrogates, with each of two losses, momentum PGD from three starts, M-DI2-FGSM and SGM, each of
100 steps of eps/5. Here every attack has two starts, the surrogates are attacked together, too, and SGM keeps
its own gamma of 0.5, where theirs is 0.2.
"""


class DefenseSuite(BaseModel):
    """A suite of defenses as written: what is trained or given, and the attacks it is put through.

    Args:
        name: letters, digits, dashes.
        version: a number that is raised when settings of a published suite change.
        goal: ``defense``.
        data: images that are attacked.
        limit: the first images of a shuffle seeded with 0.
        white_box_limit: the first of these for white-box attacks, which cost the most.
        seed: of attacks and measurements.
        seeds: of the trainings.
        eps: l_inf radii of transfer; white-box attacks have the largest.
        surrogates: models that transfer comes from, trained separately.
        attacks: attacks on these surrogates.
        transfer: how these are run: a ``[transfer]`` table, or ``"dverge"`` for transfer as its authors
            measure it, which also names the attacks where the suite does not.
        white_box: attacks on the defenses themselves; without any, those of ``advens defend``.
        white_box_until: rounds follow each of these that starts at random, see ``until`` of `AttackEntry`;
            what they break counts for the worst of each image.
        models: defenses that exist already.
        training: what all trainings have in common.
        defenses: what is trained.
        controls: whether controls of equal compute are trained, too, and the last member of each boosted
            ensemble is also evaluated alone.
        measured: images that diversity and transfer between members are measured on.
        sanity: whether every model gets a sanity report, and when its checks fail.
        batch_size: images attacked at once (does not change results).
        store: ``differences`` from the clean images, or whole ``images`` (does not change results).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Title = Field(pattern=NAME)
    version: int = Field(1, ge=1)
    goal: Literal["defense"]
    data: str
    limit: int | None = Field(None, ge=1)
    white_box_limit: int | None = Field(None, ge=1)
    seed: int = Field(0, ge=0)
    seeds: list[int] = Field([0], min_length=1)
    eps: list[float | str] = Field(min_length=1)
    surrogates: list[str] = Field(min_length=1)
    attacks: list[str] = Field(min_length=1)
    transfer: TransferTable = TransferTable()
    white_box: list[str] = []
    white_box_until: Annotated[float | None, Field(gt=0, lt=1)] = None
    models: list[str] = []
    training: TrainingTable | None = None
    defenses: list[DefenseEntry] = []
    controls: bool = True
    measured: int = Field(200, ge=1)
    sanity: bool | SanityTable = True
    batch_size: int | None = Field(None, ge=1)
    store: Stored = "differences"

    @model_validator(mode="before")
    @classmethod
    def _renamed(cls, table: Any) -> Any:
        for old, new in RENAMED.items():
            if isinstance(table, dict) and old in table:
                warn(f"'{old}' is called '{new}' now; the old name still works", InputWarning, stacklevel=2)
                table = {new if key == old else key: value for key, value in table.items()}
        return table

    @model_validator(mode="before")
    @classmethod
    def _named_transfer(cls, table: Any) -> Any:
        if not isinstance(table, dict) or not isinstance(name := table.get("transfer"), str):
            return table
        if name not in TRANSFERS:
            raise ValueError(str(unknown("transfer", name, TRANSFERS)))
        return TRANSFERS[name] | {key: value for key, value in table.items() if key != "transfer"}

    @model_validator(mode="after")
    def _something(self) -> DefenseSuite:
        if not (self.defenses or self.models):
            raise ValueError("a suite of defenses needs [[defenses]] to train or models that exist")
        if self.defenses and self.training is None:
            raise ValueError("defenses that are trained need a [training] table")
        return self

    @field_validator("eps")
    @classmethod
    def _ascending(cls, eps: list[float | str]) -> list[float | str]:
        return sorted(eps, key=parse_eps)

    def restricted(self, attacks: Sequence[str]) -> DefenseSuite:
        """The suite with transfer from these attacks alone. Raises InputError for an unknown one."""
        return self.model_copy(update={"attacks": list(_known_labels(attacks, self.attacks))})

    @property
    def budgets(self) -> tuple[str, ...]:
        """The l_inf radii as text, ascending."""
        return tuple(str(eps) for eps in self.eps)

    def toml(self) -> str:
        """The suite with every default written out."""
        return tomli_w.dumps(self.model_dump(exclude_none=True))


AnySuite = Suite | DefenseSuite


def settings_digest(suite: AnySuite) -> str:
    """The digest of a suite that boards carry: without version, sanity report and how images are stored."""
    return value_digest(suite.model_dump(exclude={"version", "sanity", "store"}))


def built_sets(suite: Suite) -> dict[str, BuiltSet]:
    """The surrogate sets of a suite that are built, by name."""
    return {name: each for name, each in suite.surrogates.items() if isinstance(each, BuiltSet)}


TABLES: dict[Any, type[BaseModel]] = {
    "threat": ThreatTable, "transfer": TransferTable, "sanity": SanityTable,
}  # fmt: skip
"""The tables inside suites whose keys are all known, by name."""
RENAMED = {"open": "white_box", "open_limit": "white_box_limit"}
"""Keys of a suite of defenses that had another name."""


def _expanded(entry: Any) -> list[Any]:
    """An entry of several names as one entry each."""
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), list):
        return [entry]
    names, label = entry["name"], entry.get("label", "{name}")
    if not names or not all(isinstance(name, str) for name in names):
        raise ValueError("name is a text or a list of texts")
    if len(names) > 1 and "{name}" not in str(label):
        raise ValueError(f"label '{label}' of several attacks must hold {{name}}")
    return [entry | {"name": name, "label": str(label).replace("{name}", name)} for name in names]


def bundled() -> list[str]:
    """Names of the suites in the package."""
    folder = files("advens.benchmarks") / "suites"
    return sorted(
        p.name.removesuffix(".toml") for p in folder.iterdir() if p.name.endswith(".toml")
    )


def bundled_by_group() -> dict[str, list[str]]:
    """The same, by what a suite needs: embedded models and data, others, or what a paper used."""
    groups: dict[str, list[str]] = {"embedded models and data": [], "downloaded models": [], "papers": []}
    own, others, papers = groups.values()
    for name in bundled():
        embedded = load(name).data.startswith("digits:")
        (papers if name.startswith(PAPER) else own if embedded else others).append(name)
    return groups


def load(name: str, changes: Mapping[str, Any] | None = None) -> AnySuite:
    """A bundled suite by name, or a TOML file by path, with dotted keys overridden.

    Raises:
        InputError: no such suite, not TOML, or not a suite.
    """
    return suite_from(*read(name, changes))


def load_suite(name: str, changes: Mapping[str, Any] | None = None) -> Suite:
    """The same for a suite of attacks. Raises InputError for a suite of defenses, too."""
    return from_table(*read(name, changes))


def read(
    name: str, changes: Mapping[str, Any] | None = None
) -> tuple[dict[str, Any], str, str]:
    """The table of a suite that is not checked yet, its name for messages, and its text."""
    text = text_of(name)
    where = f"suite '{name}'" if not is_path(name) else name
    return toml_table(text, where, changes), where, text


def suite_identity(suite: AnySuite) -> dict[str, Any]:
    """Which suite this is: name, version and the digest of all settings that results depend on."""
    settings = suite.model_dump(mode="json", exclude={"batch_size", "sanity", "store"})
    return {"name": suite.name, "version": suite.version, "digest": value_digest(settings)}


def departures(suite: AnySuite, wanted: AnySuite) -> tuple[list[str], list[str]]:
    """How the suite of a run differs from another that it is held to, and what it adds.

    A run may add attacks, or defenses, of its own: these are what a suite compares. Everything else is the
    same, the suite's own attacks and defenses included.

    Returns:
        A line for every difference, and the names of what is added.
    """
    if type(suite) is not type(wanted):
        return [f"goal is '{suite.goal}', not '{wanted.goal}'"], []
    own = "attacks" if isinstance(suite, Suite) else "defenses"
    found, given = wanted.model_dump(mode="json"), suite.model_dump(mode="json")
    lines = [
        f"{key} is {_brief(given[key])}, not {_brief(value)}"
        for key, value in found.items()
        if key not in (own, "batch_size", "store") and given[key] != value
    ]
    theirs, ours = _by_title(wanted), _by_title(suite)
    for title, entry in theirs.items():
        if ours.get(title, entry) != entry:
            lines.append(f"{own}: '{title}' has other options")
        elif title not in ours:
            lines.append(f"{own}: '{title}' is missing")
    return lines, [title for title in ours if title not in theirs]


def _by_title(suite: AnySuite) -> dict[str, Any]:
    if isinstance(suite, DefenseSuite):
        return {f"{entry.table}: {entry.title}": entry for entry in suite.defenses}
    return {entry.title: entry for entry in suite.attacks}


def _brief(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def text_of(name: str) -> str:
    """The TOML of a bundled suite, or of a file. Raises InputError for neither."""
    if is_path(name):
        if not Path(name).is_file():
            raise InputError(f"no suite file at {name}")
        try:
            return Path(name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"suite file {name} cannot be read: {first_line(error)}") from None
    if name not in bundled():
        raise unknown("suite", name, bundled())
    return (files("advens.benchmarks") / "suites" / f"{name}.toml").read_text()


def is_path(name: str) -> bool:
    """Whether a suite is named by the path of its file."""
    return name.endswith(".toml") or Path(name).is_file()


def stored(path: Path) -> AnySuite:
    """The suite in a file of a run. Raises InputError when it is missing or damaged."""
    with os_errors("read", path):
        data = read_regular(path)
    try:
        return parse(data.decode(), str(path))
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not TOML: {error.reason}") from None


def parse(text: str, where: str, changes: Mapping[str, Any] | None = None) -> AnySuite:
    """A suite from TOML text; ``where`` is the name used in messages."""
    return suite_from(toml_table(text, where, changes), where, text)


def suite_from(table: dict[str, Any], where: str, text: str = "") -> AnySuite:
    """A suite of any kind from a table; ``text`` is the TOML it came from, for line numbers."""
    attacks, defenses = (get_args(kind.model_fields["goal"].annotation) for kind in (Suite, DefenseSuite))
    goal = table.get("goal", attacks[0])
    if goal in defenses:
        return defenses_from_table(table, where, text)
    if isinstance(goal, str) and goal not in attacks:
        raise InputError(f"{where}: {unknown('goal', goal, (*attacks, *defenses))}{_line(text, 'goal')}")
    return from_table(table, where, text)


def defenses_from_table(table: dict[str, Any], where: str, text: str = "") -> DefenseSuite:
    """A suite of defenses from a table."""
    return validated(DefenseSuite, table, where, text)


def toml_table(text: str, where: str, changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """TOML text as a table, with dotted keys overridden. Raises InputError for what is not TOML."""
    try:
        table: dict[str, Any] = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        # "Cannot overwrite a value" and the like: a key or table that stands there twice
        said = str(error).replace("Cannot overwrite a value", "a key is given twice")
        raise InputError(f"{where} is not TOML: {said}") from None
    for key, value in (changes or {}).items():
        set_key(table, key, value)
    return table


def from_table(table: dict[str, Any], where: str, text: str = "") -> Suite:
    """A suite of attacks from a table; ``text`` is the TOML it came from, for line numbers."""
    suite = validated(Suite, table, where, text)
    suite._origin = Origin(where, text)
    try:
        suite.threat.threat()
    except InputError as error:
        raise InputError(f"{where}: threat: {error}{_line(text, 'eps')}") from None
    titles = [entry.title for entry in suite.attacks]
    for title in titles:
        if titles.count(title) > 1:
            raise InputError(f"{where}: two attacks are called '{title}'; give one a label")
    for entry in suite.attacks:
        if entry.until is not None and suite.goal != "robustness":
            raise InputError(
                f"{where}: attack '{entry.title}': 'until' is for goal = \"robustness\"{_line(text, 'until')}"
            )
        for name in entry.surrogates or ():
            if name not in suite.surrogates:
                raise InputError(
                    f"{where}: attack '{entry.title}': {unknown('surrogate set', name, suite.surrogates)}"
                )
    return suite


def validated(model: type[M], table: dict[str, Any], where: str, text: str = "") -> M:
    """A table as a model. Raises InputError for the first mistake, with its line in ``text``."""
    try:
        return model.model_validate(table)
    except ValidationError as error:
        raise InputError(f"{where}: {_explain(error, model, text)}") from None


def set_key(table: dict[str, Any], dotted: str, value: Any) -> None:
    """Set ``table["a"]["b"]`` from ``"a.b"``; entries of a list by number (``attacks.0.label``)."""
    node: Any = table
    *parents, last = dotted.split(".")
    for parent in parents:
        if isinstance(node, list):
            if not parent.isdigit() or int(parent) >= len(node):
                raise InputError(
                    f"--set {dotted}: '{parent}' is not one of the {len(node)} entries"
                )
            node = node[int(parent)]
        else:
            node = node.setdefault(parent, {})
        if not isinstance(node, (dict, list)):
            raise InputError(f"--set {dotted}: '{parent}' is a value, not a table")
    if isinstance(node, list):
        raise InputError(f"--set {dotted}: name an entry by number, as attacks.0.{last}")
    node[last] = value


def parse_settings(settings: Sequence[str]) -> dict[str, Any]:
    """``KEY=VALUE`` texts as a dictionary with Python values."""
    changes: dict[str, Any] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not key:
            raise InputError(f"--set '{setting}': write KEY=VALUE, as threat.eps=0.1")
        changes[key.strip()] = literal(value.strip())
    return changes


def _explain(error: ValidationError, model: type[BaseModel], text: str) -> str:
    # a misspelt key is also a missing one: say what was written
    first = min(error.errors(), key=lambda found: found["type"] != "extra_forbidden")
    kinds = ("list[", "function-")  # pydantic names the branch of a union
    loc = [part for part in first["loc"] if part != "str" and not str(part).startswith(kinds)]
    key = str(loc[-1]) if loc else ""
    dotted = ".".join(map(str, loc))
    if first["type"] == "extra_forbidden":
        return f"unknown key '{dotted}'{nearest(key, _known(model, loc[:-1]))}{_line(text, key)}"
    if first["type"] == "missing":
        return f"'{dotted}' is missing"
    message = first["msg"].removeprefix("Value error, ")
    if not loc:
        return message
    given = repr(first["input"])
    given = given if len(given) <= LONGEST else f"{given[:LONGEST]}..."
    return f"{dotted} = {given}: {message}{_line(text, key)}"


def _known(model: type[BaseModel], loc: Sequence[Any]) -> list[str]:
    inside = next((TABLES[part] for part in loc if part in TABLES), model)
    return list(inside.model_fields)


def line_of(text: str, message: str) -> int | None:
    """The line of TOML that a message speaks of: where the last of the names that it quotes stands."""
    lines = text.splitlines()
    found: int | None = None
    for name in re.findall(r"'([^']+)'", message.partition("; did you mean")[0]):
        quoted = re.compile(rf"""["']{re.escape(name)}["']|^\s*(\w+\.)*{re.escape(name)}\s*=""")
        after = range(found or 0, len(lines))
        found = next((k for k in [*after, *range(len(lines))] if quoted.search(lines[k])), found)
    return None if found is None else found + 1


def _line(text: str, key: str) -> str:
    for number, line in enumerate(text.splitlines(), 1):
        if line.split("=")[0].strip().strip("[]\"'").split(".")[-1] == key:
            return f" (line {number})"
    return ""
