"""Each warning fires on a model made to have the fault, and none on a model that has none."""

from __future__ import annotations

import math
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
from advens.attacks.whitebox.oracle import RowOracle
from advens.datasets.digits import digits_arrays
from advens.defenses.ensembles import Ensemble, RandomizedEnsemble
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


class Says(nn.Module):
    """Gives the next of some outputs in every pass, the last one from then on."""

    def __init__(self, *outputs: list[list[float]]) -> None:
        super().__init__()
        self.outputs = [torch.tensor(out, dtype=torch.float64) for out in outputs]
        self.passes = 0

    def forward(self, x: Tensor) -> Tensor:
        out = self.outputs[min(self.passes, len(self.outputs) - 1)]
        self.passes += 1
        return out


ONE = torch.zeros(1, 3, 2, 2, dtype=torch.float64)


def test_log_probabilities_that_were_not_rounded_are_no_mistake() -> None:
    logits = Says([[2.0, -1.0]])
    assert wrong_outputs(Ensemble([logits, logits], num_classes=2), ONE) is None
    assert "log-probabilities" in str(wrong_outputs(Says([[math.log(0.2), math.log(0.8)]]), ONE))


@pytest.mark.parametrize(
    ("out", "said"),
    [
        ([[0.2, 0.8]],
         "the outputs look like probabilities, not logits: cross-entropy would take the softmax twice; leave "
         "the softmax out"),
        ([[0.2, 0.8 + 5e-6]], "look like probabilities"),
        ([[0.2, 0.81]], None),
        ([[-0.2, 1.2]], None),
        ([[math.log(0.2), math.log(0.8)]],
         "the outputs look like log-probabilities: where those were computed from probabilities that round "
         "to 0 or 1, gradients vanish; give logits"),
        ([[math.log(0.2), math.log(0.82)]], None),
        ([[0.4]], "the model has 1 outputs a sample, not logits of at least two classes"),
    ],
)  # fmt: skip
def test_outputs_that_are_no_logits(out: list[list[float]], said: str | None) -> None:
    found = wrong_outputs(Says(out), ONE)
    assert found == said if said is None or len(said) > 30 else said in str(found)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ([1.0, 0.9e-4], None),
        ([1.0, 2.5e-4], "0.00025"),
        ([3.0, 0.0], None),  # of the same direction
        ([0.0, 2.0], "1.4"),
    ],
)
def test_how_much_outputs_may_differ(other: list[float], said: str | None) -> None:
    """By a relative 1e-4 between any two of five passes, if the class stays."""
    for place in range(1, 5):
        outputs = [[[1.0, 0.0]]] * 5
        outputs[place] = [other]
        model = Says(*outputs)
        found = random_outputs(model, ONE)
        assert model.passes == 5
        assert found == (said and (
            f"the outputs are random (they differ by {said} of their length between forward passes): average "
            "gradients with eot, or give members and probabilities"
        ))  # fmt: skip
    assert random_outputs(Says([[1.0, 0.0]], [other]), ONE, passes=1) is None
    assert random_outputs(Says([[1.0, 1.0 - 1e-9]], [[1.0 - 1e-9, 1.0]]), ONE) is not None, "another class"


class Flat(nn.Module):
    """Logits that depend on the images whose first pixel is below an edge."""

    def __init__(self, edge: float = 0.5) -> None:
        super().__init__()
        self.edge = edge

    def forward(self, x: Tensor) -> Tensor:
        score = x.flatten(1).sum(1) * (x[:, 0, 0, 0] < self.edge)
        return torch.stack([score, -score, 0 * score, 0 * score], 1)


def marked(*values: float) -> Tensor:
    x = torch.full((len(values), 3, 2, 2), 0.3, dtype=torch.float64)
    x[:, 0, 0, 0] = torch.tensor(values)
    return x


def test_where_there_is_no_gradient() -> None:
    """At the clean images, and at random starts, which may cross an edge."""
    small, y = Threat("linf", 0.05), torch.zeros(4, dtype=torch.long)
    assert zero_gradients(Flat(), marked(0.1, 0.2, 0.3, 0.4), y, small) is None
    found = zero_gradients(Flat(), marked(0.1, 0.9, 0.8, 0.2), y, small)
    assert found == (
        "the cross-entropy's gradient is exactly zero for 2 of 4 clean images and 2 random starts: gradients "
        "are masked; try the margin losses"
    )
    seen = RowOracle([Flat()], LINF, marked(0.5, 0.49, 0.48, 0.1), y)
    starts = seen.random_start(seen.rows(torch.arange(4)))[:, 0, 0, 0]
    crossed = int((starts >= 0.5).sum())
    assert 0 < crossed < 3
    found = zero_gradients(Flat(), marked(0.5, 0.49, 0.48, 0.1), y, LINF)
    assert f"zero for 1 of 4 clean images and {crossed} random starts" in str(found)


def test_how_many_losses_may_stay() -> None:
    """A quarter of them."""
    y = torch.zeros(4, dtype=torch.long)
    for values, stuck in (((0.9, 0.1, 0.1, 0.1), 1), ((0.9, 0.9, 0.1, 0.1), 2), ((0.9, 0.9, 0.9, 0.9), 4)):
        found = no_rise(Flat(), marked(*values), y, Threat("linf", 0.05), steps=3)
        assert found == (None if stuck == 1 else (
            f"the loss does not rise for {stuck} of 4 images over 3 steps of PGD: gradients lead nowhere, so "
            "that gradient attacks overrate robustness"
        ))  # fmt: skip


def test_members_are_named_and_the_lines_are_in_order() -> None:
    """Each member's outputs first, then the number of classes, then gradients."""
    made = nn.Module()
    made.members = nn.ModuleList([Says([[0.5, 0.5, 0.0]] * 2), Says([[3.0, 0.0, 1.0]] * 2)])
    made.probabilities = torch.tensor([0.5, 0.5])
    found = inspect(made, ONE.repeat(2, 1, 1, 1), torch.zeros(2, dtype=torch.long), LINF)
    assert [line.partition(":")[0] for line in found] == [
        "member 0", "the model has 3 classes; the DLR loss works without targets only (4 with targets)",
        "no gradient reaches the images",
    ]  # fmt: skip
    assert inspect(made, ONE[:0], torch.zeros(0, dtype=torch.long), LINF) == []
