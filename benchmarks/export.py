"""``advens craft``: a suite of one attack, run as every suite is, and its images as PNG files."""

from __future__ import annotations

import io
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from advens.benchmarks.cells import Cell
from advens.benchmarks.executors import Executor
from advens.benchmarks.plan import named_models, surrogate_sets
from advens.benchmarks.progress import Progress
from advens.benchmarks.runner import run_suite
from advens.benchmarks.suites import BuiltSet, Suite, expanded, from_table
from advens.datasets import find_data
from advens.datasets.decoding import SUFFIXES
from advens.errors import InputError, RunError
from advens.files import os_errors
from advens.models import training_data
from advens.results.boards.board import read_board
from advens.results.store import RunStore, read_cell
from advens.results.store.images import CleanImages, Pixels, read_images

PLAIN = "plain"
"""The set of the models that surrogates were built from, beside the set ``surrogates``."""


@dataclass(frozen=True)
class Exported:
    """What was crafted.

    Args:
        directory: where.
        images: how many, without those of the plain surrogates.
        fooled: share of the images that fool a model, by set of surrogates and model.
        surrogates: the models that surrogates are, or were built from.
        same_images: whether surrogates were built on the images that are attacked.
        warnings: for people.
    """

    directory: Path
    images: int
    fooled: dict[str, dict[str, float]]
    surrogates: frozenset[str]
    same_images: bool
    warnings: list[str]


def craft_images(
    suite: Suite, directory: Path, *, executor: Executor, png: bool, trace: bool = False,
    progress: Progress | None = None,
) -> Exported:  # fmt: skip
    """Run a suite of one attack; the images of its first set are written into ``images/`` (PNG), too.

    Raises:
        InputError: as a run. RunError: the attack failed.
    """
    build = next((each for each in suite.surrogates.values() if isinstance(each, BuiltSet)), None)
    same = build is not None and build.source == suite.source
    if build is not None and same and getattr(build.builder(), "calibrates", False):
        raise InputError(
            f"builder '{build.build}' may not see the images that are attacked: give --train"
        )
    report = run_suite(
        suite,
        directory,
        executor=executor,
        progress=progress,
        held_out=False,
        apart=not same,
        trace=trace,
    )
    if report.failures:
        raise RunError(report.failures[0][1])
    ids = find_data(suite.source).sample_ids
    first = next(iter(suite.surrogates))
    if png:
        write_pngs(RunStore(directory), ids, first, suite)
    matrix = read_board(directory, "matrix")
    rate = "asr" if suite.threat.targeted else "error_rate"
    mine = matrix[matrix["attack"] == suite.attacks[0].title]
    targets = expanded(suite.targets)
    fooled = {
        name: mine[mine["surrogates"] == name].set_index("target")[rate].reindex(targets).to_dict()
        for name in suite.surrogates
    }
    sets = surrogate_sets(suite, {})
    models = {m for name, made in sets.items() for m in named_models(suite, name, made)}
    return Exported(directory, len(ids), fooled, frozenset(models), same, report.warnings)


def suite_for(
    attack: str,
    surrogates: Sequence[str],
    data: str,
    *,
    norm: str,
    eps: str,
    steps: int | None,
    targeted: bool,
    seed: int,
    options: dict[str, object],
    batch_size: int | None,
    targets: Sequence[str] = (),
    build: str | None = None,
    train: str | None = None,
    limit: int | None = None,
    store: str = "differences",
) -> Suite:
    """The suite of one attack on one surrogate set.

    Args:
        options: of the attack; those that begin with ``build.`` are the builder's.
        targets: models to try the images on, beside the surrogates.
        build: a builder, or ``none``; that of the attack by default. The models it starts from
            are attacked, too, to compare.
        limit: only so many images of the data.
        store: ``differences`` or ``images``.
        train: what the builder trains on; by default the embedded models' training data, else ``data``.
    """
    from advens.attacks.registry import attack_info

    if limit is not None:
        data = f"{data}{'&' if '?' in data else '?'}limit={limit}"
    chosen = build if build is not None else attack_info(attack).builder
    chosen = "" if chosen == "none" else chosen
    inner = {key[6:]: options.pop(key) for key in list(options) if key.startswith("build.")}
    if not chosen and (inner or train):
        raise InputError(
            f"attack '{attack}' builds no surrogates: --train and build.* go with --build"
        )
    sets: dict[str, object] = {"surrogates": list(surrogates)}
    if chosen:
        known = {training_data(name) for name in surrogates}
        source = train or (known.pop() if len(known) == 1 else None) or data
        sets = {"surrogates": {"build": chosen, "model": list(surrogates), "data": source, **inner}}
        sets[PLAIN] = list(surrogates)
    return from_table(
        {
            "name": "craft",
            "data": data,
            "seeds": [seed],
            "targets": [*surrogates, *targets],
            "threat": {"norm": norm, "eps": eps, "steps": steps, "targeted": targeted},
            "surrogates": sets,
            "attacks": [{**options, "name": attack}],
            "batch_size": batch_size,
            "store": store,
        },
        "craft",
    )


def write_pngs(store: RunStore, sample_ids: Sequence[str], surrogates: str, suite: Suite) -> None:
    """The images of one attack on one set, each under the name of its sample."""
    files, clean = png_names(sample_ids), CleanImages()
    folder = store.path("images").resolve()
    for name in store.cells():
        path = store.examples_path(name)
        cell = Cell.from_json(read_cell(path))
        if (cell.surrogates, cell.attack) != (
            surrogates,
            suite.attacks[0].title,
        ) or cell.seed not in suite.seeds:
            continue
        table, images = read_images(store, name, clean)
        for sample, image in zip(table.column("sample_id").to_pylist(), images, strict=True):
            _write_png(folder, files[sample], sample, image)


def png_names(ids: Sequence[str]) -> dict[str, str]:
    """A file for every sample: ``cat/1.jpg`` to ``cat/1.png``, unless two would share it."""
    short = {name: _without_suffix(name) + ".png" for name in ids}
    times = Counter(short.values())
    return {name: path if times[path] == 1 else f"{name}.png" for name, path in short.items()}


def _without_suffix(name: str) -> str:
    stem, suffix = os.path.splitext(name)
    return stem if suffix.lower() in SUFFIXES else name


def _write_png(folder: Path, name: str, sample: str, image: Pixels) -> None:
    from PIL import Image

    path = folder / name
    if not path.resolve().is_relative_to(folder):
        raise InputError(f"sample '{sample}' leads out of {folder}; use --no-png")
    encoded = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))).save(encoded, "PNG")
    with os_errors("write", path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_file() or path.read_bytes() != encoded.getvalue():
            path.write_bytes(encoded.getvalue())
