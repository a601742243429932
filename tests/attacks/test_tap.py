"""The tap: what it keeps, what it refuses, and that nothing is left of it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from advens.attacks import create_attack
from advens.attacks.hooks import attached
from advens.attacks.interfaces import ChangeContext
from advens.attacks.tap import Tap
from advens.errors import InputError


class InPlace(nn.Module):
    """A layer whose output the next one overwrites."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.relu = nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(inplace=True)
        self.head = nn.Linear(4 * 36, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.relu(self.first(x)).flatten(1))
        return out


def test_features_are_those_before_what_works_in_place() -> None:
    net, x = InPlace().double().requires_grad_(False), torch.rand(2, 3, 6, 6, dtype=torch.float64)
    tap = Tap(("first",), "fia")
    with attached(net, [tap], ChangeContext()):
        z = net(x)
    (f,) = tap.take()
    wanted = net.first(x)
    torch.testing.assert_close(f.detach(), wanted)
    assert (f < 0).any()
    torch.testing.assert_close(z.detach(), net(x))
    (g,) = torch.autograd.grad(z[:, 0].sum(), f)
    torch.testing.assert_close(g, net.head.weight[0].view(4, 6, 6) * (wanted > 0))
    assert not net.first._forward_hooks
    with pytest.raises(InputError, match="does not run"):
        tap.take()


def test_the_graph_begins_at_the_features_unless_the_image_has_a_gradient() -> None:
    net, x = InPlace().double().requires_grad_(False), torch.rand(2, 3, 6, 6, dtype=torch.float64)
    tap = Tap(("first",), "fia")
    with attached(net, [tap], ChangeContext()):
        net(x)
        assert tap.take()[0].is_leaf
        net(x.requires_grad_())
        (f,) = tap.take()
        assert torch.autograd.grad(f.sum(), x)[0].abs().sum() > 0
        with torch.no_grad():
            net(x)
        assert not tap.take()[0].requires_grad


def test_what_is_no_tensor_is_refused() -> None:
    class Pair(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x, x

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pair, self.unused = Pair(), nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            return self.pair(x)[0].flatten(1)[:, :4]

    x, y = torch.rand(2, 3, 6, 6), torch.tensor([0, 1])
    with pytest.raises(InputError, match="'fia' taps tensors; layer pair of a surrogate, a Pair, gives"):
        create_attack("fia", layer="pair")(Net(), x, y)
    with pytest.raises(InputError, match="'fia': layer unused of a surrogate does not run"):
        create_attack("fia", layer="unused")(Net(), x, y)


def test_the_tap_sees_what_changes_leave() -> None:
    """A change at the same module acts first, on values and on gradients."""

    class Doubled:
        def attach(self, model: nn.Module, context: ChangeContext) -> list[object]:
            return [model.first.register_forward_hook(lambda module, args, out: 2 * out)]

    net, x = InPlace().double().requires_grad_(False), torch.rand(2, 3, 6, 6, dtype=torch.float64)
    tap = Tap(("first",), "fia")
    with attached(net, [Doubled(), tap], ChangeContext()):  # type: ignore[list-item]
        net(x)
    torch.testing.assert_close(tap.take()[0].detach(), 2 * net.first(x))
