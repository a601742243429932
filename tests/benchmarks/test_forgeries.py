"""Forgeries of honest runs, as somebody with the package at hand would make them.

Digests, seals, norms, rows and boards are computed again with the package's own functions. `advens verify`
names a mismatch for each, with ``--recraft`` where images were crafted in another way, or lists as unknowable
what no file can show.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import tomli_w
import torch
from PIL import Image

from advens.attacks import create_attack
from advens.benchmarks.cells import Cell
from advens.benchmarks.evaluate import stored_cell
from advens.benchmarks.goals import ATTACK_GOALS
from advens.benchmarks.plan import make_plan, target_key
from advens.benchmarks.status import plan_path, save_plan
from advens.benchmarks.suites import parse, settings_digest, tomllib  # tomli before Python 3.11
from advens.benchmarks.tasks import Evaluate, Target, example_rows, images_of
from advens.benchmarks.verify import UNKNOWABLE
from advens.benchmarks.worker_cache import WorkerCache, worker_cache
from advens.cli import invoke
from advens.datasets import load_data
from advens.models import describe, load_model
from advens.results.boards import read_board, write_board
from advens.results.boards.likeness import read_likeness, write_likeness
from advens.results.boards.rows import Rows
from advens.results.store import (
    RunStore,
    read_cell,
    read_table,
    schema,
    write_examples,
    write_table,
)
from advens.results.store.images import decoded, digests
from advens.threat import Threat

SUITE: dict[str, Any] = {
    "name": "honest", "data": "digits:test?limit=24", "shard": 12, "seeds": [0],
    "targets": [f"toys:centroid?seed={seed}" for seed in (1, 3, 4, 5)],
    "threat": {"eps": 0.2, "steps": 3},
    "surrogates": {"pair": ["toys:centroid?seed=1", "toys:centroid?seed=2"]},
    "attacks": [{"name": "mifgsm"}, {"name": "difgsm"}, {"name": "ens-logits", "label": "uniform"}],
}  # fmt: skip
HELD_OUT = SUITE["targets"][1:]
RUNS: dict[str, dict[str, Any]] = {
    "run": {},
    "images": {"store": "images"},
    "seeds": {"seeds": [0, 1, 2], "attacks": [{"name": "difgsm"}], "shard": 24},
    "faint": {"targets": ["toys:centroid?seed=3", "toys:faint?seed=4"], "attacks": [{"name": "mifgsm"}]},
    "wrapped": {"targets": [*HELD_OUT, "toys:wrapped?seed=1"], "attacks": [{"name": "mifgsm"}]},
    "nudged": {"targets": [*HELD_OUT, "toys:nudged?seed=1"], "attacks": [{"name": "mifgsm"}]},
    "aliases": {"targets": ["toys:centroid?seed=3", "toys:wrapped?seed=3", "toys:nudged?seed=3"],
                "attacks": [{"name": "mifgsm"}]},
}  # fmt: skip


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory, _surroundings: None) -> Callable[[str], Path]:
    """Honest runs by name, each made once; copied before they are touched."""
    folder = tmp_path_factory.mktemp("forgeries")

    def made(name: str) -> Path:
        if not (folder / name).is_dir():
            path = folder / f"{name}.toml"
            path.write_text(tomli_w.dumps(SUITE | RUNS[name]))
            assert invoke(["run", str(path), "--out", str(folder / name), "--device", "cpu"]) == 0
        return folder / name

    return made


# --- a forger's tools --------------------------------------------------------------------------------


def cell_of(run: Path, attack: str = "mifgsm", shard: int = 0, seed: int = 0) -> Cell:
    """A cell of a run."""
    cells = (stored_cell(RunStore(run), name) for name in RunStore(run).cells())
    return next(c for c in cells if (c.attack, c.shard[0] // c.shard_size, c.seed) == (attack, shard, seed))


def summarised(run: Path) -> None:
    """The boards computed again from the rows, for the suite that lies there."""
    suite, rows = parse((run / "suite.toml").read_text(), "suite"), Rows(run)
    for name in ATTACK_GOALS[suite.goal].boards:
        write_board(rows, name, suite_digest=settings_digest(suite))


def with_column(path: Path, name: str, change: Callable[[list[Any]], Any]) -> None:
    """A column of a table edited, sealed again."""
    table = read_table(path)
    values = table.column(name).to_pylist()
    change(values)
    field = table.schema.field(name)
    write_table(
        path, table.set_column(table.schema.get_field_index(name), field, pa.array(values, field.type))
    )


def rewritten(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """A JSON or TOML file changed."""
    toml = path.suffix == ".toml"
    content = tomllib.loads(path.read_text()) if toml else json.loads(path.read_text())
    change(content)
    path.write_text(tomli_w.dumps(content) if toml else json.dumps(content))


def retold(run: Path, cell: Cell, **changes: Any) -> None:
    """What a cell says of itself changed, and the boards."""
    path = RunStore(run).examples_path(cell.key)
    write_examples(path, read_table(path).replace_schema_metadata(None), read_cell(path) | changes)
    summarised(run)


def stored(run: Path, cell: Cell, pixels: torch.Tensor, told: dict[str, Any] | None = None) -> None:
    """Images in place of those of a cell, with digests, norms, predictions, rows and boards that fit them."""
    store, cache = RunStore(run), WorkerCache("cpu")
    clean = cache.shard(cell.data, *cell.shard)
    threat = Threat(**cell.params["threat"])
    whole = tomllib.loads((run / "suite.toml").read_text())["store"] == "images"
    rows = example_rows(cell.key, clean.pixels, pixels, threat, whole) | {
        "sample_id": list(clean.sample_ids), "label": clean.labels.numpy(),
        "target_label": [None] * len(pixels),
    }  # fmt: skip
    about = told if told is not None else read_cell(store.examples_path(cell.key))
    write_examples(store.examples_path(cell.key), rows, about)
    worker_cache.cache_clear()
    for target in tomllib.loads((run / "suite.toml").read_text())["targets"]:
        card = describe(target)
        known = Target(target, target_key(target, card.digest), card)
        Evaluate(str(run), (cell,), (known,), None).do("cpu")
    summarised(run)


def crafted(run: Path, cell: Cell, **changes: Any) -> torch.Tensor:
    """What another attack, other models or another seed make of the images of a cell."""
    return images_of(replace(cell, **changes), RunStore(run), WorkerCache("cpu"), None).pixels


def removed(run: Path, pattern: str) -> None:
    """Files deleted, and the boards computed again."""
    for path in list(run.glob(pattern)):
        path.unlink()
    summarised(run)


def samples_of(run: Path, cell: Cell, target: str = "toys:centroid?seed=3") -> Path:
    return RunStore(run).samples_path(cell.key, target_key(target, describe(target).digest))


def replanned(run: Path) -> None:
    """plan.json written anew for the suite that lies there, and the boards."""
    suite = parse((run / "suite.toml").read_text(), "suite")
    plan_path(RunStore(run)).unlink()
    save_plan(make_plan(suite, load_data(suite.source), held_out=False), plan_path(RunStore(run)))
    summarised(run)


# --- the forgeries -----------------------------------------------------------------------------------


def rivals_removed(run: Path) -> None:
    for attack in ("difgsm", "uniform"):
        for shard in (0, 1):
            removed(run, f"*/{cell_of(run, attack, shard).key}*")


def raw_byte(run: Path) -> None:
    path = RunStore(run).examples_path(cell_of(run).key)
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(bytes(content))


def images_in(run: Path, cell: Cell) -> torch.Tensor:
    """The images of a cell, whatever their digests say."""
    clean = WorkerCache("cpu").shard(cell.data, *cell.shard).pixels
    return torch.from_numpy(decoded(read_table(RunStore(run).examples_path(cell.key)), clean.numpy))


def redigested(run: Path) -> None:
    cell = cell_of(run)
    found = digests(images_in(run, cell).numpy())
    path = RunStore(run).examples_path(cell.key)
    with_column(path, "sha256", lambda values: values.__setitem__(slice(None), found))


def byte_changed(run: Path, column: str) -> None:
    """A byte of what is stored of an image."""
    path = RunStore(run).examples_path(cell_of(run).key)
    with_column(path, column, lambda v: v.__setitem__(3, bytes([v[3][0] ^ 1]) + v[3][1:]))


def byte_changed_and_digest(run: Path, column: str) -> None:
    byte_changed(run, column)
    redigested(run)


def images_swapped(run: Path) -> None:
    path = RunStore(run).examples_path(cell_of(run).key)
    with_column(path, "image", lambda v: v.__setitem__(slice(0, 2), [v[1], v[0]]))
    redigested(run)


def differences_swapped(run: Path) -> None:
    path = RunStore(run).examples_path(cell_of(run).key)
    with_column(path, "difference", lambda v: v.__setitem__(slice(0, 2), [v[1], v[0]]))


def differences_that_wrap(run: Path) -> None:
    """What leads out of the ball when it is added, and is close to the clean image in numbers modulo 256."""
    path = RunStore(run).examples_path(cell_of(run).key)
    with_column(path, "difference", lambda v: v.__setitem__(3, bytes([128]) + v[3][1:]))
    redigested(run)


def two_forms(run: Path) -> None:
    """Whole images for those who look at them, beside differences for those who add them."""
    cell = cell_of(run)
    images = [image.numpy().tobytes() for image in crafted(run, cell, seed=1)]
    path = RunStore(run).examples_path(cell.key)
    with_column(path, "image", lambda v: v.__setitem__(slice(None), images))


def differences_of_zero(run: Path) -> None:
    """Clean images for adversarial ones, with everything that follows from them."""
    cell = cell_of(run, "difgsm")
    stored(run, cell, WorkerCache("cpu").shard(cell.data, *cell.shard).pixels)


def rows_swapped(run: Path) -> None:
    path = RunStore(run).examples_path(cell_of(run).key)
    table = read_table(path)
    write_table(path, table.take([1, 0, *range(2, table.num_rows)]))


def predictions_edited(run: Path) -> None:
    path = samples_of(run, cell_of(run))
    label = read_table(path).column("label").to_pylist()
    with_column(path, "adv_pred", lambda v: v.__setitem__(slice(None), [(y + 1) % 10 for y in label]))
    clean = read_table(path).column("clean_correct").to_pylist()
    with_column(path, "success", lambda v: v.__setitem__(slice(None), clean))
    summarised(run)


def success_edited(run: Path) -> None:
    path = samples_of(run, cell_of(run))
    with_column(path, "success", lambda v: v.__setitem__(slice(None), [True] * len(v)))
    summarised(run)


def hard_images_left_out(run: Path) -> None:
    path = samples_of(run, cell_of(run))
    table = read_table(path)
    hard = ~table.column("success").to_numpy() & table.column("clean_correct").to_numpy()
    assert hard.any()
    wrong = (table.column("label").to_numpy() + 1) % 10
    clean = np.where(hard, wrong, table.column("clean_pred").to_numpy()).tolist()
    with_column(path, "clean_pred", lambda v: v.__setitem__(slice(None), clean))
    right = (table.column("clean_correct").to_numpy() & ~hard).tolist()
    with_column(path, "clean_correct", lambda v: v.__setitem__(slice(None), right))
    summarised(run)


def boards_deleted(run: Path) -> None:
    (run / "matrix.parquet").unlink()
    (run / "leaderboard.parquet").unlink()


def rows_dropped(run: Path) -> None:
    path = samples_of(run, cell_of(run))
    write_table(path, read_table(path).slice(0, 8))
    summarised(run)


def rows_duplicated(run: Path) -> None:
    path = samples_of(run, cell_of(run))
    table = read_table(path)
    write_table(path, pa.concat_tables([table, table.slice(0, 4)]))


def target_deleted(run: Path) -> None:
    target = "toys:centroid?seed=5"
    removed(run, f"samples/*.{target_key(target, describe(target).digest)}.parquet")


def shard_deleted(run: Path) -> None:
    for attack in ("mifgsm", "difgsm", "uniform"):
        removed(run, f"*/{cell_of(run, attack, 1).key}*")


def examples_missing(run: Path) -> None:
    RunStore(run).examples_path(cell_of(run).key).unlink()


def board_metadata(run: Path, **changes: Any) -> None:
    path = run / "leaderboard.parquet"
    write_table(path, schema.with_metadata(read_table(path), **changes))


def linked(run: Path) -> None:
    path = RunStore(run).examples_path(cell_of(run).key)
    elsewhere = run.parent / "elsewhere.parquet"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


def crafted_on_targets(run: Path) -> None:
    cell = cell_of(run, "uniform")
    digests = tuple(describe(name).digest for name in HELD_OUT)
    stored(run, cell, crafted(run, cell, specs=tuple(HELD_OUT), digests=digests))


def with_more_steps(run: Path) -> None:
    cell = cell_of(run)
    attack = create_attack("mifgsm", eps=0.2, steps=50)
    stored(run, cell, crafted(run, cell, params=attack.spec))


def rival_weakened(run: Path) -> None:
    cell = cell_of(run, "difgsm")
    attack = create_attack("difgsm", eps=0.05, steps=2)
    stored(run, cell, crafted(run, cell, params=attack.spec))


def best_of_five_seeds(run: Path) -> None:
    cell = cell_of(run, "difgsm")
    tries = torch.stack([crafted(run, cell, seed=seed) for seed in range(5)])
    labels = torch.tensor(read_table(RunStore(run).examples_path(cell.key)).column("label").to_pylist())
    left = torch.zeros(tries.shape[:2])
    with torch.inference_mode():
        for name in HELD_OUT:
            logits = torch.stack([load_model(name)(images.float() / 255) for images in tries])
            left += logits.softmax(2)[:, torch.arange(len(labels)), labels]
    best = left.argmin(0)
    assert best.any(), "else this shows nothing"
    stored(run, cell, tries[best, torch.arange(len(labels))])


def rekeyed(run: Path, cell: Cell, told: dict[str, Any], **changes: Any) -> Cell:
    """A cell under another description and key, evaluated anew; the old one is removed."""
    store, other = RunStore(run), replace(cell, **changes)
    pixels = images_in(run, cell)
    about = read_cell(store.examples_path(cell.key)) | other.to_json() | told
    for path in run.glob(f"*/{cell.key}*"):
        path.unlink()
    stored(run, other, pixels, about)
    return other


def relabelled(run: Path) -> None:
    for shard in (0, 1):
        rekeyed(run, cell_of(run, "uniform", shard), {}, attack="our-sota")


def relabelled_everywhere(run: Path) -> None:
    rewritten(run / "suite.toml", lambda s: s["attacks"][2].update(label="our-sota"))
    relabelled(run)
    replanned(run)


def no_passes(run: Path) -> None:
    for shard in (0, 1):
        told = {"forwards_per_sample": 0.0, "backwards_per_sample": 0.0}
        rekeyed(run, cell_of(run, "uniform", shard), told, goal="robustness")


def logits_scaled(run: Path) -> None:
    path = samples_of(run, cell_of(run), "toys:faint?seed=4")
    label = read_table(path).column("label").to_pylist()
    with_column(path, "adv_pred", lambda v: v.__setitem__(slice(None), [(y + 1) % 10 for y in label]))
    right = read_table(path).column("clean_correct").to_pylist()
    with_column(path, "success", lambda v: v.__setitem__(slice(None), right))
    summarised(run)


def extra_cell(run: Path) -> None:
    cell = cell_of(run)
    params = create_attack("mifgsm", eps=0.5, steps=3).spec
    other = replace(cell, attack="noise", params=params)
    clean = WorkerCache("cpu").shard(cell.data, *cell.shard).pixels
    noise = torch.randint(0, 2, clean.shape, generator=torch.Generator().manual_seed(0)) * 254 - 127
    about = read_cell(RunStore(run).examples_path(cell.key)) | other.to_json() | {"eps": 0.5}
    stored(run, other, (clean + noise).clamp(0, 255).to(torch.uint8), about)


def one_seed_three_times(run: Path) -> None:
    pixels = images_in(run, cell_of(run, "difgsm"))
    for seed in (1, 2):
        stored(run, cell_of(run, "difgsm", seed=seed), pixels)


def honest_below(run: Path) -> None:
    below = run.parent / "below"
    shutil.copytree(run, below)
    predictions_edited(run)
    (run / "suite.toml").unlink()
    shutil.move(below, run / "below")


def target_that_calls(run: Path, column: str) -> None:
    evil = f"os:system?command=touch%20{run.parent / 'canary'}"
    if column == "surrogate_specs":
        retold(run, cell_of(run), surrogate_specs=[evil, evil])
    else:
        path = samples_of(run, cell_of(run))
        with_column(path, "target", lambda v: v.__setitem__(slice(None), [evil] * len(v)))


def picked_images(run: Path) -> None:
    """Images on which the attack succeeds, in a folder, and an honest run on them."""
    rows = RunStore(run).read_samples()
    fooled = rows[rows["attack"] == "mifgsm"].groupby("sample_id", observed=True)["success"].mean()
    data = load_data("digits:test?limit=24")
    picked, lines = run.parent / "picked", ["filename,label"]
    (picked / "images").mkdir(parents=True)
    for k, name in enumerate(data.sample_ids):
        if fooled[name] >= fooled.median():
            image, label, _ = data[k]
            pixels = (image * 255).round().byte().permute(1, 2, 0).numpy()
            Image.fromarray(pixels).save(picked / "images" / f"{k}.png")
            lines.append(f"{k}.png,{label}")
    (picked / "labels.csv").write_text("\n".join(lines))
    suite = tomllib.loads((run / "suite.toml").read_text()) | {"data": f"csv:{picked}"}
    shutil.rmtree(run)
    (run.parent / "picked.toml").write_text(tomli_w.dumps(suite))
    assert invoke(["run", str(run.parent / "picked.toml"), "--out", str(run), "--device", "cpu"]) == 0


def changed_suite(**changes: Any) -> Callable[[Path], None]:
    """suite.toml with other settings, and the boards computed for it."""

    def change(run: Path) -> None:
        def edit(suite: dict[str, Any]) -> None:
            for key, value in changes.items():
                if key in ("eps", "steps"):
                    suite["threat"][key] = value
                else:
                    suite[key] = value

        rewritten(run / "suite.toml", edit)
        summarised(run)

    return change


@dataclass(frozen=True)
class Forgery:
    """A forgery and what becomes of it.

    Args:
        tamper: what is done to a copy of an honest run.
        words: of the mismatch that `verify` names, or of the line with which it refuses the run.
        recraft: whether it takes ``--recraft``.
        run: the honest run.
        unknowable: the name under which `verify` lists it as unknowable.
        refused: whether it is refused with exit code 2.
        behaves: the line with which `verify` names a copy that the boards of the run leave out of the means.
    """

    tamper: Callable[[Path], Any]
    words: str = ""
    recraft: bool = False
    run: str = "run"
    unknowable: str = ""
    refused: bool = False
    behaves: str = ""


def nothing_alike(run: Path) -> None:
    """The comparison of models finds no near-duplicates, and the boards follow from it."""
    table = read_likeness(run)
    assert table is not None
    write_likeness(run, table.assign(near_duplicate=False))
    summarised(run)


NOT_MADE = "are not those that its attack makes"
FORGERIES: dict[str, Forgery] = {
    "00-rivals-removed": Forgery(rivals_removed, "cells of suite.toml are missing"),
    "01-raw-byte": Forgery(raw_byte, "its bytes are not those that were written"),
    "02-image-byte": Forgery(
        lambda run: byte_changed(run, "image"), "was changed after it was written", run="images"
    ),
    "02-image-byte-and-digest": Forgery(
        lambda run: byte_changed_and_digest(run, "image"), "norms are not those of the images", run="images"
    ),
    "02-difference-byte": Forgery(
        lambda run: byte_changed(run, "difference"), "was changed after it was written"
    ),
    "02-difference-byte-and-digest": Forgery(
        lambda run: byte_changed_and_digest(run, "difference"), "norms are not those of the images"
    ),
    "02-digest": Forgery(
        lambda run: with_column(
            RunStore(run).examples_path(cell_of(run).key), "sha256", lambda v: v.__setitem__(3, "0" * 64)
        ),
        "was changed after it was written",
    ),
    "02-digest-of-the-clean-images": Forgery(
        lambda run: retold(run, cell_of(run), clean_sha256="0" * 64), "the clean images decode to other"
    ),
    "03-images-swapped": Forgery(images_swapped, "leaves the ball", run="images"),
    "03-differences-swapped": Forgery(differences_swapped, "was changed after it was written"),
    "03-differences-that-wrap": Forgery(differences_that_wrap, "leaves the ball"),
    "03-two-forms": Forgery(two_forms, "neither all images nor all differences"),
    "03-differences-of-zero": Forgery(differences_of_zero, NOT_MADE, recraft=True),
    "04-rows-swapped": Forgery(rows_swapped, "its samples are not those of the shard"),
    "05-predictions": Forgery(predictions_edited, "adv_pred of toys:centroid?seed=3 are not"),
    "06-success": Forgery(success_edited, "column 'success'"),
    "07-hard-images-left-out": Forgery(hard_images_left_out, "clean_pred of toys:centroid?seed=3 are not"),
    "08-matrix": Forgery(
        lambda run: with_column(run / "matrix.parquet", "asr", lambda v: v.__setitem__(0, 0.5)),
        "matrix.parquet is not what",
    ),
    "09-leaderboard": Forgery(
        lambda run: with_column(run / "leaderboard.parquet", "mean_asr", lambda v: v.__setitem__(0, 0.5)),
        "leaderboard.parquet is not what",
    ),
    "10-boards-deleted": Forgery(boards_deleted, "leaderboard.parquet is missing"),
    "11-rows-dropped": Forgery(rows_dropped, "8 rows in"),
    "12-rows-duplicated": Forgery(rows_duplicated, "16 rows in"),
    "13-targets-deleted": Forgery(target_deleted, "evaluations of suite.toml are missing"),
    "14-shard-deleted": Forgery(shard_deleted, "cells of suite.toml are missing"),
    "15-samples-file-deleted": Forgery(
        lambda run: removed(run, f"samples/{samples_of(run, cell_of(run)).name}"),
        "1 evaluations of suite.toml are missing",
    ),
    "16-examples-missing": Forgery(examples_missing, "rows of a cell whose examples are missing"),
    "17-samples-of-a-cell": Forgery(
        lambda run: removed(run, f"samples/{cell_of(run).key}*"), "4 evaluations of suite.toml are missing"
    ),
    "18-passes": Forgery(
        lambda run: retold(run, cell_of(run), forwards_per_sample=1.0, backwards_per_sample=1.0),
        "the passes it claims are not those of the attack",
    ),
    "19-seconds": Forgery(
        lambda run: retold(run, cell_of(run), seconds_per_image=1e-6), unknowable="seconds"
    ),
    "20-device-version": Forgery(
        lambda run: retold(run, cell_of(run), device="cuda (NVIDIA X)", version="9.9.9", threads=64),
        unknowable="device and version",
    ),
    "20-family": Forgery(
        lambda run: retold(run, cell_of(run), family="fusion"), "its description is not that of the plan"
    ),
    "21-commit": Forgery(
        lambda run: rewritten(run / "environment.json", lambda e: e.update(commit="0" * 12)),
        unknowable="device and version",
    ),
    "21-model-digests": Forgery(
        lambda run: rewritten(
            run / "environment.json", lambda e: e["models"].update({"toys:centroid?seed=3": "0" * 64})
        ),
        "environment.json: the digest of toys:centroid?seed=3",
    ),
    "21-data-digest": Forgery(
        lambda run: rewritten(run / "environment.json", lambda e: e["data"].update({SUITE["data"]: "0"})),
        "environment.json: the digest of digits:test?limit=24",
    ),
    "22-larger-eps": Forgery(changed_suite(eps=0.3), "is no cell of suite.toml"),
    "22-smaller-eps": Forgery(changed_suite(eps=0.1), "is no cell of suite.toml"),
    "22-steps": Forgery(changed_suite(steps=2), "is no cell of suite.toml"),
    "22-data": Forgery(changed_suite(data="digits:test?limit=24&seed=1"), "is no cell of suite.toml"),
    "22-seeds": Forgery(changed_suite(seeds=[0, 1, 2]), "cells of suite.toml are missing"),
    "23-garbage-for-a-suite": Forgery(
        lambda run: (run / "suite.toml").write_bytes(b"\xff\x00x ="), "suite.toml"
    ),
    "24-plan": Forgery(
        lambda run: rewritten(run / "plan.json", lambda p: p["targets"].clear()), "plan.json is not what"
    ),
    "25-board-targets": Forgery(
        lambda run: board_metadata(run, targets=["toys:centroid?seed=9"]), "entry 'targets' is another"
    ),
    "25-board-notes": Forgery(lambda run: board_metadata(run, notes=["best"]), "entry 'notes' is another"),
    "25-board-digest": Forgery(
        lambda run: board_metadata(run, suite_digest="0" * 64), "names another suite than suite.toml"
    ),
    "26-link": Forgery(linked, "a link"),
    "27-crafted-on-targets": Forgery(crafted_on_targets, NOT_MADE, recraft=True),
    "28-fifty-steps": Forgery(with_more_steps, NOT_MADE, recraft=True),
    "29-rival-weakened": Forgery(rival_weakened, NOT_MADE, recraft=True),
    "30-best-of-five-seeds": Forgery(best_of_five_seeds, NOT_MADE, recraft=True),
    "31-label": Forgery(relabelled, "is no cell of suite.toml"),
    "31-label-in-suite-too": Forgery(relabelled_everywhere, unknowable="labels"),
    "32-robustness-without-passes": Forgery(no_passes, "is no cell of suite.toml"),
    "33-wrapped-surrogate": Forgery(
        lambda run: None, run="wrapped", behaves="toys:wrapped?seed=1 behaves like toys:centroid?seed=1"
    ),
    "33-nudged-surrogate": Forgery(
        lambda run: None, run="nudged", behaves="toys:nudged?seed=1 behaves like toys:centroid?seed=1"
    ),
    "34-target-three-times": Forgery(
        lambda run: None, run="aliases", behaves="toys:wrapped?seed=3 behaves like toys:centroid?seed=3"
    ),
    "33-comparison-edited": Forgery(nothing_alike, "likeness of toys:wrapped?seed=1", run="wrapped"),
    "33-comparison-removed": Forgery(
        lambda run: (run / "likeness.parquet").unlink(), "likeness.parquet is missing", run="wrapped"
    ),
    "35-logits-scaled": Forgery(logits_scaled, "adv_pred of toys:faint?seed=4 are not", run="faint"),
    "36-extra-cell": Forgery(extra_cell, "is no cell of suite.toml"),
    "37-one-seed-three-times": Forgery(one_seed_three_times, NOT_MADE, recraft=True, run="seeds"),
    "38-honest-run-below": Forgery(honest_below, "suite.toml is missing"),
    "39-study-invented": Forgery(
        lambda run: shutil.copy(run / "matrix.parquet", run / "study.parquet"), "study.parquet is no table"
    ),
    "39-images-invented": Forgery(
        lambda run: shutil.copy(run / "matrix.parquet", run / "images.parquet"), "images.parquet is no table"
    ),
    "39-models-invented": Forgery(
        lambda run: shutil.copy(run / "matrix.parquet", run / "models.parquet"), "models.parquet is no table"
    ),
    "40-call-as-target": Forgery(
        lambda run: target_that_calls(run, "target"), "would call os.system", refused=True
    ),
    "40-call-as-surrogate": Forgery(
        lambda run: target_that_calls(run, "surrogate_specs"), "would call os.system", refused=True
    ),
    "41-picked-images": Forgery(picked_images, unknowable="comparison"),
}  # fmt: skip


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forgery(name: str, honest: Any, tmp_path: Path, advens: Any) -> None:
    forgery = FORGERIES[name]
    run = Path(shutil.copytree(honest(forgery.run), tmp_path / "run"))
    forgery.tamper(run)
    plain = advens("verify", run, "--device", "cpu")
    if forgery.refused:
        plain.refused(forgery.words)
        assert not (tmp_path / "canary").exists()
        return
    if forgery.recraft or forgery.unknowable:
        plain.done()  # the forgery is a good one
    again = advens("verify", run, "--device", "cpu", "--recraft", 1, "--challenge", "x")
    if forgery.behaves:
        assert f"\n{forgery.behaves}\n" in f"\n{again.done().out}"
        copies = {line.partition(" ")[0] for line in again.out.splitlines() if " behaves like " in line}
        counted = set(read_board(run, "leaderboard").attrs["targets"])
        assert counted
        assert not counted & copies
        return
    if forgery.unknowable:
        assert f"\n  {forgery.unknowable}: " in again.done().out
        return
    said = again if forgery.recraft else plain
    said.failed("mismatches")
    told = [line for line in said.err.splitlines() if line.startswith("MISMATCH  ")]
    assert any(forgery.words in line for line in told), said.err


@pytest.mark.parametrize("name", ["03-images-swapped", "05-predictions", "30-best-of-five-seeds"])
def test_a_forgery_with_two_workers(name: str, honest: Any, tmp_path: Path, advens: Any) -> None:
    forgery = FORGERIES[name]
    run = Path(shutil.copytree(honest(forgery.run), tmp_path / "run"))
    forgery.tamper(run)
    again = ["--recraft", 1, "--challenge", "x"] if forgery.recraft else []
    said = advens("verify", run, "--device", "cpu", "--workers", 2, *again)
    said.failed("mismatches")
    told = [line for line in said.err.splitlines() if line.startswith("MISMATCH  ")]
    assert any(forgery.words in line for line in told), said.err


def test_the_board_of_picked_images_names_them(honest: Any, tmp_path: Path, advens: Any) -> None:
    run = Path(shutil.copytree(honest("run"), tmp_path / "run"))
    picked_images(run)
    assert "picked" in advens("leaderboard", run).done().out


def test_everything_unknowable_has_a_forgery_or_is_no_claim() -> None:
    shown = {forgery.unknowable for forgery in FORGERIES.values()} - {""}
    assert shown <= set(UNKNOWABLE)
    assert set(UNKNOWABLE) - shown == {"crafting", "attempts", "traces", "failures"}


@pytest.mark.parametrize("name", ["run", "seeds", "faint"])
def test_the_honest_runs(name: str, honest: Any, advens: Any) -> None:
    said = advens("verify", honest(name), "--device", "cpu", "--recraft", 1).done()
    cells = len(RunStore(honest(name)).cells())
    images = cells * {"run": 12, "seeds": 24, "faint": 12}[name]
    counted = f"{cells} of {cells} cells (100%) crafted again: {images} of {images} images identical\n"
    assert counted in said.out
