"""Checkpoints and data sets that contain code; files of runs and defenses that are damaged or hang."""

from __future__ import annotations

import inspect
import json
import os
import pickle
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torchvision import datasets, models

from advens.datasets import find_data, torchvision_sets
from advens.errors import InputError
from advens.models import hub
from advens.trust import trusting


class Bomb:
    """Unpickled, it makes the canary."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.canary}",)


@pytest.mark.parametrize("source", ["timm:test_vit?", "torchvision:squeezenet1_1?"])
def test_a_checkpoint_with_code(
    source: str, canary: Path, tmp_path: Path, advens: Callable[..., Any]
) -> None:
    torch.save({"state_dict": {"head.weight": Bomb(canary)}}, tmp_path / "evil.pth")
    line = advens("models", f"{source}checkpoint={tmp_path / 'evil.pth'}").refused("contains code")
    assert "weights_only" not in line
    assert "trusted" not in line


@pytest.mark.parametrize("name", ["ensemble.json", "member-0.safetensors"])
def test_a_pipe_in_a_defense(name: str, defense: Path, advens: Callable[..., Any]) -> None:
    (defense / name).unlink()
    os.mkfifo(defense / name)
    advens("models", f"defense:{defense}").refused("not a regular file")


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000, "{}", "[]", "nul", '{"format": 1, "kind": "mean", "members": 3}',
        '{"format": 1, "kind": "mean", "members": [], "over": "logits"}',
        '{"format": 1, "kind": "mean", "members": [5], "over": "logits"}', "\x00\x1b[2J",
    ],
    ids=range(8),
)  # fmt: skip
def test_descriptions_of_a_defense(text: str, defense: Path, advens: Callable[..., Any]) -> None:
    (defense / "ensemble.json").write_text(text)
    advens("models", f"defense:{defense}").refused()


@pytest.mark.parametrize(
    "option",
    ["checkpoint_path=x.pth", "cache_dir=/tmp/x", "pretrained_cfg={'url':'http://x'}",
     "pretrained_cfg_overlay=x", "hf_hub_id=a/b"],
)  # fmt: skip
def test_options_that_lead_elsewhere(option: str, advens: Callable[..., Any]) -> None:
    """timm would write downloads to a folder, or fetch weights from an address, that a file names."""
    line = advens("models", f"timm:test_vit?pretrained=false&{option}").refused(option.partition("=")[0])
    assert "may not say where timm downloads from" in line
    assert "checkpoint=PATH" in line


@pytest.mark.parametrize("name", ["LSUN", "LSUNClass"])
def test_pickled_indexes_are_not_read(name: str, tmp_path: Path, advens: Callable[..., Any]) -> None:
    """torchvision unpickles the index that lies beside a database of LSUN."""
    advens("data", f"torchvision:{name}?root={tmp_path}").refused(f"unknown torchvision data set '{name}'")


@pytest.mark.parametrize("name", ["CIFAR10", "CIFAR100"])
def test_pickled_images_are_the_published_files(
    name: str, canary: Path, tmp_path: Path, advens: Callable[..., Any]
) -> None:
    """torchvision compares digests of all files before it unpickles the first."""
    kind = getattr(datasets, name)
    folder = tmp_path / "set" / kind.base_folder
    folder.mkdir(parents=True)
    for file in [*(file for file, _ in kind.train_list + kind.test_list), kind.meta["filename"]]:
        (folder / file).write_bytes(pickle.dumps(Bomb(canary)))
    for train in ("true", "false"):
        advens("data", f"torchvision:{name}?root={tmp_path / 'set'}&train={train}").refused("corrupted")


@pytest.mark.parametrize("odd", ["link", "folder link", "pipe"])
def test_data_of_torchvision_that_a_file_names_are_regular_files(odd: str, tmp_path: Path) -> None:
    """What the user types is read as torchvision reads it, links included."""
    root = tmp_path / "set"
    for folder in (root / "cat", tmp_path / "other"):
        folder.mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(folder / "1.png")
    name = f"torchvision:ImageFolder?root={root}"
    assert len(find_data(name)) == 1
    if odd == "pipe":
        os.mkfifo(root / "cat" / "pipe")
    else:
        (root / "cat" / "2").symlink_to(root / "cat" / "1.png" if odd == "link" else tmp_path / "other")
    with pytest.raises(InputError, match="which is a link or no regular file"):
        find_data(name)
    with trusting(name):
        assert len(find_data(name)) >= 1


@pytest.mark.parametrize("name", torchvision_sets.WRITERS)
def test_data_sets_of_torchvision_that_write(name: str, tmp_path: Path) -> None:
    """Cityscapes would unpack any archive that lies there."""
    with pytest.raises(InputError, match=f"would let torchvision's {name} write below"):
        find_data(f"torchvision:{name}?root={tmp_path}")
    assert list(tmp_path.iterdir()) == []


def test_other_data_sets_of_torchvision_write_nothing(tmp_path: Path) -> None:
    """In a folder without their files; a new one in a later release has to be looked at first."""
    for name in datasets.__all__:
        with suppress(InputError):
            find_data(f"torchvision:{name}?root={tmp_path}")
    assert list(tmp_path.iterdir()) == []


def test_no_other_data_set_of_torchvision_unpickles() -> None:
    """SECURITY.md names those that do; a new one in a later release has to be looked at first."""
    modules = set()
    for name in datasets.__all__:
        with suppress(InputError):
            modules |= {kind.__module__ for kind in torchvision_sets._class(name).__mro__}
    modules = {name for name in modules if name.startswith("torchvision.")}
    sources = {name: inspect.getsource(sys.modules[name]) for name in modules}
    found = {name for name, text in sources.items() if re.search(r"\bpickle\.load|allow_pickle=True", text)}
    assert found == {"torchvision.datasets.cifar"}
    loads = [line for text in sources.values() for line in text.splitlines() if "torch.load(" in line]
    assert loads
    assert all("weights_only=True" in line for line in loads)


def test_cached_weights_of_torchvision_with_code(
    canary: Path, tmp_path: Path, advens: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    file = hub.file_of(models.get_model_weights("squeezenet1_1").DEFAULT.url)
    file.parent.mkdir(parents=True)
    torch.save({"features.0.weight": Bomb(canary)}, file)
    advens("models", "torchvision:squeezenet1_1").refused("contain code, which is never run", str(file))


@pytest.mark.parametrize(
    "text", ["nothing", "[]", "{}", '{"task": 1}', "\udcff", "[" * 100_000], ids=range(6)
)
def test_damaged_notes_of_failures(text: str, run: Path, advens: Callable[..., Any]) -> None:
    (run / "failures").mkdir()
    (run / "failures" / "x.json").write_text(text, errors="surrogateescape")
    advens("status", run).refused("x.json is damaged")


def test_a_pipe_among_the_notes_of_failures(run: Path, advens: Callable[..., Any]) -> None:
    (run / "failures").mkdir()
    os.mkfifo(run / "failures" / "x.json")
    advens("status", run).refused("x.json' is not a regular file")


@pytest.mark.parametrize(
    "change",
    [{"targets": {"a": []}}, {"targets": {"a": 5}}, {"cells": {"c": None}}, {"own": {"c": {}}}],
    ids=range(4),
)
def test_plans_of_other_types(change: dict[str, Any], run: Path, advens: Callable[..., Any]) -> None:
    plan = json.loads((run / "plan.json").read_text())
    (run / "plan.json").write_text(json.dumps(plan | change))
    advens("status", run).refused("plan.json is damaged")
