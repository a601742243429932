"""Figures of runs: their numbers are those of the parquet files, and mistakes are one line."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner

import advens
from advens.errors import InputError
from advens.results.boards import read_board, write_board
from advens.results.commands import plot
from advens.results.formats import percent
from advens.results.plot.runs import Plots
from advens.results.store import RunStore

TARGETS = {f"digits:t{k}": 0.3 + 0.1 * k for k in range(6)}


@pytest.fixture
def made(run: Callable[..., RunStore], drawn: Callable[..., pd.DataFrame]) -> Path:
    frame = drawn(
        {("weak", "cnns"): 0.3, ("strong", "cnns"): 0.8, ("strong", "vits"): 0.6}, TARGETS,
        white_box={"vits": ["digits:t0"]}, n=40,
    )  # fmt: skip
    store = run(frame)
    for name in ("matrix", "leaderboard"):
        write_board(store.directory, name)
    return store.directory


def test_numbers_are_those_of_the_parquet(made: Path) -> None:
    pytest.importorskip("matplotlib")
    run = advens.open_run(made)
    rates = read_board(made, "matrix").set_index(["attack", "surrogates", "target"])
    ranked = read_board(made, "leaderboard")
    shown = {text.get_gid(): text.get_text() for text in run.plot.matrix("full").axes[0].texts}
    for k, line in enumerate(ranked.itertuples()):
        for j, target in enumerate(sorted(TARGETS)):
            at = rates.loc[(line.attack, line.surrogates, target)]
            assert shown[f"cell-{k}-{j}"] == percent(at["asr"]) + "*" * bool(at["white_box"])
    axes = run.plot.board().axes[0]
    means = {line.get_gid(): [float(x) for x in line.get_xdata()] for line in axes.lines}
    assert means["means-models"] == means["means-targets"] == pytest.approx(list(100 * ranked["mean_asr"]))
    for bars, (low, high) in zip(
        axes.collections, (("models_low", "models_high"), ("asr_low", "asr_high")), strict=True
    ):
        ends = [segment[:, 0].tolist() for segment in bars.get_segments()]
        pairs = (100 * ranked[[low, high]]).to_numpy().tolist()
        assert ends == [pytest.approx(pair) for pair in pairs]


def test_command(made: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for name, begin in (("a.pdf", b"%PDF"), ("a.svg", b"<?xml"), ("a.PNG", b"\x89PNG")):
        arguments = ["pareto", str(made), "--out", str(tmp_path / name), "--width", "85mm"]
        result = CliRunner().invoke(plot, arguments, catch_exceptions=False)
        assert result.exit_code == 0
        assert "caption: Mean attack success rate" in result.output
        assert (tmp_path / name).read_bytes().startswith(begin)


def test_sizes(made: Path) -> None:
    pytest.importorskip("matplotlib")
    plots = Plots(made)
    for width, inches in (("column", 3.25), ("full", 6.75), ("100mm", 3.937), ("4", 4), ("4in", 4), (5, 5)):
        assert plots.pareto(width).get_figwidth() == pytest.approx(inches, abs=1e-3)
    for wrong in ("wide", "-3", "1e3", "0.1", "9000mm", "nan"):
        with pytest.raises(InputError, match="width must be"):
            plots.pareto(wrong)
    with pytest.raises(InputError, match="font size must be 4 to 40 points, not 99"):
        plots.board(font_size=99)


def test_mistakes(made: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    plots = Plots(made)
    for out in ("a.jpg", "a", "a.pdf.exe"):
        with pytest.raises(InputError, match=r"must be one of \.pdf, \.svg, \.png"):
            plots.write("matrix", tmp_path / out)
    with pytest.raises(InputError, match="holds no white-box attacks, which 'robustness' shows"):
        plots.robustness()
    with pytest.raises(InputError, match="no setting with three values"):
        plots.curves()
    with pytest.raises(InputError, match="question must be"):
        plots.board(question="both")  # type: ignore[arg-type]
    with pytest.raises(InputError):
        Plots(tmp_path / "nothing").matrix()
    wrong = ["matrix", str(made), "--out", str(tmp_path / "a.pdf"), "--question", "models"]
    assert isinstance(CliRunner().invoke(plot, wrong).exception, InputError)
    assert not list(tmp_path.glob("a*"))


def test_few_targets(
    run: Callable[..., RunStore], drawn: Callable[..., pd.DataFrame]
) -> None:
    pytest.importorskip("matplotlib")
    two = {"digits:a": 0.5, "digits:b": 0.7}
    store = run(drawn({("weak", "cnns"): 0.3, ("strong", "cnns"): 0.8}, two, n=30))
    plots = Plots(store.directory)
    assert "new models" not in plots.board().caption
    with pytest.raises(InputError, match="fewer than five held-out targets"):
        plots.pareto(question="models")


def test_without_matplotlib(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "advens.results.plot.figures", raising=False)
    monkeypatch.delattr("advens.results.plot.figures", raising=False)
    from advens.cli import invoke

    assert invoke(["plot", "matrix", str(made), "--out", str(tmp_path / "a.pdf")]) == 2
    with pytest.raises(InputError, match=r"figures need matplotlib; .* pip install 'advens\[plot\]'"):
        Plots(made).matrix()
