"""``robustbench:NAME?dataset=cifar10&threat_model=Linf``: RobustBench's zoo, when it is installed."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from advens.classifier import Classifier
from advens.errors import InputError, first_line, unknown
from advens.spec import Spec

CLASSES = {"cifar10": 10, "cifar100": 100, "imagenet": 1000}


def check(spec: Spec) -> None:
    """Raise InputError for unknown options and data sets, and when RobustBench is not installed."""
    spec.only("dataset", "threat_model", "model_dir", "family")
    if _dataset(spec) not in CLASSES:
        raise unknown(f"'{spec.text}': dataset", _dataset(spec), CLASSES)
    if find_spec("robustbench") is None:
        raise InputError(f"'{spec.text}' needs the package robustbench, which is not installed")


def would(_: Spec) -> str:
    """What loading any of these names does that needs trust."""
    return "let RobustBench unpickle what it downloads"


def absent(spec: Spec) -> str:
    """What has to be downloaded before a name can be loaded; empty where nothing has to."""
    if _dataset(spec) == "imagenet" and "Standard" in spec.rest:  # torchvision's weights
        from advens.models import torchvision

        return torchvision.absent(Spec.parse("torchvision:resnet50?weights=IMAGENET1K_V1", "model"))
    threat = spec.query.get("threat_model", "Linf").replace("_3d", "")
    file = Path(spec.query.get("model_dir", "models")) / _dataset(spec) / threat / f"{spec.rest}.pt"
    first_member = file.with_name(f"{file.name}_m0.pt")
    return "" if file.is_file() or first_member.is_file() else f"RobustBench's {spec.rest} to {file}"


def load(spec: Spec) -> Classifier:
    """Load through ``robustbench.load_model``; its models take [0, 1] and normalise inside."""
    check(spec)
    try:
        from robustbench import load_model
    except ImportError as error:  # of what RobustBench itself needs
        raise InputError(
            f"'{spec.text}' needs the package robustbench, which does not import: {first_line(error)}"
        ) from error
    options = {"threat_model": "Linf"} | {k: v for k, v in spec.query.items() if k != "family"}
    try:
        net = load_model(model_name=spec.rest, **{**options, "dataset": _dataset(spec)})
    except Exception as error:  # whatever the third party raises for an unknown name or no network
        raise InputError(f"'{spec.text}': robustbench: {first_line(error)}") from error
    return Classifier(
        net, name=spec.text, num_classes=CLASSES[_dataset(spec)], family=spec.query.get("family", "cnn")
    )


def _dataset(spec: Spec) -> str:
    return spec.query.get("dataset", "cifar10")
