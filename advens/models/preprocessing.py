"""Options of a model's name that change its preprocessing."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch

from advens.classifier import Classifier
from advens.errors import InputError, InputWarning, first_line
from advens.spec import Spec

OPTIONS = ("mean", "std", "size")


def triple(spec: Spec, key: str, default: Sequence[float]) -> tuple[float, ...]:
    """One or three numbers of a query, as three."""
    text = spec.query.get(key)
    if text is None:
        return tuple(default)
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if len(values) not in (1, 3):
        raise InputError(f"'{spec.text}': {key} = '{text}' is not one or three numbers")
    return tuple(values * 3)[:3]


def check_size(model: Classifier, spec: Spec, hint: str = "") -> None:
    """Raise InputError when a network does not run on images of the size that the query asks for."""
    if "size" not in spec.query or model.input_size is None:
        return
    height, width = model.input_size
    try:
        with torch.no_grad():
            model.net(torch.zeros(1, 3, height, width))
    except (AssertionError, RuntimeError, ValueError) as error:
        raise InputError(
            f"'{spec.text}': the network takes no {height}x{width} images ({first_line(error)}){hint}"
        ) from error


def warn_of_assumed(model: Classifier, spec: Spec, source: str, hint: str) -> None:
    """Say whose preprocessing a checkpoint is given, unless the query says all of it."""
    if all(key in spec.query for key in OPTIONS):
        return
    mean, std = (
        ", ".join(f"{value:g}" for value in values.flatten().tolist()) for values in (model.mean, model.std)
    )
    size = "any size" if model.input_size is None else "{}x{}".format(*model.input_size)
    warnings.warn(
        f"'{spec.text}': the checkpoint does not say how images are to be prepared; mean {mean}, "
        f"std {std}, {size} and {model.interpolation} resizing of {source} are assumed; {hint}",
        InputWarning,
        stacklevel=2,
    )
