"""Entries: a finished run packed into one archive that others verify.

`advens.benchmarks.archive` reads and writes the archive; what is in it is verified in a sandbox
(`advens.benchmarks.sandbox`), as entries come from strangers.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import BaseModel, ConfigDict, Field

from advens import __version__
from advens.benchmarks.archive import ABOUT, RUN, pack, refuse_large_tables, unpack
from advens.benchmarks.environment import commit, source_digest
from advens.benchmarks.runner import write_boards
from advens.benchmarks.sandbox import Limits, run_sandboxed
from advens.benchmarks.status import runs_in
from advens.benchmarks.suites import (
    AnySuite,
    BuiltSet,
    Suite,
    bundled,
    departures,
    load,
    parse,
    suite_identity,
    toml_table,
    validated,
)
from advens.digest import file_digest
from advens.errors import InputError, RunError
from advens.files import os_errors, read_regular
from advens.printable import say
from advens.results.store import RunStore

FORMAT, RECORD = 1, "record.toml"


class About(BaseModel):
    """What the authors of an entry say of it.

    Args:
        authors: their names.
        paper, code: where these are; ``none`` where there is none.
        attempts: how many runs on this suite were made until this one, this one included: with other
            options, other seeds, other versions of the attack.
        conflicts: interests that a reader should know, as to be an author of an attack that is compared; or
            ``none``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=True, str_min_length=1)

    authors: list[str] = Field(min_length=1)
    paper: str
    code: str
    attempts: int = Field(ge=1)
    conflicts: str


class Named(BaseModel):
    """The suite that an entry holds to."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    version: int
    digest: str


class Code(BaseModel):
    """The code that packed an entry: version, commit when known, and digest of all source files."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: str
    commit: str | None = None
    digest: str


class Submission(About):
    """All that ``submission.toml`` holds.

    Args:
        format: of the archive.
        own: attacks, or defenses, that the entry adds to those of the suite.
        suite, advens: what it was made with.
    """

    format: int = FORMAT
    own: list[str] = []
    suite: Named
    advens: Code


class Check(BaseModel):
    """Cells of an entry that somebody crafted again, with the stored images as the result.

    Args:
        by: who.
        date: when.
        machine: on what, as ``AMD EPYC 7763, torch 2.8.0``.
        share: of the cells; 1 is all of them.
        challenge: the text that the cells were drawn with.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=True, str_min_length=1)

    by: str
    date: date
    machine: str
    share: float = Field(gt=0, le=1)
    challenge: str


class Dispute(BaseModel):
    """An objection to an entry.

    Args:
        by: who.
        date: when.
        about: what is objected to, or where that is discussed.
        open: whether it is not settled.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=True, str_min_length=1)

    by: str
    date: date
    about: str
    open: bool = True


class Record(BaseModel):
    """``record.toml`` beside an archive: what is known of an entry that does not follow from its bytes.

    Args:
        archive: the file beside it, or the address of an archive that is too large for the repository.
        sha256: of the archive.
        checks, disputes: of the entry.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    archive: str = "entry.tar"
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    checks: list[Check] = []
    disputes: list[Dispute] = []

    def label(self, authors: Sequence[str]) -> str:
        """What was checked of an entry that verifies: ``consistent``, ``re-crafted`` or ``reproduced``."""
        others = [check for check in self.checks if check.share == 1 and check.by not in authors]
        label = "reproduced" if others else "re-crafted" if self.checks else "consistent"
        return f"{label}, disputed" if any(each.open for each in self.disputes) else label


def read_record(archive: Path) -> Record | None:
    """The record beside an archive; None without one. Raises InputError for one of another archive."""
    path = archive.parent / RECORD
    if not path.is_file():
        return None
    table, text = _toml(path)
    record: Record = validated(Record, table, str(path), text)
    if record.archive == archive.name and record.sha256 != file_digest(archive):
        raise InputError(f"{path}: the digest is not that of {archive.name}")
    return record if record.archive == archive.name else None


def about_from(given: Mapping[str, Any], file: Path | None) -> About:
    """What the authors say, from a TOML file and what is given beside it.

    Raises:
        InputError: naming every field that is missing, or the first that cannot be used.
    """
    told, text = _toml(file) if file is not None else ({}, "")
    for key in ("format", "own", "suite", "advens"):  # of another entry
        told.pop(key, None)
    told |= {key: value for key, value in given.items() if value not in (None, ())}
    if missing := [key for key in About.model_fields if key not in told]:
        raise InputError(
            f"the submission does not say {', '.join(missing)}; give --{' --'.join(missing)}"
            f"{' or --about FILE' if file is None else f' or add them to {file}'} ('none' is an answer)"
        )
    return validated(About, told, str(file or "the submission"), text)


def submit(
    directory: Path,
    suite: str,
    about: About,
    out: Path,
    options: Sequence[str],
    limits: Limits,
) -> Submission:
    """Pack a finished run into an archive that verifies; nothing is written unless it does.

    Args:
        directory: of the run.
        suite: that the run holds to: a bundled one by name, or a file.
        options: of the ``advens verify`` that the archive must pass.

    Raises:
        InputError: the run is of another suite, or cannot be read.
        RunError: the archive does not verify.
    """
    run = directory / "suite.toml"
    if not run.is_file():
        raise InputError(f"{directory} holds no suite.toml; give the directory of a run")
    with os_errors("read", run):
        found = parse(read_regular(run).decode(errors="replace"), str(run))
    wanted = load(suite)
    lines, own = departures(found, wanted)
    if lines:
        raise InputError(f"{directory} is no run of the suite '{suite}': {'; '.join(lines)}")
    said = Submission(
        **about.model_dump(), own=own, suite=Named(**suite_identity(wanted)),
        advens=Code(version=__version__, commit=commit(), digest=source_digest()),
    )  # fmt: skip
    if out.is_dir():
        raise InputError(f"--out {out} is a folder; give the name of the archive")
    with os_errors("write", out):
        out.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{out.name}.", suffix=".tmp", dir=out.parent)
    fresh = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file, os_errors("write", out):
            pack(directory, tomli_w.dumps(said.model_dump(exclude_none=True)).encode(), file)
        os.chmod(fresh, 0o644)
        code = verify_archive(fresh, ["--suite", suite, *options], limits, name=str(out))
        if code:
            kind = RunError if code == 1 else InputError
            raise kind(f"{directory} does not verify as an entry; {out} is not written")
        with os_errors("write", out):
            os.replace(fresh, out)
    finally:
        fresh.unlink(missing_ok=True)
    return said


def verify_archive(
    archive: Path, options: Sequence[str], limits: Limits, name: str | None = None
) -> int:
    """Verify an entry in a sandbox, and show what it says. Returns the exit code of ``advens verify``.

    Args:
        options: of ``advens verify``.
        name: of the archive in messages.

    Raises:
        InputError: it is no entry, or the sandbox had to end the process.
    """
    shown = name or str(archive)
    record = read_record(archive)
    with tempfile.TemporaryDirectory(prefix="advens-entry-") as made:
        folder = Path(made).resolve()
        try:
            unpack(archive, folder / "entry")
            call = ["verify", str(folder / "entry"), *options]
            code = run_sandboxed(call, folder, limits, {str(folder / "entry"): shown})
        except InputError as error:
            raise InputError(f"{shown}: {error}") from None
        if code == 0 and record is not None:
            authors = _submission(folder / "entry").authors
            label = record.label(authors)
            say(f"recorded label in {archive.parent / RECORD}: {label}", err="json" in options)
        return code


@dataclass(frozen=True)
class Entry:
    """An entry that was unpacked.

    Args:
        run: the directory of its run.
        said: its submission.
    """

    run: Path
    said: Submission

    def lines(self) -> list[str]:
        """What it says of itself, for people."""
        said, code = self.said, self.said.advens
        same = "the same code as here" if code.digest == source_digest() else "other code than here"
        told = {
            "suite": f"{said.suite.name}, version {said.suite.version}",
            "its own": ", ".join(said.own) or "nothing beside the suite's",
            "authors": ", ".join(said.authors), "paper": said.paper, "code": said.code,
            "attempts": said.attempts, "conflicts": said.conflicts,
            "packed by": f"advens {code.version} ({code.commit or 'no commit'}), {same}",
        }  # fmt: skip
        return [f"{what:<10} {value}" for what, value in told.items()]


def opened(folder: Path, suite: str | None = None) -> Entry | None:
    """The entry that was unpacked into a folder, with the boards of its run; None for another folder.

    Args:
        suite: that it is held to; the bundled one that it names without.

    Raises:
        InputError: what it says of itself is damaged, or nothing here can say whether it holds.
        RunError: it does not hold to its suite, or says what is not so.
    """
    if not (folder / ABOUT).is_file():
        return None
    said = _submission(folder)
    if said.format != FORMAT:
        raise InputError(f"{ABOUT}: format {said.format}; this version of advens reads format {FORMAT}")
    if suite is None and said.suite.name not in bundled():
        raise InputError(
            f"the entry is of the suite '{said.suite.name}', which does not come with advens; "
            "--suite FILE.toml says what it holds to"
        )
    wanted = load(suite or said.suite.name)
    identity = suite_identity(wanted)
    if said.suite.version != identity["version"]:
        raise InputError(
            f"the entry is of version {said.suite.version} of '{said.suite.name}', and this advens has "
            f"version {identity['version']}; verify it with the one that made it, {said.advens.version} "
            f"({said.advens.commit or 'a release'})"
        )
    path = folder / RUN / "suite.toml"
    found = parse(read_regular(path).decode(errors="replace"), "suite.toml")
    lines, own = departures(found, wanted)
    if said.suite.model_dump() != identity:
        lines.append(f"{ABOUT}: the digest is not that of the suite '{wanted.name}'")
    if said.own != own:
        lines.append(f"{ABOUT}: {_listed(said.own)} as its own, where suite.toml adds {_listed(own)}")
    if lines:
        raise RunError(f"the entry does not hold to the suite '{wanted.name}': {'; '.join(lines)}")
    refuse_large_tables(folder / RUN)
    _write_boards(folder / RUN)
    return Entry(folder / RUN, said)


def _write_boards(folder: Path) -> None:
    """Compute the boards of a run, and of those in its folders; where rows are damaged, verify says so."""
    for directory in dict.fromkeys([*(store.directory for store in runs_in(folder)), folder]):
        with suppress(RunError, InputError, KeyError, ValueError, TypeError):
            text = read_regular(directory / "suite.toml").decode(errors="replace")
            write_boards(RunStore(directory), parse(text, "suite.toml"))


def user_files(suite: AnySuite) -> list[str]:
    """Models and data of a suite that others have to get or build before they can verify an entry."""
    if not isinstance(suite, Suite):
        return ["trainings of the defenses"] if suite.defenses else []
    names = [suite.data, *suite.targets]
    for models in suite.surrogates.values():
        names += [] if isinstance(models, BuiltSet) else [models] if isinstance(models, str) else models
    found = [
        name for name in dict.fromkeys(names)
        if "checkpoint=" in name or name.startswith(("defense:", "folder:", "csv:", "parquet:"))
    ]
    built = [name for name, models in suite.surrogates.items() if isinstance(models, BuiltSet)]
    return [*found, *(f"the surrogates '{name}', which are built" for name in built)]


def _submission(folder: Path) -> Submission:
    table, text = _toml(folder / ABOUT)
    return validated(Submission, table, ABOUT, text)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) if names else "nothing"


def _toml(path: Path) -> tuple[dict[str, Any], str]:
    """A TOML file as a table, and its text."""
    with os_errors("read", path):
        text = read_regular(path).decode(errors="replace")
    return toml_table(text, path.name), text
