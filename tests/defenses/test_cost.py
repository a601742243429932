"""FLOPs counted by hand; models come back as they were."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from advens.classifier import Classifier
from advens.defenses.cost import cost
from advens.defenses.ensembles import Ensemble, RandomizedEnsemble
from advens.errors import InputError

C, SIDE = 4, 6


class Attention(nn.Module):
    """Four tokens of width 8, two heads; torch has a fast path for it that is not counted."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x[:, 0, :4, :8].contiguous()
        out: Tensor = self.attention(tokens, tokens, tokens, need_weights=False)[0]
        return out.flatten(1)


def test_cost_by_hand() -> None:
    with torch.random.fork_rng(devices=[]):
        net = nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(),
            nn.Linear(4 * SIDE * SIDE, 8), nn.Linear(8, C),
        ).double()  # fmt: skip
        grouped = nn.Conv2d(3, 6, 3, stride=2, padding=1, groups=3)
    model = Classifier(net, name="toy", num_classes=C)
    model.requires_grad_(True).train()
    net[4].eval()
    buffers = [b.clone() for b in model.buffers()]
    state, fast = torch.get_rng_state(), torch.backends.mha.get_fastpath_enabled()
    conv = 2 * (3 * 3 * 3) * 4 * SIDE * SIDE  # a multiply-add of 27 weights for each of 4 maps' pixels
    linear = 2 * (4 * SIDE * SIDE * 8 + 8 * C)
    assert cost(model, (SIDE, SIDE)) == conv + linear
    model.input_size = (SIDE, SIDE)
    assert cost(model) == cost(model, (32, 32)) == conv + linear
    assert cost(grouped, (8, 8)) == 2 * 9 * 6 * 4 * 4
    projections, products = 2 * 4 * 8 * (3 * 8 + 8), 2 * (2 * 2 * 4 * 4 * 4)
    assert cost(Attention(), (8, 8)) == projections + products
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.backends.mha.get_fastpath_enabled() == fast
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), buffers, strict=True))
    assert all(p.requires_grad for p in model.parameters())
    assert [m.training for m in net] == [True, True, True, True, False, True, True]
    assert not nn.modules.module._global_forward_hooks
    assert not nn.modules.module._global_forward_pre_hooks


def test_cost_of_ensembles() -> None:
    with torch.random.fork_rng(devices=[]):
        small, large = (nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, c)) for c in (2, 2))
        large.append(nn.Linear(2, 2))
    one, two = 2 * 48 * 2, 2 * 48 * 2 + 2 * 4
    assert [cost(m, (4, 4)) for m in (small, large)] == [one, two]
    assert cost(Ensemble([small, large], num_classes=2), (4, 4)) == one + two
    drawn = RandomizedEnsemble([small, large], [0.75, 0.25], num_classes=2)
    assert cost(drawn, (4, 4)) == 0.75 * one + 0.25 * two
    assert drawn.calls == 0
    nested = Ensemble([drawn, small], num_classes=2)
    assert cost(nested, (4, 4)) == 0.75 * one + 0.25 * two + one


def test_size_is_needed() -> None:
    with pytest.raises(InputError, match="images of any size"):
        cost(nn.Identity())
