"""The README: short, and true."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq

from advens.benchmarks.suites import load_suite
from advens.results.boards import BOARDS
from advens.results.display.render import render_board
from advens.results.store import read_table

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
KEPT = ROOT / "results" / "reference" / "quickstart.parquet"
"""The matrix of a run of the quickstart."""
BOARD = KEPT.with_name("quickstart-leaderboard.parquet")


def test_a_stranger_reads_it_in_three_minutes() -> None:
    assert README.count("\n") <= 150
    assert len(README.split()) < 1100


def test_python_comes_first() -> None:
    assert README[: README.index("```python")].count("\n") < 40


def test_the_quickstart_prints_what_it_shows() -> None:
    frame = pd.read_parquet(KEPT)
    suite = load_suite("quickstart")
    assert sorted(set(frame["target"])) == sorted(suite.targets)
    assert set(frame["attack"]) == {entry.title for entry in suite.attacks}
    about = pq.read_schema(KEPT).metadata
    kept = {name: json.loads(about[f"advens.{name}".encode()]) for name in ("means", "randomized")}
    frame.attrs = {"denominator": "target", **kept}
    shown = README.partition("<!-- quickstart: begin -->\n```\n")[2].partition("\n```")[0]
    assert [line.rstrip() for line in render_board("matrix", frame).splitlines()] == shown.splitlines()


def test_the_guide_shows_the_board_of_the_quickstart() -> None:
    kept = read_table(BOARD, BOARDS.get("leaderboard").table)
    said = kept.schema.metadata
    about = {name: json.loads(said[f"advens.{name}".encode()]) for name in ("targets", "notes", "data")}
    frame = pd.read_parquet(BOARD)
    frame.attrs = {"denominator": "target", **about}
    shown = render_board("leaderboard", frame, width=120).splitlines()
    assert [line.rstrip() for line in shown] == BOARD.with_suffix(".txt").read_text().splitlines()
    assert f"results/reference/{BOARD.stem}.txt\n" in (ROOT / "docs" / "guide" / "results.md").read_text()


def test_what_it_says_of_the_quickstart() -> None:
    frame = pd.read_parquet(KEPT)
    held = frame[~frame.groupby("target")["white_box"].transform("any")]
    mean = held.groupby(["attack", "surrogates"])["asr"].mean()
    best = mean.idxmax()
    assert best == ("di-ti-mi-ens-logits", "ensemble")
    assert mean["mifgsm", "digits:convnext"] > mean["mifgsm", "ensemble"]
    board = pd.read_parquet(BOARD).set_index(["attack", "surrogates"])

    def differ(one: tuple[str, str], other: tuple[str, str], letters: str) -> bool:
        return not set(board.loc[one, letters]) & set(board.loc[other, letters])

    plain, momentum, alone = ("ens-logits", "ensemble"), ("mifgsm", "ensemble"), ("mifgsm", "digits:convnext")
    assert differ(momentum, plain, "models_group")
    assert differ(best, plain, "models_group")
    for only_here in ((best, alone), (alone, momentum)):
        assert differ(*only_here, "group")
        assert not differ(*only_here, "models_group")
    rate: Any = held.set_index(["attack", "surrogates", "target"])["asr"]
    assert rate[(*best, "digits:resnet-at")] < 0.2
    assert rate[(*best, "digits:vit-at")] < 0.2


BLOCKS = re.findall(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def test_its_python_runs_as_written() -> None:
    names: dict[str, Any] = {}
    exec(BLOCKS[0], names)
    assert names["x_adv"].shape == names["x"].shape == (50, 3, 32, 32)
    assert 0.05 < names["wrong"].float().mean() < 1


def test_the_guide_reads_a_run_as_written(tmp_path: Path) -> None:
    """What the page "Getting started" asks of a run, of the quickstart with two attacks and few images."""
    import advens

    small = {
        "limit": 10, "targets": ["digits:mixer", "digits:resnet-at"], "threat.steps": 1,
        "surrogates": {"ensemble": ["digits:resnet", "digits:vit"]},
        "attacks": [{"name": "mifgsm"}, {"name": "di-ti-mi-ens-logits"}],
    }  # fmt: skip
    names = {"advens": advens, "run": advens.run("quickstart", out=tmp_path / "run", settings=small)}
    text = (ROOT / "docs" / "guide" / "start.md").read_text(encoding="utf-8")
    asked = text.partition('run = advens.open_run("runs/quickstart")')[2].partition("```")[0]
    lines = [line for line in asked.splitlines() if line.startswith(("run.", "images"))]
    assert len(lines) == 5
    for line in lines:
        exec(line, names)
    assert names["images"].shape == (10, 3, 32, 32)
    assert names["run"].verify() == []


def test_a_suite_runs_from_python_as_written(tmp_path: Path) -> None:
    """The quickstart of one attack and few images."""
    small = {"limit": 10, "targets": ["digits:mixer"], "threat.steps": 1, "attacks": [{"name": "mifgsm"}]}
    call = 'advens.run("quickstart", out="runs/quickstart")'
    assert call in BLOCKS[1]
    fast = f'advens.run("quickstart", out="{tmp_path / "run"}", settings={small!r})'
    names: dict[str, Any] = {}
    exec("import advens\n" + BLOCKS[1].replace(call, fast), names)
    assert len(names["run"].leaderboard) == 4
    assert names["run"].examples(attack="mifgsm", surrogates="ensemble").images.shape == (10, 3, 32, 32)
