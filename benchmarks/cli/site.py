"""``advens site``: many runs and entries as a site."""

from __future__ import annotations

import tempfile
from pathlib import Path

import click

from advens.errors import InputError
from advens.printable import say
from advens.trust import trust_option


@click.command()
@click.argument(
    "directories", metavar="DIR...", nargs=-1, required=True, type=click.Path(path_type=Path)
)
@click.option("--out", type=click.Path(path_type=Path), help="The folder of the site.  [default: site]")
@click.option("--title", default="Runs", help="What the site is called.")
@click.option("--no-images", is_flag=True, help="Leave out the galleries.")
@click.option("--serve", is_flag=True, help="Serve it on this machine alone, and follow runs that go on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8008, help="Of --serve; 0 takes a free one.")
@trust_option
def site(directories: tuple[Path, ...], out: Path | None, title: str, no_images: bool, serve: bool,
         port: int) -> None:  # fmt: skip
    """The runs and entries in DIR... as static pages: an index, and one for every run, attack and model.

    DIR is a run, an entry, or a folder of runs or entries. Boards are merged where settings agree.
    A site that --out holds is replaced; a folder that holds anything else is refused.

    With --serve nothing is written: the pages are served from memory on 127.0.0.1 until Ctrl-C, with a page
    that shows how far runs are.
    """
    from advens.benchmarks.site import elsewhere, found_in, papers, sources
    from advens.results.report.site import gather, pages, refuse_others, write_site

    if serve and out is not None:
        raise InputError("--serve writes nothing; give it without --out")
    where = out or Path("site")
    if not serve:
        refuse_others(where)
    found = found_in(directories)
    say(*(f"left out: {line}" for line in elsewhere(directories)), err=True)
    with tempfile.TemporaryDirectory(prefix="advens-site-") as folder:
        if serve:
            from advens.benchmarks.serve import Live, serving

            live = Live(sources(found, Path(folder).resolve()), title, images=not no_images)
            with serving(live, port) as address:
                say(f"site: {address} (Ctrl-C ends it)")
                live.follow()
            return
        made = gather(sources(found, Path(folder).resolve()), papers())
        files = pages(made, images=not no_images, title=title)
    say(*(f"left out: {name}: {why}" for name, why in made.left_out), err=True)
    write_site(files, where)
    size = sum(map(len, files.values())) / 1e6
    say(f"site: {where / 'index.html'}, {len(files)} pages, {size:.2f} MB")
