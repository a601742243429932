"""Models, data and cells that cannot be used: a line for people, and what can be done is done."""

from __future__ import annotations

import json
import re

import pytest
from PIL import Image

from advens.results.store import RunStore, read_cell


@pytest.fixture
def refuse(advens, suite, tmp_path):
    """Runs a changed suite and asserts exit code 2, one line with the words, and no examples left."""

    def check(*words, **changes):
        out = tmp_path / "out"
        said = advens("run", suite(**changes), "--out", out).refused(*words)
        assert not list(out.glob("**/*.parquet"))
        return said

    return check


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("toys:silent?seed=9", ["NaN"]),
        ("toys:centroid?classes=12", ["12 classes", "10"]),
        ("toys:centroidd", ["no factory 'centroidd'", "'centroid'"]),
        ("toys:centroid?sede=1", ["toys:centroid?sede=1", "sede"]),
        ("nowhere.models:make", ["nowhere"]),
        ("timm:resnet18?checkpoint=/nowhere/w.pth", ["no checkpoint at /nowhere/w.pth"]),
        ("digits:nothing", ["unknown model 'digits:nothing'"]),
        ("digits", ["'digits' has no source"]),
    ],
)
def test_bad_surrogates(refuse, model, words):
    refuse(*words, surrogates__pair=["toys:centroid?seed=1", model])


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("toys:silent?seed=9", ["toys:silent?seed=9", "NaN"]),
        ("toys:picky?seed=9", ["toys:picky?seed=9", "cannot be run", "shapes"]),
        ("toys:greedy?most=0", ["toys:greedy?most=0", "out of memory with a single image"]),
    ],
)
def test_bad_targets(advens, suite, tmp_path, model, words):
    path = suite(targets=["toys:centroid?seed=3", model])
    said = advens("run", path, "--out", tmp_path / "out")
    if said.code == 2:
        said.refused(*words)
    else:  # ran, and found failures
        said.failed()
        assert all(word in said.err for word in words)
    store = RunStore(tmp_path / "out")
    assert len(store.cells()) == 4
    assert len(store.evaluated()) == 4  # the other target's
    advens("verify", tmp_path / "out").unfinished()


def test_a_corrupt_checkpoint(refuse, tmp_path):
    (tmp_path / "w.pth").write_bytes(b"no weights at all")
    refuse("w.pth", "corrupt", targets=[f"timm:resnet18?checkpoint={tmp_path}/w.pth"])


def test_corrupt_embedded_weights(refuse, monkeypatch):
    import safetensors.torch
    from safetensors import SafetensorError

    def load(path):
        raise SafetensorError("header too small")

    monkeypatch.setattr(safetensors.torch, "load_file", load)
    refuse("digits:resnet", "missing or corrupt", surrogates__pair=["digits:resnet"])


def picture(path, size=(32, 32)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(path)


def test_bad_data(refuse, tmp_path):
    refuse("unknown data source 'digit'", "'digits'", data="digit:test")
    refuse("'test2'", "'test'", data="digits:test2")
    refuse("unknown option 'limt'", "'limit'", data="digits:test?limt=3")
    refuse("limit = 900", "1 to 500", data="digits:test?limit=900")
    refuse("does not exist", data=f"folder:{tmp_path}/nothing")
    (tmp_path / "empty" / "cat").mkdir(parents=True)
    refuse("empty/cat", "holds no images", data=f"folder:{tmp_path}/empty")
    picture(tmp_path / "mixed" / "cat" / "a.png")
    picture(tmp_path / "mixed" / "cat" / "b.png", (20, 32))
    refuse("differ in size", "?size=224", data=f"folder:{tmp_path}/mixed")
    (tmp_path / "broken" / "cat").mkdir(parents=True)
    (tmp_path / "broken" / "cat" / "a.png").write_bytes(b"no picture")
    refuse("broken/cat/a.png", data=f"folder:{tmp_path}/broken")
    for i in range(11):
        picture(tmp_path / "eleven" / f"{i:02d}" / "a.png")
    refuse("label 10", "out of range", "10 classes", data=f"folder:{tmp_path}/eleven")
    for label in "01":
        picture(tmp_path / "two" / label / "a.png")
    refuse("2 classes (0, 1, ...) and the models have 10", "?classes=FILE", data=f"folder:{tmp_path}/two")
    refuse("classes = 'nowhere' is neither a file", data=f"folder:{tmp_path}/two?classes=nowhere")


def test_an_image_that_breaks_off(advens, suite, tmp_path):
    """Its header is sound: only decoding tells."""
    for label in range(10):
        picture(tmp_path / "photos" / str(label) / "a.png")
    path = tmp_path / "photos" / "1" / "b.png"
    Image.effect_noise((32, 32), 90).save(path)
    path.write_bytes(path.read_bytes()[:300])
    said = advens("run", suite(data=f"folder:{tmp_path}/photos"), "--out", tmp_path / "out")
    said.refused("photos/1/b.png", "cannot be decoded")


def test_targeted_labels_out_of_range(refuse, tmp_path):
    picture(tmp_path / "photos" / "images" / "a.png")
    table = tmp_path / "photos" / "labels.csv"
    table.write_text("filename,label,targeted_label\na.png,1,10\n")
    data = f"csv:{tmp_path}/photos"
    refuse("target label", "out of range", "10 classes", data=data, threat__targeted=True)
    table.write_text("filename,label,targeted_label\na.png,1,1\n")
    refuse("target equals the label", data=data, threat__targeted=True)


def test_a_failing_cell_is_noted_and_the_others_finish(advens, suite, tmp_path):
    flag, out = tmp_path / "flag", tmp_path / "out"
    flag.touch()
    sets = {
        "bad": [f"toys:fragile?flag={flag}&seed=1", "toys:centroid?seed=2"],
        "good": ["toys:centroid?seed=2"],
    }
    path = suite(
        surrogates=sets, attacks=[{"name": "mifgsm"}], targets=["toys:centroid?seed=3"],
        threat__norm="l2", threat__eps=2.0,
    )  # fmt: skip
    said = advens("run", path, "--out", out)
    said.failed("2 cells failed", f"advens status {out}")
    assert said.err.count("failed: mifgsm on bad: ") == 2
    assert "gradient is not finite" in said.err
    assert "2 cells crafted, 2 evaluations" in said.out
    status = advens("status", out).done().out
    assert "2 of 4 crafted, 2 left" in status
    assert "2 of 4 done" in status
    assert "failed       2" in status
    assert status.count("mifgsm on bad: a surrogate's gradient is not finite") == 2
    assert "good" in advens("matrix", out).done().out
    advens("verify", out).unfinished()
    assert advens("run", path, "--out", out).code == 1  # still broken

    flag.unlink()
    said = advens("run", path, "--out", out).done()
    assert "2 cells crafted, 2 evaluations" in said.out
    status = advens("status", out).done().out
    assert "4 of 4 crafted, 0 left" in status
    assert "failed       0" in status
    advens("verify", out).done()


def test_a_gradient_that_is_nan_fails_its_cell_in_linf(advens, suite, tmp_path):
    flag = tmp_path / "flag"
    flag.touch()
    path = suite(surrogates__pair=[f"toys:fragile?flag={flag}&seed=1"], attacks=[{"name": "mifgsm"}])
    advens("run", path, "--out", tmp_path / "out").failed("2 cells failed")


def test_a_surrogate_torch_refuses_fails_its_cells(advens, suite, tmp_path):
    sets = {"bad": ["toys:picky?seed=1"], "good": ["toys:centroid?seed=2"]}
    path = suite(surrogates=sets, attacks=[{"name": "fgsm"}])
    said = advens("run", path, "--out", tmp_path / "out")
    said.failed("2 cells failed")
    assert said.err.count("failed: fgsm on bad: RuntimeError: ") == 2
    assert re.search(r"\(\w+\.py:\d+\)", said.err)  # where
    assert len(RunStore(tmp_path / "out").evaluated()) == 6


def test_memory_for_not_even_one_image(advens, suite, tmp_path):
    path = suite(surrogates__pair=["toys:greedy?seed=1&most=0"], attacks=[{"name": "fgsm"}])
    said = advens("run", path, "--out", tmp_path / "out")
    said.failed("2 cells failed")
    assert "out of memory with a single image" in said.err


def test_a_damaged_example_is_a_failure_of_its_rows(advens, suite, tmp_path):
    path, out = suite(attacks=[{"name": "fgsm"}]), tmp_path / "out"
    advens("run", path, "--out", out).done()
    store = RunStore(out)
    damaged, _ = store.cells()
    file = store.examples_path(damaged)
    data = bytearray(file.read_bytes())
    data[60] ^= 1
    file.write_bytes(data)
    advens("evaluate", out, "--targets", "toys:centroid?seed=5,toys:centroid?seed=6").failed("2 cells")
    notes = [json.loads(note.read_text()) for note in sorted((out / "failures").iterdir())]
    assert [note["task"].partition(" ")[0] for note in sorted(notes, key=str)] == [
        "toys:centroid?seed=5", "toys:centroid?seed=6",
    ]  # fmt: skip
    file.unlink()
    advens("run", path, "--out", out).done()
    said = advens("evaluate", out, "--targets", "toys:centroid?seed=5,toys:centroid?seed=6").done()
    assert "0 cells crafted, 2 evaluations" in said.out
    assert "failed       0" in advens("status", out).out
    advens("verify", out).done()


def test_weights_that_change_under_way(advens, suite, tmp_path, monkeypatch):
    """The plan saw other weights than the worker loads."""
    import advens.benchmarks.runner as runner

    weights = tmp_path / "weights"
    weights.write_text("5")
    path = suite(surrogates__pair=[f"toys:stored?path={weights}"])
    real = runner.Runner.complete


    def changed(*arguments, **options):
        weights.write_text("6")
        return real(*arguments, **options)

    monkeypatch.setattr(runner.Runner, "complete", changed)
    said = advens("run", path, "--out", tmp_path / "out")
    said.refused("weights of", "changed while the run was going on")


def test_doubtful_targets_are_said_aloud(advens, suite, tmp_path):
    for label in range(10):
        picture(tmp_path / "black" / str(label) / "a.png")
    said = advens("run", suite(data=f"folder:{tmp_path}/black"), "--out", tmp_path / "out").done()
    assert "warning: toys:centroid?seed=3 is right on only 10.0% of the clean images" in said.err


def test_images_without_a_gradient_are_said_aloud(advens, suite, tmp_path):
    """Counted in the cell, said after the run, noted below the board; an honest run to `verify`."""
    path = suite(
        data="digits:test?limit=12", surrogates={"numb": ["toys:numb?seed=1"]},
        targets=["toys:centroid?seed=3"],
        attacks=[{"name": "mifgsm", "steps": 3}, {"name": "mifgsm", "label": "two", "steps": 2}],
    )  # fmt: skip
    said = advens("run", path, "--out", tmp_path / "out").done()
    line = "mifgsm on numb: the surrogates' gradient was zero for 12 of 12 images, in 36 steps"
    assert f"warning: {line}" in said.err
    assert f"Note: {line}" in " ".join(advens("leaderboard", tmp_path / "out").done().out.split())
    store = RunStore(tmp_path / "out")
    counts = {read_cell(store.examples_path(cell))["silent_steps"] for cell in store.cells()}
    assert counts == {30, 6, 20, 4}, "shards of ten and two images"
    advens("verify", tmp_path / "out").done()
    assert "warning" not in advens("run", path, "--out", tmp_path / "out").done().err


def test_crafted_images_without_a_gradient_are_said_aloud(advens, tmp_path):
    def craft(model, out):
        return advens("craft", "mifgsm", "--surrogates", f"toys:{model}?seed=1", "--steps", 2, "--no-png",
                      "--data", "digits:test?limit=12", "--out", tmp_path / out).done().err  # fmt: skip

    assert "warning: mifgsm on surrogates: the surrogates' gradient was zero for" in craft("numb", "a")
    assert "warning" not in craft("centroid", "b")


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("place", ["surrogate", "target"])
def test_probabilities_are_said_once(advens, suite, tmp_path, workers, place):
    models = {"surrogates__pair": ["toys:sure?seed=9"]} if place == "surrogate" else {
        "targets": ["toys:centroid?seed=3", "toys:sure?seed=9"]
    }  # fmt: skip
    said = advens("run", suite(**models), "--out", tmp_path / "out", "--workers", workers).done()
    (line,) = [line for line in said.err.splitlines() if "warning" in line.lower()]
    assert line.startswith("warning: the outputs of 'toys:sure?seed=9' look like probabilities, not logits")
