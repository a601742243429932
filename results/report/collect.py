"""What a report shows, as plain numbers from the tables of a run; nothing is computed again later."""

from __future__ import annotations

import itertools
import json
import math
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from advens.errors import InputError, RunError
from advens.files import inside
from advens.results.boards import BOARDS, read_board
from advens.results.boards.board import path_of
from advens.results.boards.defenses import NUMBERS, TRIAL, WHITE_BOX, read_trial
from advens.results.boards.likeness import FIRST
from advens.results.boards.outcomes import KEYS, target_families
from advens.results.boards.rows import NoRows, Rows
from advens.results.formats import percent, shorten
from advens.results.store import RunStore, read_json, read_table

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

LAST_FAMILIES = ("robust", "randomized", "")
"""Families of targets that stand after the architectures."""
MOST_SERIES = 6
"""Surrogates that have a line of their own in the charts of traces."""
_NORMS = {"linf": "l_inf", "l2": "l_2", "l1": "l_1"}


@dataclass(frozen=True)
class Rate:
    """A fraction with its 95 % interval; the ends are None where nothing is known of it."""

    value: float | None
    low: float | None = None
    high: float | None = None

    @property
    def percent(self) -> str:
        """``57.3`` for 0.573; a dash for what is not known."""
        return in_percent(self.value)

    @property
    def ends(self) -> str:
        """``47.0–67.0``; a dash without an interval."""
        if self.low is None or self.high is None:
            return "–"
        return f"{in_percent(self.low)}–{in_percent(self.high)}"

    def __str__(self) -> str:
        """``57.3 % [47.0–67.0]``, or without an interval ``57.3 %``."""
        return f"{self.percent} %" + (f" [{self.ends}]" if self.low is not None else "")


@dataclass(frozen=True)
class Recipe:
    """What an attack of a row is, and what it was crafted on.

    Args:
        parts: names and values of its specification, in order.
        surrogates: the models of the set.
        json: the specification as it is stored.
    """

    parts: tuple[tuple[str, str], ...]
    surrogates: tuple[str, ...]
    json: str


@dataclass(frozen=True)
class Row:
    """A row of the leaderboard: an attack on a set of surrogates.

    Args:
        new: the mean rate with the interval for new models and new images.
        these: the same mean with the interval for these targets and new images.
        ranks: the interval of the rank for new models.
        new_letters, these_letters: of both questions.
        p_first: of the difference to the first row, for new models.
        targets: held-out targets in the mean.
    """

    suite: str
    attack: str
    surrogates: str
    set: str
    rank: int
    ranks: tuple[int, int] | None
    new: Rate
    these: Rate
    new_letters: str
    these_letters: str
    p_first: float | None
    white_box: float | None
    forwards: float | None
    backwards: float | None
    seconds: float | None
    pareto: bool
    targets: int
    n: int
    family: str
    recipe: Recipe

    @property
    def name(self) -> str:
        """How sentences call it."""
        return f"{self.attack} on {self.set}"

    @property
    def compute(self) -> float | None:
        """What it spends on an image; see `compute`."""
        return compute(self.forwards, self.backwards)


@dataclass(frozen=True)
class Target:
    """A column of the matrix."""

    name: str
    short: str
    family: str


@dataclass(frozen=True)
class Cell:
    """An attack on a target."""

    rate: Rate
    n: int
    clean: float | None
    robust: float | None
    error: float | None
    white_box: bool
    counted: bool


@dataclass(frozen=True)
class Transfer:
    """The leaderboard and the matrix of a run.

    Args:
        rows: by rank.
        targets: by family.
        cells: a row of cells for each of ``rows``; None where nothing was evaluated.
        held_out: the targets that all means are over; None when each row has its own.
        out_of_reach: whether too few targets are held out to say anything of new models.
        notes: what a reader must see.
        randomized: targets whose rates are expected over their members.
        seeds: how many.
    """

    rows: tuple[Row, ...]
    targets: tuple[Target, ...]
    cells: tuple[tuple[Cell | None, ...], ...]
    held_out: tuple[str, ...] | None
    out_of_reach: bool
    notes: tuple[str, ...]
    randomized: tuple[str, ...]
    seeds: int

    @property
    def families(self) -> list[tuple[str, int]]:
        """Families of the targets in order, with the number of their targets."""
        found: dict[str, int] = {}
        for target in self.targets:
            found[target.family] = found.get(target.family, 0) + 1
        return list(found.items())

    def called(self, names: Iterable[str]) -> list[str]:
        """What targets are called in short."""
        short = {target.name: target.short for target in self.targets}
        return [short.get(name, name) for name in names]

    @property
    def kinds(self) -> list[str]:
        """The families of the attacks, by name."""
        return sorted({row.family for row in self.rows} - {""})

    @property
    def sets(self) -> list[str]:
        """The sets of surrogates, by name."""
        return sorted({row.set for row in self.rows})


@dataclass(frozen=True)
class Left:
    """What an attack leaves to a model: a row of the board of robustness."""

    attack: str
    rate: Rate
    letters: str
    n: int
    forwards: float | None
    backwards: float | None
    total_forwards: float | None
    total_backwards: float | None
    seconds: float | None
    last_broke: float | None
    rounds: int | None
    converged: bool | None

    @property
    def compute(self) -> float | None:
        """What it spends on an image with the stages before; see `compute`."""
        return compute(self.total_forwards, self.total_backwards)


@dataclass(frozen=True)
class Attacked:
    """A model and what every attack leaves to it, the weakest attack first.

    Args:
        worst: over all attacks; None when there was one attack alone.
    """

    model: str
    short: str
    n: int
    clean: float | None
    attacks: tuple[Left, ...]
    worst: Rate | None

    @property
    def least(self) -> Rate:
        """What is left under all attacks."""
        return self.strongest.rate if self.worst is None else self.worst

    @property
    def strongest(self) -> Left:
        """The attack that leaves least; of several the one of the fewest passes."""
        return min(self.attacks, key=lambda left: 1.0 if left.rate.value is None else left.rate.value)


@dataclass(frozen=True)
class Check:
    """A check of an evaluation that passed or failed.

    Args:
        model: what the model is called in short.
        name: its whole name.
    """

    model: str
    check: str
    passed: bool
    value: float | None
    bound: float | None
    detail: str
    name: str = ""


@dataclass(frozen=True)
class Growing:
    """The accuracy that a gradient attack leaves to a model while one of its settings grows.

    Args:
        key: the setting.
        at, accuracy: its values, and what is left.
        n: images.
    """

    model: str
    key: str
    at: tuple[float, ...]
    accuracy: tuple[float, ...]
    n: int


@dataclass(frozen=True)
class Robustness:
    """The board of robustness, and the sanity report beside it."""

    models: tuple[Attacked, ...]
    notes: tuple[str, ...]
    checks: tuple[Check, ...]
    growing: tuple[Growing, ...] = ()


@dataclass(frozen=True)
class Line:
    """A line of a table of defenses.

    Args:
        control: label of the line that was trained with as much compute; empty without one.
        measures: rates by the name of their column, in order; those of transfer by budget among them.
        numbers: what is no rate, as cost.
        letters: by the name of a measure.
    """

    label: str
    kind: str
    control: str
    members: int
    trainings: int
    measures: dict[str, Rate]
    numbers: dict[str, float | None]
    letters: dict[str, str]


@dataclass(frozen=True)
class Members:
    """How often images crafted on one member of an ensemble break another."""

    model: str
    rates: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Defenses:
    """Tables of defenses.

    Args:
        tables: lines by the title of their table; one without a title for models that were given.
        budgets: of transfer, as written.
        members: transfer between the members of each ensemble that it was measured of.
        pooled: whether lines are means over trainings.
    """

    tables: dict[str, tuple[Line, ...]]
    budgets: tuple[str, ...]
    members: tuple[Members, ...]
    notes: tuple[str, ...]
    pooled: bool


@dataclass(frozen=True)
class Series:
    """Values over the steps of an attack.

    Args:
        label: of the surrogate; empty for what is about all.
        steps, values: means over images.
    """

    label: str
    steps: tuple[int, ...]
    values: tuple[float, ...]


@dataclass(frozen=True)
class Traced:
    """What was observed of an attack on a set of surrogates while it ran.

    Args:
        curves: by what was observed, as ``weights``.
        results: what was noted once, of the result: means by what it is and by surrogate.
    """

    attack: str
    set: str
    images: int
    surrogates: int
    curves: dict[str, tuple[Series, ...]]
    results: dict[str, tuple[tuple[str, float], ...]]


@dataclass(frozen=True)
class Curve:
    """A setting that a suite sweeps.

    Args:
        key: what is swept.
        label: of everything that stays the same.
        points: the value and the row.
    """

    key: str
    label: str
    points: tuple[tuple[float, Row], ...]


@dataclass(frozen=True)
class Noted:
    """What was noted of a model while surrogates were built from it: trials of a search, or collections.

    Args:
        model: empty where every call is about another model.
        calls: how many there were.
        values: of every call, by what was noted; 1 and 0 for yes and no.
    """

    model: str
    calls: int
    values: dict[str, tuple[float, ...]]

    @property
    def chosen(self) -> int | None:
        """The trial that a search chose."""
        found = self.values.get("chosen", ())
        return found.index(1.0) if 1.0 in found else None

    @property
    def strengths(self) -> tuple[str, ...]:
        """What a search varied."""
        return tuple(what for what in self.values if what not in _SCORES)


_SCORES = ("objective", "clean_accuracy", "allowed", "chosen", "update", "lr", "loss", "accuracy", "kept")
"""What builders note beside the strengths that a search varies."""


@dataclass(frozen=True)
class Built:
    """A set of surrogates that a builder makes.

    Args:
        noted: of its first seed, how it came about.
        made: what copies are called that differ in what happens inside them, with the strengths that a
            search found; none for sets of weights, which have numbers for names.
    """

    name: str
    builder: str
    models: tuple[str, ...]
    members: int
    made: tuple[str, ...]
    options: tuple[tuple[str, str], ...]
    noted: tuple[Noted, ...] = ()


@dataclass(frozen=True)
class Origin:
    """Where a run comes from.

    Args:
        suite: as resolved, in TOML.
        facts: versions and the like, in order.
        models, data: digests by name.
    """

    suite: str
    facts: tuple[tuple[str, str], ...]
    models: tuple[tuple[str, str], ...]
    data: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Part:
    """A run of attacks: the directory itself, or one of the folders of a suite of defenses, with a title."""

    title: str
    folder: str = ""
    transfer: Transfer | None = None
    robustness: Robustness | None = None
    traces: tuple[Traced, ...] = ()
    curves: tuple[Curve, ...] = ()
    built: tuple[Built, ...] = ()
    threat: str = ""
    images: int = 0
    targeted: bool = False


@dataclass(frozen=True)
class Report:
    """All that a page shows but its pictures."""

    name: str
    goal: str
    parts: tuple[Part, ...]
    defenses: Defenses | None
    origin: Origin


class Run:
    """A directory of a run, read when it is needed.

    Args:
        directory: of a run of attacks.
        aliases: what some models are called instead of their names.
    """

    def __init__(self, directory: Path, aliases: Mapping[str, str] | None = None) -> None:
        self.store, self.rows = RunStore.open(directory), Rows(directory)
        self.directory = directory
        self.aliases = aliases or {}

    @cached_property
    def cells(self) -> pd.DataFrame:
        """The cells that were crafted."""
        return self.store.read_cells()

    def board(self, name: str) -> pd.DataFrame | None:
        """A board as it is stored, computed where no file of now holds it; None without rows for it.

        Raises:
            RunError: a damaged file.
        """
        path = path_of(self.directory, BOARDS.get(name))
        if path.is_file() and self.store.current(path):
            return read_board(self.directory, name)
        try:
            return BOARDS.get(name).compute(self.rows)
        except NoRows:
            return None

    def short(self, names: Sequence[str]) -> list[str]:
        """What names of models are called: without the source that all share, or by their alias."""
        return short_names(names, self.aliases)

    def said(self, notes: Iterable[object]) -> tuple[str, ...]:
        """Notes, each once, in which models are called by their aliases."""
        return _said(notes, self.aliases)

    def families(self, targets: Sequence[str]) -> dict[str, str]:
        """The family of each target, from one file of rows for each."""
        columns = ["target", "target_family", "member"]
        pieces = self.store.a_piece_of_each()
        read = [self.store.read_rows(piece).select(columns).to_pandas() for piece in pieces]
        if not read:
            return dict.fromkeys(targets, "")
        return families_of(pd.concat(read, ignore_index=True), targets)


def short_names(names: Sequence[str], aliases: Mapping[str, str]) -> list[str]:
    """What names of models are called: without the source that all share, or by their alias."""
    sourced = [name for name in names if name not in aliases and ":" in name]
    shown = dict(zip(sourced, shorten(sourced), strict=True)) | dict(aliases)
    if len(set(shown) | set(names)) > len({shown.get(name, name) for name in (*shown, *names)}):
        return list(names)  # a set is called what a model would be
    return [shown.get(name, name) for name in names]


def _said(notes: Iterable[object], aliases: Mapping[str, str]) -> tuple[str, ...]:
    found = []
    for note in map(str, notes):
        for name in sorted(aliases, key=len, reverse=True):
            note = note.replace(name, aliases[name])
        found.append(note)
    return tuple(dict.fromkeys(found))


def families_of(samples: pd.DataFrame, targets: Sequence[str]) -> dict[str, str]:
    """The family of each of some targets, from rows of samples."""
    samples = samples[samples["target"].isin(targets)]
    names = sorted(set(samples["target"]))
    place = pd.Index(names).get_indexer(pd.Index(samples["target"])).astype(np.int64)
    known = dict(zip(names, target_families(samples, place, names), strict=True))
    return {name: known.get(name, "") for name in targets}


def collect(directory: Path | str) -> Report:
    """Everything that the page of a run shows, from its stored tables.

    Raises:
        InputError: there is no run, or nothing is finished.
        RunError: a damaged file.
    """
    directory = Path(directory)
    suite = suite_of(directory)
    if inside(directory, TRIAL).is_file():
        return _of_defenses(directory, suite)
    run = Run(directory)
    if run.cells.empty:
        raise InputError(f"{directory} holds no finished cells yet")
    name = str(suite.get("name") or run.cells["suite"].iloc[0])
    goal = str(suite.get("goal") or "transfer")
    return Report(
        name, goal, (_part(run, "", suite),), None, _origin([directory], suite, run.cells)
    )


def _of_defenses(directory: Path, suite: dict[str, Any]) -> Report:
    trial, models = read_trial(directory), read_board(directory, "models")
    aliases = _aliases(models)
    folders = {f"Transfer, eps = {eps}": folder for eps, folder in trial.folders.items()}
    parts, found, cells = [], [directory], []
    for title, folder in {**folders, "White-box attacks": WHITE_BOX}.items():
        where = inside(directory, folder)
        if not where.is_dir():
            continue
        run = Run(where, aliases)
        parts.append(_part(run, title, suite_of(where), folder))
        found.append(where)
        cells.append(run.cells)
    together: pd.DataFrame = pd.concat(cells, ignore_index=True)
    return Report(
        str(suite.get("name") or directory.name), "defense", tuple(parts),
        _defenses(directory, models, trial.budgets, aliases), _origin(found, suite, together),
    )  # fmt: skip


def _part(run: Run, title: str, suite: dict[str, Any], folder: str = "") -> Part:
    cells = run.cells
    goals = set(cells["goal"].fillna("transfer"))
    robust = goals == {"robustness"}
    transfer = None if robust else _transfer(run)
    rows = transfer.rows if transfer is not None else ()
    threats = sorted(
        {f"{_NORMS.get(n, n)} ≤ {e}" for n, e in zip(cells["norm"], cells["eps"], strict=True)}
    )
    images = max((s[1] for s in cells["shard"] if len(s) == 2 and isinstance(s[1], int)), default=0)
    return Part(
        title, folder, transfer, _robustness(run) if robust else None, _traces(run), _curves(rows),
        _built(suite, run), ", ".join(threats), images, _targeted(suite),
    )  # fmt: skip


def _targeted(suite: Mapping[str, Any]) -> bool:
    threat = suite.get("threat")
    return isinstance(threat, dict) and threat.get("targeted") is True


# --- transfer -------------------------------------------------------------------------------------


def _transfer(run: Run) -> Transfer | None:
    board, matrix = run.board("leaderboard"), run.board("matrix")
    if board is None or matrix is None:
        return None
    families = run.families(sorted(set(matrix["target"])))
    return transfer_of(board, matrix, run.cells, families, run.aliases)


def transfer_of(
    board: pd.DataFrame, matrix: pd.DataFrame, cells: pd.DataFrame, families: Mapping[str, str],
    aliases: Mapping[str, str],
) -> Transfer:  # fmt: skip
    """A leaderboard and the matrix below it.

    Args:
        cells: of the runs that they are of.
        families: of all targets, by name.
        aliases: what some models are called instead of their names.
    """
    recipes = recipes_of(cells)
    called = short_names(list(board["surrogates"]), aliases)
    sets = dict(zip(board["surrogates"], called, strict=True))
    rows = tuple(_row(row, sets, recipes) for row in board.to_dict(orient="records"))
    names = sorted(families, key=lambda name: (*_order(families[name]), name))
    targets = tuple(
        Target(name, short, families[name])
        for name, short in zip(names, short_names(names, aliases), strict=True)
    )
    found = {
        (str(row["suite"]), str(row["attack"]), str(row["surrogates"]), str(row["target"])): row
        for row in matrix.to_dict(orient="records")
    }
    held_out = board.attrs.get("targets")
    rates = tuple(
        tuple(
            _cell(found.get((row.suite, row.attack, row.surrogates, t.name)), held_out)
            for t in targets
        )
        for row in rows
    )
    notes = [*(board.attrs.get("notes") or []), *(matrix.attrs.get("near_duplicates") or [])]
    return Transfer(
        rows, targets, rates, None if held_out is None else tuple(map(str, held_out)),
        bool(board["models_low"].isna().all()) and bool((board["targets"] > 0).any()),
        _said(notes, aliases), tuple(map(str, matrix.attrs.get("randomized") or [])),
        int(matrix["seeds"].max()),
    )  # fmt: skip


def _row(row: Mapping[str, Any], sets: Mapping[str, str], recipes: Mapping[Any, Recipe]) -> Row:
    key = tuple(str(row[name]) for name in KEYS)
    mean, low = _number(row["mean_asr"]), _whole(row["rank_low"])
    high = _whole(row["rank_high"])
    return Row(
        suite=key[0], attack=key[1], surrogates=key[2], set=sets[row["surrogates"]], rank=int(row["rank"]),
        ranks=None if low is None or high is None else (low, high),
        new=Rate(mean, _number(row["models_low"]), _number(row["models_high"])),
        these=Rate(mean, _number(row["asr_low"]), _number(row["asr_high"])),
        new_letters=str(row["models_group"]), these_letters=str(row["group"]),
        p_first=_number(row["p_first"]), white_box=_number(row["white_box_asr"]),
        forwards=_number(row["forwards_per_sample"]), backwards=_number(row["backwards_per_sample"]),
        seconds=_number(row["seconds_per_image"]), pareto=bool(row["pareto"]), targets=int(row["targets"]),
        n=int(row["n"]), family=str(row["family"]), recipe=recipes.get(key, Recipe((), (), "")),
    )  # fmt: skip


def _cell(row: Mapping[str, Any] | None, held_out: Iterable[str] | None) -> Cell | None:
    if row is None:
        return None
    white = bool(row["white_box"])
    repeated = row.get(FIRST) not in (None, row["target"]) and not _missing(row.get(FIRST))
    counted = not white and (row["target"] in held_out if held_out is not None else not repeated)
    return Cell(
        Rate(_number(row["asr"]), _number(row["asr_low"]), _number(row["asr_high"])), int(row["n"]),
        _number(row["clean_accuracy"]), _number(row["robust_accuracy"]), _number(row["error_rate"]),
        white, counted,
    )  # fmt: skip


def _order(family: str) -> tuple[int, str]:
    return (LAST_FAMILIES.index(family) + 1 if family in LAST_FAMILIES else 0), family


def recipes_of(cells: pd.DataFrame) -> dict[tuple[str, ...], Recipe]:
    """What the attack of every row is; of cells that differ, the first."""
    found = {}
    for cell in cells.drop_duplicates(KEYS).to_dict(orient="records"):
        params = _object(cell["attack_params"])
        spec = json.dumps(params, sort_keys=True)
        key = tuple(str(cell[name]) for name in KEYS)
        found[key] = Recipe(tuple(_parts(params)), tuple(map(str, cell["surrogate_specs"])), spec)
    return found


def _object(params: Any) -> dict[str, Any]:
    """A specification as a mapping, also from the text of older runs; empty for anything else."""
    if isinstance(params, str):
        try:
            params = json.loads(params)
        except ValueError:
            return {}
    return params if isinstance(params, dict) else {}


def _parts(params: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    """A specification as names and values of one line each."""
    for key, value in params.items():
        if value in ([], {}, None) or key == "name":
            continue
        yield key.replace("_", " "), _value(value)


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        name = str(value.get("name", ""))
        others = [f"{key} {_value(each)}" for key, each in value.items() if key != "name"]
        return f"{name} ({', '.join(others)})" if name and others else name or ", ".join(others)
    if isinstance(value, (list, tuple)):
        return "; ".join(map(_value, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


# --- what suites sweep ----------------------------------------------------------------------------

_LEAST_POINTS = 3


def _curves(rows: Sequence[Row]) -> tuple[Curve, ...]:
    """Settings that take three or more values while everything else stays the same."""
    found: dict[tuple[str, str, str], dict[float, Row]] = {}
    for row in rows:
        if not row.recipe.json or row.new.value is None:
            continue
        for key, value, rest in _swept(json.loads(row.recipe.json)):
            found.setdefault((key, rest, row.surrogates), {}).setdefault(value, row)
    curves = [
        Curve(
            key,
            f"{_stem(points.values())} on {next(iter(points.values())).set}",
            tuple(sorted(points.items(), key=lambda point: point[0])),
        )
        for (key, _, _), points in found.items()
        if len(points) >= _LEAST_POINTS
    ]
    return (*curves, *_by_size(rows))


def _swept(spec: dict[str, Any]) -> Iterable[tuple[str, float, str]]:
    """Each setting of an attack that may be swept, its value, and the attack without it."""
    threat = spec.get("threat")
    for key, holder in (("eps", threat), ("steps", spec), ("budget", spec)):
        value = holder.get(key) if isinstance(holder, dict) else None
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
            rest = spec | (
                {"threat": threat | {"eps": None}} if key == "eps" and threat else {key: None}
            )
            yield key, float(value), json.dumps(rest, sort_keys=True)


def _by_size(rows: Sequence[Row]) -> Iterable[Curve]:
    """Attacks on sets of surrogates that contain each other."""
    found: dict[str, dict[frozenset[str], Row]] = {}
    for row in rows:
        if row.recipe.surrogates and row.new.value is not None:
            found.setdefault(row.recipe.json, {}).setdefault(frozenset(row.recipe.surrogates), row)
    for sets in found.values():
        chain = sorted(sets, key=len)
        nested = all(a < b for a, b in itertools.pairwise(chain))
        if nested and len(chain) >= _LEAST_POINTS:
            points = tuple((float(len(each)), sets[each]) for each in chain)
            yield Curve("surrogates", _stem(sets.values()), points)


def _stem(rows: Iterable[Row]) -> str:
    """What the labels of rows begin with, or the first of them."""
    labels = [row.attack for row in rows]
    first, last = min(labels), max(labels)
    shared = 0
    while shared < min(len(first), len(last)) and first[shared] == last[shared]:
        shared += 1
    return first[:shared].rstrip(" -_=,.0123456789") or labels[0]


# --- robustness -----------------------------------------------------------------------------------


def _robustness(run: Run) -> Robustness | None:
    board = run.board("robustness")
    if board is None:
        return None
    models = list(dict.fromkeys(map(str, board["model"])))
    return robustness_of(
        board, dict(zip(models, run.short(models), strict=True)), run.said(board.attrs.get("notes") or []),
        _checks(run), _growing(run),
    )  # fmt: skip


def robustness_of(
    board: pd.DataFrame, called: Mapping[str, str], notes: Sequence[str], checks: Sequence[Check],
    growing: Sequence[Growing],
) -> Robustness:  # fmt: skip
    """A board of robustness, with what the sanity reports of its models say.

    Args:
        called: what its models are called in short, in order.
    """
    found = []
    for model, short in called.items():
        own = board[board["model"] == model].to_dict(orient="records")
        left = [_left(row) for row in own]
        worst = [each for each in left if each.attack == _WORST]
        found.append(Attacked(
            model, short, max(each.n for each in left), _number(own[0]["clean_accuracy"]),
            tuple(each for each in left if each.attack != _WORST), worst[0].rate if worst else None,
        ))  # fmt: skip
    return Robustness(tuple(found), tuple(notes), tuple(checks), tuple(growing))


_WORST = "worst of all"


def _left(row: Mapping[str, Any]) -> Left:
    converged = row.get("converged")
    return Left(
        str(row["attack"]), Rate(*(_number(row[key]) for key in ("robust_accuracy", "low", "high"))),
        str(row["group"]), int(row["n"]), _number(row["forwards_per_sample"]),
        _number(row["backwards_per_sample"]), _number(row["total_forwards"]),
        _number(row["total_backwards"]), _number(row["total_seconds"]), _number(row.get("last_broke")),
        _whole(row.get("rounds")), None if _missing(converged) else bool(converged),
    )  # fmt: skip


def _checks(run: Run) -> tuple[Check, ...]:
    """The checks of the sanity report of a run, where there is one."""
    if not path_of(run.directory, BOARDS.get("sanity")).is_file():
        return ()
    rows = read_board(run.directory, "sanity").to_dict(orient="records")
    names = run.short([str(row["model"]) for row in rows])
    return tuple(
        Check(name, str(row["check"]), bool(row["passed"]), _number(row["value"]), _number(row["bound"]),
              str(row["detail"]), str(row["model"]))
        for name, row in zip(names, rows, strict=True)
    )  # fmt: skip


def _growing(run: Run) -> tuple[Growing, ...]:
    """The curves of the sanity report of a run, where there is one."""
    if not path_of(run.directory, BOARDS.get("curves")).is_file():
        return ()
    board = read_board(run.directory, "curves")
    groups = list(board.groupby(["model", "curve"], sort=False))
    names = run.short([str(model) for (model, _), _ in groups])
    return tuple(
        Growing(name, str(key), tuple(map(float, own["at"])), tuple(map(float, own["accuracy"])),
                int(own["n"].max()))
        for name, ((_, key), own) in zip(names, groups, strict=True)
    )  # fmt: skip


# --- defenses -------------------------------------------------------------------------------------

_ABOUT = (
    "table", "label", "members", "kind", "trainings", "defense", "seed", "control", "n", "n open",
)  # fmt: skip
"""Columns of tables of defenses that say what a line is."""


def _defenses(
    directory: Path, models: pd.DataFrame, budgets: tuple[str, ...], aliases: Mapping[str, str]
) -> Defenses | None:
    pooled = path_of(directory, BOARDS.get("study")).is_file()
    name = "study" if pooled else "defenses"
    if not path_of(directory, BOARDS.get(name)).is_file():
        return None
    board = read_board(directory, name)
    tables: dict[str, list[Line]] = {}
    for row in board.to_dict(orient="records"):
        label = (
            str(row["label"]) if pooled else aliases.get(str(row["defense"]), str(row["defense"]))
        )
        tables.setdefault(str(row["table"]) if pooled else "", []).append(_line(row, label))
    if not pooled:  # names without the source and the folder that all share
        lines = tables.get("", [])
        names = shorten([line.label for line in lines])
        tables[""] = [replace(line, label=name) for name, line in zip(names, lines, strict=True)]
    members = tuple(
        Members(aliases.get(str(row["defense"]), str(row["defense"])), _square(row["rates"]))
        for row in models.drop_duplicates("defense").to_dict(orient="records")
        if isinstance(row["rates"], str)
    )
    notes = tuple(
        line.replace("± half of a 95 % interval", "with a 95 % interval")
        for line in BOARDS.get(name).caption(board)
    )
    return Defenses(
        {key: tuple(lines) for key, lines in tables.items()}, budgets, members, notes, pooled
    )


def _line(row: Mapping[str, Any], label: str) -> Line:
    names = [
        str(name) for name in row
        if name not in _ABOUT and not str(name).endswith((" low", " high", " group"))
    ]  # fmt: skip
    rates = {
        name: Rate(_number(row[name]), _number(row.get(f"{name} low")), _number(row.get(f"{name} high")))
        for name in names if name not in NUMBERS
    }  # fmt: skip
    members, control = _whole(row.get("members")), row.get("control")
    return Line(
        label, str(row["kind"]), "" if _missing(control) else str(control), members or 1,
        _whole(row.get("trainings")) or 1,
        {name: rate for name, rate in rates.items() if rate.value is not None},
        {name: _number(row[name]) for name in names if name in NUMBERS},
        {name: str(row[f"{name} group"]) for name in names if row.get(f"{name} group")},
    )  # fmt: skip


def _square(text: str) -> tuple[tuple[float, ...], ...]:
    try:
        return tuple(tuple(float(rate) for rate in row) for row in json.loads(text))
    except (ValueError, TypeError):
        raise RunError("models.parquet: column 'rates' does not hold a square of numbers") from None


def _aliases(models: pd.DataFrame) -> dict[str, str]:
    """What trained models are called: by the line of the table and the seed."""
    found: dict[str, str] = {}
    for row in models.to_dict(orient="records"):
        if isinstance(row["label"], str):
            seed = _whole(row["seed"])
            found.setdefault(
                str(row["defense"]), f"{row['label']} of {row['members']}, seed {seed}"
            )
    return found


# --- why ------------------------------------------------------------------------------------------


def _traces(run: Run) -> tuple[Traced, ...]:
    """The means over images of what was observed of every row, in the order of the cells."""
    folder = run.store.path("traces")
    if not folder.is_dir():
        return ()
    found: dict[tuple[str, ...], list[pa.Table]] = {}
    for cell in run.cells.to_dict(orient="records"):
        path = run.store.path("traces", f"{cell['cell']}.parquet")
        if path.is_file():
            table = read_table(path, "traces")
            if not table.num_rows:  # of an attack that notes nothing
                continue
            found.setdefault((str(cell["attack"]), str(cell["surrogates"])), []).append(table)
    names = run.short([surrogates for _, surrogates in found])
    return tuple(
        _traced(attack, name, pa.concat_tables(tables))
        for ((attack, _), tables), name in zip(found.items(), names, strict=True)
    )


def _traced(attack: str, name: str, table: pa.Table) -> Traced:
    keys = ["what", "surrogate", "step"]
    grouped = table.group_by(keys, use_threads=False)  # the same bits every time
    together = grouped.aggregate([("value", "mean")])
    frame: pd.DataFrame = together.to_pandas(ignore_metadata=True)
    frame["surrogate"] = frame["surrogate"].fillna("")
    means = frame.set_index(keys)["value_mean"].sort_index()
    short = dict(
        zip(labels := sorted(set(frame["surrogate"]) - {""}), _members(labels), strict=True)
    )
    curves: dict[str, list[Series]] = {}
    results: dict[str, list[tuple[str, float]]] = {}
    for (what, surrogate), values in means.groupby(level=[0, 1], sort=True):
        steps = [int(step) for step in values.index.get_level_values(2)]
        label = short.get(surrogate, "")
        if len(steps) > 1:
            series = Series(label, tuple(steps), tuple(map(float, values)))
            curves.setdefault(str(what), []).append(series)
        else:
            results.setdefault(str(what), []).append((label, float(values.iloc[0])))
    return Traced(
        attack, name, len(table.column("sample_id").unique()), len(labels),
        {what: _together(each) for what, each in curves.items()},
        {what: tuple(each) for what, each in results.items()},
    )  # fmt: skip


def _together(series: Sequence[Series]) -> tuple[Series, ...]:
    """The series of an observation; of more than can be told apart in a chart, their mean."""
    if len(series) <= MOST_SERIES or len({one.steps for one in series}) > 1:
        return tuple(series[:MOST_SERIES])
    mean = np.mean([one.values for one in series], axis=0)
    return (Series(f"mean of {len(series)}", series[0].steps, tuple(map(float, mean))),)


def _members(names: Sequence[str]) -> list[str]:
    """What surrogates are called in a chart: members of builds by their number."""
    members = [re.sub(r"^built:[^/]*/", "member ", name) for name in names]
    return shorten(members) if len(set(members)) == len(members) else shorten(names)


def _built(suite: Mapping[str, Any], run: Run) -> tuple[Built, ...]:
    """The sets that builders make, as the suite describes them, and how they came about."""
    sets, cells, noted = suite.get("surrogates"), run.cells, _noted(run)
    found = []
    for name, about in (sets if isinstance(sets, dict) else {}).items():
        if not isinstance(about, dict) or "build" not in about:
            continue
        own = cells[cells["surrogates"] == name]
        models = about.get("model", [])
        options = tuple(
            (str(key), _value(value))
            for key, value in about.items()
            if key not in ("build", "model")
        )
        members = list(own["surrogate_specs"].iloc[0]) if len(own) else []
        made = tuple(str(name) for name in members if not str(name).startswith("built:"))
        given = tuple(map(str, models)) if isinstance(models, list) else (str(models),)
        found.append(Built(
            str(name), str(about["build"]), given, len(members), made, options, noted.get(str(name), ())
        ))  # fmt: skip
    return tuple(found)


def _noted(run: Run) -> dict[str, tuple[Noted, ...]]:
    """How the sets of a run came about, by set, for the first seed of each."""
    folder = run.store.path("history")
    paths = sorted(folder.glob("*.parquet")) if folder.is_dir() else []
    tables = [read_table(run.store.path("history", path.name), "history") for path in paths]
    firsts: dict[str, tuple[int, pd.DataFrame]] = {}
    for table in tables:
        frame: pd.DataFrame = table.to_pandas(ignore_metadata=True)
        for (name, seed), rows in frame.groupby(["surrogates", "seed"]):
            if str(name) not in firsts or int(seed) < firsts[str(name)][0]:
                firsts[str(name)] = (int(seed), rows)
    return {name: tuple(_noted_of(run, rows)) for name, (_, rows) in firsts.items()}


def _noted_of(run: Run, rows: pd.DataFrame) -> Iterable[Noted]:
    calls = rows[["model", "call"]].drop_duplicates()
    if len(calls) == calls["call"].nunique() and calls["model"].nunique() > 1:
        rows = rows.assign(model="")  # one search over several models, as for a soup
    models = list(dict.fromkeys(map(str, rows["model"])))
    for model, short in zip(models, run.short(models), strict=True):
        own = rows[rows["model"] == model]
        wide = own.pivot_table(index="call", columns="what", values="value", sort=True)
        values = {
            str(what): tuple(map(float, wide[what]))
            for what in dict.fromkeys(own["what"]) if wide[what].notna().all()
        }  # fmt: skip
        yield Noted(short, len(wide), values)


# --- where it comes from --------------------------------------------------------------------------


def suite_of(directory: Path) -> dict[str, Any]:
    """The suite of a directory; empty where there is none. Raises RunError for a damaged one."""
    path = inside(directory, "suite.toml")
    if not path.is_file():
        return {}
    try:
        found: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
        return found
    except (ValueError, OSError) as error:
        raise RunError(f"{path} is damaged ({error})") from None


def _origin(directories: Sequence[Path], suite: Mapping[str, Any], cells: pd.DataFrame) -> Origin:
    path = inside(directories[0], "suite.toml")
    about: dict[str, Any] = {}
    models: dict[str, str] = {}
    data: dict[str, str] = {}
    for directory in directories:
        environment = inside(directory, "environment.json")
        if not environment.is_file():
            continue
        found = read_json(environment)
        if isinstance(found, dict):
            about = about or found
            models |= _texts(found.get("models"))
            data |= _texts(found.get("data"))
    facts = {
        "advens": about.get("advens"), "commit": about.get("commit"), "Python": about.get("python"),
        "platform": about.get("platform"), "device": about.get("device"),
        **_texts(about.get("packages")),
        "arithmetic": ", ".join(sorted(map(str, set(cells["arithmetic"].dropna())))),
        "seeds": ", ".join(map(str, sorted(set(cells["seed"])))), "cells": len(cells),
    }  # fmt: skip
    return Origin(
        path.read_text(encoding="utf-8") if path.is_file() else "",
        tuple((key, str(value)) for key, value in facts.items() if value not in (None, "")),
        tuple(sorted(models.items())), tuple(sorted(data.items())),
    )  # fmt: skip


def _texts(value: Any) -> dict[str, str]:
    return (
        {str(k): str(v) for k, v in value.items() if v is not None}
        if isinstance(value, dict)
        else {}
    )


def in_percent(value: float | None, digits: int = 1) -> str:
    """``57.3`` for 0.573; a dash for what is not known."""
    return "–" if value is None else percent(value, digits)


def compute(forwards: float | None, backwards: float | None) -> float | None:
    """Passes per image, a backward pass counting as two, as the Pareto set counts them; None for unknown."""
    if forwards is None or backwards is None or forwards + 2 * backwards <= 0:
        return None
    return forwards + 2 * backwards


def _missing(value: Any) -> bool:
    return value is None or bool(pd.isna(value))


def _number(value: Any) -> float | None:
    return None if _missing(value) or not math.isfinite(value) else float(value)


def _whole(value: Any) -> int | None:
    return None if _missing(value) else int(value)
