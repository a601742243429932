"""Loaded models: those used least recently are dropped when their weights exceed a number of bytes."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Sequence

import torch

from advens.classifier import Classifier
from advens.errors import InputWarning
from advens.models import find_model

WEIGHTS = 2 << 30
"""Bytes of weights that are kept on a CPU."""
SHARE = 4
"""Of the memory of a GPU, one part in so many holds weights."""


class ModelPool:
    """Loads models on demand onto a device, their convolutions in channels-last order.

    Args:
        device: where the models live.
        budget: bytes of weights to keep; the models of one request are kept whatever their size. By default
            it follows from the memory of the device.
        more: further devices, over which surrogates of one attack are spread.
    """

    def __init__(
        self, device: torch.device, budget: int | None = None, more: Sequence[torch.device] = ()
    ) -> None:
        self.devices = (device, *more)
        self.budget = weights_budget(device) if budget is None else budget
        self._held: OrderedDict[str, Classifier] = OrderedDict()
        self._sizes: dict[str, int] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._held

    def get(self, names: Sequence[str], *, spread: bool = False) -> list[Classifier]:
        """The models of these names, in this order.

        Args:
            names: source names.
            spread: over all devices in turn; else all are on the first.
        """
        for place, name in enumerate(names):
            device = self.devices[place % len(self.devices) if spread else 0]
            if name not in self._held:
                self._evict(keep=names)
                with warnings.catch_warnings():  # the plan has described the model, and warned
                    warnings.simplefilter("ignore", InputWarning)
                    model = find_model(name).to(device)
                # convolutions are up to 1.5 times as fast, and nothing is slower
                self._held[name] = model.to(memory_format=torch.channels_last)
                self._sizes[name] = _bytes(model)
            elif self._held[name].mean.device != device and len(self.devices) > 1:
                self._held[name].to(device)
            self._held.move_to_end(name)
        self._evict(keep=names)
        return [self._held[name] for name in names]

    def _evict(self, keep: Sequence[str]) -> None:
        for name in list(self._held):
            if sum(self._sizes[held] for held in self._held) <= self.budget:
                return
            if name not in keep:
                del self._held[name]


def weights_budget(device: torch.device) -> int:
    """Bytes of weights to keep on a device."""
    return max(WEIGHTS, device_bytes(device) // SHARE)


def device_bytes(device: torch.device) -> int:
    """Memory of a GPU in bytes; 0 for other devices."""
    if device.type != "cuda":
        return 0
    return int(torch.cuda.get_device_properties(device).total_memory)


def _bytes(model: Classifier) -> int:
    tensors = [*model.parameters(), *model.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
