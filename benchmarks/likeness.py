"""Which models behave as one: a target that answers as a surrogate does is not held out, whatever its bytes.

A wrapper, a moved weight or rescaled logits change the digest of a model and nothing that an attack meets. So
models are also compared by their answers to the clean images of the suite. From the logits of each image
their mean over classes is subtracted, and then the mean over all images of the label: what is left is how a
model errs and doubts on one image rather than on another of the same class. Models that are merely right on
the same easy images share nothing of it. The *likeness* of two models is the correlation of what is left,
over images and classes. Scaling and shifting the logits does not change it. It is taken a second time for the
ranks of the logits of each image, which no strictly increasing function of them changes (a softmax, say), and
the larger one counts.

`NEAR` lies in the gap of ``results/reference/likeness.md``, which `advens.benchmarks.studies.likeness`
measures. All 259 pairs of models that were trained apart are below 0.9, other seeds of one architecture at
0.66 and of adversarial training at 0.895. Copies that were wrapped, rescaled, rounded to 8 bits, disturbed by
noise of 3 % of each weight or trained for one more epoch are above 0.98. A copy that moved further, by noise
of 10 % or pruning, is another model to this measure.

With few images a correlation is noisy. Near-duplicates are pairs whose likeness exceeds `NEAR` by three
standard errors: of Fisher's transform, with as many observations as there are images more than labels. That
asks for 0.96 on 500 images of ten classes, 0.98 on 50 and 0.999 on a dozen, where a copy with rescaled logits
still stands out. Where fewer than `LEAST` numbers are left, only models with the same weights are
near-duplicates.

Ensembles, randomized or not, are compared with surrogates as a whole and member by member, and the most alike
pair counts: an ensemble that may answer with a surrogate's near-duplicate is not held out. Targets are
compared with each other as a whole, a randomized ensemble by the logarithm of its expected probabilities.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata

from advens.attacks.expectation import is_randomized, log_expected
from advens.benchmarks.cells import Cell
from advens.benchmarks.goals import ATTACK_GOALS
from advens.benchmarks.predictions import logits_of, members_of
from advens.benchmarks.suites import BuiltSet, Suite, expanded
from advens.benchmarks.worker_cache import WorkerCache, worker_cache
from advens.errors import InputError, InputWarning, RunError
from advens.results.boards.likeness import FILE, read_likeness
from advens.results.store import schema

Array = NDArray[np.floating[Any]]

NEAR = 0.95
"""Likeness above which two models are near-duplicates, were it known exactly."""
MARGIN = 3.0
"""Standard errors by which it must lie above."""
LEAST = 10
"""Numbers that a comparison needs: images, less their labels, times classes, less one."""
MOST = 1000
"""Images that are compared; of more, every k-th."""
TOLERANCE = 1e-4
"""What a likeness may differ by on another machine."""


@dataclass(frozen=True)
class Answers:
    """What a model says to the clean images, and what says that two models are one.

    Args:
        digests: of the model and of its weights alone.
        inside: those of the members of an ensemble.
        images, labels, classes: how many images, labels among them, and logits.
        whole: the answers of the model, by `residuals`.
        members: those of each member of an ensemble.
    """

    digests: frozenset[str]
    inside: frozenset[str]
    images: int
    labels: int
    classes: int
    whole: Array
    members: tuple[Array, ...] = ()

    @property
    def threshold(self) -> float:
        """The likeness from which a model is a near-duplicate of this one; nan when images are too few."""
        spare = self.images - self.labels
        if spare * (self.classes - 1) < LEAST:
            return float("nan")
        return float(np.tanh(np.arctanh(NEAR) + MARGIN / np.sqrt(spare)))


def residuals(logits: Array, labels: NDArray[np.int64]) -> Array:
    """Logits and their ranks without the means of images and labels, of length one: (2, N * classes) float32.

    All zeros where nothing is left, as for a model that says the same to all images.
    """
    found = []
    for values in (logits.astype(np.float64), rankdata(logits, axis=1)):
        centred = values - values.mean(axis=1, keepdims=True)
        left = centred.copy()
        for label in np.unique(labels):
            left[labels == label] -= left[labels == label].mean(axis=0)
        length, before = np.linalg.norm(left), np.linalg.norm(centred)
        found.append((left / length if length > 1e-6 * before else 0 * left).ravel())
    return np.stack(found).astype(np.float32)


def likeness(one: Array, other: Array) -> float:
    """The correlation of two models' answers, each by `residuals`: the larger of logits' and ranks'."""
    return float(np.clip((one * other).sum(axis=1, dtype=np.float64).max(), -1, 1))


def answers(cache: WorkerCache, name: str, source: str) -> Answers:
    """What a model answers to the clean images. Raises InputError when it cannot be loaded or run."""
    batch, model = cache.spread(source, MOST), cache.models.get([name])[0]
    labels = batch.labels.numpy()

    def left(logits: torch.Tensor) -> Array:
        return residuals(logits.double().numpy(), labels)

    drawn = members_of(model) if is_randomized(model) else []
    each: list[Any] = [part.model for part in drawn] or list(model.members)
    with warnings.catch_warnings():  # evaluating has warned
        warnings.simplefilter("ignore", InputWarning)
        of_members = [logits_of(cache, member, batch.pixels, None) for member in each]
        if drawn:
            shares = torch.tensor([part.probability for part in drawn])
            whole = log_expected(torch.stack(of_members), shares)
        else:
            whole = logits_of(cache, model, batch.pixels, None)
    return Answers(
        digests=_digests(model), inside=frozenset().union(*map(_digests, each)),
        images=len(labels), labels=len(np.unique(labels)), classes=model.num_classes,
        whole=left(whole), members=tuple(map(left, of_members)),
    )  # fmt: skip


def _digests(model: Any) -> frozenset[str]:
    return frozenset({model.digest, model.weights})


@dataclass(frozen=True)
class Answer:
    """Let a model answer the clean images that it is compared on."""

    name: str
    source: str

    @property
    def title(self) -> str:
        return self.name

    def do(self, device: str) -> Answers:
        """The answers. A model that cannot be run fails, and others go on."""
        try:
            return answers(worker_cache(device), self.name, self.source)
        except InputError as error:
            raise RunError(str(error)) from error


@dataclass(frozen=True)
class Comparison:
    """What is compared in a run.

    Args:
        source: the data.
        targets: names, sorted.
        sets: the models of every surrogate set, and those that built ones were built from.
        known: digests of the weights of every set, and of what its models were built from.
    """

    source: str
    targets: tuple[str, ...]
    sets: Mapping[str, tuple[str, ...]]
    known: Mapping[str, frozenset[str]]

    @classmethod
    def of(cls, cells: Iterable[Cell], suite: Suite) -> Comparison:
        """The targets of a suite, and the surrogate sets of its cells."""
        sets: dict[str, tuple[str, ...]] = {}
        known: dict[str, frozenset[str]] = {}
        for cell in cells:
            name = cell.surrogates
            wanted = suite.surrogates.get(name)
            bases = wanted.models if isinstance(wanted, BuiltSet) else ()
            sets[name] = tuple(dict.fromkeys([*sets.get(name, bases), *cell.specs]))
            known[name] = known.get(name, frozenset()).union(cell.digests, cell.bases)
        return cls(suite.source, tuple(sorted(expanded(suite.targets))), sets, known)

    @property
    def models(self) -> list[str]:
        """The models that answer, each once; none where there is nothing to compare them with."""
        every = dict.fromkeys([*self.targets, *(m for each in self.sets.values() for m in each)])
        return list(every) if self.targets and self.sets else []

    def table(self, given: Mapping[str, Answers]) -> pd.DataFrame:
        """The pairs of targets with surrogate sets, and with each other, of the models that answered.

        Pairs that are white-box by their weights are left out.
        """
        rows: list[dict[str, Any]] = []
        there = [name for name in self.targets if name in given]
        for target in there:
            for name, models in sorted(self.sets.items()):
                found = sorted(model for model in models if model in given)
                if not found or given[target].digests & self.known[name]:
                    continue
                alike = [_in_parts(given[target], given[model]) for model in found]
                best = int(np.argmax(alike))
                same = bool(given[target].inside & self.known[name])
                rows.append(_row(target, name, found[best], given[target], alike[best], same))
        for model, target in combinations(there, 2):
            one, other = given[model], given[target]
            same = bool(one.digests & other.digests)
            rows.append(_row(target, None, model, other, likeness(one.whole, other.whole), same))
        table: pd.DataFrame = pd.DataFrame(rows, columns=schema.LIKENESS.names)
        return table.astype({"images": int, "likeness": float, "near_duplicate": bool})


def _in_parts(one: Answers, other: Answers) -> float:
    """The likeness of two models, or of their members: the largest."""
    pairs = product((one.whole, *one.members), (other.whole, *other.members))
    return max(likeness(*pair) for pair in pairs)


def _row(
    target: str, surrogates: str | None, model: str, said: Answers, alike: float, same: bool = False
) -> dict[str, Any]:
    return {
        "target": target, "surrogates": surrogates, "model": model, "images": said.images,
        "likeness": None if np.isnan(said.threshold) else alike,
        "near_duplicate": same or alike >= said.threshold,
    }  # fmt: skip


def likeness_mismatches(
    directory: Path, suite: Suite, cells: Iterable[Cell], cache: WorkerCache, note: Callable[[str], object]
) -> Iterator[str]:
    """What is wrong with the likeness that a run stored: every model answers again.

    Args:
        cells: of the run, those that are sound; without any, no model is loaded.
        note: called with every pair of near-duplicates; and when a run from before models were compared
            holds no table, which is no mismatch where none are near-duplicates.
    """
    if not ATTACK_GOALS[suite.goal].held_out:
        return
    compared, given = Comparison.of(cells, suite), {}
    if not compared.models:
        return
    for name in compared.models:
        with suppress(InputError, RunError):  # as in the run
            given[name] = answers(cache, name, compared.source)
    found = compared.table(given)
    try:
        stored = read_likeness(directory)
    except (RunError, InputError) as error:
        yield str(error)
        return
    near = [f"{row.target} behaves like {row.model}" for row in found[found["near_duplicate"]].itertuples()]
    for line in dict.fromkeys(near):
        note(line)
    if stored is None:
        yield from (f"{FILE} is missing, and {line}" for line in dict.fromkeys(near))
        if not near and len(found):
            note(f"the run holds no {FILE}; compared now, no target is a near-duplicate")
        return
    keys = ["target", "surrogates", "model", "images"]
    said, wanted = (frame[keys].fillna("").to_numpy().tolist() for frame in (stored, found))
    if said != wanted:
        yield f"{FILE} does not compare the targets with what they are to be compared with"
        return
    off = (stored["likeness"] - found["likeness"]).abs()
    known = stored["likeness"].isna() == found["likeness"].isna()
    same = known & ~(off > TOLERANCE)
    threshold = max((each.threshold for each in given.values()), default=np.nan)
    tied = (found["likeness"] - threshold).abs() <= TOLERANCE
    same &= (stored["near_duplicate"] == found["near_duplicate"]) | tied
    for row in stored[~same].itertuples():
        yield f"{FILE}: the likeness of {row.target} to {row.model} is not what the models say"
