"""``timm:NAME``: any timm architecture, pretrained from the hub or from a local checkpoint.

Options: ``checkpoint=PATH`` (local weights instead of the hub's), ``pretrained=false`` (random
weights, drawn from ``seed``), ``mean``, ``std``, ``size``, ``family``; every other option goes to
``timm.create_model``. Mean, std and input size come from the weights' own configuration, never from
the name.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from advens.classifier import FAMILIES, Classifier
from advens.errors import InputError, first_line, nearest, unknown
from advens.spec import Spec

OWN = ("checkpoint", "pretrained", "seed", "mean", "std", "size", "family")

FAMILY_OF_MODULE = {
    "vit": "vision_transformer deit beit eva swin cait pit xcit twins volo tnt crossvit hiera gcvit",
    "mlp": "mlp_mixer",
    "hybrid": "maxxvit levit visformer mobilevit efficientformer fastvit convit coat nextvit "
    "vision_transformer_hybrid efficientvit repvit metaformer edgenext",
}
"""timm modules by the first word of their name; whatever is not listed is a CNN."""


def names() -> list[str]:
    """Every timm model with pretrained weights, as ``timm:NAME``."""
    import timm

    return [f"timm:{name}" for name in timm.list_models(pretrained=True)]


def check(spec: Spec) -> None:
    """Raise InputError when timm has no such architecture, an option is off or a file is missing."""
    import timm

    arch = spec.rest.removeprefix("hf_hub:").removeprefix("hf-hub:")
    if arch == spec.rest and not timm.is_model(spec.rest):
        raise unknown("timm model", spec.rest, timm.list_models())
    family = spec.query.get("family")
    if family is not None and family not in FAMILIES:
        raise InputError(f"'{spec.text}': unknown family '{family}'{nearest(family, FAMILIES)}")
    checkpoint = spec.query.get("checkpoint")
    if checkpoint is not None and not Path(checkpoint).is_file():
        raise InputError(f"'{spec.text}': no checkpoint at {checkpoint}")


def load(spec: Spec) -> Classifier:
    """Build, fill with weights and wrap."""
    check(spec)
    from timm.data.config import resolve_model_data_config

    net = _build(spec)
    config = resolve_model_data_config(net)
    size = spec.number("size") or spec.number("img_size")
    return Classifier(
        net,
        name=spec.text,
        num_classes=int(getattr(net, "num_classes", 0)),
        family=spec.query.get("family") or _family(net),
        mean=_triple(spec, "mean", config["mean"]),
        std=_triple(spec, "std", config["std"]),
        input_size=(size, size) if size else tuple(config["input_size"][-2:]),
        interpolation="bilinear" if config["interpolation"] == "bilinear" else "bicubic",
    )


def _build(spec: Spec) -> nn.Module:
    import timm

    checkpoint = spec.query.get("checkpoint")
    pretrained = checkpoint is None and bool(spec.literals().get("pretrained", True))
    options: dict[str, Any] = spec.literals(skip=OWN)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(spec.number("seed", 0) or 0)
        try:
            net: nn.Module = timm.create_model(spec.rest, pretrained=pretrained, **options)
        except (TypeError, AssertionError, ValueError) as error:
            raise InputError(
                f"'{spec.text}': timm refuses these options: {first_line(error)}"
            ) from error
        except (RuntimeError, OSError) as error:
            raise InputError(
                f"'{spec.text}': pretrained weights could not be had ({first_line(error)}); "
                f"give a local file with ?checkpoint=PATH"
            ) from error
    if checkpoint is not None:
        fill(net, Path(checkpoint), spec)
    return net


def fill(net: nn.Module, checkpoint: Path, spec: Spec) -> None:
    """Load a local checkpoint, strictly. Raises InputError when it is corrupt or does not fit."""
    from timm.models import load_state_dict

    try:
        net.load_state_dict(load_state_dict(str(checkpoint), use_ema=False))
    except Exception as error:  # torch, safetensors and pickle each raise their own kinds
        raise InputError(
            f"'{spec.text}': the checkpoint {checkpoint} is corrupt or of another architecture "
            f"({first_line(error)})"
        ) from error


def _family(net: nn.Module) -> str:
    module = type(net).__module__.rpartition(".")[2]
    for family, modules in FAMILY_OF_MODULE.items():
        if any(module == word or module.startswith(f"{word}_") for word in modules.split()):
            if family == "vit" and module == "vision_transformer_hybrid":
                continue
            return family
    return "cnn"


def _triple(spec: Spec, key: str, default: Any) -> tuple[float, float, float]:
    text = spec.query.get(key)
    if text is None:
        return tuple(default)
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if len(values) not in (1, 3):
        raise InputError(f"'{spec.text}': {key} = '{text}' is not one or three numbers")
    return tuple(values * 3)[:3] if len(values) == 1 else tuple(values)  # type: ignore[return-value]
