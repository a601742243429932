"""``torchvision:NAME``: torchvision's classifiers.

Options: ``weights=IMAGENET1K_V1`` (an entry of the model's weights enum; torchvision's default moves
between releases, so name it), ``checkpoint=PATH``, ``num_classes=N``, ``seed`` (for random weights
with ``weights=none``). Size, mean and std come from the weights' own transforms.
"""

from __future__ import annotations

from pathlib import Path

import torch

from advens.classifier import Classifier
from advens.errors import InputError, first_line, unknown
from advens.spec import Spec

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def names() -> list[str]:
    """Every torchvision classifier, as ``torchvision:NAME``."""
    from torchvision import models

    return [f"torchvision:{name}" for name in models.list_models(module=models)]


def check(spec: Spec) -> None:
    """Raise InputError for an unknown model, option, weights enum or a missing file."""
    spec.only("weights", "checkpoint", "num_classes", "seed")
    if f"torchvision:{spec.rest}" not in names():
        raise unknown("torchvision model", spec.rest, [n.partition(":")[2] for n in names()])
    checkpoint = spec.query.get("checkpoint")
    if checkpoint is not None and not Path(checkpoint).is_file():
        raise InputError(f"'{spec.text}': no checkpoint at {checkpoint}")
    _weights(spec)


def load(spec: Spec) -> Classifier:
    """Build, fill with weights and wrap."""
    check(spec)
    from torchvision import models

    weights = _weights(spec)
    checkpoint = spec.query.get("checkpoint")
    classes = spec.number("num_classes", 1000 if weights is None else None)
    options = {} if classes is None else {"num_classes": classes}
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(spec.number("seed", 0) or 0)
        try:
            net = models.get_model(spec.rest, weights=weights, **options)
        except (OSError, RuntimeError, ValueError) as error:
            raise InputError(
                f"'{spec.text}': pretrained weights could not be had ({first_line(error)}); "
                f"give a local file with ?checkpoint=PATH"
            ) from error
    if checkpoint is not None:
        from advens.models.timm import fill

        fill(net, Path(checkpoint), spec)
    transforms = weights.transforms() if weights is not None else None
    size = transforms.crop_size[0] if transforms is not None else None
    return Classifier(
        net,
        name=spec.text,
        num_classes=classes or len(weights.meta["categories"]),
        family="vit" if spec.rest.startswith(("vit", "swin")) else "cnn",
        mean=transforms.mean if transforms is not None else IMAGENET_MEAN,
        std=transforms.std if transforms is not None else IMAGENET_STD,
        input_size=(size, size) if size else None,
        interpolation="bilinear",
    )


def _weights(spec: Spec):  # type: ignore[no-untyped-def]  # an entry of the model's enum, or None
    from torchvision import models

    wanted = spec.query.get("weights", "DEFAULT")
    if "checkpoint" in spec.query or wanted.lower() == "none":
        return None
    enum = models.get_model_weights(spec.rest)
    entries = {entry.name: entry for entry in enum} | {"DEFAULT": enum.DEFAULT}
    if wanted not in entries:
        raise unknown(f"weights of torchvision:{spec.rest}", wanted, entries)
    return entries[wanted]
