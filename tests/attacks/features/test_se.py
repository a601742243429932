"""SE against its formulas; which networks it reads."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from timm.models.mlp_mixer import MlpMixer
from torch import Tensor, nn
from torchvision.models import VisionTransformer

from advens.attacks import create_attack
from advens.errors import InputError
from tests.attacks.conftest import counting
from tests.attacks.fusions.conftest import agree, grad, make
from tests.attacks.surrogates.changes.transformers import FAMILIES, Transformer, pixels, tiny

READ = {"vit", "vit-qk-norm", "deit-distilled", "vit-relpos", "beit", "eva"}


class Read(Transformer):
    """The transformer of three blocks, with a head as timm's networks have it."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        stages: Any = [{"module": f"blocks.{i}", "reduction": 4} for i in range(3)]
        self.feature_info = stages

    def forward_head(self, z: Tensor) -> Tensor:
        out: Tensor = self.head(z[:, 0])
        return out


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize(("n", "targeted"), [(1, False), (7, True)])
def test_se(k: int, n: int, targeted: bool) -> None:
    models = [Read(seed) for seed in range(k)]
    at = make(k, n, "linf", targeted, models=models)

    def direction(t: int, i: int, x: Tensor, state: dict[str, Any]) -> Tensor:
        def loss(leaf: Tensor) -> Tensor:
            total = torch.zeros(())
            for net in models:
                z = net.embed(leaf)
                for block in net.blocks:
                    z = block(z[None])[0]
                    centred = z[0] - z[0].mean()
                    row = centred / torch.sqrt((centred**2).mean() + 1e-5) * net.norm.weight + net.norm.bias
                    total = total + at.j(net.head.weight @ row + net.head.bias, i) / k
            return total

        return grad(loss, x)

    agree(at.run("ens-loss", feature="se"), at.alone(direction))


@pytest.mark.parametrize("family", FAMILIES)
def test_networks_that_can_be_read(family: str) -> None:
    net, x, y = tiny(family), pixels(), torch.arange(3)
    if family not in READ:
        with pytest.raises(InputError, match="'se' reads all blocks of a network by its head; those of"):
            create_attack("se", steps=2)(net, x, y)
        return
    attack = create_attack("se", steps=2)
    with counting([net]) as passes:
        found = attack.run(net, x, y)
    assert found.passes == attack.passes(1) == (2, 2)
    assert (passes.forward, passes.backward) == (6, 6)
    assert not torch.equal(found.x_adv, create_attack("mifgsm", steps=2, eps="16/255")(net, x, y))


def test_torchvision_mixers_and_others() -> None:
    net = VisionTransformer(16, 8, 2, 2, 8, 16, num_classes=5).double().eval().requires_grad_(False)
    nn.init.normal_(net.heads.head.weight)
    create_attack("se", steps=2)(net, pixels(), torch.arange(3))
    mixer = MlpMixer(num_classes=5, img_size=16, patch_size=8, num_blocks=2, embed_dim=8)
    create_attack("se", steps=2)(mixer.double().eval(), pixels(), torch.arange(3))
    resnet = timm.create_model("resnet18", num_classes=5).double().eval()
    with pytest.raises(InputError, match="those of 'ResNet' cannot be"):
        create_attack("se", steps=2)(resnet, pixels(), torch.arange(3))
