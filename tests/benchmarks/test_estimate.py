"""What a dry run says of cost, beside what a run spends, and calibrations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from advens.benchmarks import calibrate
from advens.benchmarks.calibrate import Times, architecture, calibration_path, known_times
from advens.benchmarks.estimate import cost_of
from advens.benchmarks.plan import outline
from advens.benchmarks.runner import run_suite
from advens.benchmarks.suites import Suite
from advens.datasets import find_data
from advens.models import absent_bytes, blank
from advens.results.store import RunStore

COUNTED = [f"toys:counted?seed={seed}" for seed in range(4)]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ADVENS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(calibrate, "REPEATS", 1)
    monkeypatch.setattr(calibrate, "default_batch", lambda _: 2)
    return tmp_path / "cache"


def spent(suite: Suite, out: Path) -> tuple[float, float, int]:
    """The passes that the cells of a run say they took, and the images that models were shown."""
    import toys

    before = toys.Counted.seen
    assert not run_suite(suite, out).failures
    cells = RunStore(out).read_cells()
    forward = (cells["forwards_per_sample"] * cells["samples"]).sum()
    backward = (cells["backwards_per_sample"] * cells["samples"]).sum()
    return forward, backward, toys.Counted.seen - before


def test_the_estimated_passes_are_those_of_the_finished_run(made: Any, tmp_path: Path) -> None:
    suite = made(
        data="digits:test?limit=15", seeds=[0, 3], targets=COUNTED[1:],
        surrogates={"pair": COUNTED[:2], "each": COUNTED[:1]},
        attacks=[{"name": "mi-svre", "surrogates": ["pair"]}, {"name": "vmifgsm"}],
    )  # fmt: skip
    cost = cost_of(suite, outline(suite), find_data(suite.source), "cpu")
    forward, backward, shown = spent(suite, tmp_path / "out")
    assert cost.craft == (forward, backward)
    assert cost.craft.forward + cost.evaluate + cost.compare == shown
    assert cost.cells == len(RunStore(tmp_path / "out").cells()) == 3 * 2 * 2
    assert cost.crafted == 3 * 2 * 15


def test_white_box_suites_spend_at_most_that(made: Any, tmp_path: Path) -> None:
    """Models are evaluated only on what was crafted on themselves, and nothing is compared."""
    suite = made(
        goal="robustness", crossed=False, sanity=False, targets=COUNTED[:2],
        surrogates={"each": COUNTED[:2]}, attacks=[{"name": "pgd-ce+apgd-dlr", "steps": 2}],
    )  # fmt: skip
    cost = cost_of(suite, outline(suite), find_data(suite.source), "cpu")
    forward, backward, _ = spent(suite, tmp_path / "out")
    assert cost.craft.forward >= forward > 0
    assert cost.craft.backward >= backward > 0
    assert cost.cells == len(RunStore(tmp_path / "out").cells())
    assert (cost.evaluate, cost.compare) == (2 * (2 * 20 + 20), 0)


def test_hours_follow_from_passes_and_a_calibration(
    advens: Any, suite: Any, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = suite(data="digits:test?limit=20", attacks=[{"name": "ens-logits"}], threat__steps=3)
    said = advens("run", path, "--device", "cpu", "--dry-run").done()
    assert "time       not known: 'advens calibrate SUITE' measures toys:centroid on this device" in said.out
    # an hour and two forward, ten and twenty backward
    times = {1: Times(3600, 36000), 2: Times(7200, 72000), 3: Times(360000, 0), 4: Times(720000, 0)}
    toy = {f"toys:centroid?seed={seed}": each for seed, each in times.items()}
    monkeypatch.setattr(calibrate, "architecture", lambda name: name)
    monkeypatch.setattr(calibrate, "measure", lambda model, size, device: toy[model.name])
    said = advens("calibrate", path, "--device", "cpu").done()
    assert "3600000.000 ms forward 36000000.000 ms backward  toys:centroid?seed=1" in said.out
    said = advens("run", path, "--device", "cpu", "--dry-run").done()
    craft = 20 * 3 * 2 * (1.5 + 15)
    rest = (20 + 20) * (1 + 100 + 200) + 20 * (1 + 2 + 100 + 200)
    assert f"time       about {craft:,.2g} hours to craft, {rest:,.2g} to evaluate (torch " in said.out
    (file,) = cache.rglob("*.json")
    assert file == calibration_path("cpu")
    file.write_text("{}")
    advens("run", path, "--device", "cpu", "--dry-run").refused("damaged; delete it and calibrate again")


def test_architectures_are_measured_without_their_weights(
    advens: Any, suite: Any, tmp_path: Path
) -> None:
    net = tmp_path / "w.pt"
    net.touch()
    names = [
        "timm:test_vit.r160_in1k", f"timm:test_vit.r160_in1k?checkpoint={net}&num_classes=10", "digits:vit",
        "changed:head-drop?head-drop.p=0.2&of=digits:vit", "timm:hf-hub:somebody/something", "digits:barre3",
    ]  # fmt: skip
    path = suite(data="synthetic:shapes?n=2&size=40", targets=names, surrogates={"odd": ["toys:picky"]})
    said = advens("calibrate", path, "--device", "cpu", "--trust", names[4]).done()
    rows = [line.split()[-1] for line in said.out.splitlines() if "backward" in line]
    assert rows == [
        "timm:test_vit.r160_in1k", "timm:test_vit.r160_in1k?num_classes=10", "digits:vit",
        "digits:barre3",
    ]  # fmt: skip
    assert "left out: timm:hf-hub:somebody/something: its network cannot be built without " in said.out
    assert "left out: toys:picky: " in said.out
    found, missing = known_times(names, (40, 40), "cpu")
    assert missing == [names[4]]
    assert all(each.forward > 0 for each in found.values())
    assert known_times(names[:1], (41, 40), "cpu") == ({}, names[:1])
    kept = json.loads(calibration_path("cpu").read_text())
    assert set(kept["seconds per image"]) == {f"{name} at 40x40" for name in rows}


def test_the_embedded_models_are_calibrated_without_a_suite(
    advens: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("advens.models.list_models", lambda: ["digits:vit", "shapes:resnet"])
    said = advens("calibrate", "--device", "cpu").done()
    assert "images of 32x32" in said.out
    found, missing = known_times(["digits:vit", "shapes:resnet", "digits:resnet"], (32, 32), "cpu")
    assert missing == ["digits:resnet"]
    assert all(each.forward > 0 <= each.backward for each in found.values())


def test_images_of_unknown_size_are_refused(advens: Any, suite: Any, tmp_path: Path) -> None:
    for label in range(2):
        folder = tmp_path / "photos" / str(label)
        folder.mkdir(parents=True)
        Image.fromarray(np.zeros((9, 8 + label, 3), np.uint8)).save(folder / "0.png")
    advens("calibrate", suite(data=f"folder:{tmp_path}/photos")).refused("photos")


def test_blank_models_prepare_images_as_the_weights_want_it() -> None:
    named = "timm:resnet50.tv_in1k?checkpoint=x&seed=3&img_size=96"
    assert architecture(named) == "timm:resnet50.tv_in1k?img_size=96"
    model = blank("torchvision:squeezenet1_1?weights=IMAGENET1K_V1&size=96")
    assert model is not None
    assert (model.input_size, model.num_classes) == ((96, 96), 1000)
    assert blank("digits:vit") is None


def test_bytes_of_downloads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert absent_bytes("digits:vit") == 0
    # torchvision says of its own file that it has 4.7 MB
    assert absent_bytes("torchvision:squeezenet1_1?weights=IMAGENET1K_V1") == pytest.approx(4.94e6, rel=0.01)
    assert absent_bytes("timm:resnet18.a1_in1k") == pytest.approx(46.8e6, rel=0.01)
