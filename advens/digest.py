"""Content digests: of weights, of plain values, of files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from advens.files import open_regular

if TYPE_CHECKING:
    import torch


def value_digest(value: Any, length: int = 64) -> str:
    """Hex sha256 of a JSON-able value; key order does not matter."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def file_digest(path: Path) -> str:
    """Hex sha256 of a file's bytes. Raises InputError for a pipe or a device."""
    total = hashlib.sha256()
    with open_regular(path) as file:
        while block := file.read(1 << 20):
            total.update(block)
    return total.hexdigest()


def weights_digest(source: torch.nn.Module | Mapping[str, torch.Tensor]) -> str:
    """Hex sha256 of a network's parameters and buffers: names, types, shapes and bytes.

    Two networks with equal digests are the same surrogate, whatever they are called.
    """
    import torch

    state = source.state_dict() if isinstance(source, torch.nn.Module) else source
    total = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        total.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()
