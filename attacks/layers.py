"""The layers of a network by depth, without names of one library."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import AfterValidator
from torch import Tensor, nn

from advens.attacks.hooks import called, unchanged
from advens.errors import InputError, nearest

STEM = 2
"""Stages that have not reduced the image further than this are the stem's."""

SERIES = (
    r"layer\d+", r"denseblock\d+", r"(?:features|stages|blocks)\.\d+", r"(?:encoder\.)?layers\.\w+",
    r"Mixed_\w+", r"inception\d\w*", r"trunk_output\.\w+", r"stage\d+",
)  # fmt: skip
"""How networks that declare no stages name them, torchvision's first."""


def _layer(layer: float | str) -> float | str:
    if not isinstance(layer, str) and not 0 < layer <= 1:
        raise ValueError("a depth above 0 and at most 1, or the name of a module")
    return layer


Layer = Annotated[float | str, AfterValidator(_layer)]
"""A depth q in (0, 1], or the dotted name of a module."""


def modules_at(model: nn.Module, layers: Sequence[float | str], whose: str) -> list[nn.Module]:
    """The modules of a surrogate whose outputs are features at these layers.

    A network of S stages has depth q at the end of stage ⌈qS⌉. Stages are timm's ``feature_info`` without the
    stem's (reduction 1 or 2); where all have one reduction, as in vision transformers, they are the blocks.
    Networks that declare none are read by how torchvision and others name their stages (`SERIES`).

    Args:
        model: the surrogate.
        layers: depths, or names of modules; ``"stages"`` is the end of every stage.
        whose: the name of the method, for messages.

    Raises:
        InputError: the network has no such module, or no stages that are known.
    """
    model = unchanged(model)
    found: list[nn.Module] = []
    for layer in layers:
        if layer == "stages":
            found += [module for _, module in stages(model, whose)]
        elif isinstance(layer, str):
            found.append(_named(model, layer, whose))
        else:
            ends = stages(model, whose)
            found.append(ends[math.ceil(layer * len(ends) - 1e-9) - 1][1])
    return found


def stages(model: nn.Module, whose: str) -> list[tuple[str, nn.Module]]:
    """The modules in which the stages of a network end, with their names, from the image on."""
    if getattr(model, "members", ()):
        raise InputError(f"'{whose}' taps one network; {called(model)} has several members")
    roots: dict[str, nn.Module] = {}  # a network inside a network has no stages of its own
    for name, module in model.named_modules():
        if getattr(module, "feature_info", None) and not any(_inside(name, root) for root in roots):
            roots[name] = module
    if len(roots) > 1:
        raise InputError(f"'{whose}' taps one network; {called(model)} holds {len(roots)}")
    for name, module in roots.items():
        if ends := _declared(name, module):
            return ends
    for pattern in SERIES:
        if ends := _series(model, re.compile(rf"((?:\w+\.)*?){pattern}")):
            return ends
    inside = getattr(model, "net", model)
    names = ", ".join(name for name, _ in inside.named_children()) or "none"
    raise InputError(
        f"'{whose}' finds no stages in {called(model)}; name a module with layer=\"NAME\" "
        f"(the outermost: {names})"
    )


def as_map(a: Tensor, x: Tensor) -> Tensor:
    """Features as (N, C, h, w): of maps with channels first or last, or of tokens of a square grid."""
    if a.dim() == 3:  # (N, tokens, C), with class and other tokens before the grid
        side = math.isqrt(a.shape[1])
        return a[:, a.shape[1] - side * side :].transpose(1, 2).reshape(len(a), -1, side, side)
    height, width = x.shape[2:]
    first = a.shape[2] * width == a.shape[3] * height
    last = a.shape[1] * width == a.shape[2] * height
    return a.movedim(3, 1) if last and not first else a


def _declared(prefix: str, network: nn.Module) -> list[tuple[str, nn.Module]]:
    """What timm's ``feature_info`` names, without the stem."""
    info: Any = network.feature_info
    every = [entry for entry in getattr(info, "info", info) if entry.get("module")]
    entries = [(str(entry["module"]), int(entry["reduction"])) for entry in every]
    if len({reduction for _, reduction in entries}) > 1:
        entries = [entry for entry in entries if entry[1] > STEM] or entries
    known = dict(network.named_modules())
    return [
        (f"{prefix}.{name}".lstrip("."), known[name]) for name in dict(entries) if name in known
    ]


def _series(model: nn.Module, pattern: re.Pattern[str]) -> list[tuple[str, nn.Module]]:
    """The modules of the outermost series of at least two that are named so."""
    series: dict[str, list[tuple[str, nn.Module]]] = {}
    for name, module in model.named_modules():
        if match := pattern.fullmatch(name):
            series.setdefault(match.group(1), []).append((name, module))
    return next((found for found in series.values() if len(found) > 1), [])


def _named(model: nn.Module, name: str, whose: str) -> nn.Module:
    known: dict[str, nn.Module] = dict(model.named_modules())
    for prefix in ("", "net."):
        if prefix + name in known and name:
            return known[prefix + name]
    names = [each.removeprefix("net.") for each in known if each]
    raise InputError(f"'{whose}': {called(model)} has no module '{name}'{nearest(name, names)}")


def _inside(name: str, other: str) -> bool:
    return not other or name.startswith(f"{other}.")
