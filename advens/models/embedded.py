"""``digits:NAME``: the embedded zoo, trained on scikit-learn's digits, weights in the package."""

from __future__ import annotations

import json
from functools import lru_cache
from importlib.resources import as_file, files
from typing import TYPE_CHECKING, Any

from advens.errors import InputError, first_line, unknown
from advens.models import ModelCard
from advens.spec import Spec

if TYPE_CHECKING:
    from advens.classifier import Classifier

SIZE = (32, 32)
CLASSES = 10


@lru_cache(maxsize=1)
def index() -> dict[str, dict[str, Any]]:
    """What is known of every embedded model, by bare name."""
    path = files("advens.zoo") / "weights" / "index.json"
    try:
        table: dict[str, dict[str, Any]] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"the embedded zoo's index cannot be read ({error})") from error
    return table


def names() -> list[str]:
    """All embedded models, as ``digits:NAME``."""
    return [f"digits:{name}" for name in sorted(index())]


def check(spec: Spec) -> None:
    spec.only()
    if spec.rest not in index():
        raise unknown("model", spec.text, names())


def card(spec: Spec) -> ModelCard:
    """What the index says, without loading weights."""
    check(spec)
    entry = index()[spec.rest]
    return ModelCard(spec.text, entry["family"], entry["digest"], CLASSES, SIZE)


def load(spec: Spec) -> Classifier:
    """Build the network and fill it from the package. Raises InputError on missing or corrupt weights."""
    check(spec)
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from advens.classifier import Classifier
    from advens.zoo.recipes import MEAN, RECIPES, STD, build

    net = build(RECIPES[spec.rest])
    with as_file(files("advens.zoo") / "weights" / f"{spec.rest}.safetensors") as path:
        try:
            net.load_state_dict(load_file(path))
        except (OSError, SafetensorError, RuntimeError) as error:
            raise InputError(
                f"{spec.text}: the weights in {path} are missing or corrupt ({first_line(error)})"
            ) from error
    model = Classifier(
        net,
        name=spec.text,
        num_classes=CLASSES,
        family=index()[spec.rest]["family"],
        mean=MEAN,
        std=STD,
        input_size=SIZE,
    )
    if model.digest != index()[spec.rest]["digest"]:
        raise InputError(f"{spec.text}: the weights in {path} are not the ones the index promises")
    return model
