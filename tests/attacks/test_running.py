"""What surrounds an attack: checked input, borrowed models, memory that runs out, the caller's mode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from advens.attacks import create_attack
from advens.attacks.running import out_of_memory
from advens.errors import InputError, InputWarning, RunError

Net = Callable[..., nn.Module]


@pytest.fixture
def x(images: Any) -> Tensor:
    found: Tensor = images(0)
    return found


@pytest.fixture
def y() -> Tensor:
    return torch.tensor([0, 1, 2, 3])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y: {"x": (x * 255).to(torch.uint8)}, "x must be float .*uint8"),
        (lambda x, y: {"x": x[0]}, r"x must be float \(N, C, H, W\); got torch.float64 \(3, 8, 8"),
        (lambda x, y: {"x": x * 255}, r"x must lie in \[0, 1\]; it spans \[0, 255\]"),
        (lambda x, y: {"x": x - 0.1}, r"x must lie in \[0, 1\]"),
        (lambda x, y: {"x": x * torch.nan}, r"x must lie in \[0, 1\]"),
        (lambda x, y: {"y": y[:2]}, r"y must be integers \(4,\); got torch.int64 \(2,\)"),
        (lambda x, y: {"y": y.float()}, r"y must be integers \(4,\); got torch.float32"),
        (lambda x, y: {"y": y - 1}, "y holds -1; labels start at 0"),
        (lambda x, y: {"target": y}, "target equals the label of some samples"),
        (lambda x, y: {"target": y[None]}, r"target must be integers \(4,\)"),
        (lambda x, y: {"models": []}, "at least one surrogate"),
        (lambda x, y: {"models": [len]}, "surrogates are torch.nn.Modules; got builtin.*wrap a function"),
        (lambda x, y: {"models": lambda z: z}, "a torch.nn.Module or a sequence of them; got function"),
        (lambda x, y: {"x": x.numpy()}, "x must be a torch tensor; got ndarray"),
        (lambda x, y: {"y": y.tolist()}, "y must be a torch tensor; got list"),
        (lambda x, y: {"target": 3}, "target must be a torch tensor; got int"),
        (lambda x, y: {"x": x.permute(0, 2, 3, 1)}, r"channels last; give .* x\.permute\(0, 3, 1, 2\)"),
    ],
)
def test_bad_input(change: Any, message: str, net: Net, x: Tensor, y: Tensor) -> None:
    given = {"models": [net(0)], "x": x, "y": y, "target": None} | change(x, y)
    with pytest.raises(InputError, match=message) as caught:
        create_attack("ifgsm")(**given)
    assert "\n" not in str(caught.value)


def test_surrogates_in_any_form(net: Net, x: Tensor, y: Tensor) -> None:
    """One model, a list, a tuple, a ModuleList; the same model twice counts twice."""
    attack, a, b = create_attack("mifgsm"), net(0), net(1)
    both = attack([a, b], x, y)
    assert torch.equal(attack((a, b), x, y), both)
    assert torch.equal(attack(nn.ModuleList([a, b]), x, y), both)
    assert torch.equal(attack(a, x, y), attack([a], x, y))
    a.train()
    a[0].eval()
    assert attack.run([a, a], x, y).passes == (20, 20)
    assert (a.training, a[0].training, a[1].training) == (True, False, True)


def test_labels_of_any_integer_type(net: Net, x: Tensor, y: Tensor) -> None:
    attack, model = create_attack("ifgsm"), net(0)
    assert torch.equal(attack(model, x, y.to(torch.int32)), attack(model, x, y))


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
def test_caller_may_have_gradients_off(off: Any, net: Net, x: Tensor, y: Tensor) -> None:
    """Attacks are called from evaluation loops, and their data may be made there too."""
    attack, model = create_attack("mifgsm"), net(0)
    wanted = attack(model, x, y, target=y + 1)
    with off():
        assert torch.equal(attack(model, x * 1, y * 1, target=y + 1), wanted)
        assert not torch.is_grad_enabled()
        assert torch.is_inference_mode_enabled() == (off is torch.inference_mode)
    assert torch.is_grad_enabled()


def test_callers_graph_is_left_alone(net: Net, x: Tensor, y: Tensor) -> None:
    leaf = x.clone().requires_grad_()
    x_adv = create_attack("ifgsm")(net(0), leaf * 1.0, y)
    assert not x_adv.requires_grad
    assert leaf.grad is None


def test_images_a_hair_outside_are_taken_for_inside(net: Net, x: Tensor, y: Tensor) -> None:
    attack, model = create_attack("ifgsm"), net(0)
    x_adv = attack(model, x * (1 + 5e-7) - 2e-7, y)
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1


def test_no_images(net: Net, x: Tensor, y: Tensor) -> None:
    result = create_attack("pgd").run(net(0), x[:0], y[:0])
    assert result.x_adv.shape == (0, 3, 8, 8)


class Small(nn.Module):
    """A model on a device that holds a few images."""

    def __init__(self, net: nn.Module, room: int, error: Exception) -> None:
        super().__init__()
        self.net, self.room, self.error = net, room, error

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > self.room:
            raise self.error
        out: Tensor = self.net(x)
        return out


ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:114] DefaultCPUAllocator: can't allocate memory"),
    RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes"),
]


@pytest.mark.parametrize(
    ("error", "room", "size"),
    [(ERRORS[0], 4, 4), (ERRORS[0], 3, 2), (ERRORS[0], 1, 1), *((e, 2, 2) for e in ERRORS)],
)
def test_micro_batch_halves_until_it_fits(
    error: Exception, room: int, size: int, net: Net, x: Tensor, y: Tensor
) -> None:
    attack, model = create_attack("difgsm", steps=4), net(0)
    wanted = attack.run(model, x, y)
    found = attack.run(Small(model, room, error), x, y)
    assert found.micro_batch == size
    assert found.passes == wanted.passes
    torch.testing.assert_close(found.x_adv, wanted.x_adv, rtol=0, atol=1e-12)


def test_one_image_too_many(net: Net, x: Tensor, y: Tensor) -> None:
    model = Small(net(0), 0, ERRORS[0]).train()
    with pytest.raises(RunError, match="out of memory with a single image"):
        create_attack("ifgsm")(model, x, y)
    assert model.training
    assert all(p.requires_grad for p in model.parameters())


def test_other_errors_are_not_taken_for_memory(net: Net, x: Tensor, y: Tensor) -> None:
    assert not out_of_memory(RuntimeError("shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        create_attack("ifgsm")(net(0, side=16), x, y)


class Infinite(nn.Module):
    """Finite logits, gradients that are not."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.sqrt(x.flatten(1)[:, :6] * 0)


@pytest.mark.parametrize("name", ["mifgsm", "ens-logits", "vmifgsm"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_gradients_that_are_nan_are_an_error(name: str, norm: str, x: Tensor, y: Tensor) -> None:
    with pytest.raises(RunError, match="NaN"):
        create_attack(name, norm=norm)(Infinite(), x, y)


def test_model_without_parameters(x: Tensor, y: Tensor) -> None:
    class Bare(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(2).mean(2).repeat(1, 2)

    x_adv = create_attack("ifgsm", eps=0.1)(Bare(), x, y)
    assert ((x_adv - x).abs().amax((1, 2, 3)) > 0.05).all()


def test_any_image_size_and_channels(net: Net) -> None:
    model = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4, 5))
    x, y = torch.rand(2, 1, 9, 14), torch.tensor([0, 1])
    for name in ("difgsm", "ssa", "bsr", "tifgsm", "admix"):
        assert create_attack(name, steps=1)(model, x, y).shape == x.shape


@pytest.mark.parametrize("name", ["mifgsm", "cwa", "pma"])
def test_probabilities_are_warned_of(name: str, net: Net, x: Tensor, y: Tensor) -> None:
    attack, model = create_attack(name, steps=2), nn.Sequential(net(0), nn.Softmax(1))
    with pytest.warns(InputWarning, match="look like probabilities, not logits.*leave the softmax out"):
        attack(model, x, y)
    create_attack(name, steps=2)(net(0), x, y)  # warnings are errors here: logits give none
    model.name = "mine"  # type: ignore[assignment]
    who = "the model" if name == "pma" else "'mine'"
    with pytest.warns(InputWarning, match=f"the outputs of {who} look like probabilities"):
        attack(model, x, y)


@pytest.mark.parametrize("name", ["mifgsm", "pma"])
def test_channels_that_a_model_refuses(name: str, x: Tensor, y: Tensor) -> None:
    convolution = nn.Sequential(nn.Conv2d(3, 10, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).double()
    with pytest.raises(InputError, match=r"refuses images \(4, 1, 8, 8\): .* 3 channels, but got 1"):
        create_attack(name)(convolution, x[:, :1], y)
    linear = nn.Sequential(nn.Flatten(), nn.Linear(192, 10)).double()
    with pytest.raises(InputError, match=r"refuses images \(4, 1, 8, 8\): .*mat1 and mat2"):
        create_attack(name)(linear, x[:, :1], y)
    grey = nn.Sequential(nn.Conv2d(1, 10, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).double()
    assert create_attack(name)(grey, x[:, :1], y).shape == (4, 1, 8, 8)
