"""Members of an ensemble: fresh networks of one architecture, seeded."""

from __future__ import annotations

import torch

from advens.classifier import Classifier
from advens.defenses.ensembles import Together
from advens.errors import InputError
from advens.models import bare, check_name, find_model
from advens.seeding import derive
from advens.spec import Spec


def fresh(arch: str, num_classes: int, size: tuple[int, int], seed: int, member: int) -> Classifier:
    """An untrained network that learns, in train mode.

    Args:
        arch: a model source whose architecture is wanted: ``digits:resnet``, ``timm:resnet18``.
        num_classes: width of the logits.
        size: (H, W) of the training images; networks that take any size see it as it is.
        seed, member: what the weights are drawn from.

    Raises:
        InputError: unknown, an ensemble, or an embedded architecture for another number of classes.
    """
    spec = Spec.parse(arch, "model")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive(seed, "weights", member))
        if spec.scheme in ("digits", "shapes"):
            model = _single(arch)
            if model.num_classes != num_classes:
                raise InputError(f"{arch} has {model.num_classes} classes and the data {num_classes}")
            from advens.zoo.recipes import RECIPES, build

            model.net = build(RECIPES[spec.rest if spec.scheme == "digits" else f"shapes-{spec.rest}"])
        else:
            name = bare(arch, num_classes)
            if spec.scheme in ("timm", "torchvision"):  # these seed their weights themselves
                name += f"&seed={derive(seed, 'weights', member)}"
            model = _single(name)
            model.name = arch
            if takes_any_size(model, size):
                model.input_size = size
    return model.requires_grad_(True).train()


def architecture(name: str | None, data: str) -> str:
    """A model source from what a user says: as it is, a timm name, or nothing: what suits the data.

    Raises InputError for a name that cannot be.
    """
    if name is None:
        name = "digits:mambaout" if data.startswith("digits:") else "timm:resnet18"
    source = name if ":" in name else f"timm:{name}"
    check_name(source)
    return source


def _single(name: str) -> Classifier:
    model = find_model(name)
    if isinstance(model, Together):
        raise InputError(f"{name} is an ensemble; give the architecture of one member")
    return model


def takes_any_size(model: Classifier, size: tuple[int, int]) -> bool:
    """Whether a network runs on images of another size than its own."""
    try:
        with torch.no_grad():
            model.eval().net(torch.zeros(1, 3, *size))
    except (RuntimeError, AssertionError, ValueError):
        return False
    return True
