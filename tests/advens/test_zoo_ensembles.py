"""The ensembles of the embedded zoo: they load, keep their promises, and stand as targets and surrogates."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

import advens
from advens.classifier import accuracy
from advens.cli import invoke
from advens.defenses import create_defense
from advens.defenses.adopt import pgd_accuracy
from advens.defenses.ensembles import Ensemble, RandomizedEnsemble
from advens.defenses.registry import identity
from advens.errors import InputError
from advens.models import describe, list_models, load_model
from advens.models.embedded import index
from advens.spec import literal
from advens.zoo.recipes import ENSEMBLES

WEIGHTS = Path(advens.__file__).parent / "zoo" / "weights"
NAMES = [f"digits:{name}" for name in ENSEMBLES]
BARRE, DVERGE = NAMES


def images(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    data = advens.load_data(f"digits:test?limit={count}")
    batch = next(data.batches([slice(0, count)]))
    return batch.pixels.float() / 255, batch.labels


@pytest.mark.parametrize("name", NAMES)
def test_they_are_what_the_index_says(name: str) -> None:
    assert name in list_models("digits:*e3")
    model, card, entry = load_model(name), describe(name), index()[name]
    assert model.name == card.name == name
    assert model.digest == card.digest == entry["digest"]
    assert (model.family, model.num_classes, model.input_size) == ("cnn", 10, (32, 32))
    assert (card.family, card.num_classes, card.input_size) == ("cnn", 10, (32, 32))
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert entry["clean_accuracy"] >= (0.9 if name == BARRE else 0.95)
    assert accuracy(model, *images(500)) == pytest.approx(entry["clean_accuracy"], abs=0.003)
    folder = WEIGHTS / name.partition(":")[2]
    assert sum(path.stat().st_size for path in folder.iterdir()) < 3_000_000


def test_the_card_needs_no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("advens.models.embedded.find_model", lambda name: pytest.fail("loaded"))
    for name in NAMES:
        assert describe(name).digest == index()[name]["digest"]


def test_one_is_a_mean_the_other_randomized() -> None:
    mean, drawn = load_model(DVERGE), load_model(BARRE)
    assert isinstance(mean, Ensemble)
    assert isinstance(drawn, RandomizedEnsemble)
    assert len(mean.members) == len(drawn.members) == 3
    assert float(drawn.probabilities.sum()) == pytest.approx(1, abs=1e-12)
    assert (drawn.probabilities >= 0).all()
    assert [index()[name]["ensemble"] for name in NAMES] == ["randomized", "mean"]


@pytest.mark.parametrize("name", NAMES)
def test_the_command_is_the_one_that_was_run(name: str) -> None:
    key = name.partition(":")[2]
    entry, how = index()[name], json.loads((WEIGHTS / key / "training.json").read_text())
    if "nested" in how:  # what smaller ensembles would draw; the last is the whole
        assert how.pop("nested")[-1] == load_model(name).probabilities.tolist()
    assert entry["command"] == ENSEMBLES[key].command
    program, verb, defense, *words = shlex.split(entry["command"])
    assert (program, verb) == ("advens", "train")
    given = list(zip(words[::2], words[1::2], strict=True))
    assert all(option.startswith("--") for option, _ in given)
    settings = dict(value.split("=") for option, value in given if option == "--set")
    plain = {option: value for option, value in given if option != "--set"}
    options: dict[str, Any] = {k: literal(v) for k, v in settings.items()}
    options |= {"members": int(plain["--members"]), "epochs": int(plain["--epochs"])}
    wanted = identity(create_defense(defense, **options))
    wanted["training"].pop("stacked")
    assert how == wanted | {
        "arch": plain["--arch"], "data": advens.load_data(plain["--data"]).digest, "seed": 0,
    }  # fmt: skip
    assert plain["--out"] == key


def test_adversarial_training_shows() -> None:
    x, y = images(60)
    barre, dverge = (pgd_accuracy(load_model(name), x, y) for name in NAMES)
    assert barre > 0.4 > dverge


def test_damage_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    shutil.copytree(WEIGHTS / "barre3", tmp_path / "weights" / "barre3")
    shutil.copy(WEIGHTS / "mambaout.safetensors", tmp_path / "weights")
    (tmp_path / "weights" / "barre3" / "member-1.safetensors").write_bytes(b"nothing")
    known = index()
    monkeypatch.setattr("advens.models.embedded.index", lambda: known)
    monkeypatch.setattr("advens.models.embedded.files", lambda package: tmp_path)
    with pytest.raises(InputError, match=r"digits:barre3: .* is no saved ensemble, or damaged") as caught:
        load_model(BARRE)
    assert "\n" not in str(caught.value)


def test_the_zoo_does_not_retrain_them(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert invoke(["zoo", "build", "--out", str(tmp_path), "--only", "dverge3"]) == 2
    said = capsys.readouterr().err
    assert said == "advens: 'dverge3' is an ensemble; 'advens models digits:dverge3' shows what trains it\n"
    assert invoke(["models", DVERGE]) == 0
    assert ENSEMBLES["dverge3"].command in capsys.readouterr().out


SUITE = """
name = "tiny"
data = "digits:test?limit=8"
targets = ["digits:*e3", "digits:mambaout"]
[threat]
eps = 0.2
steps = 1
[surrogates]
each = ["digits:*e3"]
alone = ["digits:mambaout"]
[[attacks]]
name = "mifgsm"
"""


def test_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Targets and surrogates, by a wildcard; white-box to themselves; audited."""
    from advens.results.store import RunStore

    monkeypatch.chdir(tmp_path)
    Path("tiny.toml").write_text(SUITE)
    assert invoke(["run", "tiny.toml", "--out", "run", "--device", "cpu"]) == 0
    assert invoke(["verify", "run", "--device", "cpu"]) == 0
    shown = capsys.readouterr().out
    assert "barre3" in shown
    rows = RunStore(Path("run")).read_samples()
    assert set(rows["target"]) == {*NAMES, "digits:mambaout"}
    drawn = rows[rows["target"] == BARRE]
    assert drawn.groupby(["surrogates", "sample_id"], observed=True)["weight"].sum().to_numpy() == (
        pytest.approx(1)
    )
    assert (rows["white_box"] == (rows["target"].astype(str) == rows["surrogates"].astype(str)) |
            ((rows["target"] == "digits:mambaout") & (rows["surrogates"] == "alone"))).all()  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_what_asks_for_one_network_refuses(
    name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Builders, changed copies and training take no ensemble; each says so in a line."""
    data = ["--data", "digits:test?limit=4", "--eps", "0.2", "--out", str(tmp_path / "out")]
    craft = ["craft", "mifgsm", *data, "--surrogates"]
    train = ["train", "plain", "--arch", name, "--data", "digits:test?limit=4", "--out", str(tmp_path / "t")]
    single = f"model '{name}' is no single network"
    for command, said in (
        ([*craft, name, "--build", "lgv"], f"{single}; give a builder its members"),
        ([*craft, name, "--build", "ghost"], f"{single}; change its members"),
        ([*craft, f"changed:sgm?of={name}"], f"{single}; change its members"),
        (train, f"{name} is an ensemble; give the architecture of one member"),
    ):
        assert invoke(command) == 2, command
        err = capsys.readouterr().err
        assert err.splitlines()[-1] == f"advens: {said}", err
        assert "Traceback" not in err


def test_other_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = ["--data", "digits:test?limit=6", "--eps", "0.2"]
    both = ",".join(NAMES)
    out = ["--out", str(tmp_path / "crafted"), "--no-png"]
    assert invoke(["craft", "sgm", *data, "--surrogates", both, *out]) == 0
    assert capsys.readouterr().out.count("digits:") >= 2
    assert invoke(["robustness", "--models", both, *data, "--attack", "pgd", "--set", "pgd.steps=2",
                   "--out", str(tmp_path / "open")]) == 0  # fmt: skip
    capsys.readouterr()
    assert invoke(["select", "--from", f"{both},digits:mambaout", "-k", "2", "--data", "digits:train",
                   "--limit", "10"]) == 0  # fmt: skip
    first = capsys.readouterr().out
    assert invoke(["select", "--from", f"{both},digits:mambaout", "-k", "2", "--data", "digits:train",
                   "--limit", "10"]) == 0  # fmt: skip
    assert capsys.readouterr().out == first
