"""Types of the parameters of builders and defenses: numbers within limits, checked by pydantic."""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

Count = Annotated[int, Field(ge=1)]
Several = Annotated[int, Field(ge=2)]
Whole = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]
Share = Annotated[float, Field(gt=0, le=1)]


def _augmentation(value: Any) -> Any:
    """``imagenet`` or a number from 0."""
    if value != "imagenet" and not (isinstance(value, (int, float)) and 0 <= value < math.inf):
        raise ValueError("'imagenet', or a strength from 0")
    return value


Augment = Annotated[float | str, BeforeValidator(_augmentation)]
"""A strength of `advens.augment.jitter`, or ``imagenet``; see `advens.augment.augmented`."""
