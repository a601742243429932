"""The entries that the repository keeps, and the records beside archives."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from advens.benchmarks.archive import ABOUT, unpack
from advens.benchmarks.submission import RECORD, Check, Dispute, Record, Submission, read_record
from advens.benchmarks.suites import toml_table, validated
from advens.digest import file_digest
from advens.errors import InputError

RESULTS = Path(__file__).parents[2] / "results"
ENTRIES = sorted(path for path in (RESULTS / "entries").glob("*") if path.is_dir())
TABLE = (RESULTS / "README.md").read_text(encoding="utf-8").partition("## What the labels mean")[0]
DAY = date(2026, 1, 31)


def row(name: str) -> list[str]:
    """An entry's cells in the table of the page."""
    found = re.search(rf"^\| `{re.escape(name)}` \|(.*)\|$", TABLE, re.MULTILINE)
    assert found, f"results/README.md does not list {name}"
    return [cell.strip() for cell in found[1].split("|")]


@pytest.mark.parametrize("folder", ENTRIES, ids=lambda path: path.name)
def test_an_entry_verifies_and_is_listed(folder: Path, tmp_path: Path, advens: Callable[..., Any]) -> None:
    assert {path.name for path in folder.iterdir()} <= {"entry.tar", RECORD}
    archive = folder / "entry.tar"
    if not archive.is_file():
        pytest.skip("the archive lies elsewhere")
    assert archive.stat().st_size < 5_000_000
    record = read_record(archive)
    assert record is not None
    unpack(archive, tmp_path / "entry")
    said = validated(Submission, toml_table((tmp_path / "entry" / ABOUT).read_text(), ABOUT), ABOUT)
    suite, authors, label = row(folder.name)
    assert suite == f"`{said.suite.name}`, version {said.suite.version}"
    assert authors == ", ".join(said.authors)
    assert label == record.label(said.authors)
    shown = advens("verify", archive).done().out.splitlines()
    assert "label: consistent" in shown
    assert shown[-1] == f"recorded label in {folder / RECORD}: {label}"


def test_every_entry_of_the_table_has_a_folder() -> None:
    assert set(re.findall(r"^\| `([^`]+)` \|", TABLE, re.MULTILINE)) == {path.name for path in ENTRIES}


def test_labels() -> None:
    some = Check(by="C", date=DAY, machine="m", share=0.05, challenge="t")
    all_by_author, all_by_other = (some.model_copy(update={"share": 1.0, "by": by}) for by in "AC")
    digest = "0" * 64
    for checks, label in {
        (): "consistent", (some,): "re-crafted", (all_by_author,): "re-crafted",
        (some, all_by_other): "reproduced",
    }.items():  # fmt: skip
        record = Record(sha256=digest, checks=list(checks))
        assert record.label(["A", "B"]) == label
        for still in (True, False):
            dispute = Dispute(by="D", date=DAY, about="x", open=still)
            disputed = record.model_copy(update={"disputes": [dispute]})
            assert disputed.label(["A"]) == (f"{label}, disputed" if still else label)


def test_a_record_is_of_its_archive(tmp_path: Path) -> None:
    archive, path = tmp_path / "entry.tar", tmp_path / RECORD
    archive.write_bytes(b"x")
    assert read_record(archive) is None
    path.write_text(f'sha256 = "{file_digest(archive)}"\n')
    assert read_record(archive) == Record(sha256=file_digest(archive))
    path.write_text(f'sha256 = "{file_digest(archive)}"\narchive = "https://example.org/entry.tar"\n')
    assert read_record(archive) is None
    for text, words in {
        f'sha256 = "{"0" * 64}"': "the digest is not that of entry.tar",
        'sha256 = "0"': "sha256 = '0'",
        f'sha256 = "{file_digest(archive)}"\nlabel = "reproduced"': "unknown key 'label'",
        "archive = 5": "archive = 5",
    }.items():
        path.write_text(text)
        with pytest.raises(InputError, match=words):
            read_record(archive)


def test_the_records_on_the_page_are_records() -> None:
    text = (RESULTS / "README.md").read_text(encoding="utf-8")
    found = re.findall(r"^```toml\n(\[\[.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert len(found) == 2
    for block in found:
        record = validated(Record, toml_table(block, "page") | {"sha256": "0" * 64}, "page")
        assert record.label([]) in ("reproduced", "consistent, disputed")
