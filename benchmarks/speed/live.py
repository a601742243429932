"""Bytes of live tensors: what a piece of work holds at its peak, counted and not sampled."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Live(TorchDispatchMode):
    """Counts the bytes of the storages made under it, from their making to their end."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes: int = 0
        self.peak: int = 0
        self.known: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **kwargs or {})
        given = {a.untyped_storage()._cdata for a in tree_leaves((args, kwargs)) if isinstance(a, Tensor)}
        for tensor in tree_leaves(out):
            storage = tensor.untyped_storage() if isinstance(tensor, Tensor) else None
            if storage is not None and storage._cdata not in self.known | given:
                self.known.add(storage._cdata)
                self.bytes += storage.nbytes()
                weakref.finalize(storage, self.gone, storage._cdata, storage.nbytes()).atexit = False
        self.peak = max(self.peak, self.bytes)
        return out

    def gone(self, key: int, size: int) -> None:
        """A storage was freed."""
        self.known.discard(key)
        self.bytes -= size


def peak(work: Callable[[], object]) -> int:
    """Bytes of live tensors at the peak of ``work``."""
    live = Live()
    with live:
        work()
    return live.peak
