"""A third-party package, really installed: its attack, model and data are found by name."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

PYPROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "somebodys-attacks"
version = "0.1"

[tool.setuptools]
py-modules = ["somebodys", "somebodys_defense"]

[project.entry-points."advens.attacks"]
halfway = "somebodys"

[project.entry-points."advens.defenses"]
calm = "somebodys_defense"

[project.entry-points."advens.models"]
somebody = "somebodys:load_model"

[project.entry-points."advens.data"]
somebody = "somebodys:load_data"
"""

MODULE = '''"""An attack, a model source and a data source."""

from advens.attacks.attack import ComposedAttack
from advens.attacks.registry import recipe
from advens.attacks.steps import StepSize


@recipe("halfway", family="gradient", paper="Somebody, 2030", year=2030)
def Halfway():
    """One step of half the budget."""
    return ComposedAttack(steps=1, step_size=StepSize("eps/2"))


def load_model(spec):
    import torch
    from torch import nn
    from advens.classifier import Classifier

    spec.only("classes")
    classes = spec.number("classes", 3)
    net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, classes))
    net[2].weight.data[:] = torch.arange(classes)[:, None]  # brighter is a higher class
    return Classifier(net, name=spec.text, num_classes=classes)


def load_data(path, n="4"):
    import numpy as np
    return [(np.full((3, 4, 4), i, np.uint8), i % 3) for i in range(int(n))]
'''

DEFENSE = '''"""A defense."""

from torch.nn import functional as F
from advens.defenses.phases import Training
from advens.defenses.plain import Alone
from advens.defenses.registry import defense


@defense("calm", family="baseline", paper="Somebody, 2031", year=2031)
class Calm(Alone):
    """Members that are never sure."""

    members: int = 2
    calm: float = 0.1
    training: Training = Training(epochs=3)

    def loss(self, team, batch):
        each = (F.cross_entropy(m(batch.x), batch.y, label_smoothing=self.calm) for m in team.members)
        return sum(each)
'''

ASK = """
import json, sys, advens
from advens.attacks import Halfway
from advens.cli import invoke
code = invoke(["attacks"])
code += invoke(["attacks", "di-halfway"])
code += invoke(["data", "somebody:x?n=6"])
code += invoke(["defenses", "calm"])
code += invoke(["train", "calm", "--data", "digits:train?limit=8", "--epochs", "1", "--out", sys.argv[1]])
model, data = advens.load_model("somebody:tiny?classes=5"), advens.load_data("somebody:x")
attack = advens.create_attack("mi-halfway", eps=0.1)
x = data[0].image[None]
moved = (attack(model, x, __import__("torch").tensor([0])) - x).abs().max().item()
print(json.dumps({
    "code": code, "attacks": advens.list_attacks("half*"), "classes": model.num_classes,
    "digest": len(model.digest), "defenses": advens.list_defenses("calm"), "images": len(data),
    "moved": moved, "same": attack == Halfway(update="mi", eps=0.1),
}))
"""

DIST = "Metadata-Version: 2.1\nName: broken-attacks\nVersion: 0.1\n"
BROKEN = """
[advens.attacks]
broken = broken_attacks:absent
[advens.models]
broken = broken_attacks:absent
odd = broken_attacks:odd
"""


def run(path: Path, *args: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(path), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    return subprocess.run(
        [sys.executable, *args], env=environment, capture_output=True, text=True, timeout=120
    )


def test_an_installed_package_is_found(tmp_path: Path) -> None:
    pytest.importorskip("setuptools")
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    (source / "pyproject.toml").write_text(PYPROJECT)
    (source / "somebodys.py").write_text(MODULE)
    (source / "somebodys_defense.py").write_text(DEFENSE)
    install = subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation",
         "--no-index", "--disable-pip-version-check", "--target", str(target), str(source)],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert install.returncode == 0, install.stderr
    done = run(target, "-c", ASK, str(tmp_path / "calm"))
    assert done.returncode == 0, done.stderr
    *lines, last = done.stdout.splitlines()
    found: dict[str, Any] = json.loads(last)
    assert found.pop("moved") == pytest.approx(0.05, rel=1e-5)
    assert found == {
        "code": 0, "attacks": ["halfway"], "classes": 5, "digest": 64, "defenses": ["calm"], "images": 4,
        "same": True,
    }  # fmt: skip
    assert any(line.startswith("halfway") and "half the budget" in line for line in lines)
    assert any("Somebody, 2030" in line for line in lines)
    assert any("Somebody, 2031" in line for line in lines)
    assert (tmp_path / "calm" / "ensemble.json").is_file()
    assert any("somebody:x?n=6: 6 images" in line for line in lines)


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """A package whose entry points point at nothing, as a half-done upgrade leaves them."""
    info = tmp_path / "broken_attacks-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(DIST)
    (info / "entry_points.txt").write_text(BROKEN)
    (tmp_path / "broken_attacks.py").write_text("def odd(spec):\n    return 3\n")
    return tmp_path


def test_an_attack_that_does_not_load_is_one_line(broken: Path) -> None:
    done = run(broken, "-c", "from advens.cli import main; main()", "attacks")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == (
        "advens: plug-in 'broken' (broken_attacks:absent) in group 'advens.attacks' does not load: "
        "AttributeError: module 'broken_attacks' has no attribute 'absent'\n"
    )


@pytest.mark.parametrize("name", ["broken:x", "odd:x"])
def test_a_model_that_does_not_load_is_one_line(
    name: str, broken: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from advens.errors import InputError
    from advens.models import describe

    monkeypatch.syspath_prepend(broken)
    ask: Callable[[str], object] = describe
    with pytest.raises(InputError, match="plug-in"):
        ask(name)
