"""The command that finds the probabilities of an ensemble's members after its training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from advens.models import load_model


def test_command(tmp_path: Path, advens: Any) -> None:
    command = ["sample", "digits:barre3", "--data", "digits:test?limit=12", "--eps", "0.2", "--steps", "2",
               "--rounds", "2", "--out", tmp_path / "drawn"]  # fmt: skip
    made = advens(*command)
    assert made.code == 0, made
    said = json.loads((tmp_path / "drawn" / "sampling.json").read_text())
    assert said["images"] == 6
    assert said["data"] == "digits:test?limit=12"
    ensemble = load_model(f"defense:{tmp_path / 'drawn'}")
    assert ensemble.probabilities.tolist() == pytest.approx(said["probabilities"])
    again = advens(*command)
    assert again.code == 2
    assert "there already" in again.err
    assert advens("sample", "digits:resnet", *command[2:-1], tmp_path / "other").code == 2
    assert not (tmp_path / "other").exists()
