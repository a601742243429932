"""How every network of the embedded zoo is built and trained: one recipe a name.

All take images (N, 3, 32, 32) normalised with `MEAN` and `STD` and give logits (N, 10). The
normalisation is not a part of the network.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from advens.errors import unknown

if TYPE_CHECKING:
    from torch import nn

Family = Literal["cnn", "vit", "mlp", "hybrid"]

MEAN = (0.306, 0.306, 0.306)
"""Mean of each channel over the training images, in [0, 1]."""
STD = (0.324, 0.324, 0.324)
"""Standard deviation of each channel over the training images, in [0, 1]."""

TRAINING = {"digits": "digits:train", "shapes": "synthetic:shapes?n=4000&seed=1"}
"""What the networks of each scheme are trained on."""
TESTS = {"digits": "digits:test", "shapes": "synthetic:shapes?n=1000&seed=2"}
"""What the index measures them on."""

CLASSES = {
    "mlp_mixer": "timm.models.mlp_mixer:MlpMixer",
    "convmixer": "timm.models.convmixer:ConvMixer",
}
"""Architectures built from their class, as no registered timm model lets one shrink them."""


@dataclass(frozen=True)
class ZooRecipe:
    """One network and its training.

    Args:
        name: the name in the zoo, which begins with ``shapes-`` for those of ``shapes:``.
        arch: a timm model, or a key of `CLASSES`.
        family: the kind of network.
        seed: of initialisation, shuffling, augmentation and, if any, dropout.
        epochs: passes over the training images.
        lr: the highest learning rate of the schedule (linear warm-up, then cosine to zero).
        weight_decay: of AdamW, on matrices and kernels only.
        batch_size: images in one update.
        label_smoothing: of the cross-entropy.
        augmentation: strength of the augmentation; 0 is none.
        kwargs: keywords of the architecture.
        adversarial: trained on a mixture of clean and PGD images.
        eps: radius of the l_inf ball of adversarial training and of the robust accuracy in the
            index, images in [0, 1].
        attack_steps: PGD steps of adversarial training.
        attack_step_size: one PGD step, as a fraction of the radius.
        eps_start: fraction of the updates on clean images only, before the radius grows.
        eps_warmup: fraction of the updates in which the radius grows from 0 to `eps`.
        clean_weight: share of the clean images in the adversarial training loss.
    """

    name: str
    arch: str
    family: Family
    seed: int = 0
    epochs: int = 30
    lr: float = 3e-3
    weight_decay: float = 0.05
    batch_size: int = 64
    label_smoothing: float = 0.1
    augmentation: float = 1.0
    kwargs: Mapping[str, Any] = field(default_factory=dict, hash=False)
    adversarial: bool = False
    eps: float = 0.2
    attack_steps: int = 4
    attack_step_size: float = 0.4
    eps_start: float = 0.1
    eps_warmup: float = 0.3
    clean_weight: float = 0.05


VIT = {"img_size": 32, "patch_size": 4, "embed_dim": 64, "depth": 4, "num_heads": 4}
VIT_NARROW = VIT | {"embed_dim": 48, "num_heads": 3}
VIT_SCALED = VIT_NARROW | {"init_values": 0.1, "weight_init": "jax"}
VIT_COARSE = VIT | {
    "patch_size": 8,
    "embed_dim": 80,
    "depth": 3,
    "global_pool": "avg",
    "class_token": False,
    "weight_init": "jax",
}
SWIN = {
    "img_size": 32,
    "patch_size": 4,
    "window_size": 4,
    "embed_dim": 32,
    "depths": (2, 2),
    "num_heads": (2, 4),
}
COATNET = {"img_size": 32, "embed_dim": (32, 64, 64, 96)}
MIXER = {"img_size": 32, "patch_size": 4, "embed_dim": 64, "num_blocks": 4}
CONVMIXER = {"dim": 64, "depth": 4, "kernel_size": 5, "patch_size": 4}

RECIPES: dict[str, ZooRecipe] = {
    recipe.name: recipe
    for recipe in (
        ZooRecipe("resnet", "test_resnet", "cnn"),
        ZooRecipe("resnet-b", "test_resnet", "cnn", seed=1),
        ZooRecipe("convnext", "test_convnext", "cnn", epochs=40),
        ZooRecipe("efficientnet", "test_efficientnet", "cnn", epochs=40),
        ZooRecipe("byobnet", "test_byobnet", "cnn", epochs=40),
        ZooRecipe("nfnet", "test_nfnet", "cnn", epochs=25),
        ZooRecipe("mambaout", "test_mambaout", "cnn", epochs=40),
        ZooRecipe("convmixer", "convmixer", "cnn", kwargs=CONVMIXER),
        ZooRecipe("vit", "vit_tiny_patch16_224", "vit", epochs=40, kwargs=VIT),
        ZooRecipe("vit-b", "vit_tiny_patch16_224", "vit", seed=1, epochs=40, kwargs=VIT_NARROW),
        ZooRecipe(
            "deit3",
            "deit3_small_patch16_224",
            "vit",
            epochs=40,
            kwargs=VIT_SCALED,
        ),
        ZooRecipe(
            "vit-relpos",
            "vit_relpos_small_patch16_224",
            "vit",
            epochs=40,
            kwargs=VIT_SCALED,
        ),
        ZooRecipe("swin", "swin_tiny_patch4_window7_224", "vit", epochs=40, kwargs=SWIN),
        ZooRecipe("mixer", "mlp_mixer", "mlp", epochs=40, kwargs=MIXER),
        ZooRecipe("coatnet", "test_coatnet", "hybrid", kwargs=COATNET),
        ZooRecipe(
            "resnet-at",
            "test_resnet",
            "cnn",
            epochs=45,
            lr=8e-3,
            batch_size=32,
            label_smoothing=0.0,
            augmentation=0.5,
            adversarial=True,
        ),
        ZooRecipe(
            "vit-at",
            "vit_tiny_patch16_224",
            "vit",
            epochs=60,
            lr=4e-3,
            batch_size=32,
            label_smoothing=0.0,
            augmentation=0.5,
            kwargs=VIT_COARSE,
            adversarial=True,
            eps_start=0.2,
            clean_weight=0.1,
        ),
        ZooRecipe("shapes-resnet", "test_resnet", "cnn", epochs=6, eps=24 / 255),
        ZooRecipe("shapes-byobnet", "test_byobnet", "cnn", epochs=8, eps=24 / 255),
        ZooRecipe(
            "shapes-resnet-at",
            "test_resnet",
            "cnn",
            epochs=15,
            lr=8e-3,
            label_smoothing=0.0,
            augmentation=0.5,
            adversarial=True,
            eps=24 / 255,
        ),
    )
}


@dataclass(frozen=True)
class EnsembleRecipe:
    """One ensemble: ``digits:NAME``.

    Args:
        command: what trains it, with one thread (``OMP_NUM_THREADS=1``).
        adversarial: trained on PGD images.
    """

    command: str
    adversarial: bool = False


ADAM = "--set optimizer=adam --set lr=0.003 --set weight_decay=0 --set schedule=cosine"
ENSEMBLES: dict[str, EnsembleRecipe] = {
    "barre3": EnsembleRecipe(
        "advens train barre --arch digits:mambaout --members 3 --epochs 20 --data digits:train --out barre3 "
        f"{ADAM} --set batch_size=32 --set augment=0.5 --set eps=0.2 --set step_size=0.08 --set steps=4 "
        "--set osp_every=5 --set osp_images=512 --set arc_steps=5",
        adversarial=True,
    ),
    "dverge3": EnsembleRecipe(
        "advens train dverge --arch digits:mambaout --members 3 --epochs 8 --data digits:train --out dverge3 "
        f"{ADAM} --set batch_size=64 --set eps=0.2 --set step_size=0.05 --set steps=6",
    ),
}
"""The ensembles of the zoo; see `advens.defenses.adopt`."""


def scheme(name: str) -> str:
    """``digits`` or ``shapes``, for the name of a recipe."""
    return "shapes" if name.startswith("shapes-") else "digits"


def recipe(name: str) -> ZooRecipe:
    """The recipe of one name; InputError with the nearest name when there is none."""
    if name not in RECIPES:
        raise unknown("zoo model", name, RECIPES)
    return RECIPES[name]


def build(recipe: ZooRecipe, num_classes: int = 10) -> nn.Module:
    """The network of a recipe with fresh weights, drawn from torch's global generator."""
    if recipe.arch in CLASSES:
        network: nn.Module = pkgutil.resolve_name(CLASSES[recipe.arch])(
            num_classes=num_classes, **recipe.kwargs
        )
        return network
    import timm

    return timm.create_model(
        recipe.arch, pretrained=False, num_classes=num_classes, **recipe.kwargs
    )
