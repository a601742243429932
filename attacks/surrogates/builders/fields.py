"""Types of the fields of builders: numbers within limits, and other builders."""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from advens.attacks.parts import from_spec

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
FromZero = Annotated[float, Field(ge=0, allow_inf_nan=False)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]
Share = Annotated[float, Field(gt=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Several = Annotated[int, Field(ge=2)]


def augmentation(value: Any) -> Any:
    """``imagenet`` or a number from 0."""
    if value != "imagenet" and not (isinstance(value, (int, float)) and 0 <= value < math.inf):
        raise ValueError("'imagenet', or a strength from 0")
    return value


def other(value: Any) -> Any:
    """The builder of sets of weights that a name, a table or a builder stands for."""
    made = from_spec("builder", value)
    if not callable(getattr(made, "collect", None)):
        raise ValueError("it makes no weights to work with")
    if getattr(made, "redraw", False):
        raise ValueError("it makes no weights to work with unless redraw is false")
    return made


Augment = Annotated[float | str, BeforeValidator(augmentation)]
"""A strength of the embedded zoo's augmentation, or the crops and flips of training on ImageNet."""
Of = Annotated[Any, BeforeValidator(other)]
"""Another builder that makes sets of weights: a name, a table or the builder itself."""
