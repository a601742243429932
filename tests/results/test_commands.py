"""The two commands and what a run leaves behind, from the outside."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pandas as pd
import pytest
from click.testing import CliRunner

from advens.errors import InputError, RunError
from advens.results.boards import board_mismatches, to_table, write_board
from advens.results.boards.summary import boards, load
from advens.results.commands import leaderboard, matrix, show_robustness
from advens.results.display.render import render_board
from advens.results.store import RunStore
from advens.results.store.files import read_table, write_table

TARGETS = {"digits:resnet": 0.9, "digits:vit": 0.7, "digits:vit-at": 0.3}
WHITE = {"cnns": ["digits:resnet"]}


@pytest.fixture
def store(run, drawn):
    return run(drawn({("pgd", "cnns"): 0.5, ("cwa", "cnns"): 0.9}, TARGETS, WHITE, n=80))


def invoke(command, *arguments) -> str:
    result = CliRunner().invoke(command, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_matrix(store):
    shown = invoke(matrix, store.directory)
    for part in ("vit-at", "Wilson", "*"):
        assert part in shown
    rows = json.loads(invoke(matrix, store.directory, "--format", "json"))["rows"]
    assert len(rows) == 6
    everything = json.loads(
        invoke(matrix, store.directory, "--format", "json", "--denominator", "all")
    )["rows"]
    assert {row["n"] for row in everything} == {80}
    assert invoke(matrix, store.directory, "--format", "csv").startswith("suite,attack,")


def test_leaderboard(store):
    shown = invoke(leaderboard, store.directory)
    assert shown.index("cwa") < shown.index("pgd")
    rows = json.loads(invoke(leaderboard, store.directory, "--format", "json"))["rows"]
    assert [row["rank"] for row in rows] == [1, 2]
    assert rows[0]["forwards_per_sample"] == 10
    assert invoke(leaderboard, store.directory, "--format", "markdown").startswith("| #")


def test_compare(store):
    shown = " ".join(invoke(leaderboard, store.directory, "--compare", "cwa", "pgd").split())
    assert "cwa minus pgd, for new models and new images: out of reach" in shown
    assert "For these targets and new images: they differ" in shown


def test_comparable_suites_are_ranked_together(run, drawn):
    one = run(drawn({("pgd", "cnns"): 0.5}, TARGETS, WHITE), "one")
    two = run(drawn({("cwa", "cnns"): 0.9}, TARGETS, WHITE, suite="t"), "two", eps=8 / 255)
    rows = json.loads(
        invoke(leaderboard, one.directory, two.directory, "--format", "json")
    )["rows"]
    assert [(row["suite"], row["attack"], row["rank"]) for row in rows] == [
        ("t", "cwa", 1), ("s", "pgd", 2)
    ]
    shown = invoke(leaderboard, one.directory, two.directory, "--compare", "cwa", "pgd")
    assert "For these targets and new images: they differ" in " ".join(shown.split())


def test_suites_of_other_budgets_are_ranked_apart(run, drawn):
    one = run(drawn({("pgd", "cnns"): 0.5}, TARGETS, WHITE), "one")
    two = run(drawn({("pgd", "cnns"): 0.9}, TARGETS, WHITE), "two", eps="4/255")
    found = json.loads(invoke(leaderboard, one.directory, two.directory, "--format", "json"))
    assert [row["rank"] for row in found["rows"]] == [1, 1]
    assert [row["suite"] for row in found["rows"]] == [
        f"s ({one.directory})", f"s ({two.directory})"
    ]
    assert "ranked apart" in found["about"]["boards"][0]["notes"][-1]
    assert invoke(leaderboard, one.directory, two.directory).count("ranked apart") == 2


def test_a_directory_given_twice_counts_once(store):
    once = invoke(leaderboard, store.directory, "--format", "csv")
    assert invoke(leaderboard, store.directory, store.directory, "--format", "csv") == once


def test_family(run, drawn):
    frame = drawn({("pgd", "cnns"): 0.5, ("cwa", "cnns"): 0.9}, TARGETS, WHITE)
    fusion = run(frame[frame["attack"] == "cwa"], family="fusion")
    run(frame[frame["attack"] == "pgd"], family="gradient")
    rows = json.loads(
        invoke(leaderboard, fusion.directory, "--family", "gradient", "--format", "json")
    )["rows"]
    assert [row["attack"] for row in rows] == ["pgd"]
    with pytest.raises(InputError, match="did you mean 'fusion'"):
        invoke(leaderboard, fusion.directory, "--family", "fuson")


def summarise(directory, digest):
    """Matrix and leaderboard of a run, written as a run writes them."""
    return [write_board(directory, name, suite_digest=digest) for name in ("matrix", "leaderboard")]


def test_boards_are_written_as_the_commands_show_them(store):
    found, board = summarise(store.directory, "d1")
    table = read_table(store.matrix, "matrix")
    assert table.schema.metadata[b"advens.suite_digest"] == b"d1"
    assert board_mismatches(store.directory, "matrix") == []
    pd.testing.assert_frame_equal(
        table.to_pandas(ignore_metadata=True), found, check_dtype=False
    )
    ranked = read_table(store.leaderboard, "leaderboard")
    assert json.loads(ranked.schema.metadata[b"advens.targets"]) == ["digits:vit", "digits:vit-at"]
    assert ranked["mean_asr"].to_pylist() == board["mean_asr"].tolist()
    shown = json.loads(invoke(matrix, store.directory, "--format", "json"))["rows"]
    assert [row["asr"] for row in shown] == table["asr"].to_pylist()
    before = store.leaderboard.read_bytes()
    summarise(store.directory, "d1")
    assert store.leaderboard.read_bytes() == before


def test_a_study_is_shown_as_it_is_stored(tmp_path):
    table = pd.DataFrame({
        "table": ["T"], "label": ["plain"], "members": [3], "kind": ["mean"], "trainings": [2],
        "n": [100], "n open": [50], "clean": [0.9], "clean low": [0.85], "clean high": [0.95],
        **{name: [None] for name in ("missed", "diversity", "shared", "mflops")},
    })
    write_table(tmp_path / "study.parquet", to_table("study", table))
    shown = invoke(leaderboard, tmp_path)
    assert shown.startswith("T\ndefense  members  answers ")
    assert "90.0 ±5.0" in shown
    assert invoke(leaderboard, tmp_path, "--format", "markdown") == render_board(
        "study", table, "markdown"
    )
    assert invoke(leaderboard, tmp_path, "--format", "csv").splitlines()[1] == (
        "T,plain,3,mean,2,100,50,0.9,0.85,0.95,,,,"
    )
    (row,) = json.loads(invoke(leaderboard, tmp_path, "--format", "json"))["rows"]
    assert row["clean"] == 0.9
    for given in (["--family", "fusion"], ["--compare", "a", "b"]):
        with pytest.raises(InputError, match="ranks defenses; only --format changes what is shown"):
            invoke(leaderboard, tmp_path, *given)


def test_robustness_is_shown(run, rows, capsys):
    frame = rows([
        {"attack": "pma", "surrogates": "digits:vit", "target": "digits:vit", "sample_id": str(i),
         "adv_pred": 2 if i < 4 else 1, "cell": "pma-0"}
        for i in range(10)
    ])
    store = run(frame, goal="robustness", after="", notes=["flat"], surrogate_specs=["digits:vit"])
    show_robustness(store.directory)
    shown = capsys.readouterr().out
    assert "60.0 [31.3–83.2]" in shown
    assert "Note: digits:vit, pma: flat." in shown
    show_robustness(store.directory, "markdown")
    assert capsys.readouterr().out.startswith("| model | attack | robust accuracy |")
    show_robustness(store.directory, "json")
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    assert row["robust_accuracy"] == 0.6


def test_boards_of_several_runs_keep_what_is_said_of_each(run, drawn):
    one = run(drawn({("pgd", "cnns"): 0.5}, TARGETS, WHITE), "one")
    two = run(drawn({("pgd", "cnns"): 0.9}, TARGETS, WHITE, suite="t"), "two", eps="4/255")
    found = json.loads(invoke(leaderboard, one.directory, two.directory, "--format", "json"))
    first, second = found["about"]["boards"]
    assert (first["suites"], second["suites"]) == (["s"], ["t"])
    assert first["targets"] == second["targets"] == ["digits:vit", "digits:vit-at"]
    assert [row["suite"] for row in found["rows"]] == ["s", "t"]
    shown = invoke(leaderboard, one.directory, two.directory)
    assert "ranked apart.\n\n   letters," in shown, "a line between the two"
    assert not shown.startswith("\n")
    (alone,) = boards([one.directory])
    assert alone.attrs["notes"] == []
    markdown = invoke(leaderboard, one.directory, two.directory, "--format", "markdown")
    assert markdown.count("| # |") == 2


def test_cells_of_several_runs_are_numbered_through(run, drawn):
    stores = [
        run(drawn({("pgd", "cnns"): 0.5}, {"b": 1}, n=4, suite=suite), suite) for suite in ("s", "t")
    ]
    samples, cells = load([store.directory for store in stores])
    assert samples.index.tolist() == list(range(8))
    assert cells.index.tolist() == [0, 1]
    assert cells["suite"].tolist() == ["s", "t"]
    again = run(drawn({("pgd", "cnns"): 0.5}, {"b": 1}, n=4), "again")
    samples, cells = load([stores[0].directory, again.directory, stores[1].directory])
    assert list(dict.fromkeys(samples["suite"])) == [
        f"s ({stores[0].directory})", f"s ({again.directory})", "t"
    ]
    assert cells["suite"].tolist() == list(dict.fromkeys(samples["suite"]))


@pytest.mark.parametrize(
    ("one", "two", "together"),
    [
        ({"eps": "8/255"}, {"eps": 8 / 255}, True), ({"eps": "8 / 255"}, {"eps": "8/255"}, True),
        ({"eps": "8/255"}, {"eps": "8/256"}, False), ({"norm": "l2"}, {"norm": "linf"}, False),
        ({"data_fingerprint": "f"}, {"data_fingerprint": "g"}, False),
        ({"eps": "wide"}, {"eps": "wide"}, True), ({"eps": "1/0"}, {"eps": "1/1"}, False),
    ],
)
def test_suites_of_the_same_data_and_budget_are_ranked_together(run, drawn, one, two, together):
    stores = [
        run(drawn({("pgd", "cnns"): 0.5}, {"b": 1}, n=4, suite=suite), suite, **about)
        for suite, about in (("s", one), ("t", two))
    ]
    assert len(boards([store.directory for store in stores])) == (1 if together else 2)


@pytest.mark.parametrize("command", [matrix, leaderboard])
def test_bad_directories_are_one_line(command, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "suite.toml").write_text("")
    (tmp_path / "file").write_text("")
    for name, said in {
        "none": "does not exist", "empty": "holds no run", "begun": "no finished samples",
        "file": "is a file; a run needs a directory",
    }.items():
        with pytest.raises(InputError, match=said) as error:
            invoke(command, tmp_path / name)
        assert "\n" not in str(error.value)


def test_a_corrupt_run_is_a_run_error(store):
    path = store.samples_path("pgd-cnns-0", "digits-vit")
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(RunError, match="is corrupt"):
        invoke(matrix, store.directory)


def test_importing_the_commands_is_instant():
    code = (
        "import sys, advens.results.commands; "
        "print(sorted({'pandas', 'pyarrow', 'scipy', 'numpy', 'rich', 'torch'} & set(sys.modules)))"
    )
    said = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {sys.path!r}; {code}"],
        check=True, capture_output=True, text=True,
    ).stdout
    assert said.strip() == "[]"


def test_a_sound_board_is_shown_without_reading_samples(store, monkeypatch):
    """Changed samples below an older board are read again, and so is what a subset asks for."""
    shown = {form: invoke(matrix, store.directory, "--format", form) for form in ("table", "json", "csv")}
    ranked = {form: invoke(leaderboard, store.directory, "--format", form) for form in ("table", "json")}
    summarise(store.directory, "d1")
    read = []
    once = RunStore.read_samples
    monkeypatch.setattr(RunStore, "read_samples", lambda self, *a: read.append(1) or once(self, *a))
    for form, text in shown.items():
        assert invoke(matrix, store.directory, "--format", form) == text
    for form, text in ranked.items():
        assert invoke(leaderboard, store.directory, "--format", form) == text
    assert not read
    for more in (["--denominator", "all"], ["--targets", "*at"]):
        invoke(matrix, store.directory, *more)
        invoke(leaderboard, store.directory, *more)
    assert len(read) == 4
    store.matrix.write_bytes(store.matrix.read_bytes()[:-9])
    assert invoke(matrix, store.directory) == shown["table"]
    assert len(read) == 5
    path = store.samples_path("pgd-cnns-0", "digits-vit")
    later = store.leaderboard.stat().st_mtime_ns + 10**9
    os.utime(path, ns=(later, later))
    assert invoke(leaderboard, store.directory) == ranked["table"]
    assert len(read) == 6


def test_robustness_is_shown_as_stored(run, rows, capsys, monkeypatch):
    frame = rows([
        {"attack": "pma", "surrogates": "digits:vit", "target": "digits:vit", "sample_id": str(i),
         "adv_pred": 2 if i < 4 else 1, "cell": "pma-0"}
        for i in range(10)
    ])
    store = run(frame, goal="robustness", after="", notes=["flat"], surrogate_specs=["digits:vit"])
    shown = {}
    for form in ("table", "json", "csv", "markdown"):
        show_robustness(store.directory, form)
        shown[form] = capsys.readouterr().out
    write_board(store.directory, "robustness")
    monkeypatch.setattr(RunStore, "read_samples", None)
    for form, text in shown.items():
        show_robustness(store.directory, form)
        assert capsys.readouterr().out == text


def test_an_unsealed_study_says_what_makes_it_again(tmp_path):
    pd.DataFrame({"table": ["T"]}).to_parquet(tmp_path / "study.parquet")
    with pytest.raises(RunError, match="not sealed, as by older versions") as error:
        invoke(leaderboard, tmp_path)
    assert str(error.value).endswith(f"make it again with 'advens run' and --out {tmp_path}")
