"""``advens craft``: adversarial images of a data source, no suite needed."""

from __future__ import annotations

import io
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from advens.benchmarks.building import Build
from advens.benchmarks.executors import execute
from advens.benchmarks.plan import Cell, make_plan
from advens.benchmarks.progress import Progress
from advens.benchmarks.suites import Suite, from_table
from advens.benchmarks.tasks import Craft, stored_pixels
from advens.benchmarks.traces import trace_path
from advens.datasets import find_data
from advens.datasets.decoding import SUFFIXES
from advens.errors import InputError, RunError
from advens.files import os_errors
from advens.models import training_data
from advens.results.boards.silence import silent_lines
from advens.results.store import RunStore, is_whole, read_table

PLAIN = "plain"
"""The set of the models that surrogates were built from, beside the set ``surrogates``."""


@dataclass(frozen=True)
class Crafted:
    """What was crafted.

    Args:
        directory: where.
        images: how many, without those of the plain surrogates.
        fooled: part of the images that fool a model, by set of surrogates and model.
        surrogates: the models of the sets.
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
    suite: Suite, directory: Path, *, device: str, png: bool, trace: bool = False,
    progress: Progress | None = None,
) -> Crafted:
    """Craft a suite of one attack into ``examples/`` (parquet); its first set into ``images/`` (PNG), too.

    Raises:
        InputError: as a run. RunError: the attack failed.
    """
    from advens.benchmarks.predictions import predict, voices
    from advens.benchmarks.worker_cache import workshop

    progress, store = progress or Progress(), RunStore(directory)
    data = find_data(suite.source)
    build = next((each for each in suite.surrogates.values() if isinstance(each, Build)), None)
    same = build is not None and build.source == suite.source
    if build is not None and same and getattr(build.builder(), "calibrates", False):
        raise InputError(f"builder '{build.build}' may not see the images that are attacked: give --train")
    plan = make_plan(suite, data, held_out=False, apart=not same, progress=progress, device=device)
    if store.suite.is_file():
        raise InputError(f"{directory} holds a run; give another --out")
    workshop.cache_clear()  # models and data may have changed since an earlier run of this process
    with store.lock():
        missing = [
            cell for cell in plan.cells
            if not is_whole(store.examples_path(cell.key), "examples")
            or (trace and not trace_path(store, cell.key).is_file())
        ]  # fmt: skip
        tasks = [Craft(str(directory), cell, suite.batch_size, trace) for cell in missing]
        with progress.task("crafting", len(tasks)) as advance:
            for task, outcome in execute(tasks, "local", 1, device):
                if isinstance(outcome, RunError):
                    raise outcome
                advance(task.title)
        shop, files = workshop(device), png_names(data.sample_ids)
        first, surrogates = next(iter(plan.sets)), {m for models in plan.sets.values() for m in models}
        wrong = {name: dict.fromkeys(plan.targets, 0.0) for name in plan.sets}
        for cell in plan.cells:
            table = read_table(store.examples_path(cell.key), "examples")
            pixels = stored_pixels(table)
            if png and cell.surrogates == first:
                ids = table.column("sample_id").to_pylist()
                _write_pngs(directory / "images", [files[name] for name in ids], pixels)
            aim = table.column("target_label" if suite.threat.targeted else "label").to_numpy()
            for name in plan.targets:
                for voice in voices(shop.models.get([name])[0]):
                    hit = predict(shop, voice.model, pixels, suite.batch_size) == aim
                    broken = hit if suite.threat.targeted else ~hit
                    wrong[cell.surrogates][name] += voice.weight * int(broken.sum())
    fooled = {
        each: {name: wrong[each][name] / len(data) for name in plan.targets} for each in plan.sets
    }
    warnings = silent_lines(store.read_cells())
    return Crafted(directory, len(data), fooled, frozenset(surrogates), same, warnings)


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
) -> Suite:
    """The suite of one attack on one surrogate set.

    Args:
        options: of the attack; those that begin with ``build.`` are the builder's.
        targets: models to try the images on, beside the surrogates.
        build: a builder, or ``none``; that of the attack by default. The models it starts from
            are attacked, too, to compare.
        limit: only so many images of the data.
        train: what the builder trains on; by default the embedded models' training data, else ``data``.
    """
    from advens.attacks.registry import attack_info

    if limit is not None:
        data = f"{data}{'&' if '?' in data else '?'}limit={limit}"
    chosen = build if build is not None else attack_info(attack).builder
    chosen = "" if chosen == "none" else chosen
    inner = {key[6:]: options.pop(key) for key in list(options) if key.startswith("build.")}
    if not chosen and (inner or train):
        raise InputError(f"attack '{attack}' builds no surrogates: --train and build.* go with --build")
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
        },
        "craft",
    )


def png_names(ids: Sequence[str]) -> dict[str, str]:
    """A file for every sample: ``cat/1.jpg`` to ``cat/1.png``, unless two would share it."""
    short = {name: _without_suffix(name) + ".png" for name in ids}
    times = Counter(short.values())
    return {name: path if times[path] == 1 else f"{name}.png" for name, path in short.items()}


def _without_suffix(name: str) -> str:
    stem, suffix = os.path.splitext(name)
    return stem if suffix.lower() in SUFFIXES else name


def _write_pngs(folder: Path, files: Sequence[str], pixels: object) -> None:
    from PIL import Image

    folder = folder.resolve()
    for name, image in zip(files, pixels, strict=True):  # type: ignore[call-overload]
        path = folder / name
        if not path.resolve().is_relative_to(folder):
            raise InputError(f"sample '{name}' leads out of {folder}; use --no-png")
        encoded = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(encoded, "PNG")
        with os_errors("write", path):
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.is_file() or path.read_bytes() != encoded.getvalue():
                path.write_bytes(encoded.getvalue())


__all__ = ["PLAIN", "Cell", "Crafted", "craft_images", "suite_for"]
