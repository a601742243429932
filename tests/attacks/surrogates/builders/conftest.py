"""A small network with batch-norm and dropout, few images, and a count of forward passes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from advens.attacks.surrogates.builders.snapshot import Snapshot, bare
from advens.classifier import Classifier
from advens.datasets import Dataset, load_data

torch.set_num_threads(1)


def small(seed: int = 0, width: int = 6, name: str = "small") -> Classifier:
    """A classifier of ten classes that takes images of 16 x 16 and normalises them."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        net = nn.Sequential(
            nn.Conv2d(3, width, 3, stride=2, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.Dropout(0.2),
            nn.Conv2d(width, 8, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(72, 10),
        )  # fmt: skip
    return Classifier(net, name=name, num_classes=10, mean=(0.3,) * 3, std=(0.4,) * 3, input_size=(16, 16))


def variants(base: Classifier, count: int) -> tuple[list[Snapshot], list[Classifier]]:
    """Snapshots with disturbed weights, and plain models with the same."""
    shared, snapshots, plain = bare(base.net), [], []
    for k in range(count):
        draw = torch.Generator().manual_seed(k)
        state = {
            name: t * (1 + 0.1 * torch.rand(t.shape, generator=draw)) if t.is_floating_point() else t.clone()
            for name, t in base.net.state_dict().items()
        }
        other = copy.deepcopy(base)
        other.net.load_state_dict(state)
        plain.append(other)
        snapshots.append(Snapshot(shared, base, state, name=f"s{k}"))
    return snapshots, plain


@pytest.fixture
def model() -> Classifier:
    return small()


@pytest.fixture
def make() -> Callable[..., Classifier]:
    return small


@pytest.fixture(scope="session")
def data() -> Dataset:
    return load_data("digits:train?limit=200")


@pytest.fixture(scope="session")
def x(data: Dataset) -> Tensor:
    """Images that the models are asked about."""
    return next(data.batches([slice(0, 12)])).pixels.float() / 255


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def passes() -> Iterator[Callable[[], int]]:
    """How often any network was run in this test."""
    seen: list[int] = []

    def count(module: nn.Module, *_: object) -> None:
        if isinstance(module, Classifier):
            seen.append(1)

    handle = nn.modules.module.register_module_forward_hook(count)
    yield lambda: len(seen)
    handle.remove()
