"""The wheel: what is in it, and that it runs from another folder with nothing of the repository."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of what git would give (no build/ of an earlier time)."""
    import shutil

    copy, out = tmp_path_factory.mktemp("source") / "advens", tmp_path_factory.mktemp("wheel")
    ignored = shutil.ignore_patterns(".git", ".venv", "build", "runs", "*.egg-info", "__pycache__", "tests")
    shutil.copytree(REPOSITORY, copy, ignore=ignored)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(out), str(copy)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (built,) = out.glob("*.whl")
    return built


def test_nothing_but_advens_enters_site_packages(wheel: Path) -> None:
    tops = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"advens"}


def test_every_module_and_data_file_is_packed(wheel: Path) -> None:
    packed = set(zipfile.ZipFile(wheel).namelist())
    for folder, home in {
        "advens": "advens",
        "attacks": "advens/attacks",
        "defenses": "advens/defenses",
        "results": "advens/results",
        "benchmarks": "advens/benchmarks",
    }.items():
        for path in (REPOSITORY / folder).rglob("*"):
            packed_kinds = (".py", ".toml", ".safetensors", ".html", ".css", ".js")
            wanted = path.suffix in packed_kinds or path.name == "index.json"
            if wanted and not {"__pycache__", "entries"} & set(path.parts):
                name = f"{home}/{path.relative_to(REPOSITORY / folder).as_posix()}"
                assert name in packed, f"{name} is not in the wheel"
    assert "advens/py.typed" in packed
    assert not [name for name in packed if name.startswith("advens/results/entries")]


def test_it_runs_from_another_folder(wheel: Path, tmp_path: Path) -> None:
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    zipfile.ZipFile(wheel).extractall(site)
    script = """
import advens, torch
assert advens.__file__.startswith(SITE), advens.__file__
from advens.attacks import MIFGSM
import advens.attacks
assert advens.attacks.__file__.startswith(SITE), advens.attacks.__file__
data = advens.load_data("digits:test?limit=8&seed=0")
x = torch.stack([data[i].image for i in range(8)])
y = torch.tensor([data[i].label for i in range(8)])
own = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 10))
x_adv = MIFGSM(eps=0.2, steps=2)([advens.load_model("digits:mambaout"), own], x, y)
assert (x_adv - x).abs().max() <= 0.2 + 1e-6
from advens.cli import invoke
assert invoke(["suites"]) == 0
assert invoke(["run", "quickstart", "--dry-run"]) == 0
""".replace("SITE", repr(str(site)))
    environment = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=elsewhere, env=environment,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "quickstart" in done.stdout
    assert not list(elsewhere.iterdir())
