"""Types of parameters: numbers within limits, checked by pydantic, with messages in plain words."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator


def within(words: str, holds: Callable[[Any], bool]) -> AfterValidator:
    """Refuses a number for which something does not hold, which no comparison with nan does."""

    def check(value: Any) -> Any:
        if not holds(value):
            raise ValueError(words)
        return value

    return AfterValidator(check)


Count = Annotated[int, within("at least 1", lambda n: n >= 1)]
Several = Annotated[int, within("at least 2", lambda n: n >= 2)]
Whole = Annotated[int, within("at least 0", lambda n: n >= 0)]
Positive = Annotated[float, within("above 0", lambda v: 0 < v < math.inf)]
NonNegative = Annotated[float, within("at least 0", lambda v: 0 <= v < math.inf)]
Fraction = Annotated[float, within("from 0 to 1", lambda v: 0 <= v <= 1)]
Half = Annotated[float, within("from 0 to 0.5", lambda v: 0 <= v <= 0.5)]
Share = Annotated[float, within("above 0 and at most 1", lambda v: 0 < v <= 1)]
BelowOne = Annotated[float, within("at least 0 and below 1", lambda v: 0 <= v < 1)]


def _augmentation(value: Any) -> Any:
    """``imagenet`` or a number from 0."""
    if value != "imagenet" and not (isinstance(value, (int, float)) and 0 <= value < math.inf):
        raise ValueError("'imagenet', or a strength from 0")
    return value


Augment = Annotated[float | str, BeforeValidator(_augmentation)]
"""A strength of `advens.augment.jitter`, or ``imagenet``; see `advens.augment.augmented`."""
