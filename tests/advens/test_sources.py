"""Sources of models and data are entries of a registry: nothing is imported before a name needs it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from importlib.metadata import EntryPoint

import pytest

from advens import models, registry
from advens.datasets import find_data, list_data, loading
from advens.errors import InputError
from advens.models import bare, list_models, names_ensemble, training_data, untrained


def declared(monkeypatch: pytest.MonkeyPatch, group: str, *points: tuple[str, str]) -> None:
    """Entry points of plug-ins that cannot be imported."""

    def found(group: str, _given: str = group) -> Iterable[EntryPoint]:
        return [EntryPoint(name, value, group) for name, value in points] if group == _given else []

    monkeypatch.setattr(registry, "entry_points", found)


def test_plug_ins_are_listed_and_not_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    declared(monkeypatch, "advens.models", ("theirs", "not_there:load"))
    assert models.SOURCES.names("the*") == ["theirs"]
    assert "theirs" in models.SOURCES
    assert models.SOURCES.get("theirs").foreign
    assert not models.SOURCES.get("timm").foreign
    with pytest.raises(InputError, match="unknown model source 'thiers'; did you mean 'theirs'"):
        models.find_model("thiers:x")
    with pytest.raises(InputError, match="would call the plug-in 'theirs' \\(not_there:load\\)"):
        models.find_model("theirs:x")
    declared(monkeypatch, "advens.data", ("theirs", "not_there:load"))
    assert list_data()[-1] == ("theirs", "theirs:...  not_there:load")
    with pytest.raises(InputError, match="would call the plug-in"):
        find_data("theirs:x")


@pytest.mark.parametrize("group", ["advens.models", "advens.data"])
def test_a_source_cannot_be_taken_over(group: str, monkeypatch: pytest.MonkeyPatch) -> None:
    declared(monkeypatch, group, ("digits", "not_there:load"), ("twice", "a:load"), ("twice", "b:load"))
    ask, kind = (models.find_model, "model") if group == "advens.models" else (find_data, "data")
    for name, claims in (("digits:resnet", "advens, not_there:load"), ("twice:x", "a:load, b:load")):
        with pytest.raises(InputError) as caught:
            ask(name)  # type: ignore[operator]
        scheme = name.partition(":")[0]
        assert str(caught.value) == f"{kind} source '{scheme}' is defined more than once: by {claims}"


def test_what_is_declared() -> None:
    assert training_data("digits:resnet") == "digits:train"
    assert training_data("shapes:resnet").startswith("synthetic:shapes")
    assert training_data("timm:resnet18") == training_data("not_there:net") == ""
    assert bare("digits:resnet", 7) == "digits:resnet"
    assert bare("timm:resnet18?checkpoint=x&size=64", 7) == (
        "timm:resnet18?size=64&pretrained=false&num_classes=7"
    )
    assert bare("torchvision:vgg11", 7) == "torchvision:vgg11?weights=none&num_classes=7"
    assert loading.suited_architecture("digits:train?limit=4") == "digits:mambaout"
    assert loading.suited_architecture("folder:x") == "timm:resnet18"
    assert [names_ensemble(name) for name in ("digits:dverge3", "defense:x", "digits:resnet")] == [
        True, True, False
    ]  # fmt: skip


def test_listing_by_source() -> None:
    embedded = {name.partition(":")[0] for name in list_models()}
    assert embedded == {"digits", "shapes"}
    assert "timm:resnet18.a1_in1k" in list_models("timm:resnet18*")
    assert list_models("robustbench:*") == list_models("nowhere:*") == []


def test_untrained_models_are_drawn_by_their_seed() -> None:
    for name in ("digits:resnet", "timm:test_resnet"):
        one, same, other = (untrained(name, 10, (32, 32), seed) for seed in (1, 1, 2))
        assert one.digest == same.digest != other.digest
        assert one.name == name
    with pytest.raises(InputError, match="digits:dverge3 is an ensemble; give the architecture"):
        untrained("digits:dverge3", 10, (32, 32), 0)
    with pytest.raises(InputError, match="digits:resnet has 10 classes and the data 7"):
        untrained("digits:resnet", 7, (32, 32), 0)


def test_asking_what_is_declared_imports_no_torch() -> None:
    code = (
        "import sys; from advens.models import SOURCES, training_data, list_models; "
        "from advens.datasets import list_data; training_data('digits:vit'); list_data(); list_models(); "
        "assert 'torch' not in sys.modules and 'pandas' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
