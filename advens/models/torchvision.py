"""``torchvision:NAME``: torchvision's classifiers.

Options: ``weights=IMAGENET1K_V1`` (an entry of the model's weights enum; torchvision's default moves
between releases, so name it), ``checkpoint=PATH``, ``num_classes=N``, ``seed`` (for random weights
with ``weights=none``), ``mean``, ``std``, ``size``.

The entry says how images are prepared: input size, interpolation, mean, std, and whether ``googlenet`` and
``inception_v3`` transform their channels. For a checkpoint it is the entry that ``weights`` names, else
the one whose published file has the checkpoint's name, else the default one, with a warning where the
entries differ. ``weights=none`` stands for no entry: ImageNet's mean and std, at the network's own size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partialmethod
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import nn

from advens.classifier import Classifier
from advens.errors import InputError, first_line, unknown
from advens.models import hub
from advens.models.checkpoint import check as check_checkpoint
from advens.models.checkpoint import fill, read
from advens.models.preprocessing import check_size, triple, warn_of_assumed
from advens.spec import Spec

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
INCEPTIONS = ("googlenet", "inception_v3")
FAMILIES = {"maxvit": "hybrid", "swin": "vit", "vit": "vit"}
"""By how a name begins; all others are CNNs."""


def names() -> list[str]:
    """Every torchvision classifier, as ``torchvision:NAME``."""
    from torchvision import models

    return [f"torchvision:{name}" for name in models.list_models(module=models)]


def check(spec: Spec) -> None:
    """Raise InputError for an unknown model, option, weights enum or a missing file."""
    spec.only("weights", "checkpoint", "num_classes", "seed", "mean", "std", "size")
    if f"torchvision:{spec.rest}" not in names():
        raise unknown("torchvision model", spec.rest, [n.partition(":")[2] for n in names()])
    check_checkpoint(spec)
    _entry(spec)


def load(spec: Spec) -> Classifier:
    """Build, fill with weights and wrap."""
    check(spec)
    entry = _entry(spec)
    local = "checkpoint" in spec.query
    model = _wrapped(spec, _from_checkpoint if local else _built)
    check_size(model, spec)
    if local and _assumed(spec):
        hint = "name the entry with &weights=, or give &mean=, &std= and &size="
        warn_of_assumed(model, spec, f"torchvision's default weights {entry.name}", hint)
    return model


def blank(spec: Spec) -> Classifier:
    """The model with weights drawn at random, and images prepared as for those that it is named with."""
    check(spec)
    return _wrapped(spec, lambda spec, entry, classes: _built(spec, None, classes))


def _wrapped(spec: Spec, build: Callable[[Spec, Any, int], nn.Module]) -> Classifier:
    """What ``build`` makes of a name, an entry and a number of classes, with the entry's preprocessing."""
    entry = _entry(spec)
    own = 1000 if entry is None else len(entry.meta["categories"])
    classes = spec.number("num_classes") or own
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(spec.number("seed", 0) or 0)
        net = build(spec, entry, classes)
    prepared = preprocessing(entry, net)
    size = spec.number("size")
    if size is not None:
        prepared["input_size"] = (size, size)
    for key in ("mean", "std"):
        prepared[key] = triple(spec, key, prepared[key])
    return Classifier(
        net,
        name=spec.text,
        num_classes=classes,
        family=family(spec.rest),
        **prepared,
    )


def absent(spec: Spec) -> str:
    """What has to be downloaded before a name can be loaded; empty where nothing has to."""
    entry = None if "checkpoint" in spec.query else _entry(spec)
    return "" if entry is None or hub.downloaded(entry.url) else str(entry.url)


def revision(spec: Spec) -> str:
    """The URL of the weights, which has a part of their digest in it; empty for other weights."""
    entry = None if "checkpoint" in spec.query else _entry(spec)
    return "" if entry is None else str(entry.url)


def family(name: str) -> str:
    """Of an architecture."""
    return next((family for start, family in FAMILIES.items() if name.startswith(start)), "cnn")


def preprocessing(entry: Any, net: nn.Module | None = None) -> dict[str, Any]:
    """How a `Classifier` prepares images for an entry of a weights enum.

    Without an entry: ImageNet's mean and std, at the size that the network is built for, if it is for one.
    """
    if entry is None:
        built_for = getattr(net, "image_size", None)
        return IMAGENET | {"input_size": (built_for, built_for) if built_for else None}
    transforms = entry.transforms()
    return {
        "mean": tuple(transforms.mean), "std": tuple(transforms.std),
        "input_size": (transforms.crop_size[0], transforms.crop_size[0]),
        "interpolation": transforms.interpolation.value,
    }  # fmt: skip


def _built(spec: Spec, entry: Any, classes: int) -> nn.Module:
    """torchvision's own factory, with the weights of an entry or random ones."""
    from torchvision import models

    options: dict[str, Any] = {"num_classes": classes}
    if entry is None and spec.rest in INCEPTIONS:
        options["init_weights"] = True  # the default, of which torchvision warns unless it is asked for
    url = "" if entry is None else absent(spec)
    if url and not hub.reachable(url):
        raise InputError(
            f"'{spec.text}': pretrained weights could not be had (they are not in the cache, and {url} "
            f"cannot be reached); give a local file with ?checkpoint=PATH"
        )
    try:
        with _weights_only(entry):
            net: nn.Module = models.get_model(spec.rest, weights=entry, **options)
    except UnpicklingError as error:
        raise InputError(
            f"'{spec.text}': the cached weights of {entry.url} are damaged or contain code, "
            f"which is never run; delete {hub.file_of(entry.url)}"
        ) from error
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(
            f"'{spec.text}': pretrained weights could not be had ({first_line(error)}); "
            f"give a local file with ?checkpoint=PATH"
        ) from error
    return net


@contextmanager
def _weights_only(entry: Any) -> Iterator[None]:
    """torchvision's factories unpickle no more than weights; by default they would run what a file holds."""
    if entry is None:
        yield
        return
    enum = type(entry)
    before = enum.get_state_dict
    enum.get_state_dict = partialmethod(before, weights_only=True)
    try:
        yield
    finally:
        enum.get_state_dict = before


def _from_checkpoint(spec: Spec, entry: Any, classes: int) -> nn.Module:
    """Local weights in a network that is built as torchvision builds it for the entry."""
    from torchvision import models

    state = read(spec)
    options: dict[str, Any] = {"num_classes": classes}
    if entry is not None and spec.rest.startswith("vit_"):
        options["image_size"] = entry.meta["min_size"][0]
    if spec.rest in INCEPTIONS:
        auxiliary = any(name.lower().startswith("aux") for name in state)
        options |= {"transform_input": entry is not None, "aux_logits": auxiliary, "init_weights": False}
    net: nn.Module = models.get_model(spec.rest, weights=None, **options)
    fill(net, state, classes, spec)
    if spec.rest == "googlenet":  # its auxiliary heads are left out by torchvision's own loading, too
        net.aux_logits, net.aux1, net.aux2 = False, None, None  # type: ignore[assignment]
    return net


def _entry(spec: Spec) -> Any:
    """The entry of the model's weights enum that says how images are prepared, or None."""
    wanted, entries = spec.query.get("weights"), _entries(spec.rest)
    if wanted is not None and wanted.lower() == "none":
        return None
    if wanted is None:
        return _published(spec) or entries["DEFAULT"]
    if wanted not in entries:
        raise unknown(f"weights of torchvision:{spec.rest}", wanted, entries)
    return entries[wanted]


def _entries(name: str) -> dict[str, Any]:
    """A model's weights by name, without those that have no classifier (of ``vgg16``)."""
    from torchvision import models

    enum = models.get_model_weights(name)
    found = {entry.name: entry for entry in enum if entry.meta["categories"]}
    return found | {"DEFAULT": enum.DEFAULT}


def _published(spec: Spec) -> Any:
    """The entry whose published file bears the checkpoint's name, or None."""
    file = Path(spec.query.get("checkpoint", "")).name
    return next((e for e in _entries(spec.rest).values() if Path(e.url).name == file), None)


def _assumed(spec: Spec) -> bool:
    """Whether a checkpoint could be of several entries that prepare images differently."""
    if "weights" in spec.query or _published(spec) is not None:
        return False
    ways = [preprocessing(entry) for entry in _entries(spec.rest).values()]
    return any(way != ways[0] for way in ways)
