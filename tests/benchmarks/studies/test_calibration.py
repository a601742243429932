"""The study of coverage and level: what it draws, what it writes, and what its page says."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from advens.benchmarks.studies import calibration
from advens.benchmarks.studies.calibration import MILD, STRONG, Made

ROOT = Path(__file__).parents[3]
REFERENCE = ROOT / "results" / "reference" / "calibration.md"
PAGE = ROOT / "docs" / "reference" / "tables" / "calibration.md"


def tables(text: str) -> dict[str, pd.DataFrame]:
    """The tables by their titles; shares as they are shown."""
    titled = re.split(r"\n\*\*(.+)\*\*\n", text)
    found = {}
    for title, body in zip(titled[1::2], titled[2::2], strict=True):
        head, _, *rows = [line.strip("| ").split(" | ") for line in body.strip().splitlines()]
        found[title] = pd.DataFrame(rows, columns=head)
    return found


def shares(column: pd.Series) -> pd.Series:
    return column.str.strip("*").astype(float)


@pytest.mark.parametrize("rate", [0.02, 0.5])
def test_made_data_have_the_rate_they_claim(rate: float) -> None:
    """Over many targets and images; and these targets have the rates that are said to be theirs."""
    made = replace(STRONG, rates=(rate, 0.7), images=4000, targets=400)
    values, rates = made.draw(np.random.default_rng(0))
    assert np.nanmean(values, axis=(1, 2)) == pytest.approx([rate, 0.7], abs=0.04)
    assert rates.mean(axis=1) == pytest.approx(np.nanmean(values, axis=(1, 2)), abs=0.02)
    assert np.isnan(values).mean() == pytest.approx(0.1, abs=0.01)
    assert (np.isnan(values[0]) == np.isnan(values[1])).all()
    assert np.corrcoef(rates)[0, 1] > 0.4, "attacks share the effect of a target"


def test_effects_do_what_they_are_named_for() -> None:
    rng = np.random.default_rng(0)
    plain = Made(images=3000, targets=12, target=0, image=0, attack_target=0, attack_image=0, missing=0)
    assert plain.draw(rng).rates == pytest.approx(0.5)
    same = replace(plain, target=1.0).draw(rng).rates
    assert same[0] == pytest.approx(same[1])
    assert same[0].std() > 0.05
    apart = replace(plain, attack_target=1.0).draw(rng).rates
    assert abs(apart[0] - apart[1]).max() > 0.05
    for effect, between in (("image", True), ("attack_image", False)):
        values = replace(plain, **{effect: 3.0}).draw(rng).values
        assert np.corrcoef(values[0, :, 0], values[0, :, 1])[0, 1] > 0.3
        assert (np.corrcoef(values[0, :, 0], values[1, :, 0])[0, 1] > 0.3) == between


def test_what_it_writes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in {"IMAGES": (20,), "TARGETS": (5,), "RATES": (0.5,), "CLOSE": (0.4, 0.5)}.items():
        monkeypatch.setattr(calibration, name, value)
    out = tmp_path / "calibration.md"
    said = CliRunner().invoke(calibration.main, ["--draws", "2", "--out", str(out)])
    assert said.exit_code == 0, said.output
    found, kept = tables(out.read_text()), tables(REFERENCE.read_text())
    assert list(found) == list(kept)
    assert [list(table) for table in found.values()] == [list(table) for table in kept.values()]
    assert calibration.coverage(0.85, 200) == "**0.850**"
    assert calibration.coverage(0.92, 200) == "0.920"
    assert calibration.level(0.12, 200) == "**0.120**"
    assert calibration.level(0.08, 200) == "0.080"


def test_what_the_page_says() -> None:
    page = " ".join(PAGE.read_text().split())
    rates, ranks, trainings = tables(REFERENCE.read_text()).values()
    assert len(rates) == 2 * 4 * 3 * 3

    def says(what: str, column: pd.Series) -> None:
        assert what.format(*(f"{end:.3f}" for end in (shares(column).min(), shares(column).max()))) in page

    says("holds the rate of the population in {} to {} of the draws", rates["two-way, new models"])
    says("between {} and {} of the draws", rates["two-way test, new models"])
    says("holds the mean over the targets at hand in {} to {}", rates["bootstrap, these targets"])
    says("holds that of the population in {} to {}", rates["bootstrap, new models"])
    says("in {} to {} when equal means equal on these targets", rates["sign flips, these targets"])
    says("in {} to {} when it means equal on average over new ones", rates["sign flips, new models"])
    says("Wilson's interval of a single target holds in {} to {}", rates["Wilson, one target"])
    says("in {} to {} of the draws, for the row", ranks["row covered least often"])
    says("hold in {} to {}", trainings["interval"])
    says("apart in {} to {}", trainings["test"][trainings["test"] != "-"])
    for name in ("two-way, new models", "two-way test, new models", "two-way interval of the difference"):
        assert not rates[name].str.startswith("**").any()
    rare = rates["rate"].isin(["0.02", "0.98"]) & (rates["images"] == "50")
    short = rates["bootstrap, these targets"].str.startswith("**")
    assert short.any()
    assert rare[short].all()
    assert MILD.target < STRONG.target
