"""``environment.json``: versions, device, commit, digests of models and data."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import advens
from advens.digest import file_digest, value_digest

PACKAGES = (
    "torch",
    "torchvision",
    "timm",
    "numpy",
    "pandas",
    "pyarrow",
    "scikit-learn",
    "pydantic",
)
OWN = ("advens", "advens.attacks", "advens.defenses", "advens.results", "advens.benchmarks")


def environment(device: str, models: Mapping[str, str], data: Mapping[str, str]) -> dict[str, Any]:
    """What a run depended on, JSON-able."""
    return {
        "advens": advens.__version__,
        "commit": commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": versions(),
        "device": device_name(device),
        "models": dict(sorted(models.items())),
        "data": dict(data),
    }


def versions() -> dict[str, str | None]:
    """Versions of the packages results may depend on; None for one that is not installed."""
    found: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def device_name(device: str) -> str:
    """``cpu``, or a GPU's device and product name; only the device where it is one of another machine."""
    if not device.startswith("cuda"):
        return device
    import torch

    if not torch.cuda.is_available():
        return device
    return f"{device} ({torch.cuda.get_device_name(torch.device(device.split(',')[0]))})"


def arithmetic(device: str) -> str:
    """What rounding depends on beside the number of threads: ``torch 2.8.0, AVX512``, or a GPU's name."""
    import torch

    on = torch.backends.cpu.get_cpu_capability() if device == "cpu" else device_name(device)
    return f"torch {torch.__version__}, {on}"


def commit() -> str | None:
    """The commit of the source tree this package runs from, or None for an installed wheel."""
    folder = Path(__file__).resolve().parent.parent
    if not (folder / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=folder, capture_output=True, text=True, check=True, timeout=10,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def merged(path: Path, found: dict[str, Any]) -> bytes:
    """The environment as JSON bytes, keeping models and data that an earlier run named."""
    if path.is_file():
        try:
            before = json.loads(path.read_text())
            found["models"] = dict(sorted((before.get("models", {}) | found["models"]).items()))
            found["data"] = before.get("data", {}) | found["data"]
        except ValueError:
            pass
    return (json.dumps(found, indent=2) + "\n").encode()


def source_digest() -> str:
    """Digest of the names and bytes of all Python files of the installed package."""
    found = {}
    for package in OWN:
        for folder in import_module(package).__path__:
            for path in Path(folder).rglob("*.py"):
                name = f"{package.replace('.', '/')}/{path.relative_to(folder).as_posix()}"
                found[name] = file_digest(path)
    return value_digest(found)
