"""A white-box attack on more and more images: memory should stay, cost should grow in proportion.

    python -m advens.benchmarks.speed.streaming [--out FILE.json]

Images are made as they are asked for, attacked shard by shard, and shards are kept one by one. Every
line is a process of its own. The figure for a million images is the straight line through the lines.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import click
import numpy as np

from advens.benchmarks.environment import commit, versions
from advens.benchmarks.speed.memory import measured

MILLION = 1_000_000


def command(images: int, model: str, attack: str, eps: str, shard: int, device: str) -> list[str]:
    """What a user would type."""
    return [
        "robustness", "--model", model, "--data", f"synthetic:shapes?n={images}&seed=0", "--attack",
        attack, "--eps", eps, "--shard", str(shard), "--device", device, "--out", "run",
    ]  # fmt: skip


def straight(counts: list[int], seconds: list[float]) -> tuple[float, float, float]:
    """Least squares: seconds per image, seconds at none, and the largest relative error of the line."""
    slope, start = np.polyfit(counts, seconds, 1)
    error = np.abs(np.polyval([slope, start], counts) / np.array(seconds) - 1).max()
    return float(slope), float(start), float(error)


@click.command()
@click.option("--images", "counts", multiple=True, type=int, default=(2500, 5000, 10000, 20000))
@click.option("--model", default="shapes:resnet-at", show_default=True)
@click.option("--attack", default="pma", show_default=True)
@click.option("--eps", default="24/255", show_default=True)
@click.option("--shard", default=1000, show_default=True)
@click.option("--device", default="cpu", show_default=True)
@click.option("--out", type=click.Path(path_type=Path))
def main(
    counts: tuple[int, ...], model: str, attack: str, eps: str, shard: int, device: str, out: Path | None
) -> None:
    """Measure memory and time against images."""
    lines: list[dict[str, Any]] = []
    click.echo(f"{'images':>8}{'seconds':>10}{'images/s':>10}{'peak MiB':>10}")
    for images in counts:
        with tempfile.TemporaryDirectory() as folder:
            mebibytes, seconds = measured(command(images, model, attack, eps, shard, device), folder)
        lines.append({"images": images, "seconds": seconds, "peak_mib": mebibytes})
        click.echo(f"{images:>8}{seconds:>10.1f}{images / seconds:>10.1f}{mebibytes:>10.0f}")
    about: dict[str, Any] = {
        "model": model, "attack": attack, "eps": eps, "shard": shard, "device": device, "commit": commit(),
        "packages": versions(), "lines": lines,
    }  # fmt: skip
    if len(lines) > 1:
        slope, start, error = straight(list(counts), [line["seconds"] for line in lines])
        about |= {"seconds_per_image": slope, "seconds_at_none": start, "largest_relative_error": error}
        click.echo(f"a million images: {(start + slope * MILLION) / 3600:.1f} hours, by the straight line "
                   f"through these (off by at most {100 * error:.1f} %)")  # fmt: skip
    if out is not None:
        out.write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()
