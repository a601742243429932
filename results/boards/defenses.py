"""Boards of suites of defenses: what is left of each model by image, by measure, and over trainings.

A folder of defenses holds a transfer run for every budget (``transfer-EPS/``) and a run of white-box
attacks (``white-box/``). Beside them lie ``trial.json``, the budgets and attacks in their order;
``models.parquet``, what was trained and measured; and the boards that follow from these: images, defenses
and, when lines of tables are named, study.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from advens.errors import InputError, RunError
from advens.files import inside
from advens.results.boards.board import Board, declare, read_board, to_table
from advens.results.boards.leaderboard import LEVEL
from advens.results.boards.rows import NoRows, Rows
from advens.results.columns import INT, REAL, TEXT, Column
from advens.results.formats import (
    Count,
    Ensemble,
    HalfInterval,
    Interval,
    Number,
    Numbers,
    Percent,
    Plain,
)
from advens.results.statistics import (
    LEAST_TRAININGS,
    Estimate,
    holm,
    letters,
    nanmean,
    over_trainings,
    trainings_test,
    wilson,
)
from advens.results.store import read_json, write_table

KEYS = ["table", "label", "members"]
LINE = ["table", "label", "members", "seed"]
"""What names a line of a table, and the training behind it."""
TRAINING = ("train_forwards", "train_backwards", "train_seconds")
NUMBERS = ("diversity", "mflops", *TRAINING)
"""Measures that are no fractions of images."""
TRIAL = "trial.json"
WHITE_BOX = "white-box"
"""The folder of the run of white-box attacks."""
NOTES = (
    "Accuracy in %, over all images; of randomized ensembles the expected one. transfer: the worst of each "
    "image's transferred images [95 % Wilson interval]. worst: of each image, the attack on the model itself "
    "that leaves least. missed: accuracy that transfer took and they left, as masked gradients do.",
    "of right: the same accuracy over the images that are right when clean. diversity: cross-entropy of "
    "members on images that feel to another like the target (DVERGE). shared: images crafted on one member "
    "that break another, in %. MFLOP: of one inference. passes: forward/backward passes of the training "
    "through single members, for each training image; seconds: its time. control: the line that was trained "
    "with as much compute.",
)
POOLED_NOTES = (
    "Accuracy in %, the mean over {} trainings ± half of a 95 % interval for new trainings and new images; "
    "of randomized ensembles the expected accuracy. transfer: the worst of each image's transferred images, "
    "of {}. The others attack the model itself, on {}; worst: of each image, the one that leaves least; "
    "missed: accuracy that transfer took and they left, as masked gradients do. {}",
    NOTES[1],
)
COMPARED = 1.25
"""Lines whose training compute differs by a larger factor are not compared."""
CLEAN_APART = 0.05
"""Difference of clean accuracies in a table beyond which a note names it."""
LETTERS = (
    "Lines of a table that share a letter are not told apart by a test over trainings and images (Welch's on "
    f"logits, Holm, 5 %). Lines whose training compute differs by more than a factor of {COMPARED} are not "
    "compared: of letters with numbers only those with the same number are, and a line without any has no "
    "other of like compute beside it.",
    f"Lines of fewer than {LEAST_TRAININGS} trainings have no letters: too few to tell defenses apart.",
)


@dataclass(frozen=True)
class Trial:
    """What the defenses of a folder were put through, in the order of the columns.

    Args:
        budgets: l_inf radii of transfer as written, ascending.
        attacks: labels of the white-box attacks.
    """

    budgets: tuple[str, ...]
    attacks: tuple[str, ...]

    @property
    def folders(self) -> dict[str, str]:
        """The folders of the transfer runs by budget."""
        return {eps: f"transfer-{eps.replace('/', '-')}" for eps in self.budgets}


def read_trial(directory: Path) -> Trial:
    """The trial of a folder of defenses.

    Raises:
        NoRows: the folder holds none.
        InputError: the file is damaged.
    """
    path = inside(directory, TRIAL)
    if not path.is_file():
        raise NoRows(f"{directory} holds no {TRIAL}, so that no defenses were evaluated there")
    said = read_json(path)
    try:
        # in folders of older versions, randomized ensembles met more attacks than the others
        budgets, attacks = said["budgets"], [*said["open"], *said.get("adaptive", [])]
        if not budgets or not all(isinstance(name, str) for name in (*budgets, *attacks)):
            raise ValueError("budgets and attacks are text")
    except (ValueError, TypeError, KeyError):
        raise InputError(f"{path} is damaged; run the same command again") from None
    return Trial(tuple(budgets), tuple(dict.fromkeys(attacks)))


def write_models(path: Path, rows: Iterable[Mapping[str, Any]], **metadata: object) -> None:
    """Writes a table of models; a column that a row does not mention is null there."""
    frame: pd.DataFrame = pd.DataFrame([dict(row) for row in rows], columns=[c.name for c in MODELS])
    write_table(path, to_table("models", frame, **metadata))


def models(rows: Rows) -> pd.DataFrame:
    """The models as they are stored, with diversity and transfer between members derived from all pairs."""
    read_trial(rows.directory)
    if not inside(rows.directory, "models.parquet").is_file():
        raise RunError("models.parquet is missing")
    table = read_board(rows.directory, "models")
    for name, source in (("diversity", "pairs"), ("shared", "rates")):
        table[name] = [_mean_of_pairs(source, text, default) for text, default in
                       zip(table[source], table[name], strict=True)]  # fmt: skip
    return table


def _mean_of_pairs(name: str, text: object, default: float) -> float:
    """The mean over ordered pairs of different members; the default where no pairs were measured."""
    if not isinstance(text, str):
        return default
    try:
        pairs = np.array(json.loads(text), float)
        k, width = pairs.shape
    except (ValueError, TypeError, RecursionError):
        raise RunError(f"models.parquet: column '{name}' does not hold a square of numbers") from None
    if k != width or k < 2:
        raise RunError(f"models.parquet: column '{name}' does not hold a square of numbers")
    return float((pairs.sum() - pairs.diagonal().sum()) / (k * (k - 1)))


def images(rows: Rows) -> pd.DataFrame:
    """What every accuracy is the mean of: a row for an image, a model and a measure."""
    parts: list[pd.DataFrame] = []
    trial, names = read_trial(rows.directory), _names(rows)
    for eps, folder in trial.folders.items():
        left = rows.part(folder).expected
        parts += [_by_image(name, transferred(_own(left, name), eps)) for name in names]
    left = rows.part(WHITE_BOX).expected
    parts += [_by_image(name, white_box(_own(left, name), trial.attacks)) for name in names]
    together: pd.DataFrame = pd.concat(parts, ignore_index=True)
    return together


def defenses(rows: Rows) -> pd.DataFrame:
    """A row for every model, or for every line of the tables of a study."""
    trial = read_trial(rows.directory)
    known, by_image = read_board(rows.directory, "models"), read_board(rows.directory, "images")
    lines: dict[str, dict[str, Any]] = {name: {} for name in _names(rows)}
    left = dict(list(by_image.groupby(["defense", "measure"], sort=False)["left"]))
    nothing = pd.Series([], dtype=float)
    for name, line in lines.items():
        for eps, folder in trial.folders.items():
            own = _own(rows.part(folder).expected, name)
            measures = {f"transfer {eps}": left.get((name, f"transfer {eps}"), nothing)}
            clean = float(own["clean"].mean())
            line |= {"clean": clean, "n": own["sample_id"].nunique()}
            line |= interval(measures)
            line |= {measure: float(values.mean()) for measure, values in measures.items()}
        largest = f"transfer {trial.budgets[-1]}"
        line[f"right {largest}"] = among_right(line[largest], clean)
        own = _own(rows.part(WHITE_BOX).expected, name)
        line["n open"] = own["sample_id"].nunique()
        for measure in (*(f"open {attack}" for attack in trial.attacks), "open worst"):
            line[measure] = float(left.get((name, measure), nothing).mean())
        line["right open worst"] = among_right(line["open worst"], float(own["clean"].mean()))
    gaps = missed(by_image, f"transfer {trial.budgets[-1]}")
    about = ["defense", "kind", "members"]
    if known["label"].notna().any():
        about = [*LINE, "control", "defense", "kind"]
    table: pd.DataFrame = pd.DataFrame([
        {key: row[key] for key in about}
        | lines[row["defense"]]
        | {key: row[key] for key in ("diversity", "shared", "mflops", *TRAINING)}
        | {"missed": gaps.get(row["defense"], math.nan)}
        for row in known.to_dict(orient="records")
    ])  # fmt: skip
    return table


def study(rows: Rows) -> pd.DataFrame:
    """`pooled` of a folder whose models are lines of tables. Raises NoRows for another one."""
    read_trial(rows.directory)
    if not read_board(rows.directory, "models")["label"].notna().any():
        raise NoRows(f"the models in {rows.directory} are no lines of tables")
    return pooled(read_board(rows.directory, "defenses"), read_board(rows.directory, "images"))


def _names(rows: Rows) -> list[str]:
    """The models of a folder, in order; one may be several lines of tables."""
    return list(dict.fromkeys(read_board(rows.directory, "models")["defense"]))


def _own(expected: pd.DataFrame, model: str) -> pd.DataFrame:
    own: pd.DataFrame = expected[expected["target"] == model]
    return own


def _by_image(model: str, left: Mapping[str, pd.Series]) -> pd.DataFrame:
    found = [
        values.rename("left").reset_index().assign(defense=model, measure=measure)
        for measure, values in left.items() if len(values)
    ]
    empty: pd.DataFrame = pd.DataFrame(columns=[column.name for column in IMAGES])
    return pd.concat(found, ignore_index=True) if found else empty


def transferred(own: pd.DataFrame, eps: str) -> dict[str, pd.Series]:
    """Accuracy on the worst of each image's transferred ones."""
    return {f"transfer {eps}": own.groupby("sample_id", observed=True)["left"].min()}


def white_box(own: pd.DataFrame, attacks: Sequence[str]) -> dict[str, pd.Series]:
    """Accuracy on each image after each attack on the model itself, and after the worst of them."""
    left = {
        f"open {attack}": own[own["attack"] == attack].set_index("sample_id")["left"]
        for attack in attacks
    }
    return left | {"open worst": own.groupby("sample_id", observed=True)["left"].min()}


def among_right(left: float, clean: float) -> float:
    """Accuracy after an attack over the images that are right when clean, in expectation; nan without any."""
    return left / clean if clean > 0 else math.nan


def missed(images: pd.DataFrame, transfer: str) -> dict[Any, float]:
    """Accuracy that transfer takes where white-box attacks left it, by defense: masked gradients."""
    left = images[images["measure"].isin([transfer, "open worst"])]
    both = left.pivot_table("left", ["defense", "sample_id"], "measure", observed=True).dropna()
    gap = (both["open worst"] - both[transfer]).clip(lower=0).groupby("defense", observed=True).mean()
    return {name: float(value) for name, value in gap.items()}


def interval(left: Mapping[str, pd.Series]) -> dict[str, float]:
    """Wilson's, over images."""
    ends = {name: wilson(values.sum(), len(values)) for name, values in left.items()}
    return {
        f"{name} {end}": value for name, both in ends.items()
        for end, value in zip(("low", "high"), both, strict=True)
    }  # fmt: skip


def pooled(each: pd.DataFrame, images: pd.DataFrame) -> pd.DataFrame:
    """One row for every label and size: means over trainings, with ``NAME low`` and ``NAME high``.

    Of the transfer at the largest budget, and of the worst white-box attack, ``NAME group`` has letters:
    lines of a table that share one are not told apart by a test over trainings and images (Holm, 5 %). Only
    lines of like compute are compared, see `of_like_compute`; where a table has several groups of them,
    letters carry the number of the group. Lines of fewer than `LEAST_TRAININGS` trainings, of unknown compute
    or without another of like compute have none.

    Args:
        each: a row for every trained model: `KEYS`, ``seed``, ``kind``, ``n``, ``n open`` and the
            measures of ``advens defend``.
        images: what these are means of: ``defense``, ``measure``, ``sample_id``, ``left``.
    """
    measures = [
        name for name in each.columns
        if name not in (*KEYS, "seed", "control", "defense", "kind", "n", "n open")
        and not name.endswith((" low", " high"))
    ]  # fmt: skip
    rows = []
    for key, group in each.groupby(KEYS, sort=False):
        row: dict[str, Any] = dict(zip(KEYS, key, strict=True))
        row |= {"kind": group["kind"].iloc[0], "trainings": len(group)}
        row |= {"control": group["control"].iloc[0]} if "control" in group else {}
        row |= {name: int(group[name].iloc[0]) for name in ("n", "n open")}
        for name in measures:
            values = group[name].dropna().to_numpy(float)
            found = Estimate(math.nan, math.nan, math.nan)
            if len(values):
                found = over_trainings(values, _images(row, name))
            row |= {name: found.value, f"{name} low": found.low, f"{name} high": found.high}
        rows.append(row)
    table: pd.DataFrame = pd.DataFrame(rows)
    names = [str(line) for line in table[KEYS].itertuples(index=False, name=None)]
    spent = dict(zip(names, _passes(table), strict=True))
    for measure in _ranked(measures):
        own = images[images["measure"] == measure].merge(each[[*KEYS, "defense"]], on="defense")
        signs: dict[str, str] = {}
        for _, part in own.groupby("table", sort=False):
            signs |= _letters(part, spent)
        table[f"{measure} group"] = [signs.get(name, "") for name in names]
    return table


def _passes(table: pd.DataFrame) -> list[float]:
    """Forward and backward passes of every line's training, for each training image; nan if unknown."""
    if "train_forwards" not in table:
        return [math.nan] * len(table)
    both = table[["train_forwards", "train_backwards"]].astype(float)
    return [float(value) for value in both.sum(axis=1, skipna=False)]


def _letters(part: pd.DataFrame, spent: Mapping[str, float]) -> dict[str, str]:
    """Letters of the lines of one table, see `pooled`.

    Args:
        spent: compute of every line.
    """
    left = part.pivot_table("left", "sample_id", [*KEYS, "defense"], observed=True)
    lines = {str(key): own.to_numpy(float) for key, own in left.T.groupby(level=KEYS, sort=False)}
    lines = {
        name: own.T for name, own in lines.items()
        if len(own) >= LEAST_TRAININGS and spent[name] > 0
    }  # fmt: skip
    names = sorted(lines, key=lambda name: -float(nanmean(lines[name])))
    groups = [
        [name for name in names if name in alike]
        for alike in of_like_compute({name: spent[name] for name in names}) if len(alike) > 1
    ]  # fmt: skip
    pairs = [pair for group in groups for pair in combinations(group, 2)]
    if not pairs:
        return {}
    p = holm([trainings_test(lines[a], lines[b]) for a, b in pairs])
    different = [pair for pair, q in zip(pairs, p, strict=True) if q < LEVEL]
    found: dict[str, str] = {}
    for number, group in enumerate(groups, 1):
        signs = letters(group, [pair for pair in different if pair[0] in group])
        found |= {
            name: f"{sign}{number}" if len(groups) > 1 else sign for name, sign in signs.items()
        }
    return found


def lettered(signs: str) -> tuple[str, str]:
    """The letters of a line, and the number of the group of like compute in which they hold; see `pooled`."""
    letters = signs.rstrip("0123456789")
    return letters, signs[len(letters) :]


def of_like_compute(spent: Mapping[str, float]) -> list[set[str]]:
    """Lines in groups in which compute differs by at most a factor of `COMPARED`, the least compute first.

    The groups are those of complete linkage: the two that are nearest are joined first, so that a line and
    its control, which are nearly equal, are not parted.
    """
    from scipy.cluster.hierarchy import fcluster, linkage

    names = sorted(spent, key=lambda name: spent[name])
    if len(names) < 2:
        return [{name} for name in names]
    logs = np.log([[spent[name]] for name in names])
    numbers = fcluster(linkage(logs, "complete"), np.log(COMPARED) + 1e-9, "distance")
    found: dict[int, set[str]] = {}
    for name, number in zip(names, numbers, strict=True):
        found.setdefault(int(number), set()).add(name)
    return list(found.values())


def _images(row: dict[str, Any], name: str) -> int | None:
    """The number of images that a measure is a fraction of; None for measures that are no fractions."""
    if name in NUMBERS:
        return None
    measure = name.removeprefix("right ")
    count: int = row["n" if measure == "clean" or measure.startswith("transfer ") else "n open"]
    return count if measure == name else max(2, round(count * row["clean"]))  # an interval needs two


def _ranked(measures: Sequence[str]) -> list[str]:
    """The transfer at the largest budget, and the worst white-box attack."""
    return [*[name for name in measures if name.startswith("transfer ")][-1:], "open worst"]


def pooled_notes(table: pd.DataFrame) -> list[str]:
    """What the numbers of `pooled` are."""
    most = table[["trainings", "n", "n open"]].max()
    enough = table["trainings"] >= LEAST_TRAININGS
    about = " ".join([*LETTERS[:1] * bool(enough.any()), *LETTERS[1:] * (not enough.all())])
    parts = [(f"'{name}': ", part["clean"]) for name, part in table.groupby("table", sort=False)]
    return [*(line.format(*map(int, most), about) for line in POOLED_NOTES), *clean_notes(parts)]


def clean_notes(tables: Iterable[tuple[str, pd.Series]]) -> list[str]:
    """A note on clean accuracies that differ by more than `CLEAN_APART` in a table; nothing when none do.

    Args:
        tables: what names each table, and the clean accuracies in it.
    """
    apart = [
        f"{name}{100 * clean.min():.1f} to {100 * clean.max():.1f}"
        for name, clean in tables if clean.max() - clean.min() > CLEAN_APART
    ]  # fmt: skip
    if not apart:
        return []
    return [
        f"Clean accuracy differs by more than {100 * CLEAN_APART:.0f} points in one table "
        f"({'; '.join(apart)}), and with it what an attack can take: compare the columns of right, too."
    ]


_TRAINING = (
    Column("train_forwards", REAL, "forward passes of the training through single members",
           unit="pass per training image", nullable=True, optional=True, header="passes",
           format=Numbers("train_backwards"), when="known"),
    Column("train_backwards", REAL, "backward passes of the training through single members",
           unit="pass per training image", nullable=True, optional=True),
    Column("train_seconds", REAL, "time of the training", unit="s", nullable=True, optional=True,
           header="seconds", format=Number(), when="known"),
)  # fmt: skip
"""Compute of a training, as it was counted; null where it is not known, as of models made elsewhere."""
_CONTROL = Column("control", TEXT, "label of the line that was trained with as much compute", optional=True,
                  nullable=True, header="control", when="known")  # fmt: skip
MODELS = (
    Column("defense", TEXT, "model that was evaluated"),
    Column("kind", TEXT, "single, mean (the members' mean) or randomized (a member is drawn)"),
    Column("members", INT, "number of members"),
    Column("table", TEXT, "table of the suite that the line belongs to", nullable=True),
    Column("label", TEXT, "label of the line", nullable=True),
    Column("seed", INT, "seed of the training", nullable=True),
    _CONTROL,
    *_TRAINING,
    Column("mflops", REAL, "floating-point operations of one inference", unit="10^6", nullable=True),
    Column("diversity", REAL, "mean of DVERGE's diversity over pairs of members", unit="nat", nullable=True),
    Column("shared", REAL, "mean rate at which images crafted on one member break another", unit="fraction",
           nullable=True),
    Column("why", TEXT, "why members could not be measured", nullable=True),
    Column("measured", INT, "images that members were measured on", unit="image"),
    Column("eps", REAL, "l_inf radius that members were measured with", unit="intensity in [0, 1]"),
    Column("measure_seed", INT, "seed that members were measured with"),
    Column("pairs", TEXT, "diversity of every pair of members", unit="json", nullable=True),
    Column("rates", TEXT, "rate at which images crafted on a member (row) break another", unit="json",
           nullable=True),
    Column("counted", TEXT, "images that count for each member", unit="json", nullable=True),
    Column("digest", TEXT, "digest of the model", unit="hex"),
)  # fmt: skip

IMAGES = (
    Column("sample_id", TEXT, "image of the data set"),
    Column("left", REAL, "probability that the model is still right on the image", unit="fraction"),
    Column("defense", TEXT, "model that was evaluated"),
    Column("measure", TEXT, "column of the defenses whose accuracy is the mean of these"),
)

_LINE = (
    Column("table", TEXT, "table of the suite that the line belongs to", optional=True),
    Column("label", TEXT, "label of the line", optional=True, header="defense"),
    Column("members", INT, "number of members", header="members", format=Count()),
)
_RATES = (
    Column("n", INT, "images of the transfer runs", unit="image"),
    Column("n open", INT, "images of the white-box attacks", unit="image"),
    Column("* low", REAL, "lower end of a 95 % interval", nullable=True),
    Column("* high", REAL, "upper end of a 95 % interval", nullable=True),
)

DEFENSES = (
    *_LINE,
    Column("seed", INT, "seed of the training", optional=True),
    replace(_CONTROL, header=None),
    Column("defense", TEXT, "model that was evaluated"),
    Column("kind", TEXT, "single, mean (the members' mean) or randomized (a member is drawn)", header="",
           format=Ensemble("members")),
    *_RATES,
    Column("clean", REAL, "accuracy on clean images", unit="fraction", header="clean", format=Percent()),
    Column("transfer *", REAL, "accuracy on the worst of each image's transferred images at this budget",
           unit="fraction", nullable=True, header="transfer *", format=Interval()),
    Column("open worst", REAL, "accuracy on each image after the white-box attack that leaves least",
           unit="fraction", nullable=True, header="worst", format=Percent(), when="known"),
    Column("open *", REAL, "accuracy after this white-box attack", unit="fraction", nullable=True, header="*",
           format=Percent(), when="known"),
    Column("right transfer *", REAL, "accuracy on transferred images over those that are right when clean",
           unit="fraction", nullable=True, header="transfer * of right", format=Percent(), when="known"),
    Column("right open worst", REAL, "the worst accuracy over images that are right when clean",
           unit="fraction", nullable=True, optional=True, header="worst of right", format=Percent(),
           when="known"),
    Column("missed", REAL, "accuracy that transfer took and white-box attacks left", unit="fraction",
           nullable=True, header="missed", format=Percent()),
    Column("diversity", REAL, "mean of DVERGE's diversity over pairs of members", unit="nat", nullable=True,
           header="diversity", format=Number()),
    Column("shared", REAL, "mean rate at which images crafted on one member break another", unit="fraction",
           nullable=True, header="shared", format=Percent()),
    Column("mflops", REAL, "floating-point operations of one inference", unit="10^6", nullable=True,
           header="MFLOP", format=Number()),
    *_TRAINING,
)  # fmt: skip

STUDY = (
    *_LINE,
    Column("kind", TEXT, "mean (the members' mean) or randomized (a member is drawn)", header="answers",
           format=Plain(right=True)),
    Column("trainings", INT, "trainings that the numbers are means over"),
    *_RATES,
    Column("* group", TEXT, "lines of like compute in a table that share a letter cannot be told apart"),
    Column("clean", REAL, "accuracy on clean images", unit="fraction", nullable=True, header="clean",
           format=HalfInterval(), when="known"),
    Column("transfer *", REAL, "accuracy on the worst of each image's transferred images at this budget",
           unit="fraction", nullable=True, header="transfer *", format=HalfInterval(), when="known"),
    Column("open *", REAL, "accuracy after this white-box attack, or the worst of them", unit="fraction",
           nullable=True, header="*", format=HalfInterval(), when="known"),
    Column("right transfer *", REAL, "accuracy on transferred images over those that are right when clean",
           unit="fraction", nullable=True, header="transfer * of right", format=HalfInterval(), when="known"),
    Column("right open worst", REAL, "the worst accuracy over images that are right when clean",
           unit="fraction", nullable=True, optional=True, header="worst of right", format=HalfInterval(),
           when="known"),
    Column("missed", REAL, "accuracy that transfer took and white-box attacks left", unit="fraction",
           nullable=True, header="missed", format=HalfInterval(), when="known"),
    Column("diversity", REAL, "mean of DVERGE's diversity over pairs of members", unit="nat", nullable=True,
           header="diversity", format=Number(), when="known"),
    Column("shared", REAL, "mean rate at which images crafted on one member break another", unit="fraction",
           nullable=True, header="shared", format=HalfInterval(), when="known"),
    Column("mflops", REAL, "floating-point operations of one inference", unit="10^6", nullable=True,
           header="MFLOP", format=Number(), when="known"),
    *_TRAINING,
    _CONTROL,
)  # fmt: skip

REMADE = "'advens run' or 'advens defend'"
declare(Board("models", "the defenses of a folder, and what was measured of them", MODELS, models,
              below="the measured pairs of members", remade=REMADE))  # fmt: skip
declare(Board("images", "what each measure leaves of each defense, image by image", IMAGES, images,
              remade=REMADE))  # fmt: skip
declare(Board(
    "defenses", "the accuracy that transfer and white-box attacks leave to each defense", DEFENSES, defenses,
    below="models, images and samples", remade=REMADE,
    caption=lambda table: [*NOTES, *clean_notes([("", table["clean"])])], layout="columns",
    keys=("defense",),
    order=(
        "kind", "clean", "transfer *", "open *", "right *", "missed", "diversity", "shared", "mflops",
        "train_*",
    ),
))  # fmt: skip
declare(Board(
    "study", "defenses over several trainings, with intervals and letters", STUDY, study,
    below="defenses and images", caption=pooled_notes, keys=("label", "members"),
    tables="table",
))  # fmt: skip
