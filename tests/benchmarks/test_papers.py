"""The suites that repeat the settings of papers: what they say exists, and a dry run downloads nothing."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from advens.benchmarks import estimate
from advens.benchmarks.pins import models_of
from advens.benchmarks.plan import outline
from advens.benchmarks.suites import PAPER, DefenseSuite, bundled, load, load_suite, text_of
from advens.spec import Spec
from advens.trust import trusting

PAPERS = [name for name in bundled() if name.startswith(PAPER)]
SETTINGS: dict[str, tuple[str, int, dict[str, tuple[float, tuple[int, int]]]]] = {
    # eps in 1/255, steps; by attack: the step in 1/255, and passes of four surrogates (six of CWA's)
    "paper-adaea": ("8/255", 20, {
        "adaea": (2, (400, 160)), "ens-logits": (2, (80, 80)), "svre": (2, (240, 240)),
    }),
    "paper-cwa": ("16/255", 10, {"mi-cwa": (3.2, (120, 120)), "mifgsm": (1.6, (60, 60))}),
    "paper-svre": ("16/255", 10, {"mi-svre": (1.6, (240, 240)), "ti-mi-svre": (1.6, (400, 400))}),
    "paper-smer": ("16/255", 10, {"mi-smer": (1.6, (640, 160)), "mi-cwa": (1.6, (80, 80))}),
    "paper-lgv": ("4/255", 50, {"lgv": (0.4, (50, 50)), "ifgsm": (0.4, (50, 50))}),
    "paper-vit-ensemble": ("16/255", 10, {"vit-ensemble": (3.2, (0, 0))}),
    "paper-transferattack": ("16/255", 10, {
        "mi-cwa": (3.2, (80, 80)), "mi-adaea": (1.6, (200, 80)), "bsr": (1.6, (200, 200)),
        "mi-lgv": (1.6, (10, 10)),
    }),
}  # fmt: skip


def test_every_paper_has_its_settings_here() -> None:
    assert set(PAPERS) == {*SETTINGS, "paper-pma", "paper-dverge", "paper-barre"}


@pytest.mark.parametrize("name", SETTINGS)
def test_budgets_steps_and_passes(name: str) -> None:
    eps, steps, wanted = SETTINGS[name]
    suite = load_suite(name)
    with pytest.MonkeyPatch.context() as patch, trusting("robustbench:*"):
        patch.setattr("advens.models.robustbench.find_spec", lambda _: True)
        seen = outline(suite)
    assert (suite.threat.norm, suite.threat.eps) == ("linf", eps)
    attacks: dict[str, Any] = {label: (stage.attack, name) for (label, name), stage in seen.stages.items()}
    assert {attack.steps for attack, _ in attacks.values()} <= {steps, 1}
    for label, (alpha, passes) in wanted.items():
        attack, surrogates = attacks[label]
        assert 255 * attack.step_size.at(0, steps, attack.threat) == pytest.approx(alpha)
        if any(passes):
            assert attack.passes(len(seen.sets[surrogates])) == passes


def test_the_settings_of_pma() -> None:
    suite = load_suite("paper-pma")
    with pytest.MonkeyPatch.context() as patch, trusting("robustbench:*"):
        patch.setattr("advens.models.robustbench.find_spec", lambda _: True)
        stages = {label: stage.attack for (label, _), stage in outline(suite).stages.items()}
    assert [stages[name].passes(1).backward for name in ("pgd-ce", "pma-simple", "pma")] == [100, 100, 200]
    assert stages["pma-plus"].passes(1).backward == 900  # what follows PMA: nine targets


@pytest.mark.parametrize("name", PAPERS)
def test_what_a_suite_names_exists(name: str) -> None:
    """Weights of timm and torchvision are named in full, so that another release means the same."""
    import timm
    from torchvision import models

    known = set(timm.list_pretrained())
    for model in models_of(load(name)):
        spec = Spec.parse(model, "model")
        if spec.scheme == "timm":
            assert spec.rest in known, model
            assert "." in spec.rest, model
        elif spec.scheme == "torchvision":
            assert spec.query["weights"] in models.get_model_weights(spec.rest).__members__, model
        else:
            assert spec.scheme in ("robustbench", "defense"), model


@pytest.mark.parametrize("name", PAPERS)
def test_sources_and_assumptions_are_said(name: str) -> None:
    comment = [line for line in text_of(name).splitlines() if line.startswith("#")]
    assert any(line.startswith("# Source: ") for line in comment)
    assert any(line.startswith("# Assumed") for line in comment)


@pytest.mark.parametrize("name", PAPERS)
def test_a_dry_run_downloads_nothing(
    name: str, advens: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("advens.models.robustbench.find_spec", lambda _: True)
    monkeypatch.setattr(socket.socket, "connect", None)
    monkeypatch.setattr(estimate, "absent_bytes", lambda _: None)  # building every network takes a while
    for key in ("ADVENS_CACHE", "TORCH_HOME", "HF_HUB_CACHE"):
        monkeypatch.setenv(key, str(tmp_path / key))
    monkeypatch.chdir(tmp_path)
    given = ["--set", "data=synthetic:shapes?n=20&size=64", "--limit", 20]
    if isinstance(load(name), DefenseSuite):
        given += ["--set", 'surrogates=["digits:resnet"]', "--set", "training.data=synthetic:shapes?n=64"]
    said = advens("run", name, "--dry-run", "--device", "cpu", "--trust", "robustbench:*", *given).done()
    assert f"suite      {name}: l" in said.out
    assert " B" in said.out
    assert not list(tmp_path.iterdir())
