"""Ensembles of the zoo: what is measured of one by hand, and what adopting writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

import advens
from advens.defenses import adopt as module
from advens.defenses.adopt import Normalised, adopt, main, pgd_accuracy
from advens.defenses.ensembles import RandomizedEnsemble
from advens.errors import InputError
from advens.models import load_model
from advens.models.embedded import index
from advens.zoo.recipes import MEAN, STD, TESTS

WEIGHTS = Path(advens.__file__).parent / "zoo" / "weights"
DVERGE = "digits:dverge3"
C, SIDE = 4, 2


def linear(seed: int) -> tuple[nn.Module, Tensor]:
    """A linear model of images and its weights (C, 3 * SIDE * SIDE)."""
    weight = torch.randn(
        C, 3 * SIDE * SIDE, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE * SIDE, C, bias=False)).double()
    model[1].weight.data.copy_(weight)
    return model, weight


def gradient(x: Tensor, y: Tensor, weights: list[Tensor], shares: list[float]) -> Tensor:
    """Of ``-log sum_k a_k p_k(y)``: ``sum_k a_k p_k(y) (sum_c p_k(c) w_kc - w_ky) / sum_k a_k p_k(y)``."""
    up, likelihood = torch.zeros_like(x), torch.zeros(len(x), 1, dtype=x.dtype)
    for w, a in zip(weights, shares, strict=True):
        p = torch.softmax(x @ w.T, 1)
        own = a * p.gather(1, y[:, None])
        up += own * (p @ w - w[y])
        likelihood += own
    return up / likelihood


@pytest.mark.parametrize("shares", [[1.0], [0.25, 0.75]])
def test_pgd_by_hand(shares: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    """20 steps of an eighth of the radius 0.2 from a uniform point, three images at a time."""
    models, weights = zip(*(linear(k) for k in range(len(shares))), strict=True)
    model: Any = models[0]
    if len(shares) > 1:
        model = RandomizedEnsemble(models, shares, num_classes=C)
    generator = torch.Generator().manual_seed(9)
    x = torch.rand(5, 3, SIDE, SIDE, dtype=torch.float64, generator=generator)
    y = torch.randint(C, (5,), generator=generator)
    seen: list[tuple[Tensor, Tensor]] = []

    def accuracy(asked: nn.Module, x_adv: Tensor, labels: Tensor) -> float:
        assert asked is model
        seen.append((x_adv, labels))
        return 1.0 if len(labels) == 3 else 0.5

    monkeypatch.setattr(module, "CHUNK", 3)
    monkeypatch.setattr(module, "accuracy", accuracy)
    assert pgd_accuracy(model, x, y) == pytest.approx((3 * 1.0 + 2 * 0.5) / 5)
    assert [len(labels) for _, labels in seen] == [3, 2]
    assert torch.equal(torch.cat([labels for _, labels in seen]), y)
    draw = torch.Generator().manual_seed(0)
    for (found, labels), images in zip(seen, x.split(3), strict=True):
        low, high = (images - 0.2).clamp(0, 1), (images + 0.2).clamp(0, 1)
        start = images + 0.2 * (2 * torch.rand(images.shape, generator=draw) - 1)
        at = torch.minimum(torch.maximum(start, low), high)
        for _ in range(20):
            g = gradient(at.flatten(1), labels, list(weights), shares).view_as(at)
            at = torch.minimum(torch.maximum(at + 0.025 * g.sign(), low), high)
        torch.testing.assert_close(found, at, rtol=0, atol=1e-12)


def test_normalised_images_are_taken_back() -> None:
    """A network of the zoo sees (x - mean) / std; an ensemble is to see x."""
    model, weight = linear(0)
    x = torch.rand(2, 3, SIDE, SIDE, dtype=torch.float64)
    z = torch.stack([(x[:, c] - MEAN[c]) / STD[c] for c in range(3)], 1)
    torch.testing.assert_close(Normalised(model)(z), x.flatten(1) @ weight.T)


@pytest.fixture
def saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of an embedded ensemble as training it leaves one, measured on 40 images."""
    monkeypatch.setitem(TESTS, "digits", "digits:test?limit=40")
    folder = tmp_path / "saved"
    load_model(DVERGE).save(folder)  # type: ignore[operator]
    (folder / "training.json").write_text((WEIGHTS / "dverge3" / "training.json").read_text())
    (folder / "history.parquet").write_bytes(b"of no use to a package")
    return folder


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was measured, of which images; nothing is computed."""
    seen: list[str] = []

    def measure(name: str, value: float) -> None:
        def instead(model: nn.Module, x: Tensor, y: Tensor) -> float:
            data = advens.load_data("digits:test?limit=40")
            batch = next(data.batches([slice(0, 40)]))
            assert torch.equal(x, batch.pixels.float() / 255)
            assert torch.equal(y, batch.labels)
            assert model.digest == index()[DVERGE]["digest"]
            seen.append(name)
            return value

        monkeypatch.setattr(module, name, instead)

    measure("accuracy", 0.975)
    measure("pgd_accuracy", 0.25)
    return seen


def test_what_is_adopted(saved: Path, measured: list[str], tmp_path: Path) -> None:
    """The same folder gives the same entry, but for what is measured on other images."""
    zoo = tmp_path / "zoo"
    (zoo / "dverge3").mkdir(parents=True)
    (zoo / "dverge3" / "member-7.safetensors").write_text("of an earlier one")
    (zoo / "index.json").write_text('{"vit": {"a": 1}, "dverge3": {"b": 2}, "barre3": {}}')
    entry = adopt("dverge3", saved, zoo)
    assert measured == ["accuracy", "pgd_accuracy"]
    assert entry == index()[DVERGE] | {"clean_accuracy": 0.975, "robust_accuracy": 0.25}
    text = (zoo / "index.json").read_text()
    assert text == json.dumps({"barre3": {}, "dverge3": entry, "vit": {"a": 1}}, indent=2) + "\n"
    files = sorted(path.name for path in saved.iterdir() if path.name != "history.parquet")
    assert len(files) == 5
    assert sorted(path.name for path in (zoo / "dverge3").iterdir()) == files
    assert all((zoo / "dverge3" / name).read_bytes() == (saved / name).read_bytes() for name in files)


def test_the_command_says_what_was_measured(saved: Path, measured: list[str], tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["dverge3", str(saved), str(tmp_path / "zoo")])
    assert (done.exit_code, done.output) == (0, "dverge3: clean 97.5%, robust 25.0%\n")
    assert json.loads((tmp_path / "zoo" / "index.json").read_text())["dverge3"]["robust_accuracy"] == 0.25


def test_what_is_not_adopted(saved: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unknown embedded ensemble 'dverg3'; did you mean 'dverge3'"):
        adopt("dverg3", saved, tmp_path / "zoo")
    monkeypatch.setattr(module, "load", lambda folder: load_model(DVERGE))
    about = json.loads((saved / "ensemble.json").read_text())
    about["members"][1]["name"] = "timm:test_resnet"
    (saved / "ensemble.json").write_text(json.dumps(about))
    with pytest.raises(InputError, match="saved: the members are not of the zoo's architectures"):
        adopt("dverge3", saved, tmp_path / "zoo")
    assert not (tmp_path / "zoo").exists()
