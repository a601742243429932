"""Snapshots as one batched model agree with one after the other; which way is faster."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from advens.benchmarks.speed.stacks import faster, looped, stacked
from advens.classifier import Classifier
from advens.datasets import load_data
from advens.errors import InputError
from advens.models import load_model
from tests.attacks.surrogates.builders.conftest import variants


@pytest.fixture
def x() -> Tensor:
    data = load_data("digits:train?limit=12")
    return next(data.batches([slice(0, 12)])).pixels.float() / 255


@pytest.mark.parametrize("name", ["digits:mambaout", "digits:resnet", "digits:vit"])
def test_stacked_agrees_with_the_loop(x: Tensor, name: str) -> None:
    snapshots, plain = variants(load_model(name), 3)
    batched, one_by_one = stacked(snapshots, x), torch.stack([m(x) for m in plain])
    assert batched.shape == (3, len(x), 10)
    torch.testing.assert_close(batched, one_by_one, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(looped(snapshots, x), one_by_one, atol=1e-6, rtol=0)
    assert (batched[0] - batched[1]).abs().max() > 1e-2
    for each in (*snapshots, *plain):
        each.double()  # a kink's gradient may differ wholly by the last bit
    # on a background of one value max-pooling has ties, which the last bit decides
    noise = torch.rand(x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    leaf, other = ((x + noise / 1000).requires_grad_() for _ in range(2))
    g, h = stacked(snapshots, leaf).square().mean(), torch.stack([m(other) for m in plain]).square().mean()
    g, h = torch.autograd.grad(g, leaf)[0], torch.autograd.grad(h, other)[0]
    torch.testing.assert_close(g, h, atol=1e-5 * float(h.abs().max()), rtol=1e-5)


def test_faster_says_which_and_how_long(x: Tensor) -> None:
    race = faster(variants(load_model("digits:resnet"), 3)[0], x)
    assert 0 < race.stack < 60
    assert 0 < race.loop < 60
    assert race.way == ("stack" if race.stack < race.loop else "loop")


def test_a_network_that_cannot_be_batched_is_looped(x: Tensor) -> None:
    class Branch(nn.Linear):
        def forward(self, z: Tensor) -> Tensor:
            out = super().forward(z.flatten(1))
            return out if bool(out.sum() > 0) else -out  # a decision of the data

    base = Classifier(Branch(3 * 32 * 32, 4), name="branch", num_classes=4)
    race = faster(variants(base, 2)[0], x)
    assert race.way == "loop"
    assert race.stack == float("inf")


def test_a_stack_of_strangers_is_refused(x: Tensor) -> None:
    model = load_model("digits:resnet")
    with pytest.raises(InputError, match="share one network"):
        stacked([variants(model, 1)[0][0], variants(model, 1)[0][0]], x)
