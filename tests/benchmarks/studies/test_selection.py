"""``advens select`` and its study."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from advens.benchmarks.studies import selection


def test_picks_in_order(advens: Any) -> None:
    said = advens(
        "select", "--from", "digits:mambaout,digits:convmixer,digits:resnet-at", "-k", 2, "--data",
        "digits:train?limit=20", "--device", "cpu",
    ).done()  # fmt: skip
    lines = said.out.splitlines()
    assert len(lines) == 3
    gains = [float(line.split()[1]) for line in lines[1:]]
    assert gains == sorted(gains, reverse=True)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--from", "digits:mambaout", "-k", 2, "--data", "digits:train"), "only 1 models to choose from"),
        (("--from", "digits:mambaut", "-k", 1, "--data", "digits:train"), "did you mean 'digits:mambaout'"),
        (("--from", ",", "-k", 1, "--data", "digits:train"), "--from names nothing"),
    ],
)
def test_bad_input(advens: Any, options: tuple[object, ...], said: str) -> None:
    found = advens("select", *options)
    assert found.code == 2
    assert said in found.err


def test_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "CANDIDATES", ("digits:mambaout", "digits:convmixer", "digits:resnet",
                                                  "digits:byobnet"))  # fmt: skip
    monkeypatch.setattr(selection, "TARGETS", ("digits:resnet-b",))
    monkeypatch.setattr(selection, "CALIBRATION", "digits:train?limit=20")
    sets = selection.drawn(3)
    table, measured = selection.scores(sets), selection.transfer(sets, tmp_path / "run", 10)
    assert set(table.index) == set(measured.index) == {selection.title(members) for members in sets}
    table["measured"] = measured
    found = selection.correlations(table, measured, draws=20).set_index("what")
    assert found.loc["measured", "rho"] == 1
    assert (found["low"] <= found["high"]).all()
