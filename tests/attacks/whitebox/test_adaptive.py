"""Adaptive attacks: gradients through a stand-in, points that count by the model, trust and records."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from advens.attacks.registry import attack_from_spec, create_attack
from advens.attacks.whitebox.adaptive import Adaptive, Through, adapted
from advens.attacks.whitebox.oracle import RowOracle
from advens.attacks.whitebox.sanity import Limits, sanity_report
from advens.defenses.ensembles import RandomizedEnsemble
from advens.errors import InputError
from advens.threat import Threat
from advens.trust import trusting

MODULE = '''
def inner(model):
    """The network behind the quantisation."""
    return model.net

def shifted(model):
    return lambda x: model.net(x) + 100

def narrow(model):
    return lambda x: model.net(x)[:, :2]
'''
THREAT = Threat("linf", 0.2)


class Quantised(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net((x * 4).round() / 4)
        return out


def network(seed: int = 0) -> nn.Module:
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, 4))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        net[1].weight.copy_(torch.randn(4, 48, generator=generator))
        net[1].bias.zero_()
    return net.double()


@pytest.fixture
def images() -> tuple[Tensor, Tensor]:
    x = (torch.rand(24, 3, 4, 4, generator=torch.Generator().manual_seed(1)) * 255).round().double() / 255
    return x, Quantised(network())(x).argmax(1)


@pytest.fixture
def name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: Any) -> str:
    """A module with stand-ins that can be imported under a name of its own."""
    module = f"standins_{abs(hash(request.node.nodeid))}"
    (tmp_path / f"{module}.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    return module


def accuracy(attack: Any, x: Tensor, y: Tensor) -> float:
    model = Quantised(network())
    return float((model(attack(model, x, y)).argmax(1) == y).double().mean())


@pytest.mark.parametrize("outputs", ["model", "stand-in"])
@pytest.mark.parametrize("inner", ["pgd-ce", "pma"])
def test_it_breaks_what_the_attack_alone_does_not(
    name: str, images: tuple[Tensor, Tensor], outputs: str, inner: str
) -> None:
    alone = create_attack(inner, eps=0.2, steps=20)
    with trusting(f"{name}:inner"):
        through = create_attack(
            "adaptive", eps=0.2, attack={"name": inner, "steps": 20}, stand_in=f"{name}:inner",
            outputs=outputs,
        )  # fmt: skip
        assert accuracy(through, *images) < 0.3 < accuracy(alone, *images) - 0.3
        result = through.run(Quantised(network()), *images)
    assert result.passes.backward == through.passes(1).backward
    assert result.passes.forward <= through.passes(1).forward
    assert result.passes.forward > alone.passes(1).forward


def test_values_are_the_models_and_gradients_the_stand_ins(images: tuple[Tensor, Tensor]) -> None:
    x, _ = images
    net, model = network(), Quantised(network())
    made = Through(model, lambda x: net(x) + 100)
    leaf = x.clone().requires_grad_()
    out = made(leaf)
    assert torch.equal(out, model(x))
    (g,) = torch.autograd.grad(out[:, 0].sum(), leaf)
    other = x.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(net(other)[:, 0].sum(), other)
    assert torch.equal(g, wanted)
    with torch.no_grad():
        assert torch.equal(made(x), model(x))


def test_points_count_by_the_model_itself(images: tuple[Tensor, Tensor]) -> None:
    """A stand-in that is wrong everywhere breaks nothing."""
    x, y = images
    model = Quantised(network())
    oracle = RowOracle([model], THREAT, x, y)

    class Wrong(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return -network()(x)

    view = oracle.through([Wrong()], judged=True)
    rows = view.rows(torch.arange(len(x)))
    assert float(view.accuracy(x, rows).mean()) == 1
    answer = view.gradient(x, rows, lambda logits: logits.amax(1))
    assert torch.equal(answer.logits, -network()(x))
    assert float(oracle.correct.min()) == 1
    assert oracle.forwards.tolist() == [4] * len(x)
    assert oracle.backwards.tolist() == [1] * len(x)


def test_members_have_stand_ins_of_their_own(name: str, images: tuple[Tensor, Tensor]) -> None:
    x, y = images
    drawn = RandomizedEnsemble([Quantised(network()), Quantised(network(3))], [0.5, 0.5], num_classes=4)
    with trusting(f"{name}:inner"):
        for inner in ("pgd-ce", "pma-members"):
            attack = create_attack("adaptive", eps=0.2, attack=inner, stand_in=f"{name}:inner")
            moved = attack(drawn, x, y)
            right = sum((m(moved).argmax(1) == y).double().mean() / 2 for m in drawn.members)
            before = sum((m(x).argmax(1) == y).double().mean() / 2 for m in drawn.members)
            assert float(right) < float(before) - 0.3
        whole = adapted(drawn, f"{name}:inner", "")
    assert len(list(whole.members)) == 2


def test_what_is_recorded(name: str, tmp_path: Path, images: tuple[Tensor, Tensor]) -> None:
    file = tmp_path / f"{name}.py"
    with trusting(f"{name}:inner"):
        attack = create_attack("adaptive", eps=0.2, stand_in=f"{name}:inner")
    assert attack.source == hashlib.sha256(file.read_bytes()).hexdigest()
    spec = json.loads(json.dumps(attack.spec))
    assert attack_from_spec(spec) == attack  # nothing is trusted here, and nothing called
    with pytest.raises(InputError, match=f"would call {name}.inner.*--trust {name}:inner"):
        attack(Quantised(network()), *images)
    file.write_text(MODULE + "\n")
    with trusting(f"{name}:inner"), pytest.raises(InputError, match="its file is not the one"):
        attack(Quantised(network()), *images)


def test_mistakes(name: str, images: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(InputError, match="--trust nowhere:x"):
        create_attack("adaptive", stand_in="nowhere:x")
    with trusting("nowhere:x", f"{name}:inmer", f"{name}:narrow"):
        with pytest.raises(InputError, match="stand-in 'nowhere:x': No module named 'nowhere'"):
            create_attack("adaptive", stand_in="nowhere:x")
        attack = create_attack("adaptive", eps=0.2, stand_in=f"{name}:inmer")
        with pytest.raises(InputError, match="no function 'inmer'; did you mean 'inner'"):
            attack(Quantised(network()), *images)
        attack = create_attack("adaptive", eps=0.2, stand_in=f"{name}:narrow")
        with pytest.raises(InputError, match=r"returns \(24, 2\) where the model returns \(24, 4\)"):
            attack(Quantised(network()), *images)
    for inner in ("mifgsm", "autoattack", "adaptive"):
        with pytest.raises(InputError, match="a single white-box attack"):
            create_attack("adaptive", attack=inner)
    with pytest.raises(InputError, match="attack"):
        create_attack("adaptive", attack="pna")


def test_without_a_stand_in_it_is_the_attack(images: tuple[Tensor, Tensor]) -> None:
    model = Quantised(network())
    alone = create_attack("pma", eps=0.2, steps=6)
    same = create_attack("adaptive", eps=0.2, attack={"name": "pma", "steps": 6})
    assert isinstance(same, Adaptive)
    assert torch.equal(alone(model, *images), same(model, *images))
    assert alone.passes(1) == same.passes(1)


def test_the_sanity_report_goes_through_the_stand_in(name: str, images: tuple[Tensor, Tensor]) -> None:
    x, y = images
    model, limits = Quantised(network()), Limits(images=24)
    assert not sanity_report(model, x, y, THREAT, limits=limits).passed
    with trusting(f"{name}:inner"):
        report = sanity_report(model, x, y, THREAT, limits=limits, stand_in=(f"{name}:inner", ""))
    assert report.passed, report
