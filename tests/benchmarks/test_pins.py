"""``advens lock``, and runs that are held to a lock."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
from PIL import Image
from safetensors.torch import save_file

import advens as advens_package
from advens.benchmarks.pins import find_lock, lock_of, read_lock
from advens.datasets import load_data
from advens.defenses.ensembles import Ensemble
from advens.errors import InputError
from advens.models import load_model

NET = "torchvision:squeezenet1_1?num_classes=10&weights=none"


@pytest.fixture
def refused(tmp_path: Path, advens: Any) -> Any:
    """A run that is refused by its lock; nothing of it is there."""

    def check(path: Path, *words: str) -> str:
        said = advens("run", path, "--out", tmp_path / "refused")
        assert not (tmp_path / "refused").exists()
        return str(said.refused(*words))

    return check


def test_a_run_is_held_to_the_lock_beside_its_suite(advens: Any, suite: Any, tmp_path: Path) -> None:
    path = suite()
    said = advens("lock", path).done()
    assert said.out.splitlines()[-1] == f"pinned in {tmp_path / 'tiny.lock'}"
    pins = read_lock(tmp_path / "tiny.lock")
    assert pins.models["toys:centroid?seed=2"].digest == load_model("toys:centroid?seed=2").digest
    assert pins.data["digits:test?limit=20"].images == 20
    said = advens("run", path, "--out", tmp_path / "out").done()
    assert f"held to {tmp_path / 'tiny.lock'}" in said.out
    assert "does not pin" not in said.err
    kept = json.loads((tmp_path / "out" / "environment.json").read_text())["lock"]
    assert kept == {"file": "tiny.lock", "unlisted": []} | pins.model_dump()
    advens("verify", tmp_path / "out").done()


def test_what_a_lock_does_not_list_is_named_and_used(advens: Any, suite: Any, tmp_path: Path) -> None:
    path = suite()
    advens("lock", path).done()
    more = ["toys:centroid?seed=1", "toys:centroid?seed=9"]
    said = advens("run", suite(targets=more, data="digits:test?limit=10"), "--out", tmp_path / "out").done()
    line = f"{tmp_path / 'tiny.lock'} does not pin toys:centroid?seed=9, digits:test?limit=10"
    assert f"warning: {line}" in said.err.splitlines()
    said = advens("run", tmp_path / "tiny.toml", "--dry-run").done()
    assert said.out.splitlines()[-1] == f"lock       {line.replace(' does', ', which does')}"
    kept = json.loads((tmp_path / "out" / "environment.json").read_text())["lock"]
    assert kept["unlisted"] == ["toys:centroid?seed=9", "digits:test?limit=10"]


def test_changed_weights_are_refused_by_name(
    advens: Any, suite: Any, refused: Any, tmp_path: Path
) -> None:
    (tmp_path / "seed").write_text("1")
    name = f"toys:stored?path={tmp_path}/seed"
    path = suite(targets=["toys:centroid?seed=3", name])
    advens("lock", path).done()
    before = load_model(name).digest[:12]
    (tmp_path / "seed").write_text("5")
    line = refused(path, f"{tmp_path / 'tiny.lock'} pins", name, before, load_model(name).digest[:12])
    assert "toys:centroid" not in line
    said = advens("lock", path).done()
    assert f"changed: {name} ({before} is now " in said.out
    advens("run", path, "--out", tmp_path / "out").done()


def test_changed_data_are_refused_by_name(
    advens: Any, suite: Any, refused: Any, tmp_path: Path
) -> None:
    digits = load_data("digits:test?limit=3")
    images = tmp_path / "photos" / "images"
    images.mkdir(parents=True)
    with (tmp_path / "photos" / "labels.csv").open("w", newline="") as file:
        rows = [(f"{i}.png", digits.labels[i]) for i in range(3)]
        csv.writer(file).writerows([("filename", "label"), *rows])
    for i in range(3):
        Image.fromarray(digits.pixels(i).transpose(1, 2, 0)).save(images / f"{i}.png")
    path = suite(data=f"csv:{tmp_path}/photos")
    advens("lock", path).done()
    changed = np.array(Image.open(images / "1.png"))
    changed[0, 0] ^= 1
    Image.fromarray(changed).save(images / "1.png")
    refused(path, "tiny.lock pins: csv:")


def checkpoint(path: Path, seed: int) -> str:
    save_file(load_model(f"{NET}&seed={seed}").net.state_dict(), path)
    return f"torchvision:squeezenet1_1?num_classes=10&weights=none&checkpoint={path}"


def timm_checkpoint(path: Path, seed: int) -> str:
    net = load_model(f"timm:test_vit.r160_in1k?pretrained=false&num_classes=10&seed={seed}").net
    save_file({key: value.contiguous() for key, value in net.state_dict().items()}, path)
    return f"timm:test_vit.r160_in1k?num_classes=10&checkpoint={path}"


def folder(path: Path, seed: int) -> str:
    names = ("digits:vit", "digits:resnet" if seed == 1 else "digits:resnet-b")
    Ensemble([load_model(name) for name in names]).save(path)
    return f"defense:{path}"


@pytest.mark.parametrize("made", [checkpoint, timm_checkpoint, folder])
def test_local_weights(
    made: Any, advens: Any, suite: Any, refused: Any, tmp_path: Path
) -> None:
    name = made(tmp_path / "w.safetensors", 1)
    path = suite(targets=["toys:centroid?seed=3", name])
    advens("lock", path).done()
    made(tmp_path / "w.safetensors", 2)
    refused(path, name)


def test_a_built_set_is_pinned_by_what_it_is_built_from(
    advens: Any, suite: Any, refused: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADVENS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "seed").write_text("1")
    name = f"toys:stored?path={tmp_path}/seed"
    built = {"build": "lgv", "model": name, "data": "digits:train?limit=64", "epochs": 1}
    path = suite(surrogates={"lgv": built}, attacks=[{"name": "ifgsm"}])
    advens("lock", path).done()
    assert "digits:train?limit=64" in read_lock(tmp_path / "tiny.lock").data
    (tmp_path / "seed").write_text("2")
    refused(path, name)
    assert not (tmp_path / "cache").exists()


def test_suites_of_defenses(advens: Any, refused: Any, tmp_path: Path) -> None:
    name = folder(tmp_path / "weights", 1)
    table = {
        "name": "d", "goal": "defense", "data": "digits:test", "eps": [0.1], "models": [name],
        "surrogates": ["digits:convnext"], "attacks": ["fgsm"],
    }  # fmt: skip
    path = tmp_path / "d.toml"
    path.write_text(tomli_w.dumps(table))
    advens("lock", path).done()
    assert set(read_lock(tmp_path / "d.lock").models) == {name, "digits:convnext"}
    folder(tmp_path / "weights", 2)
    refused(path, f"pins: {name}")


def test_other_preprocessing_is_told_apart(made: Any) -> None:
    pins = lock_of(made(targets=[NET]))
    pin = pins.models[NET]
    other = pin.model_copy(update={"digest": "0" * 64})
    assert pin.change(other) == "other preprocessing of the same weights"
    assert pin.change(pin) == ""
    moved = {"digest": "1" * 64, "weights": "2" * 64, "revision": "a/b@2"}
    was = pin.model_copy(update={"revision": "a/b@1"})
    assert was.change(pin.model_copy(update=moved)).endswith("is now 111111111111, a/b@1 is now a/b@2")


def test_the_lock_of_a_bundled_suite_is_in_the_working_folder(
    advens: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_lock("quickstart") is None
    advens("lock", "quickstart").done()
    assert find_lock("quickstart") == Path("quickstart.lock")
    assert find_lock({"name": "quickstart"}) is None
    text = (tmp_path / "quickstart.lock").read_text()
    digest = load_model("digits:resnet").digest
    assert digest in text
    (tmp_path / "quickstart.lock").write_text(text.replace(digest, "0" * 64))
    advens("run", "quickstart").refused("digits:resnet (000000000000 is now")
    with pytest.raises(InputError, match=r"quickstart\.lock pins: digits:resnet"):
        advens_package.run("quickstart", out=tmp_path / "out")


def test_locks_that_cannot_be_read(advens: Any, suite: Any, refused: Any, tmp_path: Path) -> None:
    path = suite()
    advens("run", path, "--lock", tmp_path / "none.lock").refused("cannot read", "none.lock")
    lock = tmp_path / "tiny.lock"
    for text, words in {
        "=": "is not TOML", 'suite = "x"\nmodel = 1': "unknown key 'model'",
        'suite = "x"\nformat = 2': "format", 'suite = "x"\n[models.a]\ndigest = "0"': "models.a.digest",
    }.items():  # fmt: skip
        lock.write_text(text)
        refused(path, words)
    lock.write_bytes(b"\xff")
    refused(path, "is not TOML")
