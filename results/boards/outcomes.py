"""What each image says about each (attack, surrogates) on each target, under a denominator.

The one place where success, denominators and seeds meet; the matrix, the board and every test
are means over what is built here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from advens.errors import RunError, unknown
from advens.results.boards.likeness import firsts
from advens.results.formats import shorten
from advens.results.statistics import Array

DENOMINATORS = {
    "target": "images the target gets right (all images for targeted attacks)",
    "all": "all images, misclassified before or not",
    "common": "images that every target gets right",
}
"""What a rate may be over."""
KEYS = ["suite", "attack", "surrogates"]
OF_TARGET = ("evaluated", "white_box", "clean_accuracy", "robust_accuracy", "error_rate", "seeds")
"""What `Contributions` hold of every row and target."""
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Contributions:
    """The samples of a run as arrays over rows R (attack x surrogates), targets T and images N.

    Attributes:
        rows: the keys (R rows): suite, attack, surrogates; sorted.
        targets: T names, sorted.
        families: the family of each target, see `target_families`.
        samples: N image ids, sorted.
        value: (R, T, N) success on an image, the mean over seeds, and over the members of a
            randomized target by their weights; nan outside the denominator.
        evaluated: (R, T) whether there is any sample.
        white_box: (R, T) whether the target is among the surrogates.
        clean_accuracy, robust_accuracy, error_rate: (R, T) over all images and seeds.
        seeds: (R, T) how many.
        firsts: T names: the first of the target's near-duplicates, itself when it has none.
    """

    rows: pd.DataFrame
    targets: list[str]
    families: list[str]
    samples: list[str]
    value: Array
    evaluated: Flags
    white_box: Flags
    clean_accuracy: Array
    robust_accuracy: Array
    error_rate: Array
    seeds: NDArray[np.int64]
    firsts: list[str]

    @property
    def held_out(self) -> Flags:
        """(R, T) evaluated, not white-box, and no near-duplicate of another that counts."""
        return counted_once(self.evaluated & ~self.white_box, self.firsts)

    def pick(self, rows: Sequence[int]) -> Contributions:
        """Some of the rows alone, in this order; targets and images stay."""
        own = list(rows)
        arrays = {name: getattr(self, name)[own] for name in ("value", *OF_TARGET)}
        return replace(self, rows=self.rows.iloc[own].reset_index(drop=True), **arrays)


def contributions(samples: pd.DataFrame, denominator: str = "target") -> Contributions:
    """Sorts samples into arrays.

    Args:
        samples: columns of the ``samples`` schema.
        denominator: which images count.
            ``target``: those the target got right (untargeted); all (targeted).
            ``all``: all; an untargeted attack is credited with every misclassified image.
            ``common``: those that every target among ``samples`` got right.

    Raises:
        InputError: for another denominator.
        RunError: when an image appears twice for one row, target and seed.
    """
    if denominator not in DENOMINATORS:
        raise unknown("denominator", denominator, DENOMINATORS)
    row, rows = _rows(samples)
    target, targets = _codes(samples["target"])
    sample, names = _codes(samples["sample_id"])
    seed, seeds = _codes(samples["seed"])
    shape = (len(rows), len(targets), len(names))
    pair = row * shape[1] + target
    place = pair * shape[2] + sample
    drawn, members = _codes(samples["member"].fillna(-1))
    _refuse_twice(samples, (place * max(len(seeds), 1) + seed) * max(len(members), 1) + drawn)

    weight = samples["weight"].to_numpy(float)
    clean = samples["clean_correct"].to_numpy(bool)
    success = samples["success"].to_numpy(bool)
    wrong = samples["adv_pred"].to_numpy() != samples["label"].to_numpy()
    targeted = samples["target_label"].notna().to_numpy(bool)
    counted = np.ones(len(samples), bool)
    if denominator == "target":
        counted = clean | targeted
    elif denominator == "common":
        counted = _right_everywhere(target, sample, clean, shape[1:])[sample]
    outcome = np.where(targeted, success, wrong) if denominator == "all" else success

    size = int(np.prod(shape))
    totals = np.bincount(place[counted], weights=weight[counted], minlength=size)
    sums = np.bincount(place[counted], weights=(outcome * weight)[counted], minlength=size)
    value = np.divide(sums, totals, out=np.full(size, np.nan), where=totals > 0).reshape(shape)

    def share(flag: Flags) -> Array:
        sums = np.bincount(pair, weights=flag * weight, minlength=count.size)
        rates: Array = np.divide(sums, count, out=np.full(count.size, np.nan), where=count > 0)
        return rates.reshape(shape[:2])

    count = np.bincount(pair, weights=weight, minlength=shape[0] * shape[1])
    distinct = np.unique(pair * max(len(seeds), 1) + seed) // max(len(seeds), 1)
    return Contributions(
        rows=rows, targets=targets, families=target_families(samples, target, targets), samples=names,
        value=value,
        evaluated=count.reshape(shape[:2]) > 0,
        white_box=np.nan_to_num(share(samples["white_box"].to_numpy(bool))) > 0,
        clean_accuracy=share(clean), robust_accuracy=share(clean & ~wrong), error_rate=share(wrong),
        seeds=np.bincount(distinct, minlength=count.size).reshape(shape[:2]),
        firsts=firsts(samples, targets),
    )


def target_families(samples: pd.DataFrame, target: NDArray[np.int64], targets: list[str]) -> list[str]:
    """The family of each target: ``randomized``, ``robust``, or its architecture; empty when unknown.

    A target that draws a member is randomized. Robust are adversarially trained models, told by ``-at``
    at the end of the name or ``robustbench:`` at its beginning.

    Args:
        target: the place among ``targets`` of each row of ``samples``.
    """
    first = np.zeros(len(targets), np.int64)
    first[target[::-1]] = np.arange(len(target))[::-1]
    architectures = samples["target_family"].iloc[first]
    randomized = np.bincount(target, weights=samples["member"].notna(), minlength=len(targets)) > 0
    families = []
    for name, draws, architecture in zip(targets, randomized, architectures, strict=True):
        robust = name.partition("?")[0].endswith("-at") or name.startswith("robustbench:")
        known = architecture if isinstance(architecture, str) else ""
        families.append("randomized" if draws else "robust" if robust else known)
    return families


def expected(samples: pd.DataFrame) -> pd.DataFrame:
    """One row per image and cell: the accuracies before and after, expected over a target's members."""
    shares = samples.assign(
        clean=samples["clean_correct"] * samples["weight"],
        left=(samples["clean_correct"] & ~samples["success"]) * samples["weight"],
    )
    keys = ["suite", "target", "attack", "seed", "cell", "sample_id"]
    together = shares.groupby(keys, observed=True, sort=False)[["clean", "left"]].sum()
    found: pd.DataFrame = together.reset_index()
    return found


def share_broken(left: pd.DataFrame, after: Mapping[str, str]) -> float:
    """The share of all images that cells broke of what other cells had left.

    Args:
        left: `expected` of one target on all of these cells.
        after: the cell that each cell went on from.
    """
    known = {
        (cell, sample): value
        for cell, sample, value in zip(left["cell"], left["sample_id"], left["left"], strict=True)
    }
    drops = [known[after[cell], sample] - now for (cell, sample), now in known.items() if cell in after]
    return math.fsum(drops) / len(drops)


def counted_once(held_out: Flags, firsts: Sequence[str]) -> Flags:
    """Which held-out targets count: of near-duplicates, the first that is held out from a row.

    Args:
        held_out: (R, T).
        firsts: T names, the same one for all near-duplicates.
    """
    flags: Flags = held_out.copy()
    for name in {name for name in firsts if list(firsts).count(name) > 1}:
        same = np.flatnonzero([first == name for first in firsts])
        flags[:, same] &= np.cumsum(held_out[:, same], axis=1) == 1
    return flags


def compared_targets(held_out: Flags) -> tuple[Flags, bool]:
    """Which targets enter each row's mean, so that like is compared with like.

    The targets held out from every row when there are any; else each row's own. A row without any
    held-out target has no mean and does not keep the others from having a common set.

    Args:
        held_out: (R, T).

    Returns:
        (R, T) flags, and whether the set is the same for all rows.
    """
    able: Flags = np.asarray(held_out.any(axis=1))
    everywhere: Flags = np.zeros(held_out.shape[1], bool)
    if able.any():
        everywhere = np.asarray(held_out[able].all(axis=0))
    if everywhere.any():
        return able[:, None] & everywhere[None, :], True
    return held_out.copy(), False


def _rows(samples: pd.DataFrame) -> tuple[NDArray[np.int64], pd.DataFrame]:
    coded = [_codes(samples[key]) for key in KEYS]
    flat = np.zeros(len(samples), np.int64)
    for codes, names in coded:
        flat = flat * max(len(names), 1) + codes
    found, row = np.unique(flat, return_inverse=True)
    columns = {}
    for key, (_, names) in reversed(list(zip(KEYS, coded, strict=True))):
        found, rest = np.divmod(found, max(len(names), 1))
        columns[key] = [names[k] for k in rest]
    return row.astype(np.int64), pd.DataFrame(columns, columns=KEYS)


def _codes(column: pd.Series) -> tuple[NDArray[np.int64], list[str]]:
    if isinstance(column.dtype, pd.CategoricalDtype):
        column = column.cat.remove_unused_categories()
        names = column.cat.categories
        order = np.argsort(np.asarray(names, dtype=object), kind="stable")
        codes = np.argsort(order)[column.cat.codes.to_numpy()] if len(names) else column.cat.codes
        return np.asarray(codes, np.int64), [names[k] for k in order]
    codes, found = pd.factorize(column, sort=True)
    return codes.astype(np.int64), list(found)


def _refuse_twice(samples: pd.DataFrame, place: NDArray[np.int64]) -> None:
    twice = pd.Series(place).duplicated().to_numpy()
    if twice.any():
        first = samples.iloc[int(twice.argmax())]
        cells = samples["cell"].to_numpy()[place == place[twice.argmax()]]
        raise RunError(
            f"sample '{first['sample_id']}' appears twice for attack '{first['attack']}' on "
            f"'{first['surrogates']}' against '{first['target']}', seed {first['seed']} (cells "
            f"{' and '.join(sorted(set(map(str, cells))))}): two settings share one directory; "
            "give each its own directory or its own label"
        )


def _right_everywhere(
    target: NDArray[np.int64], sample: NDArray[np.int64], clean: Flags, shape: tuple[int, ...]
) -> Flags:
    """(N,) images that every target was shown and got right, each time."""
    place = target * shape[1] + sample
    seen = np.bincount(place, minlength=shape[0] * shape[1])
    right = np.bincount(place, weights=clean, minlength=shape[0] * shape[1])
    flags: Flags = ((seen > 0) & (right == seen)).reshape(shape).all(axis=0)
    return flags


def over(denominator: object) -> str:
    """What rates are over, for a caption."""
    return DENOMINATORS.get(str(denominator), "the denominator's images")


def sizes(n: pd.Series) -> str:
    """Numbers of images, for a caption: ``100``, or ``90 to 100``."""
    least, most = int(n.min()), int(n.max())
    return f"{least}" if least == most else f"{least} to {most}"


def held_out_names(common: list[str] | None, otherwise: str) -> str:
    """The targets that a mean is over, for a caption."""
    if common is None:
        return otherwise
    names = ", ".join(shorten(common))
    return f"the {len(common)} target{'s' * (len(common) > 1)} held out from every row ({names})"
