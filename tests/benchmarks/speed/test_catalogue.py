"""The speed of attacks of many copies: a short run of the benchmark."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner

from advens.benchmarks.speed.catalogue import main, names


def test_a_short_run(tmp_path: Path) -> None:
    out = tmp_path / "speed.json"
    given = ["--only", "ssa", "--only", "mifgsm", "--images", "1", "--rounds", "1", "--out", str(out)]
    result = CliRunner().invoke(main, given, catch_exceptions=False)
    assert result.exit_code == 0
    ssa, mi = json.loads(out.read_text())["lines"]
    assert ssa["passes"] == [40, 40]
    assert mi["passes"] == [2, 2]
    assert ssa["speedup"] == ssa["one_seconds_per_image"] / ssa["at_once_seconds_per_image"] > 0
    assert ssa["at_once_peak_bytes"] > 3 * ssa["one_peak_bytes"], "the graphs of twenty copies"
    assert 0.5 < mi["at_once_peak_bytes"] / mi["one_peak_bytes"] < 2
    assert "one/once" in result.output


def test_every_attack_of_the_catalogue_is_timed() -> None:
    assert {"ssa", "sia", "pgn", "mef", "l2t", "decowa", "mifgsm"} <= set(names())
    assert "adaea" not in names()
