"""How models and data are named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from advens.errors import InputError
from advens.spec import Spec, literal


def test_parse() -> None:
    spec = Spec.parse("timm:vit?checkpoint=/a b/c:d.pth&seed=3&empty=", "model")
    assert (spec.scheme, spec.rest) == ("timm", "vit")
    assert spec.query == {"checkpoint": "/a b/c:d.pth", "seed": "3", "empty": ""}
    assert spec.text == "timm:vit?checkpoint=/a b/c:d.pth&seed=3&empty="
    assert Spec.parse("pkg.mod:make", "model").query == {}
    assert Spec.parse("timm:hf_hub:a/b", "model").rest == "hf_hub:a/b"


@pytest.mark.parametrize("text", ["resnet", "digits:", ":resnet", "", "?a=b", "digits?x=:y"])
def test_names_without_a_source(text: str) -> None:
    with pytest.raises(InputError, match="has no source; write SOURCE:NAME"):
        Spec.parse(text, "model")


def test_paths_without_a_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("photos", "table"):
        (tmp_path / name).mkdir()
    for file in ("mine.pth", "table/labels.csv", "x.parquet"):
        (tmp_path / file).touch()
    for kind, text, meant in (
        ("model", "mine.pth?num_classes=2", "as timm:resnet50?checkpoint=mine.pth"),
        ("data", "photos?size=64", "write folder:photos"), ("data", "table", "write csv:table"),
        ("data", "x.parquet", "write parquet:x.parquet"), ("data", "mine.pth", "write SOURCE:NAME"),
        ("model", "photos", "write SOURCE:NAME"), ("data", "a" * 400, "write SOURCE:NAME"),
    ):  # fmt: skip
        with pytest.raises(InputError, match="has no source") as caught:
            Spec.parse(text, kind)
        assert meant in str(caught.value)


def test_a_key_twice() -> None:
    with pytest.raises(InputError, match=r"^data 'a:b\?n=1&n=2': 'n' is given twice$"):
        Spec.parse("a:b?n=1&n=2", "data")


def test_only() -> None:
    spec = Spec.parse("a:b?sed=1", "data")
    spec.only("sed")
    with pytest.raises(InputError, match=r"unknown option 'sed'; did you mean 'seed'\?$"):
        spec.only("seed", "limit")
    with pytest.raises(InputError, match=r"'a:' takes no options here$"):
        spec.only()


def test_number() -> None:
    spec = Spec.parse("a:b?n=12&m=1.5", "data")
    assert spec.number("n") == 12
    assert spec.number("absent") is None
    assert spec.number("absent", 7) == 7
    with pytest.raises(InputError, match=r"m = '1.5' is not a whole number"):
        spec.number("m")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2", 2), ("2.5", 2.5), ("true", True), ("False", False), ("(1, 2)", (1, 2)), ("[1]", [1]),
        ("gelu", "gelu"), ("1e-3", 0.001), ("", ""), ("a b", "a b"), ("__import__('os')",) * 2,
        ("None", None), ("1,2", (1, 2)), ("/tmp/x", "/tmp/x"),
    ],
)  # fmt: skip
def test_literal(text: str, value: Any) -> None:
    found = literal(text)
    assert found == value
    assert type(found) is type(value)


def test_literals_skip_the_sources_own() -> None:
    spec = Spec.parse("a:b?seed=1&depth=2", "model")
    assert spec.literals(skip=["seed"]) == {"depth": 2}
