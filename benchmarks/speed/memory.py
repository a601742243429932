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


def peak(images: int, targets: int) -> float:
    """MiB at the peak of one run in a fresh process."""
    with tempfile.TemporaryDirectory() as folder:
        suite = Path(folder) / "memory.toml"
        suite.write_text(SUITE.format(images=images, targets=TARGETS[:targets]))
        script = (
            "import resource, sys\n"
            "from advens.cli import invoke\n"
            f"code = invoke(['run', {str(suite)!r}, '--out', {str(Path(folder) / 'run')!r}])\n"
            "print('PEAK', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)\n"
            "sys.exit(code)\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=folder
        )
    if done.returncode:
        raise click.ClickException(done.stderr)
    kib = int(done.stderr.rpartition("PEAK ")[2].split()[0])
    return kib / 1024 if sys.platform == "linux" else kib / 2**20


@click.command()
@click.option("--images", "counts", multiple=True, type=int, default=(200, 1000, 5000))
def main(counts: tuple[int, ...]) -> None:
    """Measure peak memory against images and targets."""
    click.echo(f"{'images':>8}{'targets':>9}{'peak MiB':>10}")
    for images, targets in [*((n, 2) for n in counts), (counts[0], len(TARGETS))]:
        click.echo(f"{images:>8}{targets:>9}{peak(images, targets):>10.0f}")


if __name__ == "__main__":
    main()
