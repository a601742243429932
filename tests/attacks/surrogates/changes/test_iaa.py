"""IAA: softplus and weaker branches, in blocks written out."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from advens.attacks import create_attack
from advens.attacks.surrogates.changes import ChangeContext, Changed, attached
from advens.attacks.surrogates.changes.iaa import IAA
from advens.errors import InputError


def softplus(v: Tensor) -> Tensor:
    """``log(1 + exp(20 v)) / 20``, without overflow."""
    return v.clamp_min(0) + torch.log1p(torch.exp(-20 * v.abs())) / 20


@pytest.mark.parametrize("name", ["basic", "basic-down", "bottleneck", "bottleneck-se", "tv-basic"])
def test_a_block(name: str, block_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sample = block_of(name)
    found = Changed(sample.block, [IAA(branches=(0.4,))])(sample.x)
    with monkeypatch.context() as patch:
        patch.setattr(F, "relu", softplus)
        if name == "bottleneck-se":  # its own ReLU is one of the network's
            patch.setattr(sample.block.se.act, "forward", softplus)
        wanted = sample.written(sample.x, lambda z, value, i: z + 0.4 * value)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-9)
    assert (found - sample.block(sample.x)).abs().max() > 1e-2


def test_factors_of_stages() -> None:
    """Two ResNets have four stages each; seven blocks in a row are parted by depth."""
    with torch.device("meta"):
        nets = [timm.create_model(name) for name in ("resnet18", "resnet50")]
    assert factors(nets[0]) == [0.98] * 2 + [0.87] * 2 + [0.73] * 2 + [0.19] * 2
    assert factors(nets[1]) == [0.98] * 3 + [0.87] * 4 + [0.73] * 6 + [0.19] * 3
    row = nn.Sequential(*[timm.models.resnet.BasicBlock(4, 4) for _ in range(7)])
    assert factors(row) == [0.98] * 2 + [0.87] * 2 + [0.73] * 2 + [0.19]


def factors(net: nn.Module) -> list[float]:
    from advens.attacks.surrogates.changes.sgm import residual_blocks

    return IAA()._factors(net, residual_blocks(net))


def test_defaults_and_refusals(block_of: Any) -> None:
    attack: Any = create_attack("iaa", eps="16/255")
    assert attack.step_size.at(0, 10, attack.threat) == pytest.approx(2 / 255)
    block = block_of("basic").block
    before = {name: module.forward for name, module in block.named_modules()}
    with attached(block, [IAA()], ChangeContext()):
        pass
    assert {name: module.forward for name, module in block.named_modules()} == before
    with pytest.raises(InputError, match="'iaa' finds no residual branch in 'Sequential'"):
        Changed(nn.Sequential(nn.ReLU()), [IAA()])(torch.zeros(1, 3, 4, 4))
    with pytest.raises(InputError, match="'iaa' finds no ReLU module in 'Block'"):
        Changed(block_of("vit").block, [IAA()])(torch.zeros(1, 5, 8))
    for option in ({"beta": 0}, {"branches": ()}, {"branches": (-1.0,)}):
        with pytest.raises(InputError):
            create_attack("iaa", **option)
