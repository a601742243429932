"""``advens run`` ends with a page, and ``advens report`` makes it again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from advens.benchmarks.api import open_run
from tests.benchmarks.conftest import Said


@pytest.fixture
def done(advens: Callable[..., Said], suite: Callable[..., Path], tmp_path: Path) -> Path:
    """A run with its page."""
    said = advens("run", suite(), "--out", tmp_path / "run").done()
    assert said.out.splitlines()[-1] == f"report: {tmp_path / 'run' / 'report.html'}"
    return tmp_path / "run"


def test_the_page_of_a_run(done: Path, advens: Callable[..., Said], tmp_path: Path) -> None:
    page = (done / "report.html").read_bytes()
    assert b"mifgsm" in page
    said = advens("report", done, "--out", tmp_path / "again.html").done()
    assert said.out == f"report: {tmp_path / 'again.html'}\n"
    assert (tmp_path / "again.html").read_bytes() == page
    assert open_run(done).report(tmp_path / "third.html").read_bytes() == page
    advens("verify", done).done()  # the page is no part of what is verified


def test_new_targets_come_to_the_page(done: Path, advens: Callable[..., Said]) -> None:
    new = "toys:centroid?seed=7"
    assert "seed=7" not in (done / "report.html").read_text()
    said = advens("evaluate", done, "--targets", new).done()
    assert said.out.splitlines()[-1] == f"report: {done / 'report.html'}"
    assert "seed=7" in (done / "report.html").read_text()


def test_no_page_when_none_is_wanted(
    advens: Callable[..., Said], suite: Callable[..., Path], tmp_path: Path
) -> None:
    said = advens("run", suite(), "--out", tmp_path / "run", "--no-report").done()
    assert "report:" not in said.out
    assert not (tmp_path / "run" / "report.html").exists()


def test_the_page_of_a_robustness_run(advens: Callable[..., Said], tmp_path: Path) -> None:
    out = tmp_path / "run"
    advens(
        "robustness", "--models", "toys:centroid?seed=1", "--data", "digits:test?limit=8", "--attack",
        "pgd-ce,pgd-ce+apgd-ce", "--steps", "3", "--eps", "0.2", "--out", out,
    ).done()  # fmt: skip
    advens("report", out).done()
    html = (out / "report.html").read_text()
    board = open_run(out).robustness
    for row in board.to_dict(orient="records"):
        assert f"{100 * row['low']:.1f}–{100 * row['high']:.1f}" in html
    assert "worst of all" in html


def test_bad_directories_are_one_line(advens: Callable[..., Said], tmp_path: Path) -> None:
    advens("report", tmp_path / "nothing").refused("does not exist")
    advens("report", tmp_path).refused("holds no run")


def test_the_sanity_report_is_on_the_page(advens: Callable[..., Said], tmp_path: Path) -> None:
    out = tmp_path / "run"
    advens(
        "robustness", "--models", "toys:centroid?seed=1", "--data", "digits:test?limit=8", "--attack",
        "pgd-ce", "--steps", "3", "--eps", "0.2", "--out", out,
    )  # fmt: skip
    advens("report", out).done()
    html = (out / "report.html").read_text()
    run = open_run(out)
    for row in run.sanity.to_dict(orient="records"):
        assert f">{row['check']}</td>" in html
    curves = set(run.board("curves")["curve"])
    assert html.count("Accuracy that a gradient attack leaves while") == len(curves)
