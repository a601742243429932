"""Local checkpoints: they are read as data, and one line says what is wrong with a file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from advens.errors import InputError, first_line
from advens.spec import Spec


def check(spec: Spec) -> None:
    """Raise InputError when the query names a checkpoint that is not there."""
    path = spec.query.get("checkpoint")
    if path is not None and not Path(path).is_file():
        raise InputError(f"'{spec.text}': no checkpoint at {path}")


def read(spec: Spec) -> dict[str, Tensor]:
    """The weights in the checkpoint of a query, by name. No code in it is run.

    Raises:
        InputError: the file is cut off, holds code, no weights, or values that are not finite.
    """
    from timm.models import load_state_dict

    path = spec.query["checkpoint"]
    try:
        state = load_state_dict(path, use_ema=False)
    except Exception as error:  # torch, safetensors and pickle each raise their own kinds
        held = re.search(r"(?:GLOBAL|globals:) ([\w.]*\w)", str(error))  # torch's words, and timm's
        if held:
            raise InputError(
                f"'{spec.text}': the checkpoint {path} contains code ({held[1]}), which is never run; "
                f"save the state_dict alone, best as safetensors"
            ) from error
        raise InputError(
            f"'{spec.text}': the checkpoint {path} is corrupt or cut off ({first_line(error)})"
        ) from error
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"'{spec.text}': the checkpoint {path} holds no state_dict of weights")
    for name, value in state.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise InputError(
                f"'{spec.text}': the checkpoint {path} holds values in '{name}' that are not finite"
            )
    return state


def misfit(
    net: nn.Module, state: Mapping[str, Tensor], classes: int, spec: Spec, error: Exception
) -> InputError:
    """The error for weights that do not fit a network: another head, or another architecture."""
    mine, path = net.state_dict(), spec.query["checkpoint"]
    other = [(mine[k].shape, v.shape) for k, v in state.items() if k in mine and mine[k].shape != v.shape]
    held = {theirs[0] if theirs else 0 for _, theirs in other}
    head = [ours[:1] == (classes,) and ours[1:] == theirs[1:] for ours, theirs in other]
    if len(held) == 1 and all(head):
        count = held.pop()
        return InputError(
            f"'{spec.text}': the checkpoint {path} holds {count:,} classes, the network has {classes:,}: "
            f"add &num_classes={count}"
        )
    lacks, extra = ([k for k in a if k not in b] for a, b in ((mine, state), (state, mine)))
    differs = [k for k in mine if k in state and mine[k].shape != state[k].shape]
    found = (("lacks", lacks), ("has no place for", extra), ("has another size for", differs))
    reasons = [f"it {verb} {names[0]}" if verb == "lacks" else f"the network {verb} {names[0]}"
               for verb, names in found if names]  # fmt: skip
    why = ", ".join(reasons) or first_line(error)
    return InputError(f"'{spec.text}': the checkpoint {path} is of another architecture ({why})")


def fill(net: nn.Module, state: Mapping[str, Tensor], classes: int, spec: Spec) -> None:
    """Load weights, strictly. Raises InputError when they do not fit."""
    try:
        net.load_state_dict(state)
    except (RuntimeError, AttributeError, TypeError) as error:
        raise misfit(net, state, classes, spec, error) from error
