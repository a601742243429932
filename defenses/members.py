"""Members of an ensemble: untrained networks of one architecture, seeded."""

from __future__ import annotations

from advens.classifier import Classifier
from advens.datasets.loading import suited_architecture
from advens.models import check_name, untrained
from advens.seeding import derive


def fresh(arch: str, num_classes: int, size: tuple[int, int], seed: int, member: int) -> Classifier:
    """An untrained network in train mode, its weights requiring gradients.

    Args:
        arch: a model source whose architecture is wanted: ``digits:resnet``, ``timm:resnet18``.
        num_classes: width of the logits.
        size: (H, W) of the training images; see `advens.models.untrained`.
        seed, member: what the weights are drawn from.

    Raises:
        InputError: unknown, an ensemble, or an embedded architecture for another number of classes.
    """
    model = untrained(arch, num_classes, size, derive(seed, "weights", member))
    return model.requires_grad_(True).train()


def architecture(name: str | None, data: str) -> str:
    """The model source of an architecture.

    Args:
        name: a model source, or a name of timm; None for the architecture that suits the data.
        data: the data source of the training images.

    Raises:
        InputError: the name cannot be that of a model.
    """
    name = suited_architecture(data) if name is None else name
    source = name if ":" in name else f"timm:{name}"
    check_name(source)
    return source
