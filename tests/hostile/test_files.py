"""Checkpoints that contain code, and files of defenses that are damaged on purpose or make one wait."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch


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
