"""Layers by depth, of timm's and torchvision's networks, of the embedded ones, and of a user's own."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import nn

import advens
from advens.attacks.layers import modules_at, stages
from advens.classifier import Classifier
from advens.errors import InputError


def names(model: nn.Module, *layers: float | str) -> list[str]:
    known = {module: name for name, module in model.named_modules()}
    return [known[module] for module in modules_at(model, layers, "fia")]


TIMM = {
    "resnet18": ["layer1", "layer2", "layer3", "layer4"],
    "vgg11": ["features.9", "features.14", "features.19", "features.20"],
    "densenet121": [f"features.{end}" for end in ("denseblock1", "denseblock2", "denseblock3", "norm5")],
    "inception_v3": ["Conv2d_4a_3x3", "Mixed_5d", "Mixed_6e", "Mixed_7c"],
    "vit_tiny_patch16_224": ["blocks.2", "blocks.5", "blocks.8", "blocks.11"],
    "swin_tiny_patch4_window7_224": ["layers.0", "layers.1", "layers.2", "layers.3"],
    "convnext_atto": ["stages.0", "stages.1", "stages.2", "stages.3"],
    "pit_ti_224": ["transformers.0", "transformers.1", "transformers.2", "transformers.2"],
    "mixer_s32_224": ["blocks.1", "blocks.3", "blocks.5", "blocks.7"],
}
TORCHVISION = {
    "resnet18": ["layer1", "layer2", "layer3", "layer4"],
    "densenet121": [f"features.denseblock{i}" for i in (1, 2, 3, 4)],
    "vit_b_16": [f"encoder.layers.encoder_layer_{i}" for i in (2, 5, 8, 11)],
    "convnext_tiny": ["features.1", "features.3", "features.5", "features.7"],
    "shufflenet_v2_x0_5": ["stage2", "stage3", "stage4", "stage4"],
    "vgg11": ["features.5", "features.10", "features.15", "features.20"],
}


@pytest.mark.parametrize("name", TIMM)
def test_timm(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    found = names(model, 0.25, 0.5, 0.75, 1)
    assert found == TIMM[name]


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision(name: str) -> None:
    with torch.device("meta"):
        model = torchvision.models.get_model(name, weights=None)
    assert names(model, 0.25, 0.5, 0.75, 1) == TORCHVISION[name]


@pytest.mark.parametrize("name", [m for m in advens.list_models() if not m.endswith("e3")])  # no ensembles
def test_embedded(name: str) -> None:
    """Every depth is found and runs, in order."""
    model, seen = advens.load_model(name), list[nn.Module]()
    ends = [module for _, module in stages(model, "fia")]
    assert 2 <= len(ends) <= 4
    for module in ends:
        module.register_forward_hook(lambda module, args, out: seen.append(module))
    model(torch.zeros(1, 3, 32, 32))
    assert seen == ends


def test_wrapped_networks_and_names() -> None:
    net = timm.create_model("test_resnet", num_classes=10)
    for model, prefix in (
        (net, ""), (Classifier(net, name="mine", num_classes=10), "net."),
        (nn.Sequential(nn.Identity(), net), "1."),
    ):  # fmt: skip
        assert names(model, 0.5) == [f"{prefix}layer2"]
        assert names(model, "stages") == [f"{prefix}layer{i}" for i in (1, 2, 3, 4)]
    mine = Classifier(net, name="mine", num_classes=10)
    assert names(mine, "layer3.0", "net.layer1") == ["net.layer3.0", "net.layer1"]


def test_refusals() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    with pytest.raises(InputError, match=r"'fia' finds no stages in 'Sequential'.*layer=.*outermost: 0, 1"):
        modules_at(net, [0.5], "fia")
    assert modules_at(net, ["1"], "fia") == [net[1]]
    with pytest.raises(InputError, match="'fia': 'Sequential' has no module '2'"):
        modules_at(net, ["2"], "fia")
    with pytest.raises(InputError, match="'fia': 'Sequential' has no module ''"):
        modules_at(net, [""], "fia")
    with pytest.raises(InputError, match="'fia' taps one network; 'digits:barre3' has several members"):
        modules_at(advens.load_model("digits:barre3"), [0.5], "fia")
    two: Any = [timm.create_model("test_resnet") for _ in range(2)]
    with pytest.raises(InputError, match="'fia' taps one network; 'ModuleList' holds 2"):
        modules_at(nn.ModuleList(two), [0.5], "fia")
