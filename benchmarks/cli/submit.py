"""``advens submit``: a finished run as an archive that others verify."""

from __future__ import annotations

from pathlib import Path

import click

from advens.benchmarks.cli.options import time_limit_option, trusted_options
from advens.printable import say
from advens.trust import trust_option


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--suite", required=True, help="The suite it holds to: a bundled name or a TOML file.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The archive to be made.")
@click.option("--authors", help="Their names: 'A. One, B. Two'.")
@click.option("--paper", help="Where it is; 'none' is an answer.")
@click.option("--code", help="Where it is; 'none' is an answer.")
@click.option("--attempts", type=click.IntRange(1), help="Runs on this suite until this one, included.")
@click.option("--conflicts", help="Interests that a reader should know; 'none' is an answer.")
@click.option("--about", type=click.Path(path_type=Path), help="A TOML file with these five.")
@click.option("--device", default="auto", help="That verifies: cpu, cuda, cuda:1, mps; auto picks.")
@time_limit_option
@trust_option
def submit(directory: Path, suite: str, out: Path, authors: str | None, paper: str | None, code: str | None,
           attempts: int | None, conflicts: str | None, about: Path | None, device: str,
           time_limit: float) -> None:  # fmt: skip
    """Pack the run in DIRECTORY into an archive, once it verifies as others will verify it.

    Traces and PNG files are left out. The environment is packed without the release of the kernel.
    """
    from advens.benchmarks.sandbox import Limits
    from advens.benchmarks.submission import about_from, submit, user_files
    from advens.benchmarks.suites import load
    from advens.digest import file_digest

    names = [name.strip() for name in authors.split(",") if name.strip()] if authors else None
    given = {"authors": names, "paper": paper, "code": code, "attempts": attempts, "conflicts": conflicts}
    told = about_from(given, about)
    options = ["--device", device, *trusted_options()]
    said = submit(directory, suite, told, out, options, Limits(60 * time_limit))
    if needed := user_files(load(suite)):
        say(f"not in the archive, and needed to verify it: {', '.join(needed)}")
    held = f"{said.suite.name}, version {said.suite.version}"
    say(f"{out}: {out.stat().st_size / 1e6:.2f} MB, an entry of {held}")
    say(f'sha256 = "{file_digest(out)}"')
