"""Calibration: the seconds that a forward and a backward pass of an image take on this device, by model.

``advens calibrate`` measures them, and ``advens run SUITE --dry-run`` estimates hours from them.
What is measured depends on the architecture and the size of the images only, so weights are not downloaded:
networks of timm and torchvision are measured with random ones.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple
from urllib.parse import urlencode

import torch

from advens.attacks.expectation import Expectation, is_randomized
from advens.benchmarks.environment import arithmetic
from advens.benchmarks.worker_cache import default_batch
from advens.cache import cache_root
from advens.classifier import Classifier
from advens.datasets import Dataset
from advens.errors import InputError, first_line
from advens.files import write_bytes
from advens.models import absent, blank, find_model
from advens.spec import Spec

REPEATS = 3
"""Measurements of a pass, after one that is not counted; their median is kept."""
WEIGHTS = ("checkpoint", "seed", "mean", "std", "pretrained")
"""Options of names that do not change how long a pass takes."""

Size = tuple[int, int]


class Times(NamedTuple):
    """Seconds of the passes of one image, in a batch as runs use it.

    Args:
        forward: of a forward pass.
        backward: of the backward pass to the image, after a forward pass that is not counted.
    """

    forward: float
    backward: float


def calibrate(names: Iterable[str], size: Size, device: str) -> Iterator[tuple[str, Times | str]]:
    """Measure models on images (H, W), one after the other, and keep what is found in the cache.

    Args:
        device: as torch names it.

    Yields:
        A model's name with its times, or with the reason why it was left out.
    """
    for name in dict.fromkeys(map(architecture, names)):
        model = blank(name)
        if model is None and (what := absent(name)):
            yield name, f"its network cannot be built without {what}"
            continue
        try:
            times = measure(model or find_model(name), size, device)
        except RuntimeError as error:
            yield name, first_line(error)
            continue
        path = calibration_path(device)
        kept = {**_read(path), _key(name, size): list(times)}
        table = {"device": described(device), "seconds per image": dict(sorted(kept.items()))}
        write_bytes(path, (json.dumps(table, indent=1) + "\n").encode())
        yield name, times


def measure(model: Classifier, size: Size, device: str) -> Times:
    """The times of a model on images (H, W). Raises RuntimeError when torch refuses them."""
    model = model.to(device).to(memory_format=torch.channels_last)
    count = default_batch(torch.empty(1, 3, *size))
    images = torch.rand((count, 3, *size), generator=torch.Generator().manual_seed(0)).to(device)
    run = Expectation(model) if is_randomized(model) else model

    def forward() -> None:
        with torch.inference_mode():
            run(images)

    def both() -> None:
        x = images.clone().requires_grad_()
        torch.autograd.grad(run(x).logsumexp(1).sum(), x)

    one, two = (_seconds(work, device) / count for work in (forward, both))
    return Times(one, max(two - one, 0.0))


def size_of(data: Dataset) -> Size:
    """The size of the images. Raises InputError where only decoding would tell."""
    if data.size is None:
        raise InputError(f"data '{data.name}': the size of the images is not known; add ?size=224")
    return data.size


def known_times(names: Iterable[str], size: Size, device: str) -> tuple[Mapping[str, Times], list[str]]:
    """What calibrations on this device say of models on images (H, W), and the models that they lack."""
    kept = _read(calibration_path(device))
    found = {name: kept.get(_key(architecture(name), size)) for name in names}
    missing = [architecture(name) for name, times in found.items() if times is None]
    return {name: Times(*times) for name, times in found.items() if times}, list(dict.fromkeys(missing))


def architecture(name: str) -> str:
    """A model's name without what does not change how long it takes."""
    spec = Spec.parse(name, "model")
    if spec.scheme == "changed" and "of" in spec.query:
        return architecture(spec.query["of"])
    query = {key: value for key, value in spec.query.items() if key not in WEIGHTS}
    return f"{spec.scheme}:{spec.rest}" + (f"?{urlencode(query, safe=':/,')}" if query else "")


def calibration_path(device: str) -> Path:
    """The file of the calibrations that hold for a device as it is used now."""
    words = "".join(c if c.isalnum() or c == "." else "-" for c in described(device))
    return cache_root("calibration") / f"{words}.json"


def described(device: str) -> str:
    """A device and what the speed on it depends on: ``torch 2.8.0, AVX512, 2 threads``."""
    threads = f", {torch.get_num_threads()} threads" if device == "cpu" else ""
    return arithmetic(device).replace(f"{device} ", f"{device.partition(':')[0]} ") + threads


def _key(name: str, size: Size) -> str:
    return f"{name} at {size[0]}x{size[1]}"


def _read(path: Path) -> dict[str, Any]:
    """The times in a file by model and size; empty without a file."""
    if not path.is_file():
        return {}
    try:
        kept: dict[str, Any] = json.loads(path.read_text())["seconds per image"]
        return {name: [float(value) for value in Times(*times)] for name, times in kept.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is damaged; delete it and calibrate again") from error


def _seconds(work: Callable[[], None], device: str) -> float:
    """The median time of some work, after a first time that is not counted."""

    def once() -> float:
        started = time.perf_counter()
        work()
        if device.startswith("cuda"):
            torch.cuda.synchronize(device)
        return time.perf_counter() - started

    once()
    return median(once() for _ in range(REPEATS))
