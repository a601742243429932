"""Types of the fields of builders: numbers within limits, and other builders."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from advens.attacks.parts import from_spec

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
FromZero = Annotated[float, Field(ge=0, allow_inf_nan=False)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]
Share = Annotated[float, Field(gt=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Several = Annotated[int, Field(ge=2)]


def other(value: Any) -> Any:
    """The builder of sets of weights that a name, a table or a builder stands for."""
    made = from_spec("builder", value)
    if not callable(getattr(made, "collect", None)):
        raise ValueError("it makes no weights to work with")
    return made


Of = Annotated[Any, BeforeValidator(other)]
"""Another builder that makes sets of weights: a name, a table or the builder itself."""
