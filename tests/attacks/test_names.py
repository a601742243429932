"""The catalogue that is read from files, names composed of any parts, and how parts are listed and shown."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

import advens.attacks
from advens.attacks import attack_info, create_attack, list_attacks, names
from advens.attacks.attack import ComposedAttack
from advens.attacks.commands import PASSES
from advens.attacks.losses import DLR, Margin
from advens.attacks.names import COMPOSED, KINDS, Catalogue, catalogue, from_files
from advens.attacks.parts import PARTS, options, part
from advens.attacks.registry import RECIPES, registered
from advens.attacks.starts import Gaussian
from advens.attacks.transforms.di import DI
from advens.attacks.updates import MI
from advens.attacks.whitebox.descent import Descent, Halves
from advens.cli import invoke
from advens.errors import InputError
from advens.registry import Info

LISTS = """
import sys
from advens.cli import invoke
for command in (["attacks"], ["attacks", "ens-*"], ["attacks", "--parts"], ["builders"]):
    assert invoke(command) == 0
slow = {"torch", "pandas", "numpy", "pydantic"} & set(sys.modules)
assert not slow, slow
"""


def test_the_files_say_what_is_registered() -> None:
    read, imported = from_files(), registered()
    assert read is not None
    assert read.recipes == imported.recipes
    assert read.parts == imported.parts
    assert read.attacks() == list_attacks()
    assert set(read.parts) == set(KINDS) == set(PARTS)
    assert all(read.recipes[name] == RECIPES.info(name) for name in RECIPES)


def test_lists_import_neither_torch_nor_pandas() -> None:
    done = subprocess.run([sys.executable, "-c", LISTS], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_plug_ins_are_imported_and_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "from_files", lambda: pytest.fail("files do not know plug-ins"))
    monkeypatch.setattr(names, "entry_points", lambda group: [EntryPoint("own", "own", group)])
    assert catalogue() == registered()


@pytest.mark.parametrize("argument", ["NAME", "paper=NAME", "year=1 + len('a')"])
def test_what_is_no_literal_is_imported_instead(
    argument: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    imported = registered()
    given = f'"fgsm-too", {argument}' if "=" in argument else argument
    text = f"from elsewhere import NAME\n\n\n@recipe({given})\ndef Own():\n    pass\n"
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "good.py").write_text('@recipe("fine")\ndef Fine():\n    pass\n')
    monkeypatch.setattr(advens.attacks, "__path__", [str(tmp_path / "first"), str(tmp_path)])
    read = from_files()
    assert read is not None
    assert list(read.recipes) == ["fine"]
    (tmp_path / "own.py").write_text(text)
    assert from_files() is None
    assert catalogue() == imported


def test_constants_of_the_module_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = '''
WHO = "Us et al., 2030"


@registry.recipe("own", family="fusion", paper=WHO, year=2030, targeted=False, norms=("linf",))
def Own():
    """What it is.

    More.
    """


@part("loss", "mine")
class Mine:
    """A loss."""
'''
    (tmp_path / "own.py").write_text(text)
    monkeypatch.setattr(advens.attacks, "__path__", [str(tmp_path)])
    read = from_files()
    assert read is not None
    (info,) = read.recipes.values()
    assert (info.name, info.paper, info.year, info.summary) == ("own", "Us et al., 2030", 2030, "What it is")
    assert (info.family, info.targeted, info.norms) == ("fusion", False, ("linf",))
    assert {kind: list(found) for kind, found in read.parts.items() if found} == {"loss": ["mine"]}


def test_what_is_no_declaration_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other decorators, functions without one, files without any; parts that are built by functions."""
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "own.py").write_text('''
NAME, OTHER = "a", "b"
KIND = "update"
KIND.upper()


@property
@part(KIND, "own", symbol="Own", couples="shard")
@cache(5)
def own():
    """Made by a function."""


def bare():
    """Nothing."""
''')
    (tmp_path / "broken.py").write_text("this is no Python, and says nothing of parts or recipes")
    monkeypatch.setattr(advens.attacks, "__path__", [str(tmp_path)])
    read = from_files()
    assert read is not None
    assert read.recipes == {}
    assert {kind: found for kind, found in read.parts.items() if found} == {
        "update": {"own": Info("own", couples="shard", summary="Made by a function")}
    }
    assert list(read.parts) == list(KINDS)


def made_up() -> Catalogue:
    """Two recipes; parts of several kinds, one of a name with a dash, one of two kinds."""
    recipes = {
        "base": Info("base", family="fusion", paper="A", year=2019, norms=("linf", "l2"), builder="lgv",
                     summary="A base"),
        "x-base": Info("x-base", family="input", couples="option", targeted=False, summary="Another"),
    }  # fmt: skip
    parts: dict[str, dict[str, Info]] = {kind: {} for kind in KINDS}
    parts["transform"] = {
        "di": Info("di", paper="B", year=2021), "mix": Info("mix", paper="C", couples="shard"),
    }
    parts["change"] = {"score-scale": Info("score-scale", paper="B", year=2017, norms=("l2",))}
    parts["loss"] = {"di": Info("di"), "sure": Info("sure", targeted=False)}
    parts["fusion"] = {"sum": Info("sum")}
    return Catalogue(recipes, parts)


def test_names_are_split_from_the_left() -> None:
    """Kinds in their order; what is no part stands in no name."""
    known = made_up()
    assert known.split("base") == ([], "base")
    assert known.split("x-base") == ([], "x-base")
    assert known.split("di-x-base") == ([("transform", "di")], "x-base")
    both = [("change", "score-scale"), ("transform", "mix")]
    assert known.split("score-scale-mix-base") == (both, "base")
    for wrong in ("sum-base", "di-di", "base-di", "", "di-", "nothing"):
        with pytest.raises(InputError, match=f"^unknown attack '{wrong}'"):
            known.split(wrong)
    assert known.kinds("di") == ["loss", "transform"]
    assert known.kinds("base") == []
    assert known.attacks("*base") == ["base", "x-base"]
    assert set(known.attacks()) == {"base", "x-base", *COMPOSED}


def test_what_is_known_of_a_composition() -> None:
    """Papers once each, the latest year, what all parts allow; its family and builder are the recipe's."""
    known = made_up()
    assert known.info("base") is known.recipes["base"]
    assert known.info("mix-di-score-scale-base") == Info(
        "mix-di-score-scale-base", family="fusion", paper="A; C; B", year=2021, targeted=True, norms=("l2",),
        couples="shard", builder="lgv", summary="A base, with mix, di, score-scale",
    )  # fmt: skip
    found = known.info("mix-x-base")
    assert (found.paper, found.year, found.targeted, found.couples) == ("C", None, False, "option")
    assert not known.info("sure-base").targeted
    assert known.info("sure-base").couples == "no"


def test_every_part_has_a_summary_and_nearly_every_one_a_paper() -> None:
    parts = registered().parts
    assert all(info.summary for found in parts.values() for info in found.values())
    without = {name for found in parts.values() for name, info in found.items() if not info.paper}
    assert without == {"plain", "ens-grads"}


def test_losses_step_rules_and_starts_stand_in_names() -> None:
    attack = create_attack("dlr-mi-ens-logits")
    assert attack == create_attack("ens-logits", loss="dlr", update="mi")
    attack = create_attack("margin-di-mi-svre")
    assert attack == create_attack("svre", loss="margin", transforms=["di"], update="mi")
    assert isinstance(attack, ComposedAttack)
    assert (attack.loss, attack.transforms, attack.update) == (Margin(), (DI(),), MI())
    attack = create_attack("halves-gaussian-ifgsm")
    assert isinstance(attack, ComposedAttack)
    assert (attack.step_size, attack.start) == (Halves(), Gaussian())
    white = create_attack("dlr-odi-pgd-ce")
    assert isinstance(white, Descent)
    assert white == create_attack("pgd-dlr", start="odi")
    assert create_attack("dlr-apgd") == create_attack("apgd-dlr")
    assert options(create_attack("dlr-square"))["loss"] == DLR()
    info = attack_info("dlr-mi-ens-logits")
    assert (info.family, info.year, info.summary.split(", with ")[1]) == ("fusion", 2020, "dlr, mi")
    assert "Croce & Hein, ICML 2020" in info.paper


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dlr-margin-fgsm", "attack 'dlr-margin-fgsm' names two losses, 'dlr' and 'margin'; "),
        ("uniform-clean-fgsm", "attack 'uniform-clean-fgsm' names two starts, 'uniform' and 'clean'; "),
        ("halves-step-size-pgd", "attack 'halves-step-size-pgd' names two step rules, 'halves' and "),
        ("mi-di-ni-fgsm", "attack 'mi-di-ni-fgsm' names two updates, 'mi' and 'ni'; "),
        ("dlr-autoattack", "attack 'dlr-autoattack': 'autoattack' has a loop of its own and takes no loss"),
        ("adaea-mi-fgsm", "unknown attack 'adaea-mi-fgsm'"),
    ],
)  # fmt: skip
def test_what_cannot_be_composed(name: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        create_attack(name)
    assert str(caught.value).startswith(message)


def test_parts_are_listed_by_kind_with_their_paper(capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["attacks", "--parts"]) == 0
    shown = capsys.readouterr().out
    words = " ".join(shown.split())
    for kind, found in registered().parts.items():
        for name, info in found.items():
            assert any(line.split()[:2] == [kind, name] for line in shown.splitlines())
            assert info.paper in words
    assert "Xie et al., CVPR 2019 (DI2-FGSM)" in words
    assert invoke(["attacks", "--parts", "*-mix"]) == 0
    shown = capsys.readouterr().out
    assert "token-mix" in shown
    assert "head-drop" not in shown
    assert invoke(["attacks", "--parts", "zz*"]) == 2
    assert capsys.readouterr().err.startswith("advens: unknown part 'zz*': no name matches this pattern")


def test_a_part_is_shown_as_an_attack_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["attacks", "di"]) == 0
    shown = capsys.readouterr().out
    for text in ("di: With probability", "kind      transform", "Xie et al., CVPR 2019", "  p   ", "0.5",
                 "rate", "di-NAME"):  # fmt: skip
        assert text in shown
    assert invoke(["attacks", "--parts", "ghost"]) == 0
    shown = capsys.readouterr().out
    assert "kind      change" in shown
    assert "kind      builder" in shown
    assert invoke(["attacks", "ghost"]) == 0, "a recipe of the same name comes first"
    assert "kind" not in capsys.readouterr().out
    assert invoke(["attacks", "plain"]) == 0
    assert "no parameters" in capsys.readouterr().out
    assert invoke(["attacks", "--parts", "dii"]) == 2
    assert capsys.readouterr().err == "advens: unknown part 'dii'; did you mean 'di'?\n"


def test_attacks_of_a_sequence_are_shown_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["attacks", "autoattack"]) == 0
    shown = capsys.readouterr().out
    assert "attacks       apgd(loss=" in shown
    assert "AutoPGD" not in shown


def test_parts_registered_later_stand_in_names() -> None:
    @part("loss", "shifted")
    class Shifted(Margin):  # type: ignore[misc]
        """A margin by another name."""

    try:
        attack = create_attack("shifted-fgsm")
        assert isinstance(attack, ComposedAttack)
        assert attack.loss == Shifted()
    finally:
        del PARTS["loss"].entries["shifted"]


def test_passes_that_are_listed_are_those_of_the_formulas() -> None:
    """If not: python -m tests.attacks.test_unchanged NAME."""
    assert json.loads(PASSES.read_text()) == {
        name: list(create_attack(name).passes(1)) for name in list_attacks()
    }


def test_the_longest_part_comes_first() -> None:
    """``logit-margin`` is a loss, and so are ``logit`` and ``margin``."""
    parts = [("loss", "logit-margin"), ("transform", "di")]
    assert registered().split("logit-margin-di-mifgsm") == (parts, "mifgsm")
    assert create_attack("logit-margin-mifgsm").spec["loss"]["name"] == "logit-margin"
    assert registered().split("logit-margin") == ([], "logit-margin")
