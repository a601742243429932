"""``robustbench:NAME?dataset=cifar10&threat_model=Linf``: RobustBench's zoo, when it is installed."""

from __future__ import annotations

from advens.classifier import Classifier
from advens.errors import InputError, first_line
from advens.spec import Spec

CLASSES = {"cifar10": 10, "cifar100": 100, "imagenet": 1000}


def check(spec: Spec) -> None:
    """Raise InputError for unknown options."""
    spec.only("dataset", "threat_model", "model_dir", "family")


def load(spec: Spec) -> Classifier:
    """Load through ``robustbench.load_model``; its models take [0, 1] and normalise inside."""
    check(spec)
    try:
        from robustbench import load_model
    except ImportError as error:
        raise InputError(
            f"'{spec.text}' needs the package robustbench, which is not installed"
        ) from error
    dataset = spec.query.get("dataset", "cifar10")
    if dataset not in CLASSES:
        raise InputError(f"'{spec.text}': dataset '{dataset}'; one of: {', '.join(CLASSES)}")
    options = {"threat_model": "Linf"} | {k: v for k, v in spec.query.items() if k != "family"}
    try:
        net = load_model(model_name=spec.rest, **{**options, "dataset": dataset})
    except Exception as error:  # whatever the third party raises for an unknown name or no network
        raise InputError(f"'{spec.text}': robustbench: {first_line(error)}") from error
    return Classifier(
        net, name=spec.text, num_classes=CLASSES[dataset], family=spec.query.get("family", "cnn")
    )
