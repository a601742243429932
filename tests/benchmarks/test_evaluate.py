"""New targets join a finished run: images are shown to them, nothing is crafted again."""

from __future__ import annotations

import shutil

import pandas as pd
import pytest
from PIL import Image

from advens.benchmarks.suites import load_suite
from advens.datasets import load_data
from advens.results.store import read_table


@pytest.fixture
def out(advens, suite, tmp_path):
    advens("run", suite(), "--out", tmp_path / "out").done()
    return tmp_path / "out"


def test_targets_join(advens, out, times, rows, suite):
    before, samples, kept = times(out, "examples"), times(out, "samples"), rows(out)
    said = advens("evaluate", out, "--targets", "toys:alias?seed=2,toys:centroid?seed=5").done()
    assert "0 cells crafted, 8 evaluations" in said.out
    assert times(out, "examples") == before
    assert samples.items() < times(out, "samples").items()
    found = rows(out)
    assert len(found) == len(kept) + 2 * 40
    matrix = read_table(out / "matrix.parquet", "matrix").to_pandas()
    assert len(matrix) == 2 * 5
    white = set(matrix[matrix["white_box"]]["target"])
    assert white == {"toys:centroid?seed=1", "toys:alias?seed=2"}  # told by weights, not by name
    board = read_table(out / "leaderboard.parquet", "leaderboard").to_pandas()
    assert set(board["targets"]) == {3}
    assert load_suite(str(out / "suite.toml")).targets[-1] == "toys:centroid?seed=5"
    advens("verify", out).done()
    assert "20 of 20 done" in advens("status", out).done().out
    assert "nothing to do" in advens("run", suite(), "--out", out).done().out
    assert "nothing to do" in advens("run", out / "suite.toml", "--out", out).done().out


def test_again_is_nothing_to_do(advens, out, times):
    advens("evaluate", out, "--targets", "toys:centroid?seed=5").done()
    before = times(out)
    said = advens("evaluate", out, "--targets", "toys:centroid?seed=5").done()
    assert "nothing to do" in said.out
    assert times(out) == before


def test_as_if_they_had_been_in_the_suite(advens, out, suite, tmp_path, rows):
    advens("evaluate", out, "--targets", "toys:centroid?seed=5", "--batch-size", 7).done()
    targets = [f"toys:centroid?seed={seed}" for seed in (1, 3, 4, 5)]
    advens("run", suite(targets=targets), "--out", tmp_path / "whole").done()
    one, two = rows(out), rows(tmp_path / "whole")
    pd.testing.assert_frame_equal(one.astype(object), two.astype(object))


def test_workers_write_the_same_rows(advens, out, tmp_path):
    shutil.copytree(out, tmp_path / "two")
    for folder, how in ((out, ()), (tmp_path / "two", ("--executor", "local", "--workers", 2))):
        advens("evaluate", folder, "--targets", "toys:centroid?seed=5", "--device", "cpu", *how).done()
    for name in ("samples", "."):
        one, two = (
            {path.name: path.read_bytes() for path in (folder / name).glob("*.parquet")}
            for folder in (out, tmp_path / "two")
        )
        assert one == two
        assert one


def test_wildcards(advens, out):
    said = advens("evaluate", out, "--targets", "digits:mambao*").done()
    assert "0 cells crafted, 4 evaluations" in said.out


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        ("digits:mambaot", ["unknown model 'digits:mambaot'", "'digits:mambaout'"]),
        ("digits:zz*", ["unknown model 'digits:zz*'"]),
        ("toys:centroid?classes=12", ["has 12 classes; this run has 10"]),
        (" , ", ["--targets", "names nothing"]),
    ],
)
def test_bad_targets(advens, out, times, targets, words):
    before, text = times(out), (out / "suite.toml").read_bytes()
    advens("evaluate", out, "--targets", targets).refused(*words)
    assert times(out) == before
    assert (out / "suite.toml").read_bytes() == text


def test_directories_without_a_run(advens, tmp_path):
    advens("evaluate", tmp_path / "none", "--targets", "digits:vit").refused("does not exist")
    advens("evaluate", tmp_path, "--targets", "digits:vit").refused("holds no run")
    (tmp_path / "suite.toml").write_text("")
    advens("evaluate", tmp_path, "--targets", "digits:vit").refused("holds no examples")


def test_crafted_images_are_a_run(advens, tmp_path):
    advens("craft", "fgsm", "--surrogates", "toys:centroid", "--data", "digits:test?limit=3",
           "--out", tmp_path / "crafted").done()  # fmt: skip
    said = advens("evaluate", tmp_path / "crafted", "--targets", "digits:mambaout").done()
    assert "0 cells crafted, 1 evaluations" in said.out
    advens("verify", tmp_path / "crafted").done()


def test_data_that_changed(advens, suite, tmp_path):
    """Clean predictions on other images would be wrong without anybody noticing."""
    data, folder = load_data("digits:test"), tmp_path / "photos"
    for i in range(10):
        (folder / str(i)).mkdir(parents=True)
        Image.fromarray(data.pixels(i).transpose(1, 2, 0)).save(folder / str(i) / "a.png")
    advens("run", suite(data=f"folder:{folder}"), "--out", tmp_path / "out").done()
    Image.fromarray(data.pixels(11).transpose(1, 2, 0)).save(folder / "0" / "a.png")
    said = advens("evaluate", tmp_path / "out", "--targets", "toys:centroid?seed=5")
    said.refused(f"folder:{folder}", "not those this run was crafted on")
    advens("verify", tmp_path / "out").failed()
