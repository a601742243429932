"""``advens site``: many runs and entries as a site."""

from __future__ import annotations

import tempfile
from pathlib import Path

import click

from advens.printable import say
from advens.trust import trust_option


@click.command()
@click.argument(
    "directories", metavar="DIR...", nargs=-1, required=True, type=click.Path(path_type=Path)
)
@click.option("--out", type=click.Path(path_type=Path), help="The folder of the site.  [default: site]")
@click.option("--title", default="Runs", help="What the site is called.")
@click.option("--no-images", is_flag=True, help="Leave out the galleries.")
@trust_option
def site(directories: tuple[Path, ...], out: Path | None, title: str, no_images: bool) -> None:
    """The runs and entries in DIR... as static pages: an index, and one for every run, attack and model.

    DIR is a run, an entry, or a folder of runs or entries. Boards are merged where settings agree.
    A site that --out holds is replaced; a folder that holds anything else is refused.
    """
    from advens.benchmarks.site import elsewhere, found_in, papers, sources
    from advens.results.report.site import gather, pages, refuse_others, write_site

    where = out or Path("site")
    refuse_others(where)
    found = found_in(directories)
    say(*(f"left out: {line}" for line in elsewhere(directories)), err=True)
    with tempfile.TemporaryDirectory(prefix="advens-site-") as folder:
        made = gather(sources(found, Path(folder).resolve()), papers())
        files = pages(made, images=not no_images, title=title)
    say(*(f"left out: {name}: {why}" for name, why in made.left_out), err=True)
    write_site(files, where)
    size = sum(map(len, files.values())) / 1e6
    say(f"site: {where / 'index.html'}, {len(files)} pages, {size:.2f} MB")
