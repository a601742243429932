"""``digits:NAME`` and ``shapes:NAME``: the embedded zoo, networks and saved ensembles in the package."""

from __future__ import annotations

import json
from functools import lru_cache
from importlib.resources import as_file, files
from typing import TYPE_CHECKING, Any

from advens.errors import InputError, first_line, unknown
from advens.models import ModelCard, find_model
from advens.spec import Spec

if TYPE_CHECKING:
    from advens.classifier import Classifier

SIZE = (32, 32)
CLASSES = 10


@lru_cache(maxsize=1)
def index() -> dict[str, dict[str, Any]]:
    """What is known of every embedded model, by its source name."""
    path = files("advens.zoo") / "weights" / "index.json"
    try:
        table: dict[str, dict[str, Any]] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"the embedded zoo's index cannot be read ({error})") from error
    return {_source(key): entry for key, entry in table.items()}


def names() -> list[str]:
    """All embedded models, as ``digits:NAME`` and ``shapes:NAME``."""
    return sorted(index())


def check(spec: Spec) -> None:
    """Raise InputError for an unknown name or an option."""
    spec.only()
    if spec.text not in index():
        raise unknown("model", spec.text, names())


def card(spec: Spec) -> ModelCard:
    """What the index says, without loading weights."""
    check(spec)
    known = index()[spec.text]
    return ModelCard(spec.text, known["family"], known["digest"], CLASSES, SIZE)


def is_ensemble(spec: Spec) -> bool:
    """Whether the index says so."""
    return "ensemble" in index().get(spec.text, {})


def untrained(spec: Spec, num_classes: int) -> Classifier:
    """The network with weights drawn from torch's global generator. An ensemble is returned as it is."""
    model = load(spec)
    if is_ensemble(spec):
        return model
    if model.num_classes != num_classes:
        raise InputError(f"{spec.text} has {model.num_classes} classes and the data {num_classes}")
    from advens.zoo.recipes import RECIPES, build

    model.net = build(RECIPES[_key(spec)])
    return model


def load(spec: Spec) -> Classifier:
    """Build the network and fill it from the package. Raises InputError on missing or corrupt weights."""
    check(spec)
    known = index()[spec.text]
    model = _ensemble(spec) if is_ensemble(spec) else _network(spec)
    if model.digest != known["digest"]:
        raise InputError(f"{spec.text}: the weights in the package are not the ones the index promises")
    return model


def _network(spec: Spec) -> Classifier:
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from advens.zoo.network import ZooNetwork
    from advens.zoo.recipes import MEAN, RECIPES, STD, build

    known, key = index()[spec.text], _key(spec)
    with torch.random.fork_rng(devices=[]):  # fresh weights are drawn, and replaced at once
        net = build(RECIPES[key])
    with as_file(files("advens.zoo") / "weights" / f"{key}.safetensors") as path:
        try:
            net.load_state_dict(load_file(path))
        except (OSError, SafetensorError, RuntimeError) as error:
            raise InputError(
                f"{spec.text}: the weights in {path} are missing or corrupt ({first_line(error)})"
            ) from error
    return ZooNetwork(
        net,
        name=spec.text,
        num_classes=CLASSES,
        family=known["family"],
        mean=MEAN,
        std=STD,
        input_size=SIZE,
    )


def _ensemble(spec: Spec) -> Classifier:
    """A saved ensemble, by the source that reads those."""
    with as_file(files("advens.zoo") / "weights" / spec.rest) as folder:
        try:
            model = find_model(f"defense:{folder}")
        except InputError as error:
            raise InputError(f"{spec.text}: {error}") from error
    model.name = spec.text
    return model


def _key(spec: Spec) -> str:
    """The name of the recipe and of the file of weights."""
    return spec.rest if spec.scheme == "digits" else f"{spec.scheme}-{spec.rest}"


def _source(key: str) -> str:
    """``digits:vit`` for ``vit`` and ``shapes:vit`` for ``shapes-vit``, as recipes and files are named."""
    bare = key.removeprefix("shapes-")
    return f"digits:{key}" if bare == key else f"shapes:{bare}"
