"""The embedded zoo: what its index promises, what the weights do, and one model trained again."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import pytest
import torch

import advens
from advens.classifier import accuracy
from advens.models.embedded import index
from advens.zoo.recipes import ENSEMBLES, RECIPES, TESTS
from advens.zoo.training import build_zoo

WEIGHTS = Path(advens.__file__).parent / "zoo" / "weights"
NAMES = sorted(index())


@lru_cache
def images_of(scheme: str) -> tuple[torch.Tensor, torch.Tensor]:
    data = advens.load_data(TESTS[scheme])
    batch = next(data.batches([slice(0, len(data))]))
    return batch.pixels.float() / 255, batch.labels


def test_the_zoo_is_varied_and_small() -> None:
    assert len(NAMES) >= 12
    assert {entry["family"] for entry in index().values()} == {"cnn", "vit", "mlp", "hybrid"}
    robust = [name for name in NAMES if name.endswith("-at")]
    assert {index()[name]["family"] for name in robust} == {"cnn", "vit"}
    twins = [(e["arch"], e["parameters"]) for name, e in index().items() if name not in robust]
    assert len(set(twins)) < len(twins), "the same architecture is there under two seeds"
    assert sum(path.stat().st_size for path in WEIGHTS.rglob("*")) <= 24_000_000
    assert {path.stem for path in WEIGHTS.glob("*.safetensors")} == set(RECIPES)
    assert {path.name for path in WEIGHTS.iterdir() if path.is_dir()} == set(ENSEMBLES)
    assert len(NAMES) == len(RECIPES) + len(ENSEMBLES)


@pytest.mark.parametrize("name", NAMES)
def test_weights_do_what_the_index_promises(name: str) -> None:
    x, y = images_of(name.partition(":")[0])
    model = advens.load_model(name)
    found = accuracy(model, x, y)
    assert found == pytest.approx(index()[name]["clean_accuracy"], abs=0.003)
    assert found >= (0.90 if index()[name]["adversarial"] else 0.95)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not model.training


@pytest.mark.parametrize(("scheme", "eps"), [("digits", 0.2), ("shapes", 32 / 255)])
def test_adversarial_training_shows(scheme: str, eps: float) -> None:
    x, y = (part[:100] for part in images_of(scheme))
    attack = advens.create_attack("pgd", eps=eps, steps=10)

    def robust(name: str) -> float:
        model = advens.load_model(f"{scheme}:{name}")
        return (model(attack(model, x, y)).argmax(1) == y).double().mean().item()

    assert robust("resnet-at") > 0.4 > 0.1 > robust("resnet")


def test_a_model_trained_again_keeps_its_promise(tmp_path: Path) -> None:
    (entry,) = build_zoo(["mambaout"], tmp_path).values()
    assert entry["clean_accuracy"] == pytest.approx(index()["digits:mambaout"]["clean_accuracy"], abs=0.02)
    assert entry["clean_accuracy"] >= 0.95
    assert entry["parameters"] == index()["digits:mambaout"]["parameters"]
