"""Rounds of a white-box attack: as many as it takes, whatever the shards and workers, stored and verified."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from advens.attacks import create_attack
from advens.benchmarks import rounds
from advens.benchmarks.cells import Cell
from advens.benchmarks.executors.local import Local
from advens.benchmarks.plan import Plan, make_plan, outline, repeatable
from advens.benchmarks.suites import Suite, from_table, settings_digest
from advens.benchmarks.tasks import Craft
from advens.datasets import load_data
from advens.results.boards.board import read_board
from advens.results.store import RunStore, read_table, write_table

MODELS = "toys:comb?seed=1&gap=0.05,toys:centroid?seed=1"
"""A model whose every restart breaks more, and one that is broken at once or not at all."""
N = 40


@pytest.fixture
def attacked(advens: Any, tmp_path: Path) -> Any:
    """``attacked("--until", 0.03)``: PGD of two steps on both models, in shards of 20, into ``run``."""

    def call(*more: object, out: str = "run", attack: str = "pgd-ce", shard: int = 20) -> Any:
        return advens(
            "robustness", "--models", MODELS, "--data", f"digits:test?limit={N}", "--attack", attack,
            "--eps", "0.02", "--steps", 2, "--shard", shard, "--no-sanity", "--out", tmp_path / out, *more,
        )

    return call


def left(folder: Path) -> pd.Series:
    """Which samples of each model still stand after each attack and round on itself."""
    frame = RunStore.open(folder).read_samples()
    own = frame[frame["surrogates"].astype(str) == frame["target"].astype(str)]
    own = own.assign(left=own["clean_correct"] & ~own["success"]).astype({"target": str, "attack": str})
    return own.set_index(["target", "attack", "sample_id"])["left"].sort_index()


def standing(folder: Path, model: str) -> list[int]:
    """How many samples stand after the attack and after every round."""
    found = left(folder)[model].groupby(level=0).agg(["sum", "size"])
    assert (found["size"] == N).all()
    return [int(found["sum"]["pgd-ce"])] + [
        int(found["sum"][f"pgd-ce, round {number}"]) for number in range(1, len(found))
    ]


def test_rounds_follow_until_one_breaks_little(attacked: Any, advens: Any, tmp_path: Path) -> None:
    said = attacked("--until", 0.03).done()
    lengths = []
    for model in MODELS.split(","):
        counts = standing(tmp_path / "run", model)
        broke = [before - after for before, after in pairwise(counts)]
        assert all(each >= 0.03 * N for each in broke[:-1])
        assert broke[-1] < 0.03 * N
        lengths.append(len(broke))
    assert lengths[0] > 2
    assert lengths[1] == 1
    table = read_board(tmp_path / "run", "robustness").set_index(["model", "attack"])
    for model, length in zip(MODELS.split(","), lengths, strict=True):
        row, counts = table.loc[model, "pgd-ce, rounds"], standing(tmp_path / "run", model)
        assert (row["rounds"], row["converged"]) == (length, True)
        assert row["robust_accuracy"] == pytest.approx(counts[-1] / N)
        assert row["last_broke"] == pytest.approx((counts[-2] - counts[-1]) / N)
        assert table.loc[model, "pgd-ce"]["robust_accuracy"] == pytest.approx(counts[0] / N)
    assert "not converged" not in said.out
    advens("verify", tmp_path / "run", "--recraft", 1).done()


def test_the_limit_of_rounds(attacked: Any, advens: Any, tmp_path: Path) -> None:
    said = attacked("--until", 0.03, "--most-rounds", 2).done()
    table = read_board(tmp_path / "run", "robustness").set_index(["model", "attack"])
    row = table.loc[MODELS.split(",")[0], "pgd-ce, rounds"]
    assert (row["rounds"], row["converged"]) == (2, False)
    assert "has not converged: the last of 2 rounds still broke" in " ".join(said.out.split())
    advens("verify", tmp_path / "run").done()


def test_without_an_attack_rounds_are_made(advens: Any, tmp_path: Path) -> None:
    """As many as the default asks for; an attack that is named is run as it is."""
    shown = []
    for more in ((), ("--attack", "pma-plus"), ("--until", 0.9)):
        advens(
            "robustness", "--models", "toys:comb?seed=1&gap=0.05", "--data", "digits:test?limit=20",
            "--eps", "0.02", "--steps", 2, "--no-sanity", "--out", tmp_path / f"run{len(shown)}", *more,
        ).done()
        shown.append(read_board(tmp_path / f"run{len(shown)}", "robustness").set_index("attack"))
    default, named, loose = shown
    assert default.loc["pma-plus, rounds", "last_broke"] < 0.01
    assert default.loc["pma-plus, rounds", "rounds"] > 1 == loose.loc["pma-plus, rounds", "rounds"]
    assert "pma-plus, rounds" not in named.index
    assert default.loc["pma-plus, rounds", "robust_accuracy"] < named.loc["pma-plus", "robust_accuracy"]


def test_neither_shards_nor_order_nor_batches_decide(
    attacked: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The attack draws nothing here, and the draws of rounds belong to images, not to shards."""
    execute = Local.execute
    what = ("--until", 0.03, "--set", "pgd-ce.start=clean", "--round-attack", "cw")
    attacked(*what, shard=N).done()
    expected = left(tmp_path / "run")
    assert expected.index.get_level_values(1).nunique() > 2
    monkeypatch.setattr(Local, "execute", lambda self, tasks: execute(self, tasks[::-1]))
    for shard in (20, 7):
        attacked(*what, "--batch-size", 3, shard=shard, out=str(shard)).done()
        pd.testing.assert_series_equal(left(tmp_path / str(shard)), expected)


@pytest.fixture
def stopped_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """``stopped_at(5)``: Ctrl-C at the fifth cell that is crafted from here on."""
    craft = Craft.do

    def at(number: int) -> None:
        count = 0

        def do(self: Craft, device: str) -> int:
            nonlocal count
            count += 1
            if count == number:
                raise KeyboardInterrupt
            return craft(self, device)

        monkeypatch.setattr(Craft, "do", do)

    return at


def test_a_run_that_was_stopped_in_a_round_goes_on(
    attacked: Any, advens: Any, tmp_path: Path, times: Any, stopped_at: Callable[[int], None]
) -> None:
    attacked("--until", 0.03, out="whole").done()
    stopped_at(4 + 4 + 2)  # in the second round, of one model
    assert attacked("--until", 0.03).code == 130
    kept = times(tmp_path / "run", "examples")
    assert len(kept) == 9
    told = advens("status", tmp_path / "run").done().out
    assert "9 of 10 crafted, 1 left" in told
    assert "up to 16 more cells" in told
    advens("verify", tmp_path / "run").unfinished()
    stopped_at(-1)
    attacked("--until", 0.03).done()
    assert kept.items() < times(tmp_path / "run", "examples").items()
    pd.testing.assert_series_equal(left(tmp_path / "run"), left(tmp_path / "whole"))
    assert times(tmp_path / "run").keys() == times(tmp_path / "whole").keys()
    told = advens("status", tmp_path / "run").done().out
    assert ", 0 left" in told
    assert "up to" not in told
    advens("verify", tmp_path / "run").done()
    assert "nothing to do" in attacked("--until", 0.03).done().out


def test_a_round_that_was_removed(attacked: Any, advens: Any, tmp_path: Path) -> None:
    attacked("--until", 0.03).done()
    store = RunStore(tmp_path / "run")
    cells = store.read_cells()
    last = cells[cells["round"] == cells["round"].max()]
    for cell in last["cell"]:
        store.examples_path(cell).unlink()
        for path in store.samples.glob(f"{cell}.*"):
            path.unlink()
    said = advens("verify", tmp_path / "run")
    said.failed("mismatches")
    assert f"{len(last)} of the {len(cells)} cells of suite.toml are missing" in said.err
    assert f"the first is {last['attack'].iloc[0]} on" in said.err
    again = attacked("--until", 0.03).done()
    assert f"{len(last)} cells crafted" in again.out
    advens("verify", tmp_path / "run").done()


def test_a_round_too_many(
    attacked: Any, advens: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(rounds, "share_broken", lambda *_: 1.0)
        attacked("--until", 0.03, "--most-rounds", 2).done()
    said = advens("verify", tmp_path / "run")
    said.failed("mismatches")
    lines = [line for line in said.err.splitlines() if "little enough to be the last" in line]
    assert len(lines) == 2, "the second round on one model, which the first one broke nothing of"


def test_rounds_join_a_finished_run_and_stay(attacked: Any, advens: Any, tmp_path: Path, times: Any) -> None:
    attacked().done()
    before = times(tmp_path / "run", "examples")
    assert len(before) == 4
    attacked("--until", 0.03).done()
    assert before.items() < times(tmp_path / "run", "examples").items()
    attacked("--until", 0.03, out="once").done()
    assert times(tmp_path / "run").keys() == times(tmp_path / "once").keys()
    assert "nothing to do" in attacked().done().out
    advens("verify", tmp_path / "run").done()
    attacked("--until", 0.02).refused("pgd-ce", "0.03", "0.02", "--out")


def test_new_targets_start_no_rounds(attacked: Any, advens: Any, tmp_path: Path, times: Any) -> None:
    attacked("--until", 0.03, "--most-rounds", 2).done()
    before = times(tmp_path / "run", "examples")
    advens("evaluate", tmp_path / "run", "--targets", "toys:centroid?seed=3").done()
    assert times(tmp_path / "run", "examples") == before
    advens("verify", tmp_path / "run").done()


def test_a_damaged_round_is_done_again(attacked: Any, advens: Any, tmp_path: Path) -> None:
    attacked("--until", 0.03).done()
    store = RunStore(tmp_path / "run")
    cells = store.read_cells()
    path = store.examples_path(cells.loc[cells["round"] == 1, "cell"].iloc[0])
    path.write_bytes(path.read_bytes()[:-9])
    assert advens("verify", tmp_path / "run").code == 1
    assert "1 cells crafted" in attacked("--until", 0.03).done().out
    advens("verify", tmp_path / "run").done()


def test_a_dry_run_says_up_to(advens: Any, suite: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = suite(**ROBUST, attacks=[{"name": "pma-plus", "until": 0.01, "most_rounds": 3}])
    told = advens("run", path, "--dry-run").done().out
    assert "rounds     after pma-plus on m: up to 3, until one breaks less than 0.01 of all images" in told
    spent = create_attack("apgd-t", steps=2).passes(1)
    assert f"each at most {spent.forward} F, {spent.backward} B per image" in told
    assert "4 cells: 20 images in 2 shards of 10" in told
    assert f"up to 6 more cells, at most {3 * 20 * spent.forward:,} F, " in told


ROBUST: dict[str, Any] = {
    "goal": "robustness", "sanity": False, "surrogates": {"m": ["toys:centroid?seed=1"]},
    "targets": ["toys:centroid?seed=1"],
}  # fmt: skip


def planned(**entry: Any) -> Plan:
    suite = robust(**entry)
    return make_plan(suite, load_data(suite.source))


def robust(**entry: Any) -> Suite:
    return from_table({
        "name": "r", "data": "digits:test?limit=20", "shard": 10, **ROBUST,
        "attacks": [{"name": "pma", **entry}],
    }, "r")  # fmt: skip


def test_rounds_change_no_other_cell_and_no_digest() -> None:
    without, with_ = planned(), planned(until=0.01, most_rounds=2)
    assert [cell.key for cell in with_.cells] == [cell.key for cell in without.cells]
    assert (without.rounds, len(with_.rounds)) == ((), 4)
    assert len({cell.key for cell in (*with_.cells, *with_.rounds)}) == 6
    assert not {"round", "until"} & set(without.cells[0].to_json())
    other = planned(until=0.5, most_rounds=2)
    assert [cell.key for cell in other.rounds] == [cell.key for cell in with_.rounds]
    plain, read = robust(), Suite.model_validate(robust().model_dump())
    assert "until" not in plain.toml() + str(plain.model_dump())
    assert settings_digest(plain) == settings_digest(read) != settings_digest(robust(until=0.01))
    assert robust(until=0.01).toml().count("most_rounds = 10") == 1


def test_every_round_draws_numbers_of_its_own() -> None:
    cells = planned(until=0.01, most_rounds=3).rounds
    assert len({cell.random_seed for cell in cells}) == 3
    assert {cell.round: cell.random_seed for cell in cells[::2]} == {
        cell.round: cell.random_seed for cell in cells[1::2]
    }, "those of an image, whatever its shard"


@pytest.mark.parametrize(
    ("name", "entry", "attack"),
    [
        ("pma", {}, "pma"),
        ("pma-plus", {}, "apgd-t"),
        ("autoattack", {}, "apgd-t"),
        ("autoattack-plus", {}, "apgd-t"),
        ("autoattack-rand", {}, "apgd-dlr"),
        ("pma+square", {}, "pma"),
        ("square", {}, "square"),
        ("arc+square", {"round_attack": "pma"}, "pma"),
        ("fab", {"restarts": 2}, "fab"),
        ("pma-members", {}, "pma-members"),
    ],
)
def test_which_attack_is_repeated(name: str, entry: dict[str, Any], attack: str) -> None:
    """With the options that it has in the sequence."""
    seen = outline(robust(name=name, until=0.01, **entry))
    options = {"eot": 20} if name == "autoattack-rand" else {}
    options |= {key: value for key, value in entry.items() if key == "restarts"}
    assert {stage.attack for stage in seen.rounds.values()} == {create_attack(attack, **options)}


def test_options_of_the_repeated_attack() -> None:
    seen = outline(robust(until=0.01, round_attack="cw", **{"cw.steps": 7, "pma.steps": 9}))
    assert {stage.attack.steps for stage in seen.rounds.values()} == {7}
    assert {stage.attack.steps for stage in seen.stages.values()} == {9}


def test_an_attack_is_repeatable_if_its_starts_are_random() -> None:
    assert [name for name in ("pma", "apgd-t", "square", "fab", "arc", "mifgsm", "autoattack")
            if repeatable(create_attack(name))] == ["pma", "apgd-t", "square"]  # fmt: skip
    assert not repeatable(create_attack("pgd-ce", start="clean"))
    still = {"name": "descent", "start": {"name": "clean"}}
    assert not repeatable(create_attack("pma-members", attack=still))
    assert repeatable(create_attack("adaptive"))
    assert not repeatable(create_attack("adaptive", attack=still))


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"until": 0}, ["until", "above 0 and below 1"]),
        ({"until": 2}, ["until", "above 0 and below 1"]),
        ({"until": float("nan")}, ["until", "above 0 and below 1"]),
        ({"until": -0.1}, ["until", "above 0 and below 1"]),
        ({"until": 0.01, "most_rounds": 0}, ["most_rounds", "1"]),
        ({"until": 0.01, "most_rounds": 1.5}, ["most_rounds", "1.5"]),
        ({"most_rounds": 3}, ["most_rounds", "'until'"]),
        ({"round_attack": "apgd-t"}, ["round_attack", "'until'"]),
        ({"until": 0.01, "name": "arc"}, ["'arc'", "starts at random", "round_attack"]),
        ({"until": 0.01, "round_attack": "fab-t"}, ["'fab-t'", "starts at random"]),
        ({"until": 0.01, "round_attack": "autoattack"}, ["'autoattack'", "starts at random"]),
        ({"until": 0.01, "round_attack": "apgdt"}, ["apgdt", "apgd-t"]),
    ],
)
def test_refused(advens: Any, suite: Any, tmp_path: Path, entry: dict[str, Any], words: list[str]) -> None:
    path = suite(**ROBUST, attacks=[{"name": "pma", **entry}])
    advens("run", path, "--out", tmp_path / "out").refused(*words)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--until", "0"), ["until", "above 0"]),
        (("--until", "2"), ["until", "below 1"]),
        (("--until", "nan"), ["until", "above 0"]),
        (("--until", "0.01", "--most-rounds", "0"), ["most_rounds"]),
        (("--most-rounds", "3"), ["'until'"]),
    ],
)
def test_refused_options(attacked: Any, tmp_path: Path, options: tuple[str, ...], words: list[str]) -> None:
    attacked(*options).refused(*words)
    assert not (tmp_path / "run").exists()


def test_rounds_are_of_robustness_and_of_models_that_are_evaluated(advens: Any, suite: Any) -> None:
    transfer = suite(attacks=[{"name": "mifgsm", "until": 0.01}])
    advens("run", transfer, "--dry-run").refused("mifgsm", "until", "robustness")
    other = ROBUST | {"targets": ["toys:centroid?seed=3"]}
    elsewhere = suite(**other, attacks=[{"name": "pma", "until": 0.01}])
    advens("run", elsewhere, "--dry-run").refused("toys:centroid?seed=1", "among the targets")
    pair = ROBUST | {"surrogates": {"m": ["toys:centroid?seed=1", "toys:centroid?seed=2"]}}
    advens("run", suite(**pair, attacks=[{"name": "pma", "until": 0.01}]), "--dry-run").refused("one model")


@pytest.mark.parametrize("kept", [0, 7])
def test_a_round_with_rows_of_its_own_making(attacked: Any, advens: Any, tmp_path: Path, kept: int) -> None:
    attacked("--until", 0.03, "--most-rounds", 2).done()
    store = RunStore(tmp_path / "run")
    cells = store.read_cells()
    cell = cells.loc[cells["round"] == 1, "cell"].iloc[0]
    (path, *_) = store.samples.glob(f"{cell}.*")
    write_table(path, read_table(path, "samples").slice(0, kept))
    said = advens("verify", tmp_path / "run")
    said.failed("mismatches")
    assert "Traceback" not in said.err


@pytest.mark.parametrize("said", [{"round": 1}, {"until": 0.1}, {"round": -1, "until": 0.1}, {"round": "x"}])
def test_descriptions_of_rounds(said: dict[str, Any]) -> None:
    cell = planned().cells[0].to_json()
    assert Cell.from_json(cell).round == 0
    with pytest.raises(ValueError, match="round"):
        Cell.from_json(cell | said)


@pytest.mark.parametrize("text", ['{"a": -1}', '{"a": "x"}', '{"a": true}', "[1]", "3"])
def test_a_plan_with_strange_rounds(attacked: Any, advens: Any, tmp_path: Path, text: str) -> None:
    attacked().done()
    path = tmp_path / "run" / "plan.json"
    path.write_text(path.read_text().rstrip().removesuffix("}") + f', "rounds": {text}}}')
    advens("status", tmp_path / "run").refused("plan.json", "damaged")


def test_a_failed_round_stops_only_its_model(advens: Any, suite: Any, tmp_path: Path) -> None:
    """What goes on from a cell that failed is not tried; others go on."""
    flag = tmp_path / "flag"
    fragile = f"toys:fragile?flag={flag}"
    path = suite(
        goal="robustness", sanity=False, surrogates={"each": [fragile, "toys:comb?seed=1&gap=0.05"]},
        targets=[fragile, "toys:comb?seed=1&gap=0.05"], threat__eps=0.02,
        attacks=[{"name": "pgd-ce", "until": 0.2, "most_rounds": 4}],
    )  # fmt: skip
    flag.touch()
    said = advens("run", path, "--out", tmp_path / "out")
    assert said.code == 1
    assert said.err.count("failed: ") == 2, said.err
    flag.unlink()
    shutil.rmtree(tmp_path / "out" / "failures", ignore_errors=False)
    advens("run", path, "--out", tmp_path / "out").done()
    advens("verify", tmp_path / "out").done()
