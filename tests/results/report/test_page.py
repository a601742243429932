"""The page says what the parquet files say, loads nothing, and lets no name act."""

from __future__ import annotations

import base64
import hashlib
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from advens.errors import InputError, RunError
from advens.results.boards import read_board, write_board
from advens.results.formats import percent
from advens.results.report.collect import collect
from advens.results.report.page import render, write_report
from advens.results.store import CorruptFile, RunStore
from tests.results.report.conftest import Page, report, row, transfer

TARGETS = {f"digits:t{k}": 0.3 + 0.1 * k for k in range(6)}
EVIL = "<script>alert('1')</script>\"&\x1b[31m\u202e{{ 7*7 }}</style>"


@pytest.fixture
def made(run: Callable[..., RunStore], drawn: Callable[..., pd.DataFrame]) -> Path:
    """A run with boards: two attacks, one of them on two sets; six targets, one of them white-box once."""
    frame = drawn(
        {("weak", "cnns"): 0.3, ("strong", "cnns"): 0.8, ("strong", "vits"): 0.6}, TARGETS,
        white_box={"vits": ["digits:t0"]}, n=60, seeds=2,
    )  # fmt: skip
    store = run(frame)
    for name in ("matrix", "leaderboard"):
        write_board(store.directory, name)
    return store.directory


@pytest.fixture
def html(made: Path) -> str:
    return write_report(made).read_text()


def test_matrix_is_that_of_the_parquet(made: Path, html: str) -> None:
    page, matrix, board = Page.of(html), read_board(made, "matrix"), read_board(made, "leaderboard")
    found = matrix.set_index(["attack", "surrogates", "target"])
    _, names, *rows = page.tables[0]
    assert names == sorted(name.removeprefix("digits:") for name in TARGETS)
    assert len(rows) == len(board) == 3
    for number, (cells, ranked) in enumerate(zip(rows, board.to_dict(orient="records"), strict=True)):
        assert cells[0] == f"{ranked['attack']}{ranked['surrogates']}"
        assert cells[1] == percent(ranked["mean_asr"], 1)
        for k, (text, target) in enumerate(zip(cells[2:], sorted(TARGETS), strict=True)):
            at = found.loc[(ranked["attack"], ranked["surrogates"], target)]
            assert text == percent(at["asr"]) + "*" * bool(at["white_box"])
            rate, low, high, n, clean, robust, error, white, counted = page.data[0]["cells"][number][k]
            shown = [f"{value / 10:.1f}" for value in (rate, low, high, clean, robust, error)]
            names_ = ("asr", "asr_low", "asr_high", "clean_accuracy", "robust_accuracy", "error_rate")
            assert shown == [percent(at[name], 1) for name in names_]
            assert (n, bool(white)) == (at["n"], at["white_box"])
            assert bool(counted) == (target != "digits:t0")  # white-box for one set, so in nobody's mean


def test_board_is_that_of_the_parquet(made: Path, html: str) -> None:
    board = read_board(made, "leaderboard")
    header, *rows = Page.of(html).tables[1]
    for cells, at in zip(rows, board.to_dict(orient="records"), strict=True):
        ranks = {at["rank_low"], at["rank_high"]}
        assert cells[0] == str(at["rank"])
        assert cells[2] == percent(at["mean_asr"], 1)
        assert cells[4] == "".join(
            f"{percent(at[low], 1)}–{percent(at[high], 1)}"
            for low, high in (("models_low", "models_high"), ("asr_low", "asr_high"))
        )
        assert cells[5] == "–".join(map(str, sorted(ranks)))
        assert cells[6] == at["models_group"] + at["group"]
        assert cells[7].replace("–", "-") == percent(at["white_box_asr"], 1)
        assert cells[8] == "10 / 10"
        assert cells[-1] == "yes" * bool(at["pareto"])
    assert "p, to first" not in " ".join(header)


def test_same_run_same_bytes(made: Path, html: str, tmp_path: Path) -> None:
    shutil.copytree(made, tmp_path / "elsewhere")
    assert write_report(tmp_path / "elsewhere", tmp_path / "page.html").read_text() == html


def test_boards_that_are_missing_are_computed(made: Path, html: str) -> None:
    for name in ("matrix", "leaderboard"):
        (made / f"{name}.parquet").unlink()
    assert write_report(made).read_text() == html


def test_nothing_is_loaded_and_nothing_else_runs(html: str) -> None:
    page = Page.of(html)
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on") or name == "style"], tag
        for name in ("src", "href", "srcset", "action", "data"):
            assert re.match(r"#|data:", attributes.get(name) or "#"), (tag, attributes)
    assert "http:" not in html
    assert "https:" not in html
    (policy,) = [a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    (_, style), (_, data), (_, script) = page.blocks
    for kind, text in (("style-src", style), ("script-src", script)):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{kind} 'sha256-{digest}'" in policy
    assert "</" not in data


def test_names_are_inert(run: Callable[..., RunStore], drawn: Callable[..., pd.DataFrame]) -> None:
    honest, forged = (
        drawn({(attack, sets): 0.5}, {**TARGETS, target: 0.4}, n=20, suite=suite).assign(cell="c0")
        for attack, sets, target, suite in (("a", "b", "m:c", "d"), [EVIL + end for end in " 234"])
    )  # fmt: skip
    counts = []
    for name, frame in (("honest", honest), ("forged", forged)):
        store = run(frame, name, data=frame["suite"].iloc[0], surrogate_specs=[frame["surrogates"].iloc[0]])
        comment = "x" if name == "honest" else "<script>"
        (store.directory / "suite.toml").write_text(f"# {comment}\nname = 'n'\n")
        html = write_report(store.directory).read_text()
        assert not set(html) & {"\x1b", "\u202e"}
        counts.append([tag for tag, _ in Page.of(html).tags if tag not in ("span", "i")])
    assert counts[0] == counts[1]
    page = Page.of(html)
    shown = "<script>alert('1')</script>\"&\\x1b[31m\\u202e{{ 7*7 }}</style>"
    assert page.tables[0][2][0] == f"{shown} {shown}2"
    assert page.data[0]["rows"][0]["attack"] == f"{shown} "
    assert page.data[0]["targets"][0][1].startswith("<script>")


def test_size_of_a_large_page() -> None:
    """120 attacks on 30 targets, without images."""
    rows = [row(k + 1, 0.9 - k / 200, attack=f"di-ti-mi-attack-{k}", p_first=0.01) for k in range(120)]
    rates = [[(k * 7 + t * 13) % 100 / 100 for t in range(30)] for k in range(120)]
    assert len(render(report(transfer(rows, rates))).encode()) < 1_000_000


def test_few_targets_have_no_columns_of_new_models(
    run: Callable[..., RunStore], drawn: Callable[..., pd.DataFrame]
) -> None:
    store = run(drawn({("a", "s"): 0.5, ("b", "s"): 0.4}, dict(list(TARGETS.items())[:3]), n=30))
    html = write_report(store.directory).read_text()
    assert "new models are out of reach" in html
    assert "rank, 95 %" not in html
    assert "<b>new models" not in html


def test_more_than_forty_rows_have_p_values_for_letters() -> None:
    none = {"these_letters": "", "new_letters": ""}
    rows = [row(k + 1, 0.5, p_first=0.25 if k else None, **none) for k in range(41)]
    header, first, second, *_ = Page.of(render(report(transfer(rows)))).tables[1]
    assert [cell for cell in header if cell.startswith("p, to")]
    assert "letters" not in header
    assert (first[6], second[6]) == ("–", "0.25")


def test_notes_and_seeds_are_said(made: Path, html: str) -> None:
    assert "means over 2 seeds" in html
    noted = report(transfer([row(1, 0.5)], notes=("a & b behave alike",)))
    assert '<p class="warn">a &amp; b behave alike.</p>' in render(noted)


def test_rows_open_what_an_attack_is(html: str) -> None:
    page = Page.of(html)
    wanted = [a["data-spec"] for tag, a in page.tags if "data-spec" in a]
    assert set(wanted) <= {a.get("id") for _, a in page.tags}
    assert len(wanted) == 3


def test_an_unfinished_directory(tmp_path: Path) -> None:
    (tmp_path / "suite.toml").write_text('name = "x"\n')
    (tmp_path / "examples").mkdir()
    with pytest.raises(InputError, match="no finished cells"):
        write_report(tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        collect(tmp_path / "nowhere")


def test_swept_settings_become_curves(
    run: Callable[..., RunStore], drawn: Callable[..., pd.DataFrame]
) -> None:
    frames = []
    for steps, strength in ((5, 0.3), (10, 0.5), (20, 0.6)):
        frame = drawn({(f"pgd, {steps} steps", "s"): strength}, TARGETS, n=20)
        frames.append((steps, frame.assign(cell=f"c{steps}")))
    from tests.results.conftest import write_run

    store: Any = None
    for steps, frame in frames:
        store = write_run(run(frame).directory, frame, attack_params={"name": "x", "steps": steps})
    (part,) = collect(store.directory).parts
    (curve,) = part.curves
    assert (curve.key, curve.label) == ("steps", "pgd on s")
    assert [x for x, _ in curve.points] == [5, 10, 20]
    board = read_board_or_rows(store)
    for _, each in curve.points:
        assert each.new.value == board[each.attack]


def read_board_or_rows(store: RunStore) -> dict[str, float]:
    frame = write_board(store.directory, "leaderboard")
    return dict(zip(frame["attack"], frame["mean_asr"], strict=True))


@pytest.mark.parametrize("cell", [
    {"attack_params": "no json"}, {"attack_params": '["a list"]'},
    {"forwards_per_sample": float("inf")}, {"backwards_per_sample": -100.0}, {"eps": "many"},
    {"attack_params": {"threat": "x", "steps": float("nan"), "fusion": [[{}]]}},
    {"surrogate_specs": [None, 3]},
    {"data": "no:such data"},
], ids=str)  # fmt: skip
def test_odd_descriptions_of_cells(
    cell: dict[str, Any], run: Callable[..., RunStore], drawn: Callable[..., pd.DataFrame]
) -> None:
    frame = drawn({("a", "s"): 0.5, ("b", "s"): 0.4, ("c", "s"): 0.3}, TARGETS, n=10)
    assert "</html>" in write_report(run(frame, **cell).directory).read_text()


@pytest.mark.parametrize("shard", [["a", "b"], []], ids=str)
def test_shards_that_are_none(
    shard: list[str], run: Callable[..., RunStore], drawn: Callable[..., pd.DataFrame]
) -> None:
    store = run(drawn({("a", "s"): 0.5, ("b", "s"): 0.4}, TARGETS, n=10), shard=shard)
    with pytest.raises(CorruptFile, match="has no proper shard"):
        write_report(store.directory)


@pytest.mark.parametrize("text", [
    "surrogates = 3", '[surrogates]\nx = { build = 1, model = 2 }', "name = [1]", "goal = 5",
])  # fmt: skip
def test_odd_suites(text: str, made: Path) -> None:
    (made / "suite.toml").write_text(text)
    assert "</html>" in write_report(made).read_text()


def test_a_suite_that_is_no_toml(made: Path) -> None:
    (made / "suite.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(RunError, match="damaged"):
        write_report(made)
