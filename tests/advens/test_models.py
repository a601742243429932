"""Model sources: what loads, how it is described, and one clear line for whatever does not."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

import advens
from advens.classifier import Classifier
from advens.digest import weights_digest
from advens.errors import InputError, InputWarning
from advens.models import absent, check_name, describe, expand, list_models, load_model
from advens.models import timm as timm_source
from advens.models import torchvision as torchvision_source
from advens.spec import Spec
from advens.trust import trusting

ARCH = "test_vit"
NAMED = "test_vit.r160_in1k"
"""With the name of its weights, which says how images are prepared."""


def random_net(seed: int = 0, arch: str = ARCH) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        net: nn.Module = timm.create_model(arch, pretrained=False, num_classes=7)
    return net.eval()


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return random_net()


@pytest.fixture
def checkpoint(net: nn.Module, tmp_path: Path) -> Path:
    path = tmp_path / "weights.safetensors"
    save_file(net.state_dict(), str(path))
    return path


def images(side: int, n: int = 2) -> Tensor:
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(0))


def well_formed(model: Classifier) -> None:
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())
    assert len(model.digest) == 64
    assert model.weights == weights_digest(model.net)


# --- the embedded zoo -------------------------------------------------------------------------------


def test_embedded_models() -> None:
    names = list_models()
    assert "digits:resnet" in names
    assert names == sorted(names)
    assert names == list_models("digits:*") + list_models("shapes:*")
    assert [n for n in names if n.endswith("-at")] == list_models("*:*-at")
    assert list_models("nothing:*") == []
    assert advens.list_models is list_models


def test_digits() -> None:
    model = load_model("digits:resnet")
    assert (model.name, model.family, model.num_classes) == ("digits:resnet", "cnn", 10)
    well_formed(model)
    card = describe("digits:resnet")
    assert (card.digest, card.family) == (model.digest, model.family)
    assert card.num_classes == 10
    assert card.input_size == model.input_size
    assert model(images(20)).shape == (2, 10), "resized inside"
    assert load_model("digits:vit").family == "vit"
    assert load_model("digits:resnet-b").digest != model.digest


def test_expand() -> None:
    assert expand("digits:*-at") == list_models("digits:*-at")
    assert expand("timm:anything") == ["timm:anything"], "a name is taken as it is"
    assert expand("a:b?glob=*") == ["a:b?glob=*"], "wildcards are of the name, not of options"
    with pytest.raises(InputError, match="unknown model 'digits:resnt\\*': no name matches this pattern"):
        expand("digits:resnt*")


def test_lists_of_other_sources() -> None:
    assert "timm:resnet18" in [n.partition(".")[0] for n in list_models("timm:resnet18*")]
    assert "torchvision:resnet18" in list_models("torchvision:resnet*")


# --- timm -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["safetensors", "pth", "nested"])
def test_timm_checkpoint(kind: str, net: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / ("weights.safetensors" if kind == "safetensors" else "weights.pth")
    if kind == "safetensors":
        save_file(net.state_dict(), str(path))
    else:
        torch.save(net.state_dict() if kind == "pth" else {"state_dict": net.state_dict()}, path)
    before = torch.get_rng_state()
    model = load_model(f"timm:{NAMED}?checkpoint={path}&num_classes=7")
    assert torch.equal(torch.get_rng_state(), before)
    assert model.weights == weights_digest(net)
    assert (model.num_classes, model.family, model.input_size) == (7, "vit", (160, 160))
    well_formed(model)
    x = images(160)
    wanted = net((x - 0.5) / 0.5)  # mean and std of the weights' configuration
    torch.testing.assert_close(model(x), wanted.detach())


def test_the_same_weights_under_two_names(checkpoint: Path, net: nn.Module, tmp_path: Path) -> None:
    other = tmp_path / "renamed.pth"
    torch.save(net.state_dict(), other)
    one = load_model(f"timm:{NAMED}?checkpoint={checkpoint}&num_classes=7")
    two = load_model(f"timm:{NAMED}?checkpoint={other}&num_classes=7&mean=0.5")
    three = load_model(f"timm:{NAMED}?checkpoint={other}&num_classes=7&mean=0&std=1")
    assert one.name != two.name
    assert one.digest == two.digest != three.digest, "images prepared otherwise"
    assert one.weights == two.weights == three.weights
    state = net.state_dict()
    state["head.bias"] = state["head.bias"].clone()
    state["head.bias"][3] += 1e-3
    torch.save(state, other)
    assert load_model(f"timm:{NAMED}?checkpoint={other}&num_classes=7").digest != one.digest


def test_timm_random_weights_come_from_the_seed() -> None:
    zero, again, one = (
        load_model(f"timm:{ARCH}?pretrained=false&num_classes=7&seed={seed}") for seed in (0, 0, 1)
    )
    assert zero.digest == again.digest != one.digest
    assert zero.weights == weights_digest(random_net(0))


def test_timm_options(checkpoint: Path) -> None:
    model = load_model(
        f"timm:{NAMED}?checkpoint={checkpoint}&num_classes=7&mean=0.1,0.2,0.3&std=0.5&family=hybrid"
    )
    assert model.family == "hybrid"
    assert model.mean.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert model.std.flatten().tolist() == pytest.approx([0.5, 0.5, 0.5])
    small = load_model(f"timm:{ARCH}?pretrained=false&num_classes=3&img_size=32")
    assert small.input_size == (32, 32)
    assert small(images(40)).shape == (2, 3)


@pytest.mark.parametrize(
    ("arch", "family"),
    [("test_vit", "vit"), ("test_resnet", "cnn"), ("test_convnext", "cnn"),
     ("test_maxvit", "hybrid"), ("test_byobnet", "cnn")],
)  # fmt: skip
def test_timm_families(arch: str, family: str) -> None:
    assert load_model(f"timm:{arch}?pretrained=false&num_classes=2").family == family


@pytest.mark.parametrize(
    ("arch", "family"),
    [("pvt_v2_b0", "vit"), ("mvitv2_tiny", "vit"), ("davit_tiny", "vit"), ("nest_tiny", "vit"),
     ("tiny_vit_5m_224", "hybrid"), ("vitamin_small_224", "hybrid"), ("naflexvit_base_patch16_gap", "vit"),
     ("sam2_hiera_tiny", "vit"), ("hiera_tiny_224", "vit"), ("vit_tiny_r_s16_p8_224", "hybrid"),
     ("swin_tiny_patch4_window7_224", "vit"), ("mixer_s16_224", "mlp"), ("levit_128s", "hybrid"),
     ("vgg11", "cnn"), ("repvgg_a0", "cnn"), ("swiftformer_xs", "hybrid")],
)  # fmt: skip
def test_timm_families_by_architecture(arch: str, family: str) -> None:
    assert timm_source.family(arch) == family


def test_timm_families_of_hybrids_that_are_vision_transformers_inside() -> None:
    """The class of the network does not tell a hybrid stem."""
    for arch in ("vit_tiny_r_s16_p8_224", "vitamin_small_224"):
        net = timm.create_model(arch, pretrained=False, num_classes=2, depth=1)
        assert type(net).__module__ == "timm.models.vision_transformer"
    model = load_model("timm:vit_tiny_r_s16_p8_224?pretrained=false&num_classes=2&depth=1")
    assert model.family == "hybrid"


@pytest.mark.parametrize(
    ("name", "what"),
    [("vit_small_patch14_dinov2.lvd142m", "has no classifier head"),
     ("vit_small_patch14_dinov2", "has no classifier head"),
     ("vit_base_patch16_siglip_224.webli", "has no classifier head"),
     ("vit_base_patch16_clip_224.openai", "ends in an embedding of 512 numbers"),
     ("resnet50_clip.openai", "ends in an embedding of 1,024 numbers"),
     ("fastvit_mci0.apple_mclip", "ends in an embedding of 512 numbers")],
)  # fmt: skip
def test_models_without_classes_are_refused(name: str, what: str) -> None:
    spec = f"timm:{name}"
    for refuse in (check_name, load_model):
        with pytest.raises(InputError) as caught:
            refuse(spec)
        assert str(caught.value) == (
            f"'{spec}': timm's {name} {what}, so it knows no classes; "
            f"with a head of your own, give ?checkpoint=PATH&num_classes=N"
        )
    check_name(f"{spec}?num_classes=10&pretrained=false")
    assert spec not in list_models("timm:*")


def test_models_without_classes_are_not_listed() -> None:
    listed = list_models("timm:*")
    headless = set(timm.list_models(pretrained=True)) - {name.partition(":")[2] for name in listed}
    widths = {timm.get_pretrained_cfg(name).num_classes for name in headless}
    assert widths == {0, 384, 512, 640, 768, 1024, 1152, 1280}
    for name in ("vit_base_patch16_clip_224.openai_ft_in1k", "beit_base_patch16_224.in22k_ft_in22k",
                 "mvitv2_base_cls.fb_inw21k", "vit_base_patch16_224.bamboo"):  # fmt: skip
        assert f"timm:{name}" in listed


def test_timm_weights_without_a_head_by_their_size(tmp_path: Path) -> None:
    """A head of one's own makes a classifier of a backbone."""
    net = timm.create_model("test_vit", pretrained=False, num_classes=0)
    save_file(net.state_dict(), str(tmp_path / "w.safetensors"))
    with pytest.raises(InputError, match="has no classifier head, so it knows no classes"):
        load_model(f"timm:{NAMED}?checkpoint={tmp_path / 'w.safetensors'}&num_classes=0")


# --- timm: how images are prepared ------------------------------------------------------------------


def test_timm_says_whose_preprocessing_is_assumed(checkpoint: Path) -> None:
    spec = f"timm:{ARCH}?checkpoint={checkpoint}&num_classes=7"
    with pytest.warns(InputWarning) as caught:
        load_model(spec)
    assert [str(each.message) for each in caught] == [
        f"'{spec}': the checkpoint does not say how images are to be prepared; mean 0.5, 0.5, 0.5, "
        f"std 0.5, 0.5, 0.5, 160x160 and bicubic resizing of timm's default weights test_vit.r160_in1k are "
        f"assumed; name the weights as in timm:test_vit.r160_in1k, or give &mean=, &std= and &size="
    ]
    with pytest.warns(InputWarning, match="mean 0.1, 0.1, 0.1, std 0.5"):
        load_model(f"{spec}&mean=0.1")
    model = load_model(f"{spec}&mean=0.1&std=0.2&size=160")  # all said: nothing to warn of
    assert model.mean.flatten().tolist() == pytest.approx([0.1] * 3)
    load_model(f"timm:{NAMED}?checkpoint={checkpoint}&num_classes=7")


def test_the_command_line_shows_what_is_assumed(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from advens.cli import invoke

    assert invoke(["models", f"timm:{ARCH}?checkpoint={checkpoint}&num_classes=7"]) == 0
    said = capsys.readouterr()
    assert said.err.startswith(f"warning: 'timm:{ARCH}?checkpoint={checkpoint}&num_classes=7': the check")
    assert said.err.count("\n") == 1


def test_timm_resamples_a_checkpoint_for_another_size(checkpoint: Path, net: nn.Module) -> None:
    """Position embeddings of 10x10 patches become those of 14x14, as timm resamples them."""
    from timm.layers import resample_abs_pos_embed

    model = load_model(f"timm:{NAMED}?checkpoint={checkpoint}&num_classes=7&img_size=224")
    assert model.input_size == (224, 224)
    prefix: int = net.num_prefix_tokens  # type: ignore[assignment]
    before: Tensor = net.pos_embed  # type: ignore[assignment]
    wanted = resample_abs_pos_embed(before, (14, 14), (10, 10), num_prefix_tokens=prefix)
    torch.testing.assert_close(model.net.pos_embed, wanted)
    assert torch.equal(model.net.head.weight, net.head.weight), "the head is the checkpoint's"  # type: ignore[union-attr]
    assert model(images(224)).shape == (2, 7)


@pytest.mark.parametrize(
    ("spec", "message"),
    [("timm:vit_tiny_patch16_224?pretrained=false&depth=1&size=32", r"the network takes no 32x32 images "
      r"\(Input height \(32\) doesn't match model \(224\).\); build it for them with &img_size=32"),
     ("torchvision:vit_b_16?weights=none&num_classes=2&size=32",
      r"takes no 32x32 images \(Wrong image height! Expected 224 but got 32!\)")],
)  # fmt: skip
def test_a_network_of_one_size_refuses_another(spec: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load_model(spec)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "interpolation", "crop_pct"),
    [("resnet18.tv_in1k", "bilinear", 0.875), ("resnet18.a1_in1k", "bicubic", 0.95),
     ("vit_tiny_patch16_224.augreg_in21k_ft_in1k", "bicubic", 0.9),
     ("mobilenetv3_small_050.lamb_in1k", "bicubic", 0.875),
     ("tf_efficientnet_lite0.in1k", "bicubic", 0.875), ("test_resnet.r160_in1k", "bilinear", 0.95)],
)  # fmt: skip
def test_timm_images_are_prepared_as_timm_does(
    name: str, interpolation: str, crop_pct: float, tmp_path: Path
) -> None:
    """The data's query and the model together are timm's transform for evaluation."""
    from timm.data import create_transform, resolve_data_config

    config = resolve_data_config({}, pretrained_cfg=timm.get_pretrained_cfg(name).to_dict())
    assert (config["interpolation"], config["crop_pct"]) == (interpolation, crop_pct)
    model = load_model(f"timm:{name}?pretrained=false&num_classes=2")
    model.net = nn.Identity()
    assert model.input_size is not None
    query = f"size={model.input_size[0]}&crop_pct={crop_pct}&interpolation={interpolation}"
    picture, seen = picture_and_data(tmp_path, query)
    torch.testing.assert_close(model(seen), create_transform(**config)(picture)[None], rtol=0, atol=1e-6)
    assert model.interpolation == interpolation


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("source", [f"timm:{NAMED}", "torchvision:squeezenet1_1"])
def test_weights_that_are_not_finite(suffix: str, source: str, net: nn.Module, tmp_path: Path) -> None:
    seven = net if "timm" in source else torchvision.models.squeezenet1_1(num_classes=7)
    state, path = {k: v.clone() for k, v in seven.state_dict().items()}, tmp_path / f"w.{suffix}"
    name = list(state)[3]
    state[name].view(-1)[0] = float("nan")
    if suffix == "pth":
        torch.save(state, path)
    else:
        save_file(state, str(path))
    spec = f"{source}?checkpoint={path}&num_classes=7"
    with pytest.raises(InputError) as caught:
        load_model(spec)
    said = f"'{spec}': the checkpoint {path} holds values in '{name}' that are not finite"
    assert str(caught.value) == said


@pytest.mark.parametrize("held", [{}, {"a": 3}, {"state_dict": {}}])
def test_checkpoint_without_weights(held: dict[str, object], tmp_path: Path) -> None:
    torch.save(held, tmp_path / "w.pth")
    with pytest.raises(InputError, match=r"w\.pth holds no state_dict of weights"):
        load_model(f"timm:{NAMED}?checkpoint={tmp_path / 'w.pth'}&num_classes=7")


def picture_and_data(folder: Path, query: str) -> tuple[Image.Image, Tensor]:
    """A small picture of noise, and the same through a data source with a query, (1, 3, H, W)."""
    pixels = np.random.RandomState(0).randint(0, 256, (57, 83, 3), dtype=np.uint8)
    (folder / "class").mkdir(exist_ok=True)
    Image.fromarray(pixels).save(folder / "class" / "a.png")
    return Image.fromarray(pixels), advens.load_data(f"folder:{folder}?{query}")[0].image[None]


def corrupt(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
@pytest.mark.parametrize("how", ["truncated", "empty", "text"])
def test_corrupt_checkpoint(suffix: str, how: str, net: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / f"w.{suffix}"
    if suffix == "pth":
        torch.save(net.state_dict(), path)
    else:
        save_file(net.state_dict(), str(path))
    if how == "truncated":
        corrupt(path)
    else:
        path.write_bytes(b"" if how == "empty" else b"not weights at all")
    with pytest.raises(InputError, match="is corrupt or cut off") as caught:
        load_model(f"timm:{ARCH}?checkpoint={path}&num_classes=7")
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_checkpoint_of_another_architecture(tmp_path: Path, checkpoint: Path) -> None:
    other = tmp_path / "w.pth"
    torch.save(nn.Linear(2, 2).state_dict(), other)
    for spec, why in (
        (f"timm:{ARCH}?checkpoint={other}&num_classes=7", "cls_token, the network has no place for weight"),
        (f"timm:test_resnet?checkpoint={checkpoint}", "it lacks conv1"),
        (f"torchvision:squeezenet1_1?checkpoint={other}&num_classes=2", "it lacks features.0.weight"),
    ):
        with pytest.raises(InputError, match="is of another architecture") as caught:
            load_model(spec)
        assert "\n" not in str(caught.value)
        assert why in str(caught.value)


@pytest.mark.parametrize("spec", [f"timm:{NAMED}", "torchvision:squeezenet1_1"])
@pytest.mark.parametrize("asked", ["", "&num_classes=8"])
def test_checkpoint_of_other_classes(spec: str, asked: str, net: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    seven = net if "timm" in spec else torchvision.models.squeezenet1_1(num_classes=7)
    torch.save(seven.state_dict(), path)
    with pytest.raises(InputError) as caught:
        load_model(f"{spec}?checkpoint={path}{asked}")
    has = "8" if asked else "1,000"
    said = f"the checkpoint {path} holds 7 classes, the network has {has}: add &num_classes=7"
    assert str(caught.value) == f"'{spec}?checkpoint={path}{asked}': {said}"


class Evil:
    """Runs code when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.mark}",)


def test_a_checkpoint_runs_no_code(tmp_path: Path) -> None:
    mark = tmp_path / "was-here"
    torch.save({"state_dict": Evil(mark)}, tmp_path / "w.pth")
    for source in (f"timm:{NAMED}", "torchvision:squeezenet1_1"):
        spec = f"{source}?checkpoint={tmp_path / 'w.pth'}&num_classes=7"
        with pytest.raises(InputError, match=r"w.pth contains code \(posix.system\), which is never"):
            load_model(spec)
    assert not mark.exists()


# --- torchvision ------------------------------------------------------------------------------------


def test_torchvision_random_weights(tmp_path: Path) -> None:
    name = "torchvision:squeezenet1_1?weights=none&num_classes=5"
    model, again, other = load_model(name), load_model(name), load_model(f"{name}&seed=1")
    assert (model.num_classes, model.family, model.input_size) == (5, "cnn", None)
    well_formed(model)
    assert model.digest == again.digest != other.digest
    x = images(48)
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    torch.testing.assert_close(model(x), model.net((x - mean) / std))
    path = tmp_path / "w.pth"
    torch.save(other.net.state_dict(), path)
    loaded = load_model(f"torchvision:squeezenet1_1?checkpoint={path}&num_classes=5")
    assert loaded.weights == other.weights


def test_torchvision_weights_say_how_they_see(monkeypatch: pytest.MonkeyPatch) -> None:
    """Size, mean and std are those of the weights' own transforms."""
    enum = torchvision.models.SqueezeNet1_1_Weights.IMAGENET1K_V1
    net = torchvision.models.squeezenet1_1()
    monkeypatch.setattr(type(enum), "get_state_dict", lambda self, **_: net.state_dict())
    monkeypatch.setattr(torchvision_source, "absent", lambda spec: "")  # as if they were in the cache
    for weights in ("", "?weights=IMAGENET1K_V1"):
        model = load_model(f"torchvision:squeezenet1_1{weights}")
        assert model.weights == weights_digest(net)
        assert (model.num_classes, model.input_size) == (1000, (224, 224))
        assert model.mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])


ENTRIES = [
    (name, entry)
    for name in torchvision.models.list_models(module=torchvision.models)
    for entry in torchvision.models.get_model_weights(name)
    if entry.meta["categories"]
]


def test_torchvision_images_are_prepared_as_the_weights_say(tmp_path: Path) -> None:
    """For every entry of every model, the data's query and the model are torchvision's transforms."""
    picture, _ = picture_and_data(tmp_path, "size=8")
    compared, seen = set(), 0
    for _, entry in ENTRIES:
        transforms = entry.transforms()
        prepared = torchvision_source.preprocessing(entry)
        kind = str(sorted(prepared.items())), transforms.resize_size[0]
        seen += 1
        if kind in compared:
            continue
        compared.add(kind)
        side, longer = transforms.crop_size[0], transforms.resize_size[0]
        query = f"size={side}&crop_pct={side}/{longer}&interpolation={prepared['interpolation']}"
        image = picture_and_data(tmp_path, query)[1]
        model = Classifier(nn.Identity(), name="m", num_classes=1000, **prepared)
        torch.testing.assert_close(model(image), transforms(picture)[None], rtol=0, atol=1e-6)
        resize = torchvision.transforms.functional.resize
        whole = resize(image[..., 5:, :], [side, side], transforms.interpolation, antialias=True)
        torch.testing.assert_close(model(image[..., 5:, :]), model(whole.clamp(0, 1)), rtol=0, atol=1e-5)
    assert seen > 100
    assert len(compared) > 20


@pytest.mark.parametrize("arch", ["googlenet", "inception_v3"])
@pytest.mark.parametrize("auxiliary", [True, False])
def test_torchvision_transforms_channels_of_a_checkpoint(arch: str, auxiliary: bool, tmp_path: Path) -> None:
    """As with weights that torchvision loads itself: their images are in [-1, 1]."""
    builder = getattr(torchvision.models, arch)
    path = tmp_path / "w.pth"
    net = builder(init_weights=False, aux_logits=auxiliary, num_classes=9, transform_input=True).eval()
    torch.save(net.state_dict(), path)
    model = load_model(f"torchvision:{arch}?checkpoint={path}&num_classes=9")
    side = 299 if arch == "inception_v3" else 224
    assert model.input_size == (side, side)
    assert model.net.transform_input is True
    x = images(side, 1)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    torch.testing.assert_close(model(x), net((x - mean) / std).detach())
    bare = load_model(f"torchvision:{arch}?weights=none&checkpoint={path}&num_classes=9&size={side}")
    assert bare.net.transform_input is False
    assert bare.digest != model.digest
    assert bare.weights == model.weights


def test_torchvision_checkpoint_of_several_ways(tmp_path: Path) -> None:
    """The entry is named, or known by its published file's name, or assumed with a warning."""
    enum = torchvision.models.EfficientNet_B1_Weights
    net = torchvision.models.efficientnet_b1(num_classes=3)
    own = tmp_path / "mine.pth"
    published = tmp_path / Path(enum.IMAGENET1K_V1.url).name
    for path in (own, published):
        torch.save(net.state_dict(), path)
    spec = "torchvision:efficientnet_b1?num_classes=3&checkpoint="
    assert load_model(f"{spec}{published}").interpolation == "bicubic"
    assert load_model(f"{spec}{own}&weights=IMAGENET1K_V1").interpolation == "bicubic"
    with pytest.warns(InputWarning, match="240x240 and bilinear resizing of torchvision's default"):
        assumed = load_model(f"{spec}{own}")
    assert assumed.interpolation == "bilinear"
    said = load_model(f"{spec}{own}&mean=0.5&std=0.25&size=64")
    assert (said.input_size, said.mean.flatten().tolist()) == ((64, 64), [0.5] * 3)
    none = load_model(f"{spec}{own}&weights=none")
    assert none.input_size is None


def test_torchvision_families() -> None:
    for arch, family in (("maxvit_t", "hybrid"), ("vit_b_16", "vit"), ("swin_t", "vit"), ("alexnet", "cnn")):
        assert torchvision_source.family(arch) == family


def test_torchvision_weights_without_a_classifier() -> None:
    with pytest.raises(InputError, match="unknown weights of torchvision:vgg16 'IMAGENET1K_FEATURES'"):
        check_name("torchvision:vgg16?weights=IMAGENET1K_FEATURES")


# --- a module of one's own --------------------------------------------------------------------------

FACTORIES = """
import torch
from torch import nn
from advens.classifier import Classifier

def make(width=3, deep=False):
    net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, width))
    net.deep = deep
    return net

def described():
    net = make(4)
    net.num_classes, net.family = 4, "mlp"
    return net

def wrapped():
    return Classifier(make(2), name="mine", num_classes=2, family="vit")

def no_layers():
    return nn.Flatten()

def nothing():
    return None

def wants(this):
    return make()
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"mine_{abs(hash(str(tmp_path)))}"
    (tmp_path / f"{name}.py").write_text(FACTORIES)
    (tmp_path / f"{name}_broken.py").write_text("import not_there\n")
    monkeypatch.syspath_prepend(tmp_path)
    return name


def test_module_factory(mine: str) -> None:
    model = load_model(f"{mine}:make")
    assert (model.num_classes, model.family, model.input_size) == (3, "cnn", None)
    assert model.name == f"{mine}:make"
    well_formed(model)
    x = images(9)
    torch.testing.assert_close(model(x), model.net(x))
    six = load_model(f"{mine}:make?width=6&deep=true&family=hybrid")
    assert (six.num_classes, six.family, six.net.deep) == (6, "hybrid", True)
    four = load_model(f"{mine}:described")
    assert (four.num_classes, four.family) == (4, "mlp")
    ready = load_model(f"{mine}:wrapped")
    assert (ready.name, ready.family, ready.num_classes) == ("mine", "vit", 2)
    assert load_model(f"{mine}:no_layers?num_classes=12").num_classes == 12


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("{mine}:mak", "model '{mine}:mak': module {mine} has no factory 'mak'; did you mean 'make'?"),
        ("{mine}:nothing", "model '{mine}:nothing': the factory returned NoneType, not a torch Mod"),
        ("{mine}:no_layers", "model '{mine}:no_layers': cannot tell how many classes it has; add ?n"),
        ("{mine}:wants", "model '{mine}:wants': wants() missing 1 required positional argument"),
        ("{mine}:make?wide=3", "model '{mine}:make?wide=3': make() got an unexpected keyword argu"),
        ("{mine}:make?family=vitt", "model '{mine}:make?family=vitt': unknown family 'vitt'; did"),
        ("{mine}_broken:make", "model '{mine}_broken:make': No module named 'not_there'"),
        ("no.such.module:make", "model 'no.such.module:make': No module named 'no'"),
        ("nosuchsource:make", "unknown model source 'nosuchsource'"),
        ("dgits:resnet", "unknown model source 'dgits'; did you mean 'digits'?"),
        ("resnet", "model 'resnet' has no source; write SOURCE:NAME, as digits:..."),
        ("digits:resnt", "unknown model 'digits:resnt'; did you mean 'digits:resnet'?"),
        ("digits:resnet?a=1", "'digits:resnet?a=1': unknown option 'a'"),
        ("timm:resnt18", "unknown timm model 'resnt18'; did you mean 'resnet18'?"),
        ("timm:test_vit?checkpoint=/nope.pth", "'timm:test_vit?checkpoint=/nope.pth': no checkpoin"),
        ("timm:test_vit?num_classes=7", "'timm:test_vit?num_classes=7': the weights of test_vit are for "
         "1,000 classes, not 7, and timm would draw a head at random; give ?checkpoint=PATH, or pretr"),
        ("timm:vit_small_patch14_dinov2?num_classes=7", "'timm:vit_small_patch14_dinov2?num_classes=7': the "
         "weights of vit_small_patch14_dinov2 are for 0 classes, not 7, and timm would draw a head at"),
        ("timm:test_vit?chekpoint=x", "'timm:test_vit?chekpoint=x': unknown option 'chekpoint'; did you "
         "mean 'checkpoint'?"),
        ("timm:test_vit?checkpoint_path=x", "'timm:test_vit?checkpoint_path=x': a name may not say where"),
        ("torchvision:resnet18?chekpoint=x", "'torchvision:resnet18?chekpoint=x': unknown option 'chekpoi"
         "nt'; did you mean 'checkpoint'?"),
        ("timm:test_vit?family=cat", "'timm:test_vit?family=cat': unknown family 'cat'; one of: cnn"),
        ("timm:test_vit?pretrained=false&depht=3", "'timm:test_vit?pretrained=false&depht=3': timm "),
        ("timm:test_vit?pretrained=false&mean=a", "'timm:test_vit?pretrained=false&mean=a': mean ="),
        ("timm:test_vit?pretrained=false&std=1,2", "'timm:test_vit?pretrained=false&std=1,2': std"),
        ("timm:test_vit?pretrained=false&size=big", "'timm:test_vit?pretrained=false&size=big': siz"),
        ("torchvision:resnt18", "unknown torchvision model 'resnt18'; did you mean 'resnet18'?"),
        ("torchvision:resnet18?weights=IMAGENET", "unknown weights of torchvision:resnet18 'IMAGENE"),
        ("torchvision:resnet18?checkpoint=/nope", "'torchvision:resnet18?checkpoint=/nope': no che"),
        ("torchvision:resnet18?wieghts=none", "'torchvision:resnet18?wieghts=none': unknown option"),
        ("torchvision:squeezenet1_1?weights=none&seed=x", "'torchvision:squeezenet1_1?weights=none"),
    ],
)  # fmt: skip
def test_what_does_not_load(spec: str, message: str, mine: str) -> None:
    with pytest.raises(InputError) as caught:
        load_model(spec.format(mine=mine))
    said = str(caught.value)
    assert said.startswith(message.format(mine=mine))
    assert "\n" not in said


@pytest.mark.parametrize("spec", ["{mine}:make?num_classes=many", "collections:OrderedDict"])
def test_what_does_not_load_and_says_so_badly(spec: str, mine: str) -> None:
    with pytest.raises(InputError, match="model '"):
        load_model(spec.format(mine=mine))


def test_robustbench_is_optional(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("advens.models.robustbench.find_spec", lambda _: None)
    name = "robustbench:Standard?dataset=cifar10"
    for ask in (load_model, trusting(name)(check_name)):
        with pytest.raises(InputError, match="needs the package robustbench, which is not installed"):
            ask(name)


@pytest.fixture
def robustbench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A stand-in for the package; its file, in an empty current folder."""
    file = tmp_path / "lib" / "robustbench" / "__init__.py"
    file.parent.mkdir(parents=True)
    file.write_text("from torch import nn\n"
                    "def load_model(**options):\n"
                    "    if options['model_name'] == 'No': raise KeyError('No')\n"
                    "    net = nn.Sequential(nn.Flatten(), nn.Linear(3, 10)); net.options = options\n"
                    "    return net\n")  # fmt: skip
    monkeypatch.syspath_prepend(file.parents[1])
    monkeypatch.delitem(sys.modules, "robustbench", raising=False)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    yield file
    sys.modules.pop("robustbench", None)


def test_robustbench_is_asked_for_a_model(robustbench: Path) -> None:
    model = load_model("robustbench:X?threat_model=L2&model_dir=there&family=vit")
    assert (model.family, model.num_classes) == ("vit", 10)
    assert model.net.options == {  # type: ignore[union-attr]
        "model_name": "X", "dataset": "cifar10", "threat_model": "L2", "model_dir": "there",
    }  # fmt: skip
    for name, words in {
        "robustbench:No": "'robustbench:No': robustbench: ",
        "robustbench:X?dataset=cifar11": "dataset 'cifar11'; did you mean 'cifar10'",
    }.items():
        with pytest.raises(InputError, match=words):
            load_model(name)
    robustbench.write_text("import no_such_module")
    del sys.modules["robustbench"]
    with pytest.raises(InputError, match="does not import: No module named 'no_such_module'"):
        load_model("robustbench:X")


def test_what_robustbench_would_download(robustbench: Path) -> None:
    from advens.models.torchvision import absent as absent_torchvision

    says = {
        "robustbench:X": "models/cifar10/Linf/X.pt",
        "robustbench:X?dataset=imagenet&threat_model=L2&model_dir=m": "m/imagenet/L2/X.pt",
        "robustbench:X?threat_model=corruptions_3d": "models/cifar10/corruptions/X.pt",
    }
    for name, file in says.items():
        with trusting(name):
            assert absent(name) == f"RobustBench's X to {file}"
            for suffix in ("", "_m0.pt"):  # one model, or the first member of an ensemble
                Path(file).parent.mkdir(parents=True, exist_ok=True)
                Path(file + suffix).touch()
                assert absent(name) == ""
                Path(file + suffix).unlink()
    plain = Spec.parse("torchvision:resnet50?weights=IMAGENET1K_V1", "model")
    name = "robustbench:Standard_R50?dataset=imagenet"
    with trusting(name):
        assert absent(name) == absent_torchvision(plain) != ""


def test_names_are_checked_without_loading() -> None:
    check_name("digits:resnet")
    check_name("timm:resnet18")
    check_name("torchvision:resnet18?weights=none")
    for name in ("digits:resnt", "timm:resnt18", "torchvision:resnt18", "resnet",
                 "timm:resnet18?checkpoint=/nope", "robustbench:A?b=c"):  # fmt: skip
        with pytest.raises(InputError):
            check_name(name)


def test_pretrained_weights_offline_are_one_line(tmp_path: Path) -> None:
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", "from advens.cli import main; main()", "models", "timm:resnet18"],
        env=environment, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("advens: 'timm:resnet18': pretrained weights could not be had (")
    assert done.stderr.endswith("give a local file with ?checkpoint=PATH\n")
    assert done.stderr.count("\n") == 1


def test_models_command(capsys: pytest.CaptureFixture[str]) -> None:
    from advens.cli import invoke

    assert invoke(["models", "digits:resnet"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("digits:resnet: cnn, 10 classes, input 32x32")
    assert describe("digits:resnet").digest in shown
    assert invoke(["models", "digits:*-at"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(list_models("digits:*-at"))
    for wrong, hint in (
        ("digits:resnt", "; did you mean 'digits:resnet"),
        ("digits:resnt*", ": no name matches this pattern"),
    ):
        assert invoke(["models", wrong]) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"advens: unknown model '{wrong}'{hint}")
        assert said.count("\n") == 1


@pytest.mark.parametrize("name", ["digits:mambaout", "shapes:resnet", "timm:test_resnet?pretrained=false"])
def test_loading_draws_nothing_from_the_global_generator(name: str) -> None:
    before = torch.get_rng_state()
    load_model(name)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A module of models of one's own in the current folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_zoo.py").write_text(
        "from torch import nn\n"
        "def broken():\n    raise KeyError('layer4\\nand more')\n"
        "def flat():\n    return nn.Sequential(nn.Flatten(), nn.Linear(3072, 10))\n"
    )
    yield tmp_path
    sys.modules.pop("my_zoo", None)


def test_a_module_in_the_current_folder_says_how(own, monkeypatch):
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in ("", str(own))])
    hint = r"my_zoo\.py lies here, where Python does not look: set PYTHONPATH=\."
    with pytest.raises(InputError, match=f"unknown model source 'my_zoo'; {hint}"):
        load_model("my_zoo:flat")
    (own / "my_zoo").mkdir()
    with pytest.raises(InputError, match=f"'my_zoo.nets:flat': No module .*; {hint}"):
        load_model("my_zoo.nets:flat")


def test_a_factory_that_raises_is_one_line(own, monkeypatch):
    monkeypatch.syspath_prepend(str(own))
    with pytest.raises(InputError, match="'my_zoo:broken': the factory failed: KeyError: ") as caught:
        load_model("my_zoo:broken")
    assert "\n" not in str(caught.value)
    assert load_model("my_zoo:flat").num_classes == 10


def test_a_pattern_without_a_match_suggests_nothing():
    with pytest.raises(InputError) as caught:
        expand("digits:zz*")
    assert str(caught.value) == "unknown model 'digits:zz*': no name matches this pattern"
