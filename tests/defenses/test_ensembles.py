"""Ensembles: what they compute, whose randomness they use, what they refuse, and saved ones."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Sequence
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import advens.models
from advens.attacks.whitebox.oracle import RowOracle
from advens.classifier import Classifier
from advens.defenses.ensembles import Ensemble, RandomizedEnsemble
from advens.defenses.saved import load, source
from advens.errors import InputError
from advens.models import load_model
from advens.spec import Spec
from advens.threat import Threat
from advens.trust import trusting

torch.set_num_threads(1)


def tiny(seed: int, classes: int = 4) -> Classifier:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 6 * 6, 8), nn.Tanh(), nn.Linear(8, classes))
    return Classifier(net, name=f"toy:{seed}", num_classes=classes)


def images(n: int = 40, side: int = 6) -> Tensor:
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(0))


def zoo() -> list[Classifier]:
    timm = "timm:test_vit?pretrained=false&num_classes=10&seed=3&size=32&img_size=32&mean=0.5&std=0.25"
    return [load_model("digits:resnet"), load_model(timm)]


def test_means() -> None:
    members, x = [tiny(0), tiny(1), tiny(2)], images()
    each = torch.stack([member(x) for member in members]).double()
    probs = Ensemble(members)(x).double().exp()
    torch.testing.assert_close(probs, each.softmax(-1).mean(0), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(Ensemble(members, over="logits")(x).double(), each.mean(0))


def test_sure_members_stay_finite() -> None:
    """Probabilities that round to 0 keep their logarithm and their gradient."""
    members = [nn.Linear(3, 3, bias=False) for _ in range(2)]
    for member in members:
        with torch.no_grad():
            member.weight.copy_(torch.eye(3) * 1000)
    x = torch.tensor([[1.0, 0.5, 0.0]], requires_grad=True)
    for model in (Ensemble(members, num_classes=3), RandomizedEnsemble(members, num_classes=3)):
        out = model(x) if isinstance(model, Ensemble) else model.log_expected(x)
        assert torch.isfinite(out).all()
        assert out[0, 1].item() == pytest.approx(-500)
        (g,) = torch.autograd.grad(out[0, 1], x)
        assert g.abs().max() > 100


def test_expected_accuracy_is_exact() -> None:
    members, alphas, x = [tiny(0), tiny(1), tiny(2)], [0.5, 0.3, 0.2], images()
    y = members[0](x).argmax(1)
    model = RandomizedEnsemble(members, alphas)
    got = model.expected_accuracy(x, y)
    assert got.dtype == torch.float64
    for i in range(len(x)):
        says = [int(member(x[i : i + 1]).argmax()) for member in members]
        wanted = sum(a for a, said in zip(alphas, says, strict=True) if said == int(y[i]))
        assert float(got[i]) == pytest.approx(wanted, abs=1e-12)
    assert len(set(got.tolist())) > 2
    assert model.calls == 0, "nothing was drawn"
    each = torch.stack([member(x).softmax(1) for member in members])
    mean = (torch.tensor(alphas)[:, None, None] * each).sum(0)
    torch.testing.assert_close(model.log_expected(x).exp(), mean)


def test_attacks_see_the_same() -> None:
    members, x = [tiny(0), tiny(1)], images()
    y = members[0](x).argmax(1)
    model = RandomizedEnsemble(members, [0.7, 0.3])
    oracle = RowOracle([model], Threat("linf", 0.1), x, y)
    rows = oracle.rows(torch.arange(len(x)))
    assert torch.equal(oracle.accuracy(x, rows), model.expected_accuracy(x, y))
    torch.testing.assert_close(oracle.logits(x, rows), model.log_expected(x))
    assert model.calls == 0


def test_draws() -> None:
    """One member a call, by probability, from a generator of its own."""
    members, alphas, x = [tiny(0), tiny(1), tiny(2)], [0.6, 0.4, 0.0], images(5)
    each = [member(x) for member in members]
    model, again = RandomizedEnsemble(members, alphas, seed=3), RandomizedEnsemble(members, alphas, seed=3)
    before = torch.get_rng_state()
    drawn = []
    for _ in range(400):
        out = model(x)
        drawn.append(next(k for k, wanted in enumerate(each) if torch.equal(out, wanted)))
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    assert [again.draw() for _ in range(400)] == drawn
    assert 2 not in drawn
    assert abs(drawn.count(0) / 400 - 0.6) < 4 * math.sqrt(0.24 / 400)
    other = RandomizedEnsemble(members, alphas, seed=4)
    assert [other.draw() for _ in range(400)] != drawn
    twin = copy.deepcopy(model)
    assert [twin.draw() for _ in range(20)] == [model.draw() for _ in range(20)]


def test_trainable() -> None:
    """Members stay as they are: what is to be trained gets gradients, what is frozen does not."""
    free, frozen = tiny(0).train().requires_grad_(True), tiny(1)
    for model in (Ensemble([free, frozen]), RandomizedEnsemble([free, frozen], [0.5, 0.5])):
        assert model.training
        assert free.training
        assert not frozen.training
        assert [p.requires_grad for p in model.parameters()] == [True] * 4 + [False] * 4
        assert len(list(model.parameters())) == 8, "every parameter once"
        out = model(images(3)) if isinstance(model, Ensemble) else model.log_expected(images(3))
        out.square().sum().backward()
        assert all(p.grad is not None for p in free.parameters())
        assert all(p.grad is None for p in frozen.parameters())
        free.zero_grad()
        assert not model.eval().training
        assert not free.training
        free.train()


def test_a_classifier() -> None:
    a, b = zoo()
    model = RandomizedEnsemble([a, b], [0.25, 0.75])
    assert isinstance(model, Classifier)
    assert (model.num_classes, model.family, model.input_size) == (10, "hybrid", (32, 32))
    assert model.name == f"randomized({a.name}, {b.name})"
    assert Ensemble([a, a], name="twice").name == "twice"
    assert Ensemble([a, a]).family == "cnn"
    assert isinstance(model.members, nn.ModuleList)
    assert model.double()(images(2, side=32).double()).dtype == torch.float64


def test_what_all_members_share_is_that_of_the_ensemble() -> None:
    """A size that they all take, or none; the family, or a hybrid; how many classes there are."""
    for sizes, size in (((6, 6), (6, 6)), ((6, 8), None), ((None, 6), None)):
        members = [tiny(0), tiny(1)]
        for member, side in zip(members, sizes, strict=True):
            member.input_size = None if side is None else (side, side)
        assert Ensemble(members).input_size == size
    members = [tiny(0), tiny(1)]
    members[0].family = members[1].family = "vit"
    assert Ensemble(members).family == "vit"
    members[1].family = "cnn"
    assert RandomizedEnsemble(members).family == "hybrid"
    assert Ensemble(members).name == "mean(toy:0, toy:1)"
    assert RandomizedEnsemble(members, name="mine").name == "mine"
    assert Ensemble([nn.Linear(2, 3)], num_classes=3).name == "mean(Linear)"


def test_digest_tells_what_is_computed() -> None:
    a, b = tiny(0), tiny(1)
    every = [
        Ensemble([a, b]), Ensemble([a, b], over="logits"), Ensemble([b, a]), Ensemble([a]),
        RandomizedEnsemble([a, b]), RandomizedEnsemble([a, b], [0.4, 0.6]),
    ]  # fmt: skip
    digests = [model.digest for model in every]
    assert len(set(digests)) == len(every)
    assert Ensemble([tiny(0), tiny(1)], name="other").digest == digests[0]
    with torch.no_grad():
        next(a.parameters()).add_(1)
    assert every[0].digest != digests[0]


@pytest.mark.parametrize(
    ("probabilities", "said"),
    [
        ([0.5, 0.3, 0.2], "2 members need 2 probabilities; got 3"),
        ([0.5, 0.4], "sum to 0.9, not to 1"),
        ([1.5, -0.5], "none may be below 0"),
        ([float("nan"), 1.0], "none may be below 0"),
        ("even", "is not a list of numbers"),
        (0.5, "need 2 probabilities"),
    ],
)
def test_wrong_probabilities(probabilities: Any, said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        RandomizedEnsemble([tiny(0), tiny(1)], probabilities)
    assert "\n" not in str(caught.value)


def test_wrong_members() -> None:
    with pytest.raises(InputError, match="at least one member"):
        Ensemble([])
    with pytest.raises(InputError, match="at least one member"):
        RandomizedEnsemble([])
    with pytest.raises(InputError, match=r"share their classes; these have \[4, 5\]"):
        Ensemble([tiny(0), tiny(1, classes=5)])
    with pytest.raises(InputError, match="give num_classes"):
        Ensemble([nn.Flatten()])
    with pytest.raises(InputError, match="unknown mean 'votes'"):
        Ensemble([tiny(0)], over="votes")
    with pytest.raises(InputError, match="did you mean 'probs'"):
        Ensemble([tiny(0)], over="prob")


def kinds(members: Sequence[nn.Module]) -> list[Any]:
    return [
        Ensemble(members), Ensemble(members, over="logits"), RandomizedEnsemble(members, [0.1, 0.9], seed=7)
    ]  # fmt: skip


@pytest.mark.parametrize("kind", range(3))
def test_saved_and_loaded(kind: int, tmp_path: Path) -> None:
    members = zoo()
    for member in members:  # trained further: the weights are no longer those of their source
        with torch.no_grad():
            for parameter in member.parameters():
                parameter.add_(0.01)
    model, x, path = kinds(members)[kind], images(6, side=32), tmp_path / "runs" / "one"
    model.save(path)
    assert sorted(p.name for p in path.iterdir()) == [
        "ensemble.json", "member-0.safetensors", "member-1.safetensors"
    ]  # fmt: skip
    assert [p.name for p in path.parent.iterdir()] == ["one"], "nothing is left beside it"
    again = load(path)
    assert type(again) is type(model)
    assert again.digest == model.digest
    assert again.settings() == model.settings()
    assert [m.name for m in again.members] == [m.name for m in members]
    for old, new in zip(model.members, again.members, strict=True):
        assert torch.equal(new(x), old(x))
    assert torch.equal(again(x), model(x))
    assert not again.training
    assert not any(p.requires_grad for p in again.parameters())
    again.save(path)
    assert load(path).digest == model.digest


def test_double_precision_is_kept(tmp_path: Path) -> None:
    model = Ensemble([load_model("digits:resnet").double()])
    model.save(tmp_path / "one")
    again, x = load(tmp_path / "one"), images(2, side=32).double()
    assert torch.equal(again.double()(x), model(x))


def test_a_model_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``defense:PATH``, as the entry point of the group ``advens.models`` gives it."""
    model = RandomizedEnsemble(zoo(), [0.5, 0.5])
    model.save(tmp_path / "one")
    name = f"defense:{tmp_path / 'one'}"
    assert source(Spec.parse(name, "model")).digest == model.digest
    point = EntryPoint("defense", "advens.defenses.saved:source", "advens.models")

    def points(group: str, name: str | None = None) -> list[EntryPoint]:
        return [point] if group == "advens.models" and name in (None, "defense") else []

    monkeypatch.setattr(advens.registry, "entry_points", points)
    loaded = load_model(name)
    assert isinstance(loaded, RandomizedEnsemble)
    assert loaded.name == name
    card = advens.models.describe(name)
    assert (card.num_classes, card.digest) == (10, model.digest)
    nested = Ensemble([loaded, load_model("digits:resnet")])
    nested.save(tmp_path / "two")
    assert load(tmp_path / "two").digest == nested.digest
    with pytest.raises(InputError, match="unknown option"):
        load_model(name + "?seed=3")
    with pytest.raises(InputError, match="no saved ensemble"):
        load_model(f"defense:{tmp_path / 'none'}")


def test_damage_is_one_line(tmp_path: Path) -> None:
    path, weights = tmp_path / "one", tmp_path / "one" / "member-0.safetensors"

    def refused(said: str) -> None:
        with pytest.raises(InputError, match=said) as caught:
            load(path)
        assert "\n" not in str(caught.value)

    refused("no saved ensemble")
    model = Ensemble([load_model("digits:resnet")])
    model.save(path)
    weights.write_bytes(weights.read_bytes()[:100])
    refused("damaged")
    model.save(path)
    Ensemble([load_model("digits:resnet-b")]).save(tmp_path / "two")
    weights.write_bytes((tmp_path / "two" / weights.name).read_bytes())
    refused("not those that were saved")
    model.save(path)
    about = json.loads((path / "ensemble.json").read_text())
    for broken in ({**about, "kind": "bag"}, {**about, "format": 99}, {"members": 3}, [], {}):
        (path / "ensemble.json").write_text(json.dumps(broken))
        refused("saved ensemble")
    (path / "ensemble.json").write_text("{")
    refused("damaged")


def test_channels_that_a_network_transforms_are_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torchvision's inception_v3 says so beside its weights."""
    (tmp_path / "inceptive.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Linear):\n"
        "    def __init__(self):\n"
        "        super().__init__(6, 4)\n"
        "        self.transform_input = False\n"
        "    def forward(self, x):\n"
        "        return super().forward((2 * x - 1 if self.transform_input else x).mean((1, 2)))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with trusting("inceptive:*"):
        plain, model = load_model("inceptive:Net"), load_model("inceptive:Net")
        model.net.transform_input = True
        assert not torch.equal(plain(images(2)), model(images(2)))
        Ensemble([plain, model]).save(tmp_path / "two")
        again = load(tmp_path / "two")
    assert [m.net.transform_input for m in again.members] == [False, True]  # type: ignore[union-attr]
    assert torch.equal(again(images(2)), Ensemble([plain, model])(images(2)))


def test_what_cannot_be_saved(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="member 1 is no Classifier of a source"):
        Ensemble([load_model("digits:resnet"), nn.Flatten()]).save(tmp_path / "one")
    with pytest.raises(InputError, match="unknown model source 'toy'"):
        Ensemble([tiny(0)]).save(tmp_path / "one")
    other = load_model("digits:resnet")
    other.name = "digits:vit"
    with pytest.raises(InputError, match="not of the architecture that 'digits:vit' stands for"):
        Ensemble([other]).save(tmp_path / "one")
    assert list(tmp_path.iterdir()) == [], "nothing is half-written"
    (tmp_path / "mine").mkdir()
    with pytest.raises(InputError, match="exists and is no saved ensemble"):
        Ensemble([load_model("digits:resnet")]).save(tmp_path / "mine")


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere is no saved ensemble: no folder is there"):
        load(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"is no saved ensemble: there is no ensemble\.json in it"):
        load(tmp_path)
