"""Loaded models: those used least recently are dropped when their weights exceed a number of bytes."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Sequence

import torch

from advens.classifier import Classifier
from advens.errors import InputWarning
from advens.models import find_model


class ModelPool:
    """Loads models on demand onto a device, their convolutions in channels-last order.

    Args:
        device: where the models live.
        budget: bytes of weights to keep; the models of one request are kept whatever their size.
    """

    def __init__(self, device: torch.device, budget: int = 2 << 30) -> None:
        self.device = device
        self.budget = budget
        self._held: OrderedDict[str, Classifier] = OrderedDict()
        self._sizes: dict[str, int] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._held

    def get(self, names: Sequence[str]) -> list[Classifier]:
        """The models of these names, in this order."""
        for name in names:
            if name not in self._held:
                self._evict(keep=names)
                with warnings.catch_warnings():  # the plan has described the model, and warned
                    warnings.simplefilter("ignore", InputWarning)
                    model = find_model(name).to(self.device)
                # convolutions are up to 1.5 times as fast, and nothing is slower
                self._held[name] = model.to(memory_format=torch.channels_last)
                self._sizes[name] = _bytes(model)
            self._held.move_to_end(name)
        self._evict(keep=names)
        return [self._held[name] for name in names]

    def _evict(self, keep: Sequence[str]) -> None:
        for name in list(self._held):
            if sum(self._sizes[held] for held in self._held) <= self.budget:
                return
            if name not in keep:
                del self._held[name]


def _bytes(model: Classifier) -> int:
    tensors = [*model.parameters(), *model.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
