"""``timm:NAME``: any timm classifier, pretrained from the hub or from a local checkpoint.

Options: ``checkpoint=PATH`` (local weights instead of the hub's), ``pretrained=false`` (random
weights, drawn from ``seed``), ``mean``, ``std``, ``size``, ``family``; every other option goes to
``timm.create_model``. Mean, std, input size and interpolation come from the weights' own configuration,
which a full name (``resnet50.a1_in1k``) says; for a checkpoint of a name without one, those of the name's
default weights are assumed, with a warning. Options that say where timm downloads from or to are refused.
``timm:hf-hub:OWNER/NAME`` takes configuration and weights from a repository of the Hugging Face hub.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from difflib import get_close_matches
from typing import Any

import torch
from torch import nn

from advens.classifier import FAMILIES, Classifier
from advens.errors import InputError, first_line, nearest, unknown
from advens.models import hub
from advens.models.checkpoint import check as check_checkpoint
from advens.models.checkpoint import misfit, read
from advens.models.preprocessing import check_size, triple, warn_of_assumed
from advens.spec import Spec

OWN = ("checkpoint", "pretrained", "seed", "mean", "std", "size", "family")
ELSEWHERE = ("checkpoint_path", "cache_dir", "pretrained_", "hf_hub", "hf-hub")
"""How options of timm's begin by which a name would choose an address, or a folder for downloads."""

FAMILY_OF_MODULE = {
    "vit": "beit cait crossvit davit deepseek_vit deit eva gcvit gemma4_vit hiera hieradet_sam2 mvitv2 "
    "naflexvit nest pit pvt_v2 qwen3_vit swin_transformer swin_transformer_v2 swin_transformer_v2_cr tnt "
    "twins vision_transformer vision_transformer_relpos vision_transformer_sam volo xcit",
    "mlp": "mlp_mixer",
    "hybrid": "coat convit edgenext efficientformer efficientformer_v2 efficientvit_mit efficientvit_msra "
    "fastvit iformer levit lowformer maxxvit metaformer mobilevit nextvit repvit shvit swiftformer tiny_vit "
    "visformer vision_transformer_hybrid vitamin",
}
"""timm modules by family; the models of whatever is not listed are CNNs."""

EMBEDDING_STEP = 128
"""Embeddings (CLIP, SigLIP, DINO) are a multiple of this wide, 0 among them; no label set of timm's is."""


def names() -> list[str]:
    """Every timm model with pretrained weights and a classifier, as ``timm:NAME``."""
    import timm

    return [f"timm:{name}" for name in timm.list_models(pretrained=True) if not _embeds(name)]


def check(spec: Spec) -> None:
    """Raise InputError when timm has no such classifier, an option is off or a file is missing."""
    import timm

    if not _on_hub(spec):
        if not timm.is_model(spec.rest):
            raise unknown("timm model", spec.rest, timm.list_models())
        if "num_classes" not in spec.query and _embeds(spec.rest):
            raise _headless(spec, _width(spec.rest))
        _check_head(spec)
    for key in spec.query:
        if key.startswith(ELSEWHERE):
            raise InputError(
                f"'{spec.text}': a name may not say where timm downloads from or to ('{key}'); "
                f"give local weights with checkpoint=PATH"
            )
        close = get_close_matches(key, OWN, n=1, cutoff=0.8)
        if key not in OWN and close:
            raise InputError(f"'{spec.text}': unknown option '{key}'; did you mean '{close[0]}'?")
    given = spec.query.get("family")
    if given is not None and given not in FAMILIES:
        raise InputError(f"'{spec.text}': unknown family '{given}'{nearest(given, FAMILIES)}")
    check_checkpoint(spec)


def would(spec: Spec) -> str:
    """What loading a name does that needs trust: a repository that the name chooses is asked for weights."""
    return f"load from the repository {_repository(spec)[0]} of {hub.endpoint()}" if _on_hub(spec) else ""


def load(spec: Spec) -> Classifier:
    """Build, fill with weights and wrap."""
    check(spec)
    model = _wrapped(spec, _build(spec))
    check_size(model, spec, f"; build it for them with &img_size={spec.query.get('size')}")
    if "checkpoint" in spec.query and "." not in spec.rest and not _on_hub(spec):
        assumed = f"{spec.rest}.{_weights(model.net)['tag']}"
        hint = f"name the weights as in timm:{assumed}, or give &mean=, &std= and &size="
        warn_of_assumed(model, spec, f"timm's default weights {assumed}", hint)
    return model


def blank(spec: Spec) -> Classifier | None:
    """The model with weights drawn at random; None for one whose configuration is on the hub, too."""
    if _on_hub(spec):
        return None
    spec = replace(spec, query={**spec.query, "pretrained": "false"})
    check(spec)
    return _wrapped(spec, _create(spec, spec.literals(skip=OWN), pretrained=False))


def _weights(net: nn.Module) -> dict[str, Any]:
    """The configuration of the weights that timm takes for a network."""
    return net.pretrained_cfg  # type: ignore[return-value]


def _wrapped(spec: Spec, net: nn.Module) -> Classifier:
    """A network with the preprocessing that its configuration and the name say."""
    from timm.data.config import resolve_model_data_config

    classes = int(getattr(net, "num_classes", 0))
    if classes == 0:
        raise _headless(spec, 0)
    config: dict[str, Any] = resolve_model_data_config(net)
    size = spec.number("size") or spec.number("img_size")
    return Classifier(
        net,
        name=spec.text,
        num_classes=classes,
        family=spec.query.get("family") or family(_weights(net)["architecture"]),
        mean=triple(spec, "mean", config["mean"]),
        std=triple(spec, "std", config["std"]),
        input_size=(size, size) if size else tuple(config["input_size"][-2:]),
        interpolation="bilinear" if config["interpolation"] == "bilinear" else "bicubic",
    )


def _on_hub(spec: Spec) -> bool:
    return spec.rest.startswith(("hf_hub:", "hf-hub:"))


def _width(name: str) -> int:
    """Of what the weights of a name end in; 1,000 where timm knows no weights."""
    import timm

    known = timm.get_pretrained_cfg(name)
    return 1000 if known is None else known.num_classes


def _embeds(name: str) -> bool:
    """Whether the weights of a name end in an embedding or features, not in classes."""
    return _width(name) % EMBEDDING_STEP == 0


def _check_head(spec: Spec) -> None:
    """Raise InputError when the hub's weights have other classes than are asked for."""
    asked, own = spec.number("num_classes"), _width(spec.rest)
    filled = "checkpoint" in spec.query or spec.literals().get("pretrained", True) is not True
    if asked is not None and asked != own and not filled:
        raise InputError(
            f"'{spec.text}': the weights of {spec.rest} are for {own:,} classes, not {asked:,}, and timm "
            f"would draw a head at random; give ?checkpoint=PATH, or pretrained=false"
        )


def _headless(spec: Spec, width: int) -> InputError:
    what = f"ends in an embedding of {width:,} numbers" if width else "has no classifier head"
    return InputError(
        f"'{spec.text}': timm's {spec.rest} {what}, so it knows no classes; "
        f"with a head of your own, give ?checkpoint=PATH&num_classes=N"
    )


def _build(spec: Spec) -> nn.Module:
    options: dict[str, Any] = spec.literals(skip=OWN)
    if "checkpoint" in spec.query:
        return _from_checkpoint(spec, options)
    away = hub.unreachable() if _asks_the_hub(spec) else ""
    repository, filename = _repository(spec) if _asks_the_hub(spec) else ("", None)
    try:
        with hub.offline(bool(away)):
            net = _create(spec, options, pretrained=_pretrained(spec))
    except InputError:
        raise
    except Exception as error:  # the hub's client lets through what its HTTP library raises
        why = f"they are not in the cache, and {away}" if away else first_line(error)
        raise InputError(
            f"'{spec.text}': pretrained weights could not be had ({why}); "
            f"give a local file with ?checkpoint=PATH"
        ) from error
    if repository:
        hub.check(repository, filename)
    return net


def _pretrained(spec: Spec) -> bool:
    return bool(spec.literals().get("pretrained", True))


def _asks_the_hub(spec: Spec) -> bool:
    return "checkpoint" not in spec.query and (_pretrained(spec) or _on_hub(spec))


def _repository(spec: Spec) -> tuple[str, str | None]:
    """Where the weights of a name lie on the hub, and their file if it is not the usual one."""
    import timm

    if _on_hub(spec):
        return spec.rest.partition(":")[2], None
    config = timm.get_pretrained_cfg(spec.rest)
    return ("", None) if config is None else (config.hf_hub_id or "", config.hf_hub_filename)


def absent(spec: Spec) -> str:
    """What has to be downloaded before a name can be loaded; empty where nothing has to."""
    repository, filename = _repository(spec) if _asks_the_hub(spec) else ("", None)
    return "" if not repository or hub.cached(repository, filename) else f"{hub.endpoint()}/{repository}"


def revision(spec: Spec) -> str:
    """The repository and commit of the weights in the hub's cache; empty for other weights."""
    repository, filename = _repository(spec) if _asks_the_hub(spec) else ("", None)
    return hub.revision(repository, filename) if repository else ""


def _create(spec: Spec, options: Mapping[str, Any], **how: Any) -> nn.Module:
    """timm's own factory; what is drawn comes from the spec's seed."""
    import timm

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(spec.number("seed", 0) or 0)
        try:
            net: nn.Module = timm.create_model(spec.rest, **how, **options)
        except (TypeError, AssertionError, ValueError) as error:
            raise InputError(
                f"'{spec.text}': timm refuses these options: {first_line(error)}"
            ) from error
    return net


def _from_checkpoint(spec: Spec, options: Mapping[str, Any]) -> nn.Module:
    """Local weights through timm's own filters, which resample what depends on the image's size."""
    state = read(spec)
    # timm draws a new head where its configuration counts other classes than the network
    counted = {key: value for key, value in options.items() if key == "num_classes"}
    overlay = {"state_dict": dict(state), "source": "", "custom_load": False, **counted}
    try:
        net = _create(spec, options, pretrained=True, pretrained_cfg_overlay=overlay)
    except Exception as error:  # timm's filters raise whatever the weights of another architecture lead to
        bare = _create(spec, options, pretrained=False)  # refuses wrong options
        raise misfit(bare, state, int(getattr(bare, "num_classes", 0)), spec, error) from error
    net.pretrained_cfg.pop("state_dict", None)  # type: ignore[operator, union-attr]
    return net


def family(architecture: str) -> str:
    """Of an architecture, by the timm module that defines it."""
    from timm.models import is_model_in_modules

    for each, modules in FAMILY_OF_MODULE.items():
        if is_model_in_modules(architecture, modules.split()):
            return each
    return "cnn"
