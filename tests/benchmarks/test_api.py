"""Runs from Python: the same as on the command line, and read without it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import advens as package
from advens.errors import InputError
from advens.results.store import read_table


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, _surroundings: None) -> Any:
    from tests.benchmarks.conftest import tiny

    out = tmp_path_factory.mktemp("api") / "out"
    return package.run(tiny(), out)


def test_a_run_from_a_dictionary_is_that_of_the_command_line(
    made: Any, advens: Any, suite: Any, tmp_path: Path
) -> None:
    assert made.verify() == []
    advens("run", suite(), "--out", tmp_path / "out").done()
    for name in ("matrix.parquet", "suite.toml"):
        assert (made.directory / name).read_bytes() == (tmp_path / "out" / name).read_bytes()


def test_boards_are_frames(made: Any) -> None:
    stored = read_table(made.directory / "matrix.parquet", "matrix").to_pandas(ignore_metadata=True)
    pd.testing.assert_frame_equal(made.matrix, stored, check_dtype=False)
    assert list(made.leaderboard["rank"]) == [1, 2]
    assert "difgsm" in made._repr_html_()
    (made.directory / "matrix.parquet").unlink()
    pd.testing.assert_frame_equal(made.matrix, stored, check_dtype=False)
    with pytest.raises(InputError, match="robustness"):
        _ = made.robustness
    with pytest.raises(InputError, match="unknown board 'matrx'; did you mean 'matrix'"):
        made.board("matrx")


def test_rows_and_images(made: Any) -> None:
    every = made.samples()
    assert len(every) == 2 * 3 * 20
    some = made.samples(["sample_id", "success"], {"attack": "difgsm", "target": "toys:centroid?seed=3"})
    assert list(some) == ["sample_id", "success"]
    assert len(some) == 20
    found = made.examples(attack="mifgsm", surrogates="pair", seed=0)
    assert found.images.shape == (20, 3, 32, 32)
    assert found.images.dtype == np.uint8
    assert sorted(found.ids) == sorted(some["sample_id"])
    assert set(made.compare("difgsm", "mifgsm")) > {"difference", "low", "high", "p"}


def test_again_and_with_other_settings(made: Any, tmp_path: Path) -> None:
    again = package.run(made.suite, made.directory)
    assert again.suite == package.open_run(str(made.directory)).suite
    with pytest.raises(InputError, match="holds a run with threat"):
        package.run(made.suite, made.directory, settings={"threat.eps": 0.1})
    with pytest.raises(InputError, match="unknown executor 'lokal'; did you mean 'local'"):
        package.run(made.suite, tmp_path / "out", executor="lokal")
    with pytest.raises(InputError, match="unknown suite 'quikstart'"):
        package.run("quikstart")


def test_no_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no run"):
        package.open_run(tmp_path)


def test_names_in_files_are_not_trusted(suite: Any, tmp_path: Path) -> None:
    path = suite(targets=["os:system?command=true"])
    with pytest.raises(InputError, match=r"would call os.system"):
        package.run(path, tmp_path / "out")
