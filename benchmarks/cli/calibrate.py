"""``advens calibrate``: how long passes take on this device."""

from __future__ import annotations

import click

from advens.benchmarks.cli.options import set_option
from advens.printable import say
from advens.trust import trust_option


@click.command()
@click.argument("suite", required=False)
@click.option("--device", default="auto", help="cpu, cuda, cuda:1, mps; auto picks.")
@trust_option
@set_option
def calibrate(suite: str | None, device: str, settings: tuple[str, ...]) -> None:
    """Measure forward and backward passes of the models of SUITE (the embedded ones without) on this device.

    'advens run SUITE --dry-run' then estimates the hours that a suite takes. Networks of timm and torchvision
    are measured with random weights: nothing is downloaded.
    """
    from advens.benchmarks import calibrate as passes
    from advens.benchmarks.executors.base import resolve_device
    from advens.benchmarks.pins import models_of
    from advens.benchmarks.suites import load_suite, parse_settings
    from advens.datasets import find_data
    from advens.models import list_models
    from advens.models.embedded import SIZE

    where = resolve_device(device)
    if suite is None:
        names, size = list_models(), SIZE
    else:
        found = load_suite(suite, parse_settings(settings))
        names, size = list(models_of(found)), passes.size_of(find_data(found.source))
    say(f"on {passes.described(where)}, images of {size[0]}x{size[1]}, per image:")
    for name, times in passes.calibrate(names, size, where):
        if isinstance(times, str):
            say(f"left out: {name}: {times}")
        else:
            say(f"{times.forward * 1e3:9.3f} ms forward {times.backward * 1e3:9.3f} ms backward  {name}")
    say(f"kept in {passes.calibration_path(where)}")
