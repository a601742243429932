"""Near-duplicates: copies of a surrogate are not held out, and copies of a target count once."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from math import nan
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tomli_w
from numpy.typing import NDArray

from advens.benchmarks.likeness import (
    NEAR,
    Answers,
    Comparison,
    likeness,
    likeness_mismatches,
    residuals,
)
from advens.benchmarks.runner import readable_cells
from advens.benchmarks.suites import Suite, parse
from advens.benchmarks.worker_cache import WorkerCache
from advens.cli import invoke
from advens.results.boards.board import read_board
from advens.results.boards.likeness import read_likeness, write_likeness
from advens.results.store import RunStore, read_table

Array = NDArray[np.float64]
Labels = NDArray[np.int64]

WRAPPED = "toys:copied?of=digits:resnet"
COPIES = (WRAPPED, f"{WRAPPED}&moved=1e-4", f"{WRAPPED}&scale=1e-5", f"{WRAPPED}&soft=true")
"""Of the surrogate: in a wrapper, one weight moved, logits scaled, probabilities for logits."""
ALIASES = ("toys:copied?of=digits:mambaout&name=a", "toys:copied?of=digits:mambaout&moved=1e-4")
"""Of a target."""
HELD_OUT = ["digits:mambaout", "digits:resnet-b", "digits:swin"]


SUITE = {
    "name": "forged", "data": "digits:test?limit=60", "targets": [*COPIES, *ALIASES, *HELD_OUT],
    "threat": {"eps": 0.2, "steps": 1}, "surrogates": {"one": ["digits:resnet"]},
    "attacks": [{"name": "fgsm"}, {"name": "mifgsm"}],
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose targets are copies of the surrogate, copies of a target, and three other models."""
    folder = tmp_path_factory.mktemp("likeness")
    (folder / "suite.toml").write_text(tomli_w.dumps(SUITE))
    assert invoke(["run", str(folder / "suite.toml"), "--out", str(folder / "run")]) == 0
    return folder / "run"


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    """A copy of that run to change."""
    return Path(shutil.copytree(run, tmp_path / "run"))


def logits(seed: int = 0, n: int = 80, classes: int = 10) -> tuple[Array, Labels]:
    """Made-up logits that favour the labels, and the labels."""
    random = np.random.RandomState(seed)
    labels = np.arange(n) % classes
    return random.randn(n, classes) + 10 * np.eye(classes)[labels], labels


@pytest.mark.parametrize(
    "change",
    [
        lambda z: z,
        lambda z: 1e-5 * z,
        lambda z: z + 7,
        lambda z: z + np.arange(len(z))[:, None],
        lambda z: np.exp(z - z.max()),
        lambda z: z**3,
    ],
)
def test_what_leaves_the_order_of_classes_leaves_the_likeness(change: Callable[[Array], Array]) -> None:
    z, labels = logits()
    assert likeness(residuals(z, labels), residuals(change(z), labels)) == pytest.approx(1, abs=1e-6)


def test_agreeing_on_the_labels_is_no_likeness() -> None:
    (one, labels), (other, _) = logits(0), logits(1)
    assert np.corrcoef(one.ravel(), other.ravel())[0, 1] > 0.8
    assert abs(likeness(residuals(one, labels), residuals(other, labels))) < 0.15


def test_a_model_that_says_the_same_to_all_images_is_like_none() -> None:
    z, labels = logits()
    assert likeness(residuals(np.tile(z[:1], (len(z), 1)), labels), residuals(z, labels)) == 0


def test_copies_of_a_surrogate_are_white_box(run: Path) -> None:
    board, matrix = read_board(run, "leaderboard"), read_board(run, "matrix")
    white = matrix.groupby("target")["white_box"].all()
    assert {name for name in white.index if white[name]} == set(COPIES)
    assert board.attrs["targets"] == HELD_OUT
    for name in COPIES:
        wanted = f"{name} behaves like the surrogate digits:resnet (1.000): it is not held out from one"
        assert wanted in board.attrs["notes"]
        assert wanted in matrix.attrs["near_duplicates"]
    rates = matrix.set_index(["attack", "target"])["asr"]
    for row in board.itertuples():
        assert row.mean_asr == pytest.approx(rates[row.attack][HELD_OUT].mean())
        assert row.white_box_asr == pytest.approx(rates[row.attack][list(COPIES)].mean())


def test_copies_of_a_target_count_once(run: Path) -> None:
    same = sorted(["digits:mambaout", *ALIASES])
    note = f"{', '.join(same)} behave alike and count once in a mean (the first that is held out)"
    assert note in read_board(run, "leaderboard").attrs["notes"]
    first = read_board(run, "matrix").groupby("target")["alike"].first()
    assert set(first[same]) == {"digits:mambaout"}
    assert first.isna()["digits:swin"]


def test_other_seeds_are_other_models(run: Path) -> None:
    table = read_likeness(run)
    assert table is not None
    pair = table[(table["target"] == "digits:resnet-b") & (table["surrogates"] == "one")]
    assert 0.4 < pair["likeness"].item() < 0.85 < NEAR
    assert not pair["near_duplicate"].item()
    assert len(table) == 9 + 9 * 8 / 2


def test_of_a_part_of_the_targets_the_first_that_is_there_counts(run: Path, advens: Any) -> None:
    said = advens(
        "leaderboard", run, "--targets", f"{ALIASES[0]},{ALIASES[1]},*swin", "--format", "json"
    )
    assert json.loads(said.done().out)["about"]["targets"] == ["digits:swin", min(ALIASES)]


def test_verify_derives_the_likeness_again(run: Path, copy: Path, advens: Any) -> None:
    advens("verify", run).done()
    table = read_likeness(copy)
    assert table is not None
    write_likeness(copy, table.assign(near_duplicate=False))
    assert f"MISMATCH  likeness.parquet: the likeness of {WRAPPED} to" in advens("verify", copy).err


def test_what_is_no_mismatch_and_what_is(copy: Path) -> None:
    table, cache, notes = read_likeness(copy), WorkerCache("cpu"), list[str]()
    suite = parse((copy / "suite.toml").read_text(), "")
    assert table is not None
    assert isinstance(suite, Suite)

    def found(changed: pd.DataFrame | None) -> list[str]:
        (copy / "likeness.parquet").unlink(missing_ok=True)
        if changed is not None:
            write_likeness(copy, changed)
        return [*likeness_mismatches(copy, suite, readable_cells(RunStore(copy)), cache, notes.append)]

    assert found(table.assign(likeness=table["likeness"] - 1e-5)) == []
    assert len(found(table.assign(likeness=table["likeness"] - 0.01))) == len(table)
    assert len(found(table.assign(near_duplicate=True))) == (~table["near_duplicate"]).sum()
    (line,) = found(table[table["surrogates"].isna()])
    assert "does not compare" in line
    assert f"likeness.parquet is missing, and {WRAPPED} behaves like digits:resnet" in found(None)
    assert f"{WRAPPED} behaves like digits:resnet" in notes
    suite = suite.model_copy(update={"targets": HELD_OUT})
    notes.clear()
    assert found(None) == []
    assert notes == ["the run holds no likeness.parquet; compared now, no target is a near-duplicate"]


def test_a_run_without_the_table_gets_it(copy: Path, advens: Any, run: Path) -> None:
    (copy / "likeness.parquet").unlink()
    advens("run", copy / "suite.toml", "--out", copy, "--set", "batch_size=7").done()
    for name in ("likeness.parquet", "leaderboard.parquet"):
        assert read_table(copy / name) == read_table(run / name)
    advens("evaluate", copy, "--targets", "digits:convmixer").done()
    table = read_likeness(copy)
    assert table is not None
    assert "digits:convmixer" in set(table["target"])


@pytest.mark.parametrize(
    ("images", "labels", "classes", "threshold"),
    [(500, 10, 10, 0.962), (50, 10, 10, 0.980), (12, 10, 10, 0.9992), (10, 10, 10, nan), (11, 2, 2, nan)],
)
def test_the_threshold_rises_as_images_get_fewer(
    images: int, labels: int, classes: int, threshold: float
) -> None:
    said = Answers(frozenset(), frozenset(), images, labels, classes, np.zeros((2, 1)))
    assert said.threshold == pytest.approx(threshold, abs=1e-3, nan_ok=True)


def test_a_dozen_images_tell_copies_from_likes(suite: Any, advens: Any, tmp_path: Path) -> None:
    targets = [f"toys:{name}?seed={seed}" for name in ("centroid", "wrapped", "nudged") for seed in (1, 3)]
    said = advens("run", suite(targets=[*targets, "toys:centroid?seed=4"], data="digits:test?limit=12"),
                  "--out", tmp_path / "run").done()  # fmt: skip
    assert "warning" not in said.err
    table = read_likeness(tmp_path / "run")
    assert table is not None
    others = table[table["surrogates"].isna()]
    seeds = others[["target", "model"]].apply(lambda column: column.str[-1])
    assert (others["near_duplicate"] == (seeds["target"] == seeds["model"])).all()
    assert read_board(tmp_path / "run", "leaderboard").attrs["targets"] == [
        "toys:centroid?seed=3", "toys:centroid?seed=4",
    ]  # fmt: skip
    notes = [line for line in advens("verify", tmp_path / "run").done().out.splitlines() if "behaves" in line]
    assert len(notes) == 6


def test_no_table_where_models_are_their_own_surrogates(advens: Any, tmp_path: Path) -> None:
    out = tmp_path / "run"
    what = ("--models", "toys:centroid", "--data", "digits:test?limit=6", "--attack", "pgd")
    advens("robustness", *what, "--eps", 0.1, "--out", out).done()
    assert read_likeness(out) is None


def test_a_member_that_is_a_copy_makes_an_ensemble_white_box_and_not_a_duplicate() -> None:
    (one, labels), (other, _), (third, _) = (logits(seed) for seed in range(3))
    answers = [residuals(each, labels) for each in (one, other, third)]

    def said(name: str, whole: Array, members: tuple[Array, ...] = ()) -> Answers:
        return Answers(frozenset({name}), frozenset(), 80, 10, 10, whole, members)

    given = {
        "surrogate": said("s", answers[0]),
        "ensemble": said("e", answers[2], (answers[0], answers[1])),
        "member": said("m", answers[1]),
    }
    compared = Comparison("", ("ensemble", "member"), {"set": ("surrogate",)}, {"set": frozenset("s")})
    table = compared.table(given).set_index(["target", "model"])["near_duplicate"]
    assert table.to_dict() == {
        ("ensemble", "surrogate"): True,
        ("member", "surrogate"): False,
        ("member", "ensemble"): False,
    }
