"""Pictures of a run: clean images, adversarial ones, what differs, and what each model says of them."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from advens.errors import InputError
from advens.results.report.collect import Part, Run
from advens.results.report.findings import baseline
from advens.results.statistics import content_seed
from advens.results.store import read_table
from advens.results.store.images import (
    Pixels,
    are_differences,
    signed_differences,
    whole_images,
)

if TYPE_CHECKING:
    from advens.datasets import Dataset

IMAGES = 4
"""Images that are shown, each with every attack that is."""
ATTACKS = 6
"""Attacks that are shown."""
LOSSLESS = 64
"""Pixels of a side up to which images are shown as they are."""
PREVIEW = 160
"""Pixels of the longer side of a preview of a larger image."""


@dataclass(frozen=True)
class Answer:
    """What some targets say of an image.

    Args:
        said: the class.
        right: whether it is the true one.
        targets: who says so; of a randomized ensemble what it says most often.
    """

    said: str
    right: bool
    targets: tuple[str, ...]


@dataclass(frozen=True)
class Shot:
    """An adversarial image.

    Args:
        attack, set: what crafted it.
        image, difference: as ``data:`` addresses. Without the clean image there is only what is stored: the
            whole image, or the difference.
        answers: of the targets, the largest group first.
        fooled, of: held-out targets that are fooled, of those that were right before.
    """

    attack: str
    set: str
    image: str | None
    difference: str | None
    answers: tuple[Answer, ...]
    fooled: int
    of: int


@dataclass(frozen=True)
class Picture:
    """An image of the data set with what the attacks made of it.

    Args:
        why: how it was picked.
        clean: as ``data:`` address; None without the data at hand.
    """

    name: str
    label: str
    why: str
    clean: str | None
    shots: tuple[Shot, ...]


@dataclass(frozen=True)
class Gallery:
    """The pictures of a run.

    Args:
        preview: whether images are shown smaller and compressed.
        factor: what differences are multiplied with; None where there are none.
        missing: why there are no clean images; empty when there are.
        width: of an image on the page.
    """

    pictures: tuple[Picture, ...]
    preview: bool
    factor: float | None
    missing: str
    width: int


def gallery(run: Run, part: Part) -> Gallery | None:
    """The pictures of a run of attacks; None when it holds none that can be shown.

    Images are picked by what the first-ranked attack does with its first seed: the one that fools most
    held-out targets, the one that fools fewest, and some drawn by the content of the run. Attacks are the
    first-ranked ones and the plain baseline; of robustness runs the one that leaves least to each model.

    Raises:
        RunError: a damaged file.
    """
    cells = run.cells.sort_values(["seed", "attack", "surrogates"], kind="stable")
    cells = cells[cells["seed"] == cells["seed"].min()]
    keys = _keys(part, set(zip(cells["attack"], cells["surrogates"], strict=True)))
    chosen = [cells[(cells["attack"] == a) & (cells["surrogates"] == s)] for a, s in keys]
    if not keys:
        return None
    counted = _counted(part)
    picks = _picked(run, chosen[0], counted)
    made = [_examples(run, own, [name for name, _ in picks]) for own in chosen]
    said = [_samples(run, own, [name for name, _ in picks]) for own in chosen]
    sizes = {_of(row, side) for rows in made for row in rows.values() for side in ("height", "width")}
    if not sizes:
        return None
    data, missing = _data(str(cells["data"].iloc[0]))
    clean = _clean(data, made) if data is not None else {}
    if data is not None and not clean:
        missing = "the data that are found by this name are not those that were attacked"
    images = [{name: _image(row, clean.get(name)) for name, row in rows.items()} for rows in made]
    differences = [
        {name: _difference(row, own[name], clean.get(name)) for name, row in rows.items()}
        for rows, own in zip(made, images, strict=True)
    ]
    largest = [int(np.abs(each).max()) for own in differences for each in own.values() if each is not None]
    factor = float(max(1, 127 // max(*largest, 1))) if largest else None
    attacks, sets = ([key[k] for key in keys] for k in (0, 1))
    shorts = dict(zip(keys, zip(attacks, run.short(sets), strict=True), strict=True))
    classes = data.class_names if data is not None else None
    pictures = []
    for name, why in picks:
        shots = []
        for k, (key, rows, answers) in enumerate(zip(keys, made, said, strict=True)):
            if name not in rows:
                continue
            own = answers[answers["sample_id"] == name]
            image, difference, label = images[k][name], differences[k][name], _of(rows[name], "label")
            fooled, able = _fooled(own, counted)
            shots.append(Shot(
                *shorts[key], None if image is None else _address(image),
                None if difference is None else _address(_amplified(difference, factor or 1)),
                _answers(run, own, label, classes), fooled, able,
            ))  # fmt: skip
        if shots:
            first = next(rows[name] for rows in made if name in rows)
            pictures.append(Picture(
                name, _class(_of(first, "label"), classes), why,
                _address(clean[name]) if name in clean else None, tuple(shots),
            ))  # fmt: skip
    side = max(sizes)
    return Gallery(tuple(pictures), side > LOSSLESS, factor, missing, min(max(side, 96), PREVIEW))


def _keys(part: Part, known: set[tuple[str, str]]) -> list[tuple[str, str]]:
    """The attacks and sets that are shown.

    Args:
        known: those that images are stored of; a sequence of rounds, for instance, is none.
    """
    if part.transfer is not None:
        rows = list(part.transfer.rows[:ATTACKS])
        plain = baseline(part.transfer)
        if plain is not None and plain not in rows:
            rows[-1] = plain
        wanted = [[(row.attack, row.surrogates)] for row in rows]
    else:
        models = part.robustness.models if part.robustness is not None else ()
        wanted = [
            [(left.attack, model.model) for left in model.attacks[::-1]]
            for model in models[:ATTACKS]
        ]
    found = [next((key for key in keys if key in known), None) for keys in wanted]
    return [key for key in found if key is not None]


def _counted(part: Part) -> set[str] | None:
    """The held-out targets; None for all."""
    if part.transfer is None:
        return None
    if part.transfer.held_out is not None:
        return set(part.transfer.held_out)
    return {
        target.name for target, cell in zip(part.transfer.targets, part.transfer.cells[0], strict=True)
        if cell is not None and cell.counted
    }  # fmt: skip


def _samples(run: Run, cells: pd.DataFrame, names: Sequence[str] | None) -> pd.DataFrame:
    columns = [
        "target", "sample_id", "label", "clean_correct", "adv_pred", "success", "weight", "white_box",
    ]  # fmt: skip
    filters = None if names is None else [("sample_id", "in", list(names))]
    return run.store.read_samples(columns, cells=set(cells["cell"]), filters=filters)


def _picked(run: Run, cells: pd.DataFrame, counted: set[str] | None) -> list[tuple[str, str]]:
    """The images that are shown, and why."""
    samples = _samples(run, cells, None)
    if counted is not None:
        samples = samples[samples["target"].isin(counted)]
    if samples.empty:
        return []
    fooled = (samples["success"] * samples["weight"]).groupby(samples["sample_id"]).sum()
    names = sorted(fooled.index)
    most = max(names, key=lambda name: fooled[name])
    least = min(names, key=lambda name: fooled[name])
    found = {most: "fools most targets", least: "fools fewest targets"}
    rng = np.random.default_rng(content_seed("gallery", names))
    others = [names[k] for k in rng.permutation(len(names)) if names[k] not in found]
    found |= dict.fromkeys(others[: IMAGES - len(found)], "drawn")
    return list(found.items())


def _examples(run: Run, cells: pd.DataFrame, names: Sequence[str]) -> dict[str, pa.Table]:
    """What is stored of the images of a row, by name: a table of one row for each."""
    found: dict[str, pa.Table] = {}
    for cell in cells["cell"]:
        table = read_table(run.store.examples_path(cell), "examples")
        for k, name in enumerate(table.column("sample_id").to_pylist()):
            if name in names and name not in found:
                found[name] = table.slice(k, 1)
    return found


def _data(source: str) -> tuple[Dataset | None, str]:
    from advens.datasets import find_data

    try:
        return find_data(source), ""
    except InputError as error:
        return None, str(error)


def _clean(data: Dataset, made: Sequence[dict[str, pa.Table]]) -> dict[str, Pixels]:
    """The clean images by name: those that the stored ones were crafted from, by digests and norms."""
    place = {name: k for k, name in enumerate(data.sample_ids)}
    found: dict[str, Pixels] = {}
    for rows in made:
        for name, row in rows.items():
            if name not in place:
                return {}
            if name not in found:
                try:
                    found[name] = data.pixels(place[name])
                except InputError:
                    return {}
            try:
                adversarial = _image(row, found[name])
            except InputError:
                return {}
            if adversarial is None or adversarial.shape != found[name].shape:
                return {}
            linf = np.abs(adversarial.astype(int) - found[name]).max() / 255
            if abs(linf - _of(row, "linf")) > 1e-6:
                return {}
    return found


def _of(row: pa.Table, name: str) -> Any:
    return row.column(name)[0].as_py()


def _image(row: pa.Table, clean: Pixels | None) -> Pixels | None:
    """The adversarial image; None where its difference is stored and the clean image is not at hand."""
    if clean is None and are_differences(row):
        return None
    image: Pixels = whole_images(row, lambda: np.array(clean, ndmin=4))[0]
    return image


def _difference(
    row: pa.Table, image: Pixels | None, clean: Pixels | None
) -> NDArray[np.int64] | None:
    """The adversarial image minus the clean one, or what is stored of it."""
    if image is not None and clean is not None:
        return image.astype(np.int64) - clean
    stored = signed_differences(row)
    return None if stored is None else stored[0].astype(np.int64)


def _amplified(difference: NDArray[np.int64], factor: float) -> Pixels:
    return np.clip(np.round(128 + factor * difference), 0, 255).astype(np.uint8)


def _answers(
    run: Run, samples: pd.DataFrame, label: int, classes: Sequence[str] | None
) -> tuple[Answer, ...]:
    """What targets say of an image, those that are wrong and many first; a member's answer has its weight."""
    weights: dict[str, dict[int, float]] = {}
    for target, said, weight in samples[["target", "adv_pred", "weight"]].itertuples(
        index=False, name=None
    ):
        own = weights.setdefault(str(target), {})
        own[int(said)] = own.get(int(said), 0.0) + weight
    targets, found = sorted(weights), dict[int, list[str]]()
    for target, short in zip(targets, run.short(targets), strict=True):
        said = min((-weight, said) for said, weight in weights[target].items())[1]
        found.setdefault(said, []).append(short)
    answers = [
        Answer(_class(said, classes), said == label, tuple(sorted(who)))
        for said, who in found.items()
    ]
    return tuple(
        sorted(answers, key=lambda answer: (answer.right, -len(answer.targets), answer.said))
    )


def _fooled(samples: pd.DataFrame, counted: set[str] | None) -> tuple[int, int]:
    """How many held-out targets are fooled, and how many were right before; members by their weight."""
    share: dict[str, float] = {}
    before: dict[str, float] = {}
    columns = samples[["target", "weight", "success", "clean_correct"]]
    for target, weight, success, right in columns.itertuples(index=False, name=None):
        if counted is None or target in counted:
            share[str(target)] = share.get(str(target), 0.0) + weight * success
            before[str(target)] = before.get(str(target), 0.0) + weight * right
    return _most(share), _most(before)


def _most(shares: dict[str, float]) -> int:
    """How many targets do something more often than not; those that draw no member always or never."""
    return sum(share >= 0.5 for share in shares.values())


def _class(number: Any, names: Sequence[str] | None) -> str:
    number = int(number)
    return names[number] if names is not None and 0 <= number < len(names) else str(number)


def _address(pixels: Pixels) -> str:
    """An image as a ``data:`` address: PNG up to `LOSSLESS` pixels, a WebP preview above."""
    grey = bool((pixels[0] == pixels[1]).all() and (pixels[1] == pixels[2]).all())
    image = (
        Image.fromarray(pixels[0])
        if grey
        else Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    )
    buffer = io.BytesIO()
    if max(image.size) <= LOSSLESS:
        image.save(buffer, "PNG", optimize=True)
        kind = "png"
    else:
        image.thumbnail((PREVIEW, PREVIEW))
        image.convert("RGB").save(buffer, "WEBP", quality=80)
        kind = "webp"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
