"""Suites of defenses: trained once, put through one trial, pooled over trainings."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tomli_w

from advens.attacks.starts import Uniform
from advens.benchmarks import defense_goal
from advens.benchmarks.defense_goal import lines_of, parts_of
from advens.benchmarks.plan import outline
from advens.benchmarks.suites import DefenseSuite, bundled, load, parse
from advens.defenses import training
from advens.defenses.ensembles import Ensemble
from advens.models import load_model
from advens.results.boards.defenses import pooled
from advens.results.display.render import render_board
from advens.results.store import RunStore

QUICK = {
    "arch": "digits:mambaout", "data": "digits:train?limit=32&seed=0", "optimizer": "adam", "epochs": 1,
    "batch_size": 16,
}  # fmt: skip
TINY: dict[str, Any] = {
    "name": "tiny", "goal": "defense", "data": "digits:test", "limit": 10, "white_box_limit": 6,
    "seeds": [0, 1], "eps": [0.2, 0.05],
    "surrogates": ["toys:centroid?seed=1"], "attacks": ["fgsm", "mifgsm"], "controls": False,
    "training": QUICK,
    "defenses": [
        {"name": "plain", "members": [1, 2]},
        {"name": "barre", "label": "boosted", "members": 2, "table": "Drawn", "steps": 1, "osp_images": 8},
    ],
}  # fmt: skip
STUDIES = [name for name in bundled() if isinstance(load(name), DefenseSuite)]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ADVENS_CACHE", str(tmp_path / "cache"))
    own = {"pgd": {"name": "pgd-ce", "steps": 2}, "arc": {"name": "arc", "steps": 2}}
    monkeypatch.setattr(defense_goal, "WHITE_BOX", own)


@pytest.fixture
def written(tmp_path: Path) -> Any:
    def write(**changes: Any) -> Path:
        path = tmp_path / "tiny.toml"
        path.write_text(tomli_w.dumps(TINY | changes))
        return path

    return write


def test_the_whole_study(advens: Any, written: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    said = advens("run", written(), "--out", out).done()
    each = pd.read_parquet(out / "defenses.parquet")
    table = pd.read_parquet(out / "study.parquet")
    assert list(zip(each["label"], each["members"], each["seed"], strict=True)) == [
        ("plain", 1, 0), ("plain", 2, 0), ("plain", 1, 1), ("plain", 2, 1),
        ("boosted", 2, 0), ("boosted", 2, 1),
    ]  # fmt: skip
    assert each["defense"].nunique() == 6
    assert list(zip(table["table"], table["label"], table["members"], strict=True)) == [
        ("defenses", "plain", 1), ("defenses", "plain", 2), ("Drawn", "boosted", 2),
    ]  # fmt: skip
    assert list(table["kind"]) == ["mean", "mean", "randomized"]
    for measure in ("clean", "transfer 0.05", "transfer 0.2", "open pgd", "mflops"):
        means = each.groupby(["label", "members"])[measure].mean()
        found = table.set_index(["label", "members"])[measure]
        assert np.allclose(found, means[found.index])
    assert table["open arc"].notna().all(), "every model meets the same attacks"
    assert set(table["n"]) == {10}
    assert set(table["n open"]) == {6}
    for words in ("boosted", "Drawn", "transfer 0.05", "over 2 trainings"):
        assert words in said.out

    # nothing is trained, crafted or evaluated twice
    monkeypatch.setattr(training.Run, "go", None)
    files = {path: path.stat().st_mtime_ns for path in out.glob("*/*/*.parquet")}
    again = advens("run", written(), "--out", out).done().out
    done = "16 cells crafted, 36 evaluations"
    assert again.replace("nothing to do: all 16 cells are there", done) == said.out
    assert files == {path: path.stat().st_mtime_ns for path in out.glob("*/*/*.parquet")}

    # a model's images are shown to itself alone
    status = advens("status", out).done().out.splitlines()
    assert status[8] == "white-box"
    assert status[10] == "evaluations  12 of 12 done"
    assert len(list((out / "white-box" / "samples").iterdir())) == 12
    assert "white-box: 12 cells" in advens("verify", out).done().out

    markdown = advens("leaderboard", out, "--format", "markdown").done().out
    assert "| boosted | 2 | randomized |" in markdown
    rows = json.loads(advens("leaderboard", out, "--format", "json").done().out)["rows"]
    assert [row["label"] for row in rows] == list(table["label"])
    advens("leaderboard", out, "--family", "loss").refused("ranks defenses")
    advens("matrix", out).refused("one of the runs in it: transfer-0.05, transfer-0.2, white-box")


def test_controls(advens: Any, written: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are trained after what they are compared with, and are lines like others."""
    suite = written(
        controls=True, seeds=[0], eps=[0.1],
        training=QUICK | {"eps": 0.1, "steps": 1},
        defenses=[{"name": "at", "members": 1}, {"name": "mrboost", "members": [1, 2]}],
    )  # fmt: skip
    out = tmp_path / "out"
    before = advens("run", suite, "--out", out, "--dry-run").done().out
    assert "control    at with the compute of mrboost of 2" in before
    assert "at most 2 trainings of controls" in before
    said = advens("run", suite, "--out", out).done().out
    table = pd.read_parquet(out / "study.parquet").set_index(["label", "members"])
    assert table["control"].fillna("").to_dict() == {
        ("at", 1): "", ("mrboost", 1): "at", ("mrboost", 2): "at, 2 epochs",
        ("mrboost, member 2 alone", 1): "", ("at, 2 epochs", 1): "",
    }  # fmt: skip
    assert table["train_forwards"].tolist() == [2, 2, 5, 5, 4]  # two steps on two members, then one to learn
    assert (table["train_forwards"] == table["train_backwards"]).all()
    assert table["kind"].tolist() == ["mean", "mean", "mean", "single", "mean"]
    for words in ("at, 2 epochs", "control", "passes", "5/5"):
        assert words in said
    models = pd.read_parquet(out / "models.parquet").set_index("label")["defense"]
    assert models["mrboost, member 2 alone"].endswith("?member=2")
    advens("verify", out).done()
    after = advens("run", suite, "--out", out, "--dry-run").done().out
    assert "control    at, 2 epochs, seed 0" in after
    assert "5 models of 3 trainings" in after
    monkeypatch.setattr(training.Run, "go", None)
    assert "nothing to do" in advens("run", suite, "--out", out).done().out

    # a training from before compute was counted
    folder = next((tmp_path / "cache").rglob("training.json"))
    folder.write_text(json.dumps({**json.loads(folder.read_text()), "compute": None}))
    advens("run", suite, "--out", out).refused("was not counted when it was trained")


def test_smaller_ones_are_cut_from_the_largest() -> None:
    lines = lines_of(DefenseSuite.model_validate(TINY | {"defenses": [
        {"name": "plain", "members": [2, 3]}, {"name": "adp", "members": [2, 3]},
    ]}))  # fmt: skip
    trained = {line.label: {each.training for each in lines if each.label == line.label} for line in lines}
    assert len(trained["plain"]) == len(TINY["seeds"])
    assert len(trained["adp"]) == 2 * len(TINY["seeds"])


def test_order_and_workers_change_nothing(advens: Any, written: Any, tmp_path: Path) -> None:
    one = tmp_path / "one"
    advens("run", written(), "--out", one).done()
    swapped = written(defenses=TINY["defenses"][::-1], eps=[0.05, 0.2])
    two = tmp_path / "two"
    advens("run", swapped, "--out", two, "--workers", 2).done()
    key = ["label", "members"]
    tables = [pd.read_parquet(p / "study.parquet").sort_values(key, ignore_index=True) for p in (one, two)]
    pd.testing.assert_frame_equal(tables[0], tables[1][list(tables[0])])


def test_transfer_as_the_worst_of_many() -> None:
    """Every attack with every loss from every start, on each surrogate alone and on all together."""
    table = {key: value for key, value in TINY.items() if key != "attacks"}
    surrogates = ["digits:convnext", "digits:vit-b"]
    suite = DefenseSuite.model_validate(table | {"transfer": "dverge", "surrogates": surrogates, "seed": 3})
    assert suite.attacks == ["mifgsm", "difgsm", "sgm-mifgsm"]
    part = parts_of(suite, ["digits:vit"])["transfer-0.2"]
    seen = outline(part, held_out=False)
    sets = {"surrogates": tuple(surrogates), **{name: (name,) for name in surrogates}}
    assert seen.sets == sets
    assert set(seen.stages) == {
        (f"{attack} {loss}", name) for attack in suite.attacks for loss in ("ce", "margin") for name in sets
    }  # fmt: skip
    assert part.seeds == [3, 4]
    for (label, _), stage in seen.stages.items():
        assert isinstance(stage.attack.start, Uniform)
        assert stage.attack.steps == 100
        assert stage.attack.step_size.alpha == "eps/5"
        assert stage.attack.loss.part_name == label.split()[1]
    again = parse(suite.toml(), "again")
    assert again == suite
    own = DefenseSuite.model_validate(TINY | {"transfer": "dverge"})
    assert own.attacks == TINY["attacks"]
    plain = parts_of(DefenseSuite.model_validate(TINY), ["digits:vit"])["transfer-0.2"]
    assert (plain.seeds, plain.defaults, plain.threat.steps) == ([0], {}, None)
    assert [entry.title for entry in plain.attacks] == TINY["attacks"]


def test_rounds_follow_the_attacks_that_start_at_random(
    advens: Any, written: Any, tmp_path: Path
) -> None:
    """Their images count for the worst of each image, and only for it."""
    out = tmp_path / "out"
    path = written(
        models=["toys:centroid?seed=4"], defenses=[], limit=12, white_box_limit=12, sanity=False, eps=[0.1],
        white_box=["pgd", "arc"], white_box_until=0.01,
    )  # fmt: skip
    suite = load(str(path))
    assert isinstance(suite, DefenseSuite)
    entries = parts_of(suite, ["toys:centroid?seed=4"])["white-box"].attacks
    assert [(entry.title, entry.until) for entry in entries] == [("pgd", 0.01), ("arc", None)]
    advens("run", path, "--out", out, "--no-report").done()
    samples = RunStore(out / "white-box").read_samples()
    assert {"pgd", "arc", "pgd, round 1"} <= set(samples["attack"])
    samples["left"] = samples["clean_correct"] & ~samples["success"]
    row = pd.read_parquet(out / "defenses.parquet").iloc[0]
    assert row["open worst"] == samples.groupby("sample_id", observed=True)["left"].min().mean()
    assert row["open pgd"] == samples.loc[samples["attack"] == "pgd", "left"].mean()
    advens("verify", out).done()


def test_an_image_is_broken_by_any_start_loss_and_surrogate(
    advens: Any, written: Any, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    path = written(
        transfer={"losses": ["ce", "margin"], "starts": 2, "singles": True, "steps": 2}, eps=[0.2],
        surrogates=["toys:centroid?seed=1", "toys:centroid?seed=2"], attacks=["mifgsm"],
        models=["toys:centroid?seed=4"], defenses=[], white_box=["pgd-ce"], limit=12, sanity=False,
    )  # fmt: skip
    advens("run", path, "--out", out, "--no-report").done()
    samples = RunStore(out / "transfer-0.2").read_samples()
    assert samples["cell"].nunique() == 3 * 2 * 2
    samples["left"] = samples["clean_correct"] & ~samples["success"]
    wanted = samples.groupby("sample_id", observed=True)["left"].min().mean()
    assert pd.read_parquet(out / "defenses.parquet").loc[0, "transfer 0.2"] == pytest.approx(float(wanted))
    advens("verify", out).done()
    said = advens("run", path, "--dry-run").done().out
    assert "losses ce, margin; 2 uniform starts; 2 steps; together and each alone" in said
    assert "transfer-0.2: 144 images, 384 F, 384 B" in said  # 12 runs of 2 steps, on 4 models for 3 of them


def test_surrogates_are_no_members(advens: Any, written: Any, tmp_path: Path) -> None:
    members = [load_model("toys:centroid?seed=1"), load_model("toys:centroid?seed=2")]
    Ensemble(members).save(tmp_path / "both")
    path = written(models=[f"defense:{tmp_path / 'both'}"], defenses=[])
    said = advens("run", path, "--out", tmp_path / "out").refused("or one of its members")
    assert "toys:centroid?seed=1 is defense:" in said


def test_a_dry_run_trains_nothing(advens: Any, written: Any, tmp_path: Path) -> None:
    said = advens("run", written(), "--out", tmp_path / "out", "--dry-run").done().out
    assert "plain of 2, seed 0: members 1, 2" in said
    assert "6 models of 4 trainings" in said
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"defenses": [{"name": "plian", "members": 2}]}, "did you mean 'plain'"),
        ({"defenses": [{"name": "plain", "members": 2, "beta": 1}]}, "'plain' has no option 'beta'"),
        ({"defenses": [{"name": "adp", "members": 1}]}, "'adp': members = 1"),
        ({"defenses": []}, "needs [[defenses]] to train"),
        ({"training": {"data": "digits:train"}}, "'training.arch' is missing"),
        ({"training": QUICK | {"arch": "digits:resnett"}}, "did you mean"),
        ({"training": QUICK | {"data": "digits:trian"}}, "digits"),
        ({"surrogate": ["digits:vit"]}, "did you mean 'surrogates'"),
        ({"attacks": ["fgsmm"]}, "did you mean 'fgsm'"),
        ({"eps": ["x"]}, "eps"),
        ({"controls": "some"}, "controls"),
        ({"white_box_until": 1}, "white_box_until"),
        ({"transfer": "dverg"}, "did you mean 'dverge'"),
        ({"transfer": {"starts": 0}}, "starts"),
        ({"transfer": {"losses": ["ce", "ce"]}}, "losses are distinct"),
        ({"transfer": {"losses": ["cee"]}}, "did you mean 'ce'"),
        ({"transfer": {"single": True}}, "did you mean 'singles'"),
        ({"transfer": {"step_size": "eps/0"}}, "a step size is above 0"),
        ({"defenses": [{"name": "plain", "members": 2, "control": "both"}]}, "control"),
        ({"surrogates": ["digits:nothing"]}, "nothing"),
    ],
)
def test_mistakes(advens: Any, written: Any, tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    advens("run", written(**changes), "--out", tmp_path / "out").refused(said)
    assert not (tmp_path / "out").exists()
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


@pytest.mark.parametrize(
    ("limit", "white_box_limit", "wanted"),
    [(10, 6, 6), (10, 60, 10), (10, None, 10), (None, 6, 6), (None, None, None)],
)
def test_white_box_attacks_have_no_other_images(
    limit: int | None, white_box_limit: int | None, wanted: int | None
) -> None:
    suite = DefenseSuite.model_validate(TINY | {"limit": limit, "white_box_limit": white_box_limit})
    suites = parts_of(suite, ["digits:vit"])
    assert suites["transfer-0.05"].limit == limit
    assert suites["white-box"].limit == wanted


def test_not_for_other_commands(advens: Any, written: Any, tmp_path: Path) -> None:
    advens("run", written(), "--attacks", "fgsmm").refused("did you mean 'fgsm'")
    advens("suites", written()).done()


def test_groups_are_of_a_table_and_over_trainings() -> None:
    lines = [("one", "strong", 0.9), ("one", "weak", 0.1), ("one", "weak too", 0.1), ("two", "weak", 0.1)]
    each = pd.DataFrame([
        {"table": table, "label": label, "members": 2, "seed": seed, "kind": "mean", "n": 100, "n open": 100,
         "defense": f"{table}{label}{seed}", "transfer 0.1": share, "open worst": 0.0,
         "train_forwards": 10.0, "train_backwards": 10.0, "clean": 0.9}
        for table, label, share in lines for seed in range(5)
    ])  # fmt: skip
    images = pd.DataFrame([
        {"defense": f"{table}{label}{seed}", "measure": measure, "sample_id": f"i{k:02}",
         "left": float(k < 100 * share) if measure != "open worst" else 0.0}
        for table, label, share in lines for seed in range(5) for k in range(100)
        for measure in ("transfer 0.1", "open worst")
    ])  # fmt: skip
    found = pooled(each, images)
    assert list(found["transfer 0.1 group"]) == ["a", "b", "b", ""]
    assert list(found["open worst group"]) == ["a", "a", "a", ""]
    assert re.search(r"\b90\.0 ±6\.\d a\b", render_board("study", found, "markdown"))


def test_what_one_training_lacks_is_left_out() -> None:
    base = {
        "table": "t", "label": "x", "members": 2, "kind": "mean", "n": 10, "n open": 5, "defense": "d",
        "clean": 0.5,
    }  # fmt: skip
    found = pooled(pd.DataFrame([
        base | {"seed": 0, "diversity": 1.0, "open arc": None}, base | {"seed": 1, "diversity": None},
    ]), pd.DataFrame({"defense": [], "measure": [], "sample_id": [], "left": []}))  # fmt: skip
    assert found.loc[0, "diversity"] == 1
    assert np.isnan(found.loc[0, "open arc"])
    assert found.loc[0, "trainings"] == 2


@pytest.mark.parametrize("name", STUDIES)
def test_bundled_studies(name: str) -> None:
    found = load(name)
    assert isinstance(found, DefenseSuite)
    assert found.name == name
    assert lines_of(found)


def test_there_is_one() -> None:
    assert "digits-defenses" in STUDIES
