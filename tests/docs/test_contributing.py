"""The files that CONTRIBUTING.md shows, as a package of somebody else's would ship them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"^```python\n# (\w+\.py)\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE))
(ENTRY_POINTS,) = re.findall(r"^```toml\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)
METADATA = "Metadata-Version: 2.1\nName: my-package\nVersion: 0.1\n"


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that Python takes for an installed package with these modules and entry points."""
    folder = tmp_path_factory.mktemp("package")
    info = folder / "my_package-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(METADATA)
    lines = re.sub(r'^\[project\.entry-points\."(.*)"\].*$', r"[\1]", ENTRY_POINTS, flags=re.MULTILINE)
    (info / "entry_points.txt").write_text(lines.replace('"', ""))
    for name, text in FILES.items():
        (folder / name).write_text(text)
    return folder


def run(package: Path, code: str, cwd: Path) -> Any:
    """What ``code`` leaves in ``found``, in a process that has the package."""
    environment = os.environ | {"PYTHONPATH": str(package), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    whole = f"{BEGIN}\n{code}\nprint()\nprint(json.dumps(found))"
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", whole],
        env=environment, cwd=cwd, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


BEGIN = """
import json, sys, advens, torch
from advens.cli import invoke

def advens_(*args):
    code = invoke(list(args))
    assert code == 0, (code, args)

def digits(n):
    data = advens.load_data(f"digits:test?limit={n}")
    images, labels, _ = zip(*data)
    return torch.stack(images), torch.tensor(labels)

def right(model, x, y):
    return (model(x).argmax(1) == y).float().mean().item()

net, vit = advens.load_model("digits:resnet"), advens.load_model("digits:vit")
"""


SUITE = """
name = "mine"
data = "digits:test?limit=10"
targets = ["digits:vit"]
surrogates = { cnn = ["digits:resnet"] }
threat = { eps = 0.2 }
attacks = [{ name = "fgsm" }]
"""


def test_every_file_is_named_in_an_entry_point() -> None:
    modules = re.findall(r'= "(\w+)', ENTRY_POINTS)
    assert {f"{module}.py" for module in modules} == set(FILES)
    assert all(text.count("\n") < 60 for text in FILES.values())


def test_an_attack(package: Path, tmp_path: Path) -> None:
    code = """
from advens.attacks import MedianFusion
x, y = digits(20)
attack = advens.create_attack("di-mi-median", eps=0.2, steps=3)
x_adv = attack([net, vit], x, y)
advens_("attacks", "median")
found = [attack.passes(2), right(net, x, y), right(net, x_adv, y), (x_adv - x).abs().max().item()]
found.append(MedianFusion(eps=0.2) == advens.create_attack("median", eps=0.2))
"""
    passes, before, after, size, same = run(package, code, tmp_path)
    assert passes == [6, 6]
    assert after < before - 0.3
    assert size <= 0.2 + 1e-6
    assert same


def test_a_loss(package: Path, tmp_path: Path) -> None:
    code = """
x, y = digits(20)
attack = advens.create_attack("mifgsm", eps=0.2, steps=3, loss={"name": "soft-margin", "temperature": 2})
target = (y + 1) % 10
found = [attack.spec["loss"], right(net, x, y), right(net, attack(net, x, y), y)]
found.append(right(net, attack(net, x, y, target=target), target))
advens_("craft", "mifgsm", "--set", "loss=soft-margin", "--surrogates", "digits:resnet",
        "--data", "digits:test?limit=5", "--eps", "0.2", "--steps", "1", "--out", "made", "--no-png")
advens_("robustness", "--models", "digits:resnet", "--attack", "pgd-ce", "--set", "loss=soft-margin",
        "--data", "digits:test?limit=5", "--eps", "0.2", "--steps", "2", "--out", "attacked")
"""
    spec, before, after, reached = run(package, code, tmp_path)
    assert spec == {"name": "soft-margin", "temperature": 2.0}
    assert after < before - 0.3
    assert reached > 0.3


def test_a_white_box_attack(package: Path, tmp_path: Path) -> None:
    code = """
x, y = digits(20)
attack = advens.create_attack("corners", eps=0.2, queries=50)
result = attack.run(net, x, y)
found = [attack.passes(1), result.passes, right(net, x, y), right(net, result.x_adv, y)]
from advens.attacks.registry import attack_from_spec
found.append(attack_from_spec(attack.spec) == attack)
advens_("attacks", "corners")
advens_("robustness", "--models", "digits:resnet-at", "--data", "digits:test?limit=10", "--eps", "0.2",
        "--attack", "fgsm+corners", "--set", "defaults.queries=5", "--out", "made")
"""
    formula, spent, before, after, same = run(package, code, tmp_path)
    assert formula == spent == [50, 0]
    assert after < before - 0.2
    assert same


def test_a_surrogate_builder(package: Path, tmp_path: Path) -> None:
    code = """
from advens.attacks.parts import from_spec
data = advens.load_data("digits:train?limit=4")
made = from_spec("builder", {"name": "noisy", "copies": 3}).build([net], data, cache="cache")
again = from_spec("builder", {"name": "noisy", "copies": 3}).build([net], data, cache="cache")
found = [len({model.digest for model in [*made, net]}), [a.digest == b.digest for a, b in zip(made, again)]]
advens_("builders", "noisy")
"""
    different, same = run(package, code, tmp_path)
    assert different == 4
    assert same == [True] * 3


def test_a_defense(package: Path, tmp_path: Path) -> None:
    code = """
advens_("train", "smoothed", "--arch", "digits:mambaout", "--data", "digits:train?limit=64", "--members", "2",
        "--epochs", "2", "--set", "smoothing=0.2", "--set", "batch_size=32", "--out", "trained")
advens_("defenses", "smoothed")
model = advens.load_model("defense:trained")
found = [type(model).__name__, len(model.members), advens.create_defense("smoothed").smoothing]
"""
    assert run(package, code, tmp_path) == ["Ensemble", 2, 0.1]


def test_an_executor(package: Path, tmp_path: Path) -> None:
    code = """
open("mine.toml", "w").write(SUITE)
advens_("run", "mine.toml", "--out", "plain")
advens_("run", "mine.toml", "--out", "twice", "--executor", "twice")
one, other = (advens.open_run(name).samples() for name in ("plain", "twice"))
found = [len(one), one.equals(other), advens.run("mine.toml", out="again", executor="twice").verify()]
"""
    rows, same, mismatches = run(package, f"SUITE = {SUITE!r}\n{code}", tmp_path)
    assert rows == 10
    assert same
    assert mismatches == []


def test_a_board(package: Path, tmp_path: Path) -> None:
    code = """
from advens.results.boards import BOARDS, board_mismatches, read_board, write_board
open("mine.toml", "w").write(SUITE)
advens_("run", "mine.toml", "--out", "made")
write_board("made", "reached")
board = read_board("made", "reached")
found = ["reached" in BOARDS, list(board), board["share"].sum(), board_mismatches("made", "reached")]
from advens.results.display.render import render_board
found.append(render_board("reached", board))
"""
    known, columns, total, mismatches, shown = run(package, f"SUITE = {SUITE!r}\n{code}", tmp_path)
    assert known
    assert columns == ["attack", "adv_pred", "share"]
    assert total == pytest.approx(1)
    assert mismatches == []
    assert shown.split("\n")[0].split() == ["attack", "class", "share,", "%"]


def test_a_column_of_a_board(package: Path, tmp_path: Path) -> None:
    """It is in every format and in the documentation by its declaration, and derived again when verified."""
    code = """
from advens.results.boards import board_mismatches, read_board, write_board
from advens.results.display.render import render_board
import pyarrow.parquet as pq
open("mine.toml", "w").write(SUITE)
advens_("run", "mine.toml", "--out", "made")
write_board("made", "efficiency")
board = read_board("made", "efficiency")
field = pq.read_schema("made/efficiency.parquet").field("asr_per_pass")
about = {key.decode(): value.decode() for key, value in field.metadata.items()}
shown = {form: render_board("efficiency", board, form, width=300) for form in FORMATS}
sys.path.insert(0, EXTENSIONS)
import catalogue
page = catalogue.columns_page().partition("## efficiency")[2]
found = [board[["mean_asr", "asr_per_pass"]].values.tolist(), about, shown, page]
found += [board_mismatches("made", "efficiency"), [list(read_board("made", "leaderboard")), list(board)]]
"""
    given = f"SUITE, EXTENSIONS = {SUITE!r}, {str(ROOT / 'docs' / '_ext')!r}\n"
    given += "FORMATS = ('table', 'markdown', 'csv', 'json')"
    found = run(package, f"{given}\n{code}", tmp_path)
    ((asr, value),), about, shown, page, mismatches, (before, after) = found
    assert value == pytest.approx(asr / 2), "one forward and one backward pass"
    assert about == {"description": "mean_asr over passes through surrogates", "unit": "fraction per pass"}
    number = f"{value:.3g}"
    for form in ("table", "markdown"):
        assert "ASR/pass" in shown[form]
        assert number in shown[form]
    header, line = shown["csv"].splitlines()
    assert float(dict(zip(header.split(","), line.split(","), strict=True))["asr_per_pass"]) == value
    (row,) = json.loads(shown["json"])["rows"]
    assert row["asr_per_pass"] == value
    assert "`asr_per_pass` | mean_asr over passes through surrogates | fraction per pass | double" in page
    assert mismatches == []
    assert after == [*before, "asr_per_pass"]


def test_sources_of_models_and_data(package: Path, tmp_path: Path) -> None:
    code = """
model, data = advens.load_model("my-zoo:mean?classes=5"), advens.load_data("my-data:x?n=4")
found = [model.num_classes, len(data), model(data[0].image[None]).shape[1], data[3].label]
advens_("data", "my-data:x")
"""
    assert run(package, code, tmp_path) == [5, 4, 5, 3]
