"""Each warning fires on a model made to have the fault, and none on a model that has none."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from advens.attacks.whitebox.checks import (
    few_classes,
    inspect,
    no_rise,
    random_outputs,
    wrong_outputs,
    zero_gradients,
)
from advens.datasets.digits import digits_arrays
from advens.defenses.ensembles import RandomizedEnsemble
from advens.models import load_model
from advens.threat import Threat

LINF, L2 = Threat("linf", 0.1), Threat("l2", 1.0)
N = 24


class Wrapped(nn.Module):
    """A model with something before and after it."""

    def __init__(
        self,
        net: nn.Module,
        before: Callable[[Tensor], Tensor] | None = None,
        after: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.net, self.before, self.after = net, before, after

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x if self.before is None else self.before(x))
        return out if self.after is None else self.after(out)


@pytest.fixture(scope="module")
def resnet() -> nn.Module:
    return load_model("digits:resnet")


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    pixels, labels, _ = digits_arrays("test")
    return torch.tensor(pixels[:N]).float() / 255, torch.tensor(labels[:N])


def noisy(logits: Tensor) -> Tensor:
    return logits + 0.1 * torch.randn_like(logits)


FAULTS: dict[str, tuple[Callable[[nn.Module], nn.Module], str]] = {
    "probabilities": (lambda net: Wrapped(net, after=lambda z: z.softmax(1)), "look like probabilities"),
    "log-probabilities": (lambda net: Wrapped(net, after=lambda z: z.log_softmax(1)), "log-probabilities"),
    "random": (lambda net: Wrapped(net, after=noisy), "random"),
    "random input": (lambda net: Wrapped(net, before=lambda x: x + 0.1 * torch.randn_like(x)), "random"),
    "saturated": (lambda net: Wrapped(net, after=lambda z: z * 1e4), "exactly zero"),
    "rounded": (lambda net: Wrapped(net, before=lambda x: (x * 15).round() / 15), "does not rise"),
    "cut off": (lambda net: Wrapped(net, before=torch.Tensor.detach), "no gradient"),
    "two classes": (lambda net: Wrapped(net, after=lambda z: z[:, :2]), "2 classes"),
}


@pytest.mark.parametrize("threat", [LINF, L2], ids=["linf", "l2"])
@pytest.mark.parametrize("name", ["digits:resnet", "digits:vit-at"])
def test_silent_where_nothing_is_wrong(name: str, threat: Threat, digits: Any) -> None:
    assert inspect(load_model(name), *digits, threat) == []


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_seen(fault: str, resnet: nn.Module, digits: Any) -> None:
    build, said = FAULTS[fault]
    x, y = digits
    found = inspect(build(resnet), x, y % 2 if fault == "two classes" else y, LINF)
    assert any(said in line for line in found), found
    assert all(line and "\n" not in line for line in found)


def test_each_check_alone(resnet: nn.Module, digits: Any) -> None:
    x, y = digits
    rounded, cut = FAULTS["rounded"][0](resnet), FAULTS["cut off"][0](resnet)
    assert wrong_outputs(resnet, x) is None
    assert "probabilities" in str(wrong_outputs(FAULTS["probabilities"][0](resnet), x))
    assert "1 outputs" in str(wrong_outputs(Wrapped(resnet, after=lambda z: z[:, :1]), x))
    assert random_outputs(resnet, x) is None
    assert "random" in str(random_outputs(FAULTS["random"][0](resnet), x))
    assert zero_gradients(resnet, x, y, LINF) is None
    assert f"{N} of {N} clean images" in str(zero_gradients(rounded, x, y, LINF))
    assert "no gradient" in str(zero_gradients(cut, x, y, LINF))
    assert no_rise(resnet, x, y, LINF) is None
    assert f"{N} of {N} images over 4 steps" in str(no_rise(rounded, x, y, LINF, steps=4))
    assert "no gradient" in str(no_rise(cut, x, y, LINF))


@pytest.mark.parametrize(("classes", "said"), [(2, "needs 3"), (3, "without targets"), (4, None)])
def test_few_classes(classes: int, said: str | None) -> None:
    found = few_classes(classes)
    assert found is None if said is None else said in str(found)


def test_shuffled_logits_are_no_probabilities(resnet: nn.Module, digits: Any) -> None:
    """Small logits inside [0, 1] whose sum is not 1 are logits."""
    assert wrong_outputs(Wrapped(resnet, after=torch.sigmoid), digits[0]) is None


def test_randomness_is_allowed_for(resnet: nn.Module, digits: Any) -> None:
    """Averaged passes, and the members of a randomized ensemble, are no fault."""
    assert inspect(FAULTS["random"][0](resnet), *digits, LINF, eot=4) == []
    other = load_model("digits:vit")
    assert inspect(RandomizedEnsemble([resnet, other], [0.7, 0.3]), *digits, LINF) == []
    spoilt = RandomizedEnsemble([resnet, FAULTS["random"][0](other)], [0.7, 0.3], num_classes=10)
    found = inspect(spoilt, *digits, LINF)
    assert [line.partition(":")[0] for line in found] == ["member 1"]


def test_no_images(resnet: nn.Module, digits: Any) -> None:
    assert inspect(resnet, digits[0][:0], digits[1][:0], LINF) == []


class Restless(nn.Module):
    """Draws from every global generator; batch norm and dropout besides."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(),
            nn.Linear(4 * 30 * 30, 10),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        shift = torch.rand(1) + random.random() + float(np.random.rand())
        out: Tensor = self.net(x + 0.01 * shift)
        return out


def test_everything_comes_back(digits: Any) -> None:
    def states() -> tuple[Any, ...]:
        return torch.get_rng_state().tolist(), random.getstate(), repr(np.random.get_state())

    with torch.random.fork_rng(devices=[]):
        model = Restless().train()
    model.net[0].eval()
    model.net[5].requires_grad_(False)
    values = [t.clone() for t in model.state_dict().values()]
    flags = [(m.training for m in model.modules()), [p.requires_grad for p in model.parameters()]]
    flags[0] = list(flags[0])
    before, x = states(), digits[0].clone()
    first = inspect(model, *digits, LINF)
    for check in (wrong_outputs, random_outputs):
        check(model, x)
    for look in (zero_gradients, no_rise):
        look(model, *digits, LINF)
    assert states() == before
    assert flags == [[m.training for m in model.modules()], [p.requires_grad for p in model.parameters()]]
    assert all(torch.equal(a, b) for a, b in zip(values, model.state_dict().values(), strict=True))
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(x, digits[0])
    torch.rand(5)
    random.random()
    assert inspect(model, *digits, LINF) == first, "the same words, whatever was drawn before"
