"""The study of the catalogue: from runs to one file, and what its tables say."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from advens.attacks.registry import list_attacks
from advens.benchmarks.studies.catalogue import (
    BASES,
    attacks,
    claims,
    fronts,
    kept,
    main,
    named,
    parted,
    places,
    published,
    rankings,
)
from advens.cli import script
from advens.errors import InputError
from advens.results.boards.kept import read, write
from advens.results.boards.leaderboard import leaderboard
from advens.results.boards.means import Means
from advens.results.boards.outcomes import Contributions, contributions
from advens.results.boards.rows import load


@pytest.fixture
def runs(advens: Any, suite: Any, tmp_path: Path) -> list[Path]:
    """The same attacks at published cost and at four backward passes."""
    given = {"attacks": [{"name": ["ifgsm", "mifgsm", "vmifgsm"]}], "surrogates": {"cnn": ["digits:resnet"]},
             "targets": [f"toys:centroid?seed={k}" for k in range(5)]}  # fmt: skip
    advens("run", suite(threat__steps=2, **given), "--out", tmp_path / "published").done()
    advens("run", suite("budget.toml", budget=84, **given), "--out", tmp_path / "budget").done()
    return [tmp_path / "published", tmp_path / "budget"]


def test_from_runs_to_tables(runs: list[Path], tmp_path: Path) -> None:
    file = tmp_path / "kept.parquet"
    said = CliRunner().invoke(main, ["keep", *map(str, runs), "--out", str(file)])
    assert said.exit_code == 0, said.output
    parts, spent = read(file)
    assert set(parts.rows["attack"]) == {
        named(name, budget) for name in ("ifgsm", "mifgsm", "vmifgsm") for budget in (None, 84)
    }
    samples, cells = load([runs[0]])
    board = leaderboard(samples, cells).set_index("attack")
    means = Means(parts).table["mean_asr"]
    for place, (row, passes) in enumerate(
        zip(parts.rows["attack"], spent["backwards_per_sample"], strict=True)
    ):
        attack, budget = parted(row)
        if budget is None:
            assert means[place] == board["mean_asr"][attack]
            assert passes == board["backwards_per_sample"][attack]
        else:
            assert passes == 84
    for table in (fronts, attacks, rankings):
        said = CliRunner().invoke(main, [table.__name__, str(file)])
        assert said.output == table(parts, spent)
    assert "| cnn | mifgsm | ifgsm | +14.7 |" in rankings(parts, spent)
    assert "| mifgsm | 2 / 2 |" in attacks(parts, spent)
    assert "At most 10 backward passes an image:" in fronts(parts, spent)


def test_outcomes_come_back_as_they_were(runs: list[Path], tmp_path: Path) -> None:
    samples, _ = load([runs[0]])
    write(tmp_path / "one.parquet", kept(runs[:1]))
    found, _ = read(tmp_path / "one.parquet")
    wanted = contributions(samples)
    pd.testing.assert_frame_equal(found.rows.drop(columns="suite"), wanted.rows.drop(columns="suite"))
    for name in ("targets", "families", "samples", "firsts"):
        assert getattr(found, name) == getattr(wanted, name)
    for name in ("value", "evaluated", "white_box", "clean_accuracy", "robust_accuracy", "seeds"):
        np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name))


def test_runs_on_other_images_are_refused(runs: list[Path], advens: Any, suite: Any, tmp_path: Path) -> None:
    other = suite("other.toml", data="digits:test?limit=5", attacks=[{"name": "ifgsm"}])
    advens("run", other, "--out", tmp_path / "other").done()
    with pytest.raises(InputError, match="not over the same images and targets"):
        kept([runs[0], tmp_path / "other"])
    said = CliRunner().invoke(main, ["keep", str(runs[0])])
    assert "--out FILE" in said.output
    assert said.exit_code == 2


@pytest.mark.parametrize(("content", "why"), [
    (None, "no outcomes at"), (b"garbage", "holds no outcomes of a study"),
])  # fmt: skip
def test_wrong_files(
    content: bytes | None, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    file = tmp_path / "kept.parquet"
    if content is not None:
        file.write_bytes(content)
    monkeypatch.setattr(sys, "argv", ["catalogue", "fronts", str(file)])
    with pytest.raises(SystemExit) as ended:
        script(main)
    said = capsys.readouterr()
    assert ended.value.code == 2
    assert said.out == ""
    assert why in said.err
    assert said.err.count("\n") == 1


def outcomes(rates: dict[str, float], targets: int, n: int = 200) -> Contributions:
    """Attacks at 120 passes that fool a target on as large a part of the images, the same ones first."""
    hardness = np.random.default_rng(0).random((targets, n))
    value = np.stack([(hardness < rates[name]).astype(float) for name in sorted(rates)])
    names, shape = [f"t{k}" for k in range(targets)], (len(rates), targets)
    share = np.zeros(shape)
    return Contributions(
        rows=pd.DataFrame(
            {"suite": "s", "attack": [named(name, 120) for name in sorted(rates)], "surrogates": "cnn"}
        ),
        targets=names, families=[""] * targets, samples=[f"{i:04d}" for i in range(n)], value=value,
        evaluated=np.ones(shape, bool), white_box=np.zeros(shape, bool), clean_accuracy=share,
        robust_accuracy=share, error_rate=share, seeds=np.ones(shape, np.int64), firsts=names,
    )  # fmt: skip


@pytest.fixture
def parts() -> Contributions:
    """On the CNN, MI as far above I-FGSM as published, NI below MI, and VNI like NI."""
    return outcomes({"ifgsm": 0.2, "mifgsm": 0.6, "nifgsm": 0.3, "vnifgsm": 0.3}, 8)


def test_what_becomes_of_claims(parts: Contributions) -> None:
    found = claims(parts).set_index("attack")
    assert dict(found["base"]) == {"mifgsm": "ifgsm", "nifgsm": "mifgsm", "vnifgsm": "nifgsm"}
    assert dict(found["models"]) == dict(found["these"]) == {
        "mifgsm": "confirmed", "nifgsm": "reversed", "vnifgsm": "not told apart"
    }  # fmt: skip
    rates = published()
    assert found["published"]["nifgsm"] == rates["cnn", "nifgsm"] - rates["cnn", "mifgsm"]
    assert (found["models_p"] <= 1).all()


def test_places_count_the_rows_of_one_kind(parts: Contributions) -> None:
    spent = parts.rows.assign(forwards_per_sample=120.0, backwards_per_sample=120.0)
    found = places(parts, spent).set_index("name")
    assert dict(found["place"]) == {"ifgsm": 4, "mifgsm": 1, "nifgsm": 2, "vnifgsm": 2}
    assert set(found["of"]) == {4}
    assert dict(found["front"]) == {"ifgsm": False, "mifgsm": True, "nifgsm": False, "vnifgsm": False}


def test_published_names_are_attacks_and_so_are_their_bases() -> None:
    names = {attack for _, attack in published()}
    assert {name.removeprefix("mi-") for name in names} - set(list_attacks()) <= {"mup", "awt"}
    assert set(BASES.values()) <= names


def test_few_targets_say_nothing_of_new_models() -> None:
    with pytest.raises(InputError, match="fewer than five held-out targets"):
        claims(outcomes({"ifgsm": 0.2, "mifgsm": 0.6}, 2))


def test_without_an_attack_at_equal_passes_nothing_is_claimed(parts: Contributions) -> None:
    plain = replace(parts, rows=parts.rows.assign(attack=[parted(name)[0] for name in parts.rows["attack"]]))
    with pytest.raises(InputError, match="no two attacks at equal passes"):
        claims(plain)
