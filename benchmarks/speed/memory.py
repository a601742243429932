"""Peak memory of a run as images and targets grow: it should not.

    python -m advens.benchmarks.speed.memory

Every line is a process of its own; peak resident memory is what the kernel counted for it.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import click

SUITE = """
name = "memory"
data = "synthetic:shapes?n={images}"
shard = 100
targets = {targets}
[threat]
eps = 0.05
steps = 2
[surrogates]
one = ["digits:mambaout"]
[[attacks]]
name = "mifgsm"
"""

TARGETS = [
    "digits:convnext", "digits:byobnet", "digits:efficientnet", "digits:resnet", "digits:resnet-b",
    "digits:coatnet", "digits:nfnet", "digits:vit",
]  # fmt: skip


def measured(arguments: list[str], folder: str | Path) -> tuple[float, float]:
    """MiB at the peak and seconds of one command, in a process of its own that starts in ``folder``."""
    script = (
        "import resource, sys, time\n"
        "from advens.cli import invoke\n"
        "started = time.perf_counter()\n"
        f"code = invoke({arguments!r})\n"
        "found = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter() - started\n"
        "print('PEAK', *found, file=sys.stderr)\n"
        "sys.exit(code)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=folder
    )
    if done.returncode:
        raise click.ClickException(done.stderr)
    kib, seconds = done.stderr.rpartition("PEAK ")[2].split()[:2]
    return int(kib) / (1024 if sys.platform == "linux" else 2**20), float(seconds)


def peak(images: int, targets: int) -> float:
    """MiB at the peak of one transfer run."""
    with tempfile.TemporaryDirectory() as folder:
        suite = Path(folder) / "memory.toml"
        suite.write_text(SUITE.format(images=images, targets=TARGETS[:targets]))
        return measured(["run", str(suite), "--out", "run"], folder)[0]


@click.command()
@click.option("--images", "counts", multiple=True, type=int, default=(200, 1000, 5000))
def main(counts: tuple[int, ...]) -> None:
    """Measure peak memory against images and targets."""
    click.echo(f"{'images':>8}{'targets':>9}{'peak MiB':>10}")
    for images, targets in [*((n, 2) for n in counts), (counts[0], len(TARGETS))]:
        click.echo(f"{images:>8}{targets:>9}{peak(images, targets):>10.0f}")


if __name__ == "__main__":
    main()
