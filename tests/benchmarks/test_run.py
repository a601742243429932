"""Runs: the same rows however they are computed, and only what is missing when run again."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch

from advens.benchmarks.suites import load_suite
from advens.datasets import load_data
from advens.results.store import RunStore, read_cell, read_table
from advens.results.store.images import CleanImages, read_images
from advens.threat import Threat

REAL = {
    "data": "digits:test?limit=12",
    "targets": ["digits:resnet", "digits:byobnet"],
    "shard": 12,
    "surrogates": {"pair": ["digits:mambaout", "digits:convnext"]},
    "attacks": [{"name": "di-ti-mi-ens-logits"}, {"name": "admix"}],
}
"""Convolutions and normalisations, random transforms, and an attack that mixes images."""


def same_rows(one: pd.DataFrame, two: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(one.astype(object), two.astype(object))


def board(directory, kind: str) -> pd.DataFrame:
    path = RunStore(directory).directory / f"{kind}.parquet"
    table = read_table(path, kind).to_pandas(ignore_metadata=True)
    return table.drop(columns="seconds_per_image", errors="ignore")


def test_the_same_run_twice(advens, suite, tmp_path, rows, images):
    path = suite(seeds=[0, 1])
    for name in ("one", "two"):
        advens("run", path, "--out", tmp_path / name).done()
    one, two = tmp_path / "one", tmp_path / "two"
    same_rows(rows(one), rows(two))
    assert images(one) == images(two)
    for kind in ("matrix", "leaderboard"):
        pd.testing.assert_frame_equal(board(one, kind), board(two, kind))
    assert (one / "suite.toml").read_bytes() == (two / "suite.toml").read_bytes()


def test_what_a_run_leaves(advens, suite, tmp_path, rows):
    said = advens("run", suite(), "--out", tmp_path / "out").done()
    assert "4 cells crafted, 12 evaluations" in said.out
    store = RunStore(tmp_path / "out")
    assert len(store.cells()) == 4
    assert len(store.evaluated()) == 12
    found = rows(tmp_path / "out")
    assert len(found) == 2 * 20 * 3
    assert set(found["suite"]) == {"tiny"}
    assert found["clean_correct"].mean() > 0.7
    assert (found["clean_correct"] == (found["clean_pred"] == found["label"])).all()
    fooled = found["clean_correct"] & (found["adv_pred"] != found["label"])
    assert (found["success"] == fooled).all()
    assert fooled.mean() > 0.2
    assert found["target_label"].isna().all()
    assert set(found[found["white_box"]]["target"]) == {"toys:centroid?seed=1"}
    again = load_suite(str(store.suite))
    assert again.threat.norm == "linf"
    about = json.loads(store.environment.read_text())
    assert set(about["models"]) == {f"toys:centroid?seed={s}" for s in (1, 2, 3, 4)}
    assert about["data"] == {"digits:test?limit=20": load_data("digits:test?limit=20").digest}
    assert about["packages"]["torch"]
    assert not list((tmp_path / "out").glob("**/*.tmp"))
    cell = read_cell(store.examples_path(store.cells()[0]))
    assert (cell["forwards_per_sample"], cell["backwards_per_sample"]) == (4, 4)
    assert cell["seconds_per_image"] > 0


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_stored_images_lie_in_the_ball(advens, suite, tmp_path, norm):
    eps = {"linf": "13/255", "l2": 0.77, "l1": 9.0}[norm]
    attacks = [{"name": "pgd"}, {"name": "apgd-ce" if norm == "l1" else "bsr"}]
    path = suite(threat__norm=norm, threat__eps=eps, attacks=attacks)
    advens("run", path, "--out", tmp_path / "out").done()
    store, data = RunStore(tmp_path / "out"), load_data("digits:test?limit=20")
    clean = {name: data.pixels(i) for i, name in enumerate(data.sample_ids)}
    for cell in store.cells():
        table, images = read_images(store, cell, CleanImages())
        before = np.stack([clean[name] for name in table.column("sample_id").to_pylist()])
        delta = (images.astype(np.float64) - before) / 255
        flat = delta.reshape(len(delta), -1)
        size = np.linalg.norm(flat, {"linf": np.inf, "l2": 2, "l1": 1}[norm], axis=1)
        limit = Threat(norm, eps).radius
        assert (size <= limit + 1e-9).all()
        assert size.max() > 0.9 * limit  # and the budget is used
        np.testing.assert_allclose(table.column(norm).to_numpy(), size, rtol=0, atol=1e-12)


@pytest.mark.parametrize("changes", [{}, REAL], ids=["linear", "networks"])
def test_batch_size_changes_nothing_but_rounding(advens, suite, tmp_path, images, rows, changes):
    """A network's last float bits depend on its batch, and the sign of a zero gradient on those."""
    path = suite(**{"attacks": REAL["attacks"], **changes})
    for size in (3, 20):
        advens("run", path, "--out", tmp_path / str(size), "--batch-size", size).done()
    three, twenty = ([np.frombuffer(b"".join(v), np.uint8) for v in images(tmp_path / n).values()]
                     for n in ("3", "20"))  # fmt: skip
    wrong = np.mean(np.concatenate(three) != np.concatenate(twenty))
    assert wrong < 2e-4
    one, two = rows(tmp_path / "3"), rows(tmp_path / "20")
    assert (one["adv_pred"] == two["adv_pred"]).mean() > 0.98
    same_rows(one.drop(columns=["adv_pred", "success", "l2", "l1"]),
              two.drop(columns=["adv_pred", "success", "l2", "l1"]))  # fmt: skip


def test_global_random_state_is_neither_used_nor_changed(advens, suite, tmp_path, rows, images):
    path = suite(attacks=[{"name": "pgd"}])
    state = torch.random.get_rng_state()
    try:
        for seed in (1, 2):
            torch.manual_seed(seed)
            np.random.seed(seed)
            before = torch.random.get_rng_state()
            advens("run", path, "--out", tmp_path / str(seed)).done()
            assert torch.equal(torch.random.get_rng_state(), before)
    finally:
        torch.random.set_rng_state(state)
    assert images(tmp_path / "1") == images(tmp_path / "2")
    same_rows(rows(tmp_path / "1"), rows(tmp_path / "2"))


def test_seeds_differ(advens, suite, tmp_path, images):
    advens("run", suite(seeds=[0, 1], attacks=[{"name": "pgd"}]), "--out", tmp_path / "out").done()
    found = list(images(tmp_path / "out").values())
    assert len(found) == len({tuple(cell) for cell in found}) == 4


def test_running_out_of_memory_shrinks_the_batch(advens, suite, tmp_path, rows, images):
    attacks = [{"name": "pgd"}, {"name": "admix"}]
    greedy = {
        "surrogates__pair": ["toys:greedy?seed=1&most=4", "toys:centroid?seed=2"],
        "targets": ["toys:centroid?seed=1", "toys:greedy?seed=3&most=3", "toys:centroid?seed=4"],
    }
    advens("run", suite("a.toml", attacks=attacks), "--out", tmp_path / "a").done()
    advens("run", suite("b.toml", attacks=attacks, **greedy), "--out", tmp_path / "b").done()
    assert images(tmp_path / "a") == images(tmp_path / "b")
    one, two = rows(tmp_path / "a"), rows(tmp_path / "b")
    two["target"] = two["target"].astype(str).replace("toys:greedy?seed=3&most=3",
                                                      "toys:centroid?seed=3")
    keys = ["cell", "target", "sample_id"]
    same_rows(*(r.astype({"target": str, "cell": str}).sort_values(keys, ignore_index=True)
                for r in (one, two)))  # fmt: skip


def test_a_second_run_does_nothing_and_says_so(advens, suite, tmp_path, times):
    path, out = suite(), tmp_path / "out"
    advens("run", path, "--out", out).done()
    before = times(out)
    said = advens("run", path, "--out", out).done()
    assert "nothing to do: all 4 cells are there" in said.out
    assert "crafting" not in said.err
    assert times(out) == before
    assert advens("run", out / "suite.toml", "--out", out).done().out == said.out


def test_only_what_is_missing_is_done(advens, suite, tmp_path, times, rows):
    path, out = suite(), tmp_path / "out"
    advens("run", path, "--out", out).done()
    before, kept = times(out), rows(out)
    examples = sorted((out / "examples").iterdir())[1]
    samples = next(p for p in sorted((out / "samples").iterdir())
                   if not p.name.startswith(examples.stem))  # fmt: skip
    examples.unlink()
    samples.unlink()
    said = advens("run", path, "--out", out).done()
    assert "1 cells crafted, 4 evaluations" in said.out  # the rows on new images are new as well
    after = times(out)
    new = {str(path.relative_to(out)) for path in (examples, samples)}
    new |= {name for name in before if name.startswith(f"samples/{examples.stem}.")}
    assert {name for name in after if after[name] != before.get(name)} == new | {
        "matrix.parquet", "leaderboard.parquet", "likeness.parquet",
    }  # fmt: skip
    same_rows(rows(out), kept)
    advens("verify", out).done()


def test_attacks_seeds_and_targets_join(advens, suite, tmp_path, times, rows):
    out = tmp_path / "out"
    advens("run", suite(), "--out", out, "--attacks", "mifgsm").done()
    before = times(out, "examples")
    assert len(before) == 2
    said = advens("run", suite(), "--out", out).done()
    assert "2 cells crafted, 6 evaluations" in said.out
    said = advens("run", suite(targets=["toys:centroid?seed=5"]), "--out", out).done()
    assert "0 cells crafted, 4 evaluations" in said.out
    said = advens("run", suite(), "--out", out, "--seed", 7).done()
    assert "4 cells crafted, 12 evaluations" in said.out
    more = {"pair": ["toys:centroid?seed=1", "toys:centroid?seed=2"], "six": ["toys:centroid?seed=6"]}
    said = advens("run", suite(surrogates=more), "--out", out).done()
    assert "4 cells crafted, 12 evaluations" in said.out
    after = times(out, "examples")
    assert before.items() < after.items()
    found = rows(out)
    assert set(found["seed"]) == {0, 7}
    whole = load_suite(str(out / "suite.toml"))
    assert whole.seeds == [0, 7]
    assert whole.targets == [f"toys:centroid?seed={s}" for s in (1, 3, 4, 5)]
    assert set(whole.surrogates) == {"pair", "six"}
    assert [entry.title for entry in whole.attacks] == ["mifgsm", "difgsm"]
    advens("verify", out).unfinished()  # seed 7 and the set six were not run on everything else
    advens("run", out / "suite.toml", "--out", out).done()
    advens("verify", out).done()
    assert "20 cells" not in advens("status", out).done().out


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"threat__eps": 0.1}, ["threat", "0.2", "0.1"]),
        ({"threat__steps": 3}, ["threat"]),
        ({"data": "digits:test?limit=10"}, ["data", "limit=20", "limit=10"]),
        ({"shard": 5}, ["shard = 10", "5"]),
        ({"name": "other"}, ["name = tiny", "other"]),
        ({"surrogates__pair": ["toys:centroid?seed=1"]}, ["surrogates.pair"]),
        ({"attacks": [{"name": "mifgsm", "mu": 0.5}]}, ["attack 'mifgsm'", "mu"]),
    ],
    ids=str,
)
def test_another_comparison_is_refused(advens, suite, tmp_path, times, changes, words):
    out = tmp_path / "out"
    advens("run", suite(), "--out", out).done()
    before, text = times(out), (out / "suite.toml").read_bytes()
    said = advens("run", suite("other.toml", **changes), "--out", out).refused(*words)
    assert str(out) in said
    assert "--out" in said
    assert times(out) == before
    assert (out / "suite.toml").read_bytes() == text


def test_models_of_each_add_up(advens, suite, tmp_path):
    out, targets = tmp_path / "out", ["toys:centroid?seed=4"]
    for seed in (1, 2):
        each = {"each": [f"toys:centroid?seed={seed}"]}
        advens("run", suite(surrogates=each, targets=targets), "--out", out).done()
    whole = load_suite(str(out / "suite.toml"))
    assert whole.surrogates["each"] == ["toys:centroid?seed=1", "toys:centroid?seed=2"]
    assert "nothing to do: all 8 cells" in advens("run", out / "suite.toml", "--out", out).done().out


def test_options_from_the_command_line_stay_the_same(advens, suite, tmp_path):
    settings = ["--set", "attacks.1.rate=1.2", "--set", "attacks.0.transforms=('di', 'ti')"]
    for _ in range(2):
        said = advens("run", suite(), "--out", tmp_path / "out", *settings).done()
    assert "nothing to do" in said.out


def test_changed_data_are_read_again(advens, suite, tmp_path, rows):
    """In one process, as in a notebook: nothing stale is kept at hand."""
    from PIL import Image

    data, folder = load_data("digits:test"), tmp_path / "photos"
    for i in range(12):
        (folder / str(int(data.labels[i]))).mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(data.pixels(i).transpose(1, 2, 0))
        picture.save(folder / str(int(data.labels[i])) / f"{i}.png")
    for label in range(10):
        (folder / str(label)).mkdir(exist_ok=True)
        if not list((folder / str(label)).iterdir()):
            picture.save(folder / str(label) / "x.png")
    path = suite(data=f"folder:{folder}", shard=100, attacks=[{"name": "fgsm"}])
    advens("run", path, "--out", tmp_path / "one").done()
    first = next(folder.glob("*/0.png"))
    Image.fromarray(255 - data.pixels(0).transpose(1, 2, 0)).save(first)
    advens("run", path, "--out", tmp_path / "two").done()
    advens("verify", tmp_path / "two").done()
    assert set(rows(tmp_path / "one")["cell"]).isdisjoint(rows(tmp_path / "two")["cell"])


def test_traces_are_kept_and_nothing_is_crafted_twice_for_them(advens, suite, tmp_path):
    path = suite(attacks=[{"name": "mifgsm"}, {"name": "pgd-ce"}, {"name": "autoattack-rand"}])
    advens("run", path, "--out", tmp_path / "out", "--trace").done()
    kept = {name: len(pd.read_parquet(name)) for name in (tmp_path / "out/traces").iterdir()}
    assert len(kept) == len(RunStore(tmp_path / "out").cells())
    assert 0 in kept.values()  # a sequence that is called on its own notes nothing
    assert any(kept.values())
    assert "nothing to do" in advens("run", path, "--out", tmp_path / "out", "--trace").done().out
    advens("verify", tmp_path / "out").done()
