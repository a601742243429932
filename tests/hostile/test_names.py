"""Names that would call code: in runs, defenses, suites and on the command line."""

from __future__ import annotations

import ast
import json
import shlex
import sys
import types
from collections.abc import Callable
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import tomli_w

import advens.registry
from advens import load_model, trusting
from advens.attacks.surrogates.builders.cached import FORMAT
from advens.datasets import find_data, load_data, loading
from advens.errors import InputError
from advens.models import absent, check_name, describe, find_model, known_card
from advens.trust import trusted
from tests.hostile.conftest import DATA, SUITE, SURROGATE, TARGET, recell, redescribe, resample

ROOT = Path(__file__).parent.parent.parent


# --- runs ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["verify", "evaluate"])
def test_a_run_that_names_a_call_as_surrogate(
    command: str, run: Path, evil: str, advens: Callable[..., Any]
) -> None:
    recell(run, surrogate_specs=[evil])
    more = ("--targets", TARGET) if command == "evaluate" else ()
    advens(command, run, *more).refused("would call os.system(command='touch ", f"--trust '{evil}'")


def test_a_run_that_names_a_call_as_target(run: Path, evil: str, advens: Callable[..., Any]) -> None:
    resample(run, target=evil)
    advens("verify", run).refused("would call os.system(")


def test_a_run_whose_suite_names_calls(run: Path, evil: str, advens: Callable[..., Any]) -> None:
    """The suite of a run is resolved again by `run` and by `evaluate`."""
    table = SUITE | {"targets": [TARGET, evil], "surrogates": {"one": [evil]}}
    (run / "suite.toml").write_text(tomli_w.dumps(table))
    advens("evaluate", run, "--targets", "digits:convmixer")
    advens("run", run / "suite.toml", "--out", run).refused("would call os.system(")


def test_a_run_with_other_weights_under_an_embedded_name(run: Path, advens: Callable[..., Any]) -> None:
    """The digest is compared before the surrogate is built."""
    loaded: list[str] = []
    recell(run, surrogate_specs=["digits:convmixer"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("advens.models.pool.find_model", loaded.append)
        said = advens("verify", run)
    assert said.code == 1
    assert "the weights of its surrogates are not those it was crafted with" in said.err
    assert loaded == []


def test_a_trusted_name_is_called(run: Path, advens: Callable[..., Any], mine: Path) -> None:
    """``--trust`` is for that very name: another option is another name."""
    recell(run, surrogate_specs=["mine:net?mark=a"])
    advens("verify", run, "--trust", "mine:net?mark=b").refused("would call mine.net(mark='a')")
    assert not mine.exists()
    said = advens("verify", run, "--trust", "mine:net?mark=a")
    assert (said.code, mine.read_text()) == (1, "a")
    assert "the weights of its surrogates" in said.err


# --- defenses and builds -----------------------------------------------------------------------------


def test_a_defense_that_names_a_call(defense: Path, evil: str, advens: Callable[..., Any]) -> None:
    redescribe(defense, name=evil)
    for name in (f"defense:{defense}", f"defense:{defense}?members=1"):
        advens("models", name).refused()
    advens("models", f"defense:{defense}").refused("would call os.system(")
    advens("models", f"defense:{defense}", "--trust", f"defense:{defense}").refused("would call os.system(")


def test_python_trusts_what_it_types_and_not_what_that_leads_to(defense: Path, evil: str, mine: Path) -> None:
    assert load_model("mine:net").num_classes == 10
    assert mine.exists()
    redescribe(defense, name=evil)
    with pytest.raises(InputError, match="would call"):
        load_model(f"defense:{defense}")
    assert trusted() == frozenset()


def test_a_changed_copy_of_a_call(evil: str, advens: Callable[..., Any], mine: Path) -> None:
    inner = f"changed:sgm?of={quote(evil)}"
    advens("models", inner).refused("would call os.system(")
    with pytest.raises(InputError, match="would call"):
        describe(inner)
    whole = "changed:linbp?of=mine:net"
    with pytest.raises(InputError, match="would call mine"):
        find_model(whole)
    with pytest.raises(InputError, match=r"linbp|change"):  # it is loaded, and has nothing to change
        load_model(whole)
    assert mine.exists()


def test_a_build_that_comes_from_a_call(
    tmp_path: Path, evil: str, advens: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADVENS_CACHE", str(tmp_path))
    folder = tmp_path / "built" / "abc"
    folder.mkdir(parents=True)
    about = {"format": FORMAT, "bases": ["0"], "family": "cnn", "input_size": [32, 32], "members": ["0"],
             "names": [evil], "num_classes": 10}  # fmt: skip
    (folder / "about.json").write_text(json.dumps(about))
    said = advens("select", "--from", "built:abc/0", "-k", 1, "--data", DATA)
    said.refused("would call os.system(")


def test_a_defense_that_is_its_own_member(defense: Path, advens: Callable[..., Any]) -> None:
    redescribe(defense, name=f"defense:{defense}")
    advens("models", f"defense:{defense}").refused("a member of itself")


# --- suites, and what is typed -----------------------------------------------------------------------


@pytest.mark.parametrize("where", ["surrogates", "targets", "build"])
@pytest.mark.parametrize("dry", [True, False])
def test_a_suite_that_names_a_call(
    where: str, dry: bool, evil: str, tmp_path: Path, advens: Callable[..., Any]
) -> None:
    sets: dict[str, Any] = {"one": [evil]} if where == "surrogates" else {"one": [SURROGATE]}
    if where == "build":
        sets = {"one": {"build": "lgv", "model": evil, "data": "digits:train?limit=8"}}
    targets = [TARGET, evil] if where == "targets" else [TARGET]
    path = tmp_path / "suite.toml"
    path.write_text(tomli_w.dumps(SUITE | {"surrogates": sets, "targets": targets}))
    more = ["--dry-run"] if dry else ["--out", tmp_path / "run"]
    advens("run", path, *more).refused("would call os.system(")


def test_a_suite_of_defenses_that_names_a_call(
    evil: str, tmp_path: Path, advens: Callable[..., Any]
) -> None:
    study = {
        "name": "s", "goal": "defense", "data": DATA, "eps": [0.1], "surrogates": [SURROGATE],
        "attacks": ["fgsm"], "training": {"arch": evil, "data": "digits:train?limit=8"},
        "defenses": [{"name": "plain", "members": 1}],
    }  # fmt: skip
    path = tmp_path / "study.toml"
    path.write_text(tomli_w.dumps(study))
    for more in (["--dry-run"], ["--out", str(tmp_path / "out")]):
        advens("run", path, *more).refused("would call os.system(")


@pytest.mark.parametrize(
    "line",
    [
        "models {evil}",
        "evaluate {run} --targets {evil}",
        "craft fgsm --surrogates {evil} --data {data} --out {out}",
        "craft fgsm --surrogates {good} --targets {evil} --data {data} --out {out}",
        "robustness --models {evil} --data {data} --out {out}",
        "select --from {evil} -k 1 --data {data}",
        "defend {evil} --data {data} --out {out}",
        "train plain --arch {evil} --data {data} --out {out}",
    ],
)
def test_a_typed_call_is_asked_about(
    line: str, evil: str, run: Path, tmp_path: Path, advens: Callable[..., Any]
) -> None:
    words = line.format(
        evil=evil.replace(" ", "%20"), run=run, data=DATA, good=SURROGATE, out=tmp_path / "out"
    )
    advens(*words.split()).refused("would call os.system(", "--trust", "in Python: advens.trusting")


def test_trust_ends_with_the_command(mine: Path, advens: Callable[..., Any]) -> None:
    assert advens("models", "mine:net", "--trust", "mine:net").code == 0
    advens("models", "mine:net").refused("would call mine.net()")
    advens("models", "mine:net", "--trust", "mine:net", "--nonsense").refused()
    advens("models", "mine:net").refused("would call mine.net()")
    with trusting("mine:*"):
        assert advens("models", "mine:net?mark=z").code == 0


# --- plug-ins: installed, but files pass no arguments to them ------------------------------------------


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module ``mine`` whose factory leaves a mark."""
    mark = tmp_path / "mark"
    (tmp_path / "mine.py").write_text(
        "from pathlib import Path\nfrom torch import nn\n"
        "def net(mark='x'):\n"
        f"    Path({str(mark)!r}).write_text(mark)\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(3072, 10))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    return mark


@pytest.fixture
def plugged(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Plug-ins ``theirs:`` for models and data; what they are called with."""
    seen: list[str] = []

    def model(spec: Any) -> Any:
        seen.append(spec.text)
        return load_model(SURROGATE)

    def images(path: str, **query: str) -> Any:
        seen.append(path)
        return load_data("digits:test")

    module = types.ModuleType("theirs")
    vars(module).update(model=model, images=images)
    monkeypatch.setitem(sys.modules, "theirs", module)
    points = EntryPoints([
        EntryPoint("theirs", "theirs:model", "advens.models"),
        EntryPoint("theirs", "theirs:images", "advens.data"),
        *EntryPoints(advens.registry.entry_points(group="advens.models")),
    ])

    def found(**what: str) -> EntryPoints:
        return points.select(**what)

    for place in ("advens.registry", "advens.trust"):
        monkeypatch.setattr(f"{place}.entry_points", found)
    return seen


def test_a_typed_plugin_is_called_and_one_in_a_file_is_not(
    plugged: list[str], run: Path, advens: Callable[..., Any]
) -> None:
    assert advens("models", "theirs:x").code == 0
    assert advens("data", "theirs:y").code == 0
    assert plugged == ["theirs:x", "y"]
    recell(run, surrogate_specs=["theirs:x"])
    advens("verify", run).refused("would call the plug-in 'theirs' (theirs:model)")
    recell(run, surrogate_specs=[SURROGATE], data="theirs:y")
    advens("verify", run).refused("data 'theirs:y' would call the plug-in")
    for ask in (find_model, describe, check_name, known_card, find_data):
        with pytest.raises(InputError, match="would call the plug-in"):
            ask("theirs:x")  # type: ignore[operator]
    assert plugged == ["theirs:x", "y"]
    with trusting("theirs:y"):
        assert len(find_data("theirs:y?limit=3")) == 3  # the view of the data is no argument


def test_two_packages_that_claim_a_source(monkeypatch: pytest.MonkeyPatch) -> None:
    points = EntryPoints([
        EntryPoint("built", "advens.attacks.surrogates.builders.source:load", "advens.models"),
        EntryPoint("built", "other:load", "advens.models"),
    ])
    monkeypatch.setattr(advens.registry, "entry_points", lambda **what: points.select(**what))
    with pytest.raises(InputError, match="'built' is defined more than once"):
        find_model("built:abc/0")


def test_robustbench_is_not_asked_by_files() -> None:
    with pytest.raises(InputError, match="would let RobustBench unpickle"):
        find_model("robustbench:Standard")


# --- names that choose what is downloaded, or where to ---------------------------------------------------

HUBS = ("timm:hf_hub:owner/name", "timm:hf-hub:owner/name@main", "timm:hf-hub:owner/name?num_classes=10")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The addresses that were about to be asked for weights; no network is used."""
    seen: list[str] = []
    monkeypatch.setattr("advens.models.hub.reachable", lambda url: bool(seen.append(url)))
    return seen


@pytest.mark.parametrize("name", HUBS)
def test_a_file_does_not_choose_a_repository(
    name: str, run: Path, defense: Path, tmp_path: Path, asked: list[str], advens: Callable[..., Any]
) -> None:
    words = ("would load from the repository owner/name", f"--trust {shlex.quote(name)}")
    for ask in (find_model, describe, check_name, known_card, absent):
        with pytest.raises(InputError, match="would load from the repository owner/name"):
            ask(name)  # type: ignore[operator]
    redescribe(defense, name=name)
    advens("models", f"defense:{defense}").refused(words[0], "pretrained=false")
    path = tmp_path / "suite.toml"
    for changed in ({"targets": [name]}, {"surrogates": {"one": [name]}}):
        path.write_text(tomli_w.dumps(SUITE | changed))
        for more in (["--dry-run"], ["--out", tmp_path / "out"]):
            advens("run", path, *more).refused(*words)
    recell(run, surrogate_specs=[name])
    advens("verify", run).refused(*words)
    advens("evaluate", run, "--targets", TARGET).refused(*words)
    recell(run, surrogate_specs=[SURROGATE])
    resample(run, target=name)
    advens("verify", run).refused(*words)
    assert asked == []


@pytest.mark.parametrize("name", HUBS)
def test_a_typed_or_trusted_repository_is_asked(
    name: str, tmp_path: Path, asked: list[str], advens: Callable[..., Any]
) -> None:
    advens("models", name).refused("pretrained weights could not be had")
    advens("craft", "fgsm", "--surrogates", name, "--data", DATA, "--out", tmp_path / "out").refused(
        "pretrained weights could not be had"
    )
    with pytest.raises(InputError, match="could not be had"):
        load_model(name)
    (tmp_path / "suite.toml").write_text(tomli_w.dumps(SUITE | {"targets": [name]}))
    advens("run", tmp_path / "suite.toml", "--trust", name).refused("pretrained weights could not be had")
    assert len(asked) == 4


@pytest.mark.parametrize(
    "name",
    ["timm:HF-HUB:owner/name", "timm:local-dir:/tmp", "timm:local-dir:.", "timm:https://host/x",
     "timm:owner/name", "timm:./x", "torchvision:https://host/x.pth", "torchvision:resnet18?weights=https://host/x.pth",
     "timm:resnet18?checkpoint=https://host/x.pth"],
)  # fmt: skip
def test_other_places_are_no_models(name: str, asked: list[str], advens: Callable[..., Any]) -> None:
    advens("models", name).refused()
    with pytest.raises(InputError):
        find_model(name)
    assert asked == []


@pytest.mark.parametrize("flag", ["true", "True", "1"])
def test_data_of_a_file_are_not_downloaded(
    flag: str, run: Path, tmp_path: Path, fetched: list[str], advens: Callable[..., Any]
) -> None:
    name = f"torchvision:CIFAR10?root={tmp_path / 'there'}&download={flag}"
    words = (f"would download to '{tmp_path / 'there'}'", "--trust")
    recell(run, data=name)
    advens("verify", run).refused(*words)
    advens("evaluate", run, "--targets", TARGET).refused(*words)
    path = tmp_path / "suite.toml"
    path.write_text(tomli_w.dumps(SUITE | {"data": name}))
    for more in (["--dry-run"], ["--out", tmp_path / "out"]):
        advens("run", path, *more).refused(*words)
    assert not (tmp_path / "there").exists()
    assert fetched == []


def test_typed_and_trusted_data_are_downloaded(
    tmp_path: Path, fetched: list[str], advens: Callable[..., Any]
) -> None:
    name = f"torchvision:CIFAR10?root={tmp_path / 'there'}&download=true"
    advens("data", name).refused("no network here")
    path = tmp_path / "suite.toml"
    path.write_text(tomli_w.dumps(SUITE | {"data": f"{name}&limit=5"}))
    advens("run", path, "--trust", name).refused("no network here")
    assert len(fetched) == 2
    assert "the data are downloaded first" in advens("run", path, "--trust", name, "--dry-run").out


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What torchvision was about to download."""
    seen: list[str] = []

    def download(url: str, *_: object, **__: object) -> None:
        seen.append(url)
        raise OSError("no network here")

    for module in ("cifar", "utils"):
        monkeypatch.setattr(f"torchvision.datasets.{module}.download_and_extract_archive", download)
    return seen


def test_the_program_itself_asks_for_names_by_the_careful_functions() -> None:
    """`load_model` and `load_data` trust what they are given: only these use them, for names of their own."""
    allowed = {
        "advens/__init__.py", "advens/models/__init__.py", "advens/datasets/__init__.py",
        "advens/datasets/loading.py", "advens/commands.py", "defenses/adopt.py",
        "advens/zoo/training.py",
        "advens/models/robustbench.py", "benchmarks/studies/selection.py", "benchmarks/studies/likeness.py",
        "defenses/ensembles.py",
    }  # fmt: skip
    users = set()
    for folder in ("advens", "attacks", "benchmarks", "defenses", "results"):
        for path in (ROOT / folder).rglob("*.py"):
            names = {n.id for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Name)}
            if names & {"load_model", "load_data"} and "speed" not in path.parts:
                users.add(path.relative_to(ROOT).as_posix())
    assert users <= allowed
    assert loading.find_data is find_data
