"""Model sources: what loads, how it is described, and one clear line for whatever does not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

import advens
from advens.classifier import Classifier
from advens.digest import weights_digest
from advens.errors import InputError
from advens.models import check_name, describe, expand, list_models, load_model

ARCH = "test_vit"


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
    assert model.digest == weights_digest(model.net)


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
    with pytest.raises(InputError, match="unknown model 'digits:resnt\\*'; did you mean 'digits:re"):
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
    model = load_model(f"timm:{ARCH}?checkpoint={path}&num_classes=7")
    assert torch.equal(torch.get_rng_state(), before)
    assert model.digest == weights_digest(net)
    assert (model.num_classes, model.family, model.input_size) == (7, "vit", (160, 160))
    well_formed(model)
    x = images(160)
    wanted = net((x - 0.5) / 0.5)  # mean and std of the weights' configuration
    torch.testing.assert_close(model(x), wanted.detach())


def test_the_same_weights_under_two_names(checkpoint: Path, net: nn.Module, tmp_path: Path) -> None:
    other = tmp_path / "renamed.pth"
    torch.save(net.state_dict(), other)
    one = load_model(f"timm:{ARCH}?checkpoint={checkpoint}&num_classes=7")
    two = load_model(f"timm:{ARCH}?checkpoint={other}&num_classes=7&mean=0&std=1")
    assert one.name != two.name
    assert one.digest == two.digest
    state = net.state_dict()
    state["head.bias"] = state["head.bias"].clone()
    state["head.bias"][3] += 1e-3
    torch.save(state, other)
    assert load_model(f"timm:{ARCH}?checkpoint={other}&num_classes=7").digest != one.digest


def test_timm_random_weights_come_from_the_seed() -> None:
    zero, again, one = (
        load_model(f"timm:{ARCH}?pretrained=false&num_classes=7&seed={seed}") for seed in (0, 0, 1)
    )
    assert zero.digest == again.digest != one.digest
    assert zero.digest == weights_digest(random_net(0))


def test_timm_options(checkpoint: Path) -> None:
    model = load_model(
        f"timm:{ARCH}?checkpoint={checkpoint}&num_classes=7&mean=0.1,0.2,0.3&std=0.5&family=hybrid"
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
    with pytest.raises(InputError, match="is corrupt or of another architecture") as caught:
        load_model(f"timm:{ARCH}?checkpoint={path}&num_classes=7")
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_checkpoint_of_another_architecture(tmp_path: Path, checkpoint: Path) -> None:
    other = tmp_path / "w.pth"
    torch.save(nn.Linear(2, 2).state_dict(), other)
    for spec in (
        f"timm:{ARCH}?checkpoint={other}&num_classes=7",
        f"timm:{ARCH}?checkpoint={checkpoint}&num_classes=8",
        f"timm:test_resnet?checkpoint={checkpoint}",
        f"torchvision:squeezenet1_1?checkpoint={other}&num_classes=2",
    ):
        with pytest.raises(InputError, match="is corrupt or of another architecture") as caught:
            load_model(spec)
        assert "\n" not in str(caught.value)


class Evil:
    """Runs code when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.mark}",)


def test_a_checkpoint_runs_no_code(tmp_path: Path) -> None:
    mark = tmp_path / "was-here"
    torch.save({"state_dict": Evil(mark)}, tmp_path / "w.pth")
    with pytest.raises(InputError, match="is corrupt or of another architecture"):
        load_model(f"timm:{ARCH}?checkpoint={tmp_path / 'w.pth'}&num_classes=7")
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
    assert loaded.digest == other.digest


def test_torchvision_weights_say_how_they_see(monkeypatch: pytest.MonkeyPatch) -> None:
    """Size, mean and std are those of the weights' own transforms."""
    enum = torchvision.models.SqueezeNet1_1_Weights.IMAGENET1K_V1
    net = torchvision.models.squeezenet1_1()
    monkeypatch.setattr(type(enum), "get_state_dict", lambda self, **_: net.state_dict())
    for weights in ("", "?weights=IMAGENET1K_V1"):
        model = load_model(f"torchvision:squeezenet1_1{weights}")
        assert model.digest == weights_digest(net)
        assert (model.num_classes, model.input_size) == (1000, (224, 224))
        assert model.mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])


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


def test_robustbench_is_optional() -> None:
    if "robustbench" in sys.modules:
        pytest.skip("robustbench is here")
    with pytest.raises(InputError, match="needs the package robustbench, which is not installed"):
        load_model("robustbench:Standard?dataset=cifar10")


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
    for wrong in ("digits:resnt", "digits:resnt*"):
        assert invoke(["models", wrong]) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"advens: unknown model '{wrong}'; did you mean 'digits:resnet")
        assert said.count("\n") == 1


@pytest.mark.parametrize("name", ["digits:mambaout", "shapes:resnet", "timm:test_resnet?pretrained=false"])
def test_loading_draws_nothing_from_the_global_generator(name: str) -> None:
    before = torch.get_rng_state()
    load_model(name)
    assert torch.equal(torch.get_rng_state(), before)
