"""What a site is made of: runs and entries in some folders, and the sources of their attacks."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from advens.attacks.names import Catalogue, catalogue
from advens.benchmarks.archive import unpack
from advens.benchmarks.submission import RECORD, Record, Submission, opened, read_record
from advens.errors import InputError, RunError
from advens.results.report.site import Facts, Papers, Source, slug
from advens.results.store import RunStore

ARCHIVE = "entry.tar"


def found_in(paths: Sequence[Path]) -> list[Path]:
    """The runs and archives of entries that some paths name, each once.

    Args:
        paths: runs, folders of entries, archives, or folders that hold any of these.

    Raises:
        InputError: one of them holds none.
    """
    found: dict[Path, Path] = {}
    for path in paths:
        if not path.exists():
            raise InputError(f"{path} does not exist; give the directory of a run, or of several")
        own = [path] if path.is_file() else _runs(path)
        if not own:
            raise InputError(f"{path} holds no run and no entry, and neither do the folders in it")
        for each in own:
            found.setdefault(each.resolve(), each)
    return list(found.values())


def _runs(folder: Path) -> list[Path]:
    here = _run(folder)
    return [here] if here else [run for path in sorted(folder.iterdir()) if (run := _run(path))]


def _run(folder: Path) -> Path | None:
    """The run, or the archive of the entry, that a folder is; None for another folder."""
    if not folder.is_dir():
        return None
    if (folder / ARCHIVE).is_file():
        return folder / ARCHIVE
    run = (folder / "suite.toml").is_file() or RunStore(folder).has_cells()
    return folder if run else None


def titles(paths: Sequence[Path]) -> list[str]:
    """What runs are called: the names of their folders, and of as many above as tell them apart."""
    whole = [p.resolve().parent if p.name == ARCHIVE else p.resolve().with_suffix("") if p.is_file()
             else p.resolve() for p in paths]  # fmt: skip
    depth = [1] * len(paths)
    while True:
        found = ["/".join(path.parts[-k:]) for path, k in zip(whole, depth, strict=True)]
        twice = [k for k, name in enumerate(found) if found.count(name) > 1]
        grown = [k for k in twice if depth[k] < len(whole[k].parts)]
        if not grown:
            return [f"{name} ({k})" if k in twice else name for k, name in enumerate(found)]
        for k in grown:
            depth[k] += 1


def sources(paths: Sequence[Path], folder: Path) -> list[Source]:
    """The runs and entries as a site takes them.

    Args:
        paths: as `found_in` gives them.
        folder: where archives are unpacked.

    Raises:
        InputError: an archive is no entry, or cannot be read.
        RunError: an entry does not hold to its suite.
    """
    made = []
    for path, title in zip(paths, titles(paths), strict=True):
        if path.is_dir():
            made.append(Source(path, title))
            continue
        try:
            record = read_record(path)
            unpack(path, folder / slug(title))
            entry = opened(folder / slug(title))
        except (InputError, RunError) as error:
            raise type(error)(f"{path}: {error}") from None
        assert entry is not None  # an archive without a submission is not unpacked
        label = record.label(entry.said.authors) if record else "not recorded"
        made.append(Source(entry.run, title, label, tuple(_facts(entry.said, record))))
    return made


def _facts(said: Submission, record: Record | None) -> Iterator[tuple[str, str]]:
    """What the authors of an entry say of it, and what was done with it since."""
    yield "authors", ", ".join(said.authors)
    yield "suite it holds to", f"{said.suite.name}, version {said.suite.version}"
    yield "its own", ", ".join(said.own) or "nothing beside the suite's"
    yield from (("paper", said.paper), ("code", said.code), ("attempts", str(said.attempts)))
    yield "conflicts of interest", said.conflicts
    yield "packed by", f"advens {said.advens.version} ({said.advens.commit or 'no commit'})"
    for check in record.checks if record else ():
        share = "all cells" if check.share == 1 else f"{100 * check.share:g} % of the cells"
        yield "crafted again", f"{share} by {check.by}, {check.date}, on {check.machine}"
    for dispute in record.disputes if record else ():
        state = "open" if dispute.open else "closed"
        yield f"dispute, {state}", f"{dispute.by}, {dispute.date}: {dispute.about}"


def elsewhere(paths: Sequence[Path]) -> list[str]:
    """A line for every folder of an entry whose archive is stored elsewhere."""
    folders = [each for path in paths if path.is_dir() for each in (path, *sorted(path.iterdir()))]
    return [
        f"{folder}: its archive is not in the repository; {RECORD} says where it is"
        for folder in folders
        if (folder / RECORD).is_file() and not (folder / ARCHIVE).is_file()
    ]


def papers() -> Papers:
    """Tells the sources of an attack: those of the recipe that it is called after, and of its parts."""
    known = catalogue()

    def of(name: str, spec: str) -> Facts:
        return tuple(dict(_papers(known, name, spec)).items())

    return of


def _papers(known: Catalogue, name: str, spec: str) -> Iterator[tuple[str, str]]:
    for piece in name.split("+"):
        try:
            prefixes, recipe = known.split(piece)
        except InputError:
            continue
        found = [(recipe, known.recipes[recipe])]
        found += [(part, known.parts[kind][part]) for kind, part in prefixes]
        yield from ((part, info.paper) for part, info in found if info.paper)
    try:
        params = json.loads(spec) if spec else {}
    except (ValueError, RecursionError):
        return
    if isinstance(params, dict):
        for kind, part in _named(params):
            info = known.parts.get(kind, {}).get(part)
            if info is not None and info.paper:
                yield part, info.paper


def _named(params: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    """Kinds and names of the parts of a specification, and of the attack itself where it is a part."""
    yield "attack", str(params.get("name", ""))
    for key, value in params.items():
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, Mapping) and "name" in each:
                yield key.removesuffix("s") if isinstance(value, list) else key, str(each["name"])
