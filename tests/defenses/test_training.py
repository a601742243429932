"""The training loop: seeded, resumed to the same weights, whole or not there."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor

import advens
from advens.cli import invoke
from advens.defenses import create_defense, list_defenses
from advens.defenses.members import architecture, fresh
from advens.defenses.phases import Training
from advens.defenses.training import Run, train
from advens.errors import InputError, RunError

ARCH = "digits:mambaout"
QUICK = {"epochs": 2, "batch_size": 32, "optimizer": "adam", "lr": 3e-3, "members": 2}


@pytest.fixture(scope="module")
def data() -> Any:
    return advens.load_data("digits:train?limit=64&seed=0")


def weights(ensemble: Any) -> list[Tensor]:
    return [t for member in ensemble.members for t in member.net.state_dict().values()]


def same(a: Any, b: Any) -> bool:
    return all(torch.equal(x, y) for x, y in zip(weights(a), weights(b), strict=True))


class Killed(Exception):
    pass


def killed_at(count: int) -> Any:
    seen: list[dict[str, Any]] = []

    def stop(row: dict[str, Any]) -> None:
        seen.append(row)
        if len(seen) == count:
            raise Killed

    return stop


@pytest.mark.parametrize(("name", "at"), [("dverge", 1), ("dverge", 2), ("dverge", 3), ("barre", 3)])
def test_goes_on_to_the_same_weights(name: str, at: int, data: Any, tmp_path: Path) -> None:
    """Interrupted in a phase, between two, and in the second."""
    options = QUICK | ({"osp_every": 1, "osp_rounds": 2, "osp_images": 16, "arc_steps": 2, "steps": 2}
                       if name == "barre" else {"steps": 2})  # fmt: skip
    defense = create_defense(name, **options)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    whole = train(defense, ARCH, data, tmp_path / "whole")
    assert torch.equal(torch.get_rng_state(), before), "global random state was changed"
    with pytest.raises(Killed):
        train(defense, ARCH, data, tmp_path / "cut", on_epoch=killed_at(at))
    assert not (tmp_path / "cut").exists()
    torch.manual_seed(6)
    again = train(defense, ARCH, data, tmp_path / "cut")
    assert same(whole, again)
    if name == "barre":
        assert torch.equal(whole.probabilities, again.probabilities)
    assert not (tmp_path / "cut.training").exists()
    history = pd.read_parquet(tmp_path / "cut" / "history.parquet")
    assert len(history) == 4
    assert list(history["epoch"]) == [1, 2, 1, 2]
    assert same(whole, advens.load_model(f"defense:{tmp_path / 'whole'}"))


@pytest.mark.parametrize("name", ["plain", "mrboost"])
def test_what_comes_back_does_not_learn(name: str, tmp_path: Path) -> None:
    """In eval mode and frozen, with all its parts; so it answers as it does when it is loaded."""
    data = advens.load_data("digits:train?limit=8&seed=0")
    options = QUICK | {"epochs": 1, "batch_size": 4} | ({} if name == "plain" else {"steps": 1})
    ensemble = train(create_defense(name, **options), "digits:resnet", data, tmp_path / "out")
    assert not any(module.training for module in ensemble.modules())
    assert not any(parameter.requires_grad for parameter in ensemble.parameters())
    x = next(data.batches([slice(0, 8)])).pixels.float() / 255
    with torch.no_grad():
        assert torch.equal(ensemble(x), advens.load_model(f"defense:{tmp_path / 'out'}")(x))


def test_seed_decides(data: Any, tmp_path: Path) -> None:
    defense = create_defense("plain", **QUICK | {"epochs": 1})
    one, two, other = (
        train(defense, ARCH, data, tmp_path / name, seed=seed)
        for name, seed in (("one", 0), ("two", 0), ("other", 1))
    )
    assert same(one, two)
    assert not same(one, other)
    assert not torch.equal(weights(one)[0], weights(one)[len(weights(one)) // 2]), "members differ"


def test_something_else_in_the_folder(data: Any, tmp_path: Path) -> None:
    defense = create_defense("plain", **QUICK | {"epochs": 1})
    (tmp_path / "there").mkdir()
    with pytest.raises(InputError, match="there already"):
        train(defense, ARCH, data, tmp_path / "there")
    with pytest.raises(Killed):
        train(create_defense("plain", **QUICK), ARCH, data, tmp_path / "cut", on_epoch=killed_at(1))
    with pytest.raises(InputError, match="something else"):
        train(defense, ARCH, data, tmp_path / "cut")


def test_a_loss_that_is_not_finite(data: Any, tmp_path: Path) -> None:
    defense = create_defense("plain", **QUICK | {"lr": 1e30, "optimizer": "sgd", "epochs": 5})
    with pytest.raises(RunError, match="not finite"):
        train(defense, ARCH, data, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_learns(data: Any, tmp_path: Path) -> None:
    defense = create_defense("plain", **QUICK | {"epochs": 25})
    ensemble = train(defense, ARCH, data, tmp_path / "out")
    batch = next(data.batches([slice(0, len(data))]))
    with torch.no_grad():
        right = ensemble(batch.pixels.float() / 255).argmax(1) == batch.labels
    assert right.float().mean() > 0.9


def test_rates() -> None:
    steps = Training(epochs=8, lr=1.0)
    assert [steps.rate(i / 8) for i in range(8)] == pytest.approx([1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01])
    assert Training(lr=1.0, schedule="cosine").rate(0.5) == pytest.approx(0.5)
    linear = [Training(lr=1.0, schedule="linear").rate(done) for done in (0, 0.5, 0.7, 0.9, 1)]
    assert linear == pytest.approx([1, 1, 0.505, 0.01, 0.01])


def test_optimizers_differ(data: Any, tmp_path: Path) -> None:
    made = {
        name: train(create_defense("plain", **QUICK | {"optimizer": name}), ARCH, data, tmp_path / name)
        for name in ("sgd", "nesterov", "adam")
    }
    assert len({ensemble.digest for ensemble in made.values()}) == 3


def test_fresh_members() -> None:
    one, two = (fresh(ARCH, 10, (32, 32), 0, k) for k in (0, 1))
    again = fresh(ARCH, 10, (32, 32), 0, 0)
    assert torch.equal(next(one.parameters()), next(again.parameters()))
    assert not torch.equal(next(one.parameters()), next(two.parameters()))
    assert all(p.requires_grad for p in one.parameters())
    timm, twin = (fresh("timm:test_resnet", 7, (24, 24), 0, k) for k in (0, 1))
    assert not torch.equal(next(timm.parameters()), next(twin.parameters()))
    assert timm.input_size == (24, 24)
    assert timm(torch.zeros(2, 3, 24, 24)).shape == (2, 7)
    with pytest.raises(InputError, match="10 classes and the data 7"):
        fresh(ARCH, 7, (32, 32), 0, 0)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["dvrge"], "did you mean 'dverge'"),
        (["plain", "--set", "epoch=3"], "did you mean 'epochs'"),
        (["plain", "--set", "lr=-1"], "lr = -1"),
        (["dverge", "--members", "1"], "members = 1"),
        (["plain", "--set", "lr"], "KEY=VALUE"),
        (["plain", "--arch", "digits:resnett"], "did you mean 'digits:resnet'"),
        (["plain", "--arch", "resnet1"], "resnet18"),
        (["plain", "--data", "digits:trainn"], "did you mean 'train'"),
    ],
)
def test_mistakes(arguments: list[str], said: str, tmp_path: Path, capsys: Any) -> None:
    base = {"--arch": ARCH, "--data": "digits:train", "--out": str(tmp_path / "out")}
    rest = [x for key, value in base.items() if key not in arguments for x in (key, value)]
    assert invoke(["train", *arguments, *rest]) == 2
    err = capsys.readouterr().err.strip().splitlines()
    assert said in err[-1]
    assert not list(tmp_path.iterdir())


def test_command(tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "out"
    code = invoke(["train", "iat", "--arch", ARCH, "--data", "digits:train?limit=40", "--out", str(out),
                   "--epochs", "1", "--set", "steps=1", "--set", "batch_size=20"])  # fmt: skip
    assert code == 0
    assert "2 members, randomized" in capsys.readouterr().out
    assert invoke(["models", f"defense:{out}"]) == 0


def test_architectures() -> None:
    assert architecture(None, "digits:train?limit=40") == "digits:mambaout"
    assert architecture(None, "folder:photos") == "timm:resnet18"
    assert architecture("test_vit", "digits:train") == "timm:test_vit"
    assert architecture("torchvision:resnet18", "digits:train") == "torchvision:resnet18"


def test_list(capsys: Any) -> None:
    assert {"plain", "at", "trades", "iat", "adp", "gal", "trs", "forde", "dverge", "mrboost", "barre",
            "adv-comp-sum"} <= set(list_defenses())  # fmt: skip
    assert invoke(["defenses"]) == 0
    assert invoke(["defenses", "dverge"]) == 0
    assert "train_mode" in capsys.readouterr().out
    assert invoke(["defenses", "nothing*"]) == 2


def test_every_epoch_has_an_order_of_its_own() -> None:
    """The same for the same seed, stream and epoch, which a training that goes on relies on."""

    def order(epoch: int, seed: int = 3, which: str = "order") -> list[int]:
        at: Any = SimpleNamespace(epoch=epoch, x=range(30))
        return Run._order(at, seed, which).tolist()

    orders = [order(0), order(1), order(0, seed=4), order(0, which="other")]
    assert all(sorted(each) == list(range(30)) for each in orders)
    assert len(set(map(tuple, orders))) == 4
    assert order(1) == orders[1]
