"""Registries: duplicates, misses, wildcards, discovery in a package and in plug-ins."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path

import pytest

from advens import registry as module
from advens.errors import InputError, first_line, nearest, unknown
from advens.registry import Info, Registry, one_line


def made() -> Registry[object]:
    registry: Registry[object] = Registry("thing")
    for name in ("mifgsm", "nifgsm", "pgd", "ens-logits"):
        registry.register(Info(name, summary=name.upper()), len)
    return registry


def test_names_and_wildcards() -> None:
    registry = made()
    assert registry.names() == list(registry) == ["ens-logits", "mifgsm", "nifgsm", "pgd"]
    assert registry.names("*fgsm") == ["mifgsm", "nifgsm"]
    assert registry.names("[mp]*") == ["mifgsm", "pgd"]
    assert registry.names("?gd") == ["pgd"]
    assert registry.names("PGD") == [], "names are case sensitive"
    assert "pgd" in registry
    assert "pdg" not in registry
    assert registry.get("pgd") is len
    assert registry.info("pgd") == Info("pgd", summary="PGD")


def test_a_miss_names_the_nearest() -> None:
    with pytest.raises(InputError, match=r"^unknown thing 'mifgms'; did you mean 'mifgsm'\?$"):
        made().get("mifgms")
    with pytest.raises(InputError, match="did you mean 'ens-logits'"):
        made().info("ENS-LOGIT")
    with pytest.raises(InputError, match=r"one of: ens-logits, mifgsm, nifgsm, pgd$"):
        made().get("zzz")


def test_a_name_twice_is_an_error() -> None:
    registry = made()
    with pytest.raises(InputError, match=r"thing 'pgd' is registered twice: by .*len and by .*max"):
        registry.register(Info("pgd"), max)
    assert registry.get("pgd") is len, "the first stays"


def test_the_same_definition_again_is_not() -> None:
    """As after importlib.reload."""
    registry: Registry[object] = Registry("thing")

    def definition() -> Callable[[], None]:
        def method() -> None:
            """Do nothing."""

        return method

    registry.register(Info("a"), definition())
    later = definition()
    registry.register(Info("a"), later)
    assert registry.get("a") is later


def plugged(monkeypatch: pytest.MonkeyPatch, **values: str) -> Registry[object]:
    points = EntryPoints(EntryPoint(name, value, "g") for name, value in values.items())
    monkeypatch.setattr(module, "entry_points", lambda group: points if group == "g" else ())
    return Registry("thing", group="g")


def test_plug_ins_register_when_they_load(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = plugged(monkeypatch, mine="somebodys")
    somebodys = types.ModuleType("somebodys")
    monkeypatch.setitem(sys.modules, "somebodys", somebodys)
    registry.register(Info("mine"), len)
    assert registry.names() == ["mine"]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("not_there", "ModuleNotFoundError: No module named 'not_there'"),
        ("json:absent", "AttributeError: module 'json' has no attribute 'absent'"),
    ],
)
def test_a_plug_in_that_does_not_load_is_one_line(
    value: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = plugged(monkeypatch, broken=value)
    for ask in (registry.names, lambda: registry.get("x"), registry.names):  # not once only
        with pytest.raises(InputError) as caught:
            ask()
        assert str(caught.value) == (
            f"plug-in 'broken' ({value}) in group 'g' does not load: {message}"
        )


def test_a_plug_in_with_a_long_complaint_is_one_line_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "complains.py").write_text("raise ValueError('first\\nsecond')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError) as caught:
        plugged(monkeypatch, broken="complains").names()
    assert "\n" not in str(caught.value)


def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, **files: str) -> None:
    folder = tmp_path / name
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    for file, text in files.items():
        (folder / f"{file}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)


def test_files_of_a_package_register_when_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "from advens.registry import Info\nfrom builtins import REG\nREG.register(Info('{}'), len)"
    files = {"one": text.format("first"), "two": text.format("second"), "commands": "raise Boom"}
    package(tmp_path, monkeypatch, "found_here", **files)
    registry: Registry[object] = Registry("thing", package="found_here")
    monkeypatch.setattr("builtins.REG", registry, raising=False)
    assert "found_here.one" not in sys.modules
    assert registry.names() == ["first", "second"]


def test_a_broken_file_is_not_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked again, a registry must not pass for whole."""
    package(tmp_path, monkeypatch, "found_broken", one="raise ImportError('broken')")
    registry: Registry[object] = Registry("thing", package="found_broken")
    for _ in range(2):
        with pytest.raises(ImportError):
            registry.names()


def test_hints() -> None:
    assert nearest("resnt", ["resnet", "vit"]) == "; did you mean 'resnet'?"
    assert nearest("ReSNeT", ["resnet", "vit"]) == "; did you mean 'resnet'?"
    assert nearest("q", ["resnet", "vit"]) == "; one of: resnet, vit"
    assert nearest("q", []) == ""
    assert nearest("q", [f"name{i}" for i in range(13)]) == ""
    assert str(unknown("model", "vti", ["vit"])) == "unknown model 'vti'; did you mean 'vit'?"


def test_lines() -> None:
    assert one_line("  What it is.\n\n    More.") == "What it is"
    assert one_line(None) == ""
    assert first_line(ValueError("\na\nb")) == "a"
    assert first_line(KeyError()) == "KeyError"
