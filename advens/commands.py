"""Commands of the ground floor: models, data, zoo, doctor."""

from __future__ import annotations

from pathlib import Path

import click

from advens.printable import say
from advens.trust import trust_option, typed


@click.command()
@click.argument("name", required=False)
@trust_option
def models(name: str | None) -> None:
    """List models (NAME may be a wildcard, as timm:*resnet*), or show one."""
    from advens.models import SOURCES, describe, list_models
    from advens.models.embedded import index

    if name is not None and not any(c in name.partition("?")[0] for c in "*["):
        typed(name)
        card = describe(name)
        size = "x".join(map(str, card.input_size)) if card.input_size else "any"
        say(f"{card.name}: {card.family}, {card.num_classes} classes, input {size}")
        say(f"digest  {card.digest}")
        say(f"weights {card.weights or card.digest}")
        for key, value in index().get(name, {}).items():
            say(f"  {key:<16} {value}")
        return
    found = list_models(name or "*")
    if not found:
        from advens.errors import unknown

        raise unknown("model", str(name), list_models())
    for each in found:
        entry = index().get(each)
        about = (
            f"{entry['family']:<7} {entry['arch']:<26} {entry['parameters']:>8,} parameters"
            f"  clean {entry['clean_accuracy']:.1%}  robust {entry['robust_accuracy']:.1%}"
            if entry
            else ""
        )
        say(f"{each:<22} {about}".rstrip())
    if name is None:
        others = [info.summary for source, info in SOURCES.entries.values() if not source.embedded]
        say(f"also: {', '.join(others)}, pkg.module:factory")


@click.command()
@click.argument("name", required=False)
@click.option("--check", is_flag=True, help="Decode every image; name those that cannot be used.")
@trust_option
def data(name: str | None, check: bool) -> None:
    """List data sources, or open one and say what is in it."""
    from advens.datasets import find_data, list_data

    if name is None:
        for scheme, usage in list_data():
            say(f"{scheme:<12} {usage}")
        return
    typed(name)
    if check:
        _check_images(name)
    opened = find_data(name)
    say(f"{name}: {len(opened)} images, {opened.num_classes} classes")
    sample = opened[0]
    say(f"first: {sample.sample_id}, label {sample.label}, {tuple(sample.image.shape)}")
    say(f"digest {opened.digest}")


def _check_images(name: str) -> None:
    """Say which images of a data source cannot be used. Raises RunError when there are any."""
    from advens.datasets.loading import open_data
    from advens.errors import InputError, RunError

    opened, bad = open_data(name), 0
    for index in range(len(opened)):
        try:
            opened.pixels(index)
        except InputError as error:
            bad += 1
            say(f"bad: {error}")
    if bad:
        raise RunError(f"{bad} of the {len(opened)} images of '{name}' cannot be used")
    say(f"all {len(opened)} images can be decoded")


@click.group()
def zoo() -> None:
    """The embedded models."""


@zoo.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Where the weights go.")
@click.option("--only", help="Only these: A,B.")
def build(out: Path, only: str | None) -> None:
    """Retrain the embedded networks from scratch, seeded, into a folder."""
    from advens.errors import InputError, unknown
    from advens.zoo.recipes import ENSEMBLES, RECIPES
    from advens.zoo.training import build_zoo

    names = [name.strip() for name in only.split(",")] if only else list(RECIPES)
    for name in names:
        if name in ENSEMBLES:
            raise InputError(f"'{name}' is an ensemble; 'advens models digits:{name}' shows what trains it")
        if name not in RECIPES:
            raise unknown("embedded model", name, [*RECIPES, *ENSEMBLES])
    build_zoo(names, out, on_model=_say_model)
    say(f"{len(names)} models in {out}")
    if not only:
        for name, ensemble in ENSEMBLES.items():
            say(f"the ensemble {name}: {ensemble.command}")


@zoo.command()
def check() -> None:
    """Load every embedded model and measure its clean accuracy on the test images."""
    from advens.classifier import accuracy
    from advens.datasets import load_data
    from advens.errors import RunError
    from advens.models import list_models, load_model
    from advens.models.embedded import index
    from advens.zoo.recipes import TESTS

    batches = {}
    for scheme, source in TESTS.items():
        test = load_data(source)
        batches[scheme] = next(test.batches([slice(0, len(test))]))
    wrong = []
    for name in list_models():
        model, batch = load_model(name), batches[name.partition(":")[0]]
        promised = index()[name]["clean_accuracy"]
        found = accuracy(model, batch.pixels.float() / 255, batch.labels)
        if abs(found - promised) > 0.005:
            wrong.append(name)
        say(f"{name:<22} clean {found:.1%}, promised {promised:.1%}")
    if wrong:
        raise RunError(f"not as promised: {', '.join(wrong)}")


def _say_model(name: str, entry: dict[str, object]) -> None:
    say(
        f"{name:<14} clean {entry['clean_accuracy']:.1%}  robust {entry['robust_accuracy']:.1%}"
        f"  {entry['seconds']:.0f} s"
    )


@click.command()
def doctor() -> None:
    """Versions, devices, weights reachable, disk. Exit code 1 when something is broken."""
    import os
    import platform
    import shutil
    from importlib.metadata import PackageNotFoundError, version

    from advens.errors import InputError, RunError

    broken: list[str] = []
    say(f"advens       {version('advens')}, Python {platform.python_version()}")
    for package in ("torch", "torchvision", "timm", "pandas", "pyarrow", "scikit-learn", "ray"):
        try:
            found = version(package)
        except PackageNotFoundError:
            found = "not installed"
            if package != "ray":
                broken.append(package)
        say(f"{package:<12} {found}")
    try:
        import timm  # imports torchvision: fails when it does not match torch
    except Exception as error:
        broken.append("timm")
        say(f"timm does not import: {error}")
    else:
        say(f"timm         {len(timm.list_models())} architectures")
    import torch

    say(f"cpu          {os.cpu_count()} cores, {torch.get_num_threads()} torch threads")
    for i in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(i)
        say(f"cuda:{i}       {gpu.name}, {gpu.total_memory / 2**30:.0f} GiB")
    if not torch.cuda.is_available():
        say("cuda         none")
    from advens.models import list_models, load_model

    embedded = list_models()
    for name in embedded:
        try:
            load_model(name)
        except InputError as error:
            broken.append(name)
            say(str(error))
    say(f"zoo          {len(embedded)} embedded models")
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    say(f"disk         {free:.1f} GiB free here")
    say(f"hub          {_hub()}")
    if broken:
        raise RunError(f"broken: {', '.join(broken)}")
    say("all is well")


def _hub() -> str:
    """Whether pretrained weights can be downloaded."""
    try:
        from huggingface_hub import HfApi

        HfApi().model_info("timm/resnet18.a1_in1k", timeout=3)
    except Exception as error:
        return (
            f"not reachable ({type(error).__name__}): pretrained timm weights need ?checkpoint=PATH"
        )
    return "reachable"
