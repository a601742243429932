"""Adding a method is one short file: listed, composed and held to every promise by itself."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

METHOD = '''"""Unit fusion: every surrogate's gradient counts the same, whatever its logits' scale."""

from torch import Tensor

from advens.attacks.attack import ComposedAttack
from advens.attacks.oracle import GradientOracle, Passes
from advens.attacks.parts import part
from advens.attacks.registry import recipe
from advens.attacks.updates import MI
from advens.threat import norms


@part("fusion", "ens-units", paper="Us et al., 2030", year=2030)
class UnitFusion:
    """``sum_k g_k / ||g_k||_2``.

    Args:
        tiny: what a gradient's length is at least.
    """

    tiny: float = 1e-12

    def direction(self, oracle: GradientOracle, x: Tensor) -> Tensor:
        each = [oracle.gradient(x, [k]) for k in range(oracle.k)]
        return sum((g / norms(g, "l2").clamp_min(self.tiny) for g in each), 0 * x)

    def passes(self, surrogates: int, gradients: int) -> Passes:
        return Passes(surrogates * gradients, surrogates * gradients)


@recipe("ens-units", family="fusion", paper="Us et al., 2030", year=2030)
def EnsUnits() -> ComposedAttack:
    """Momentum on the sum of unit gradients."""
    return ComposedAttack(fusion=UnitFusion(), update=MI())
'''

PLUGIN = """import advens.attacks
advens.attacks.__path__.append({folder!r})  # as if the file lay in attacks/
"""

CHECK = """
import drop, advens
from advens.attacks import EnsUnits
from advens.cli import invoke
assert "ens-units" in advens.list_attacks()
assert EnsUnits(tiny=0.1) == advens.create_attack("ens-units", tiny=0.1)
assert advens.create_attack("vmi-ens-units").spec["fusion"]["name"] == "ens-units"
assert invoke(["attacks", "ens-units"]) == 0
assert invoke(["attacks", "ens-un*"]) == 0
"""


def run(tmp_path: Path, *args: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *args], env=environment, capture_output=True, text=True, timeout=120
    )


def dropped(tmp_path: Path, text: str) -> None:
    folder = tmp_path / "dropped"
    folder.mkdir()
    (folder / "units.py").write_text(text)
    (tmp_path / "drop.py").write_text(PLUGIN.format(folder=str(folder)))


def test_a_method_is_one_file(tmp_path: Path) -> None:
    assert METHOD.count("\n") < 40
    dropped(tmp_path, METHOD)
    listed = run(tmp_path, "-c", CHECK)
    assert listed.returncode == 0, listed.stderr
    assert "Us et al., 2030" in listed.stdout
    assert "Momentum on the sum of unit gradients" in listed.stdout


def test_it_is_held_to_every_promise(tmp_path: Path) -> None:
    dropped(tmp_path, METHOD)
    suite = Path(__file__).with_name("test_conformance.py")
    done = run(tmp_path, "-m", "pytest", "-p", "drop", str(suite), "-k", "ens-units",
               "-p", "no:cacheprovider", "-p", "no:xdist")  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
    assert "passed" in done.stdout
    assert int(done.stdout.split(" passed")[0].split()[-1]) > 60, "with compositions and products"


def test_the_promises_can_be_broken(tmp_path: Path) -> None:
    """The same walk catches a method that looks at its neighbours and counts wrongly."""
    text = METHOD.replace("oracle.gradient(x, [k])", "oracle.gradient(x, [k]).mean(0, keepdim=True)")
    text = text.replace("Passes(surrogates * gradients, surr", "Passes(gradients, surr")
    assert text.count("mean(0") == 1
    dropped(tmp_path, text)
    suite = Path(__file__).with_name("test_conformance.py")
    done = run(tmp_path, "-m", "pytest", "-p", "drop", str(suite), "--tb=no", "-rf",
               "-k", "ens-units and not di- and (neighbours or passes or micro or ball)",
               "-p", "no:cacheprovider", "-p", "no:xdist")  # fmt: skip
    failed = {line.split("::")[1].split("[")[0] for line in done.stdout.splitlines()
              if line.startswith("FAILED")}  # fmt: skip
    assert failed == {
        "test_neighbours_do_not_matter",
        "test_passes_are_what_the_formula_says",
        "test_micro_batch_changes_nothing",
    }, done.stdout[-3000:]
