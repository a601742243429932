"""Archives of entries: what is not exactly that is refused in one line, before anything is written."""

from __future__ import annotations

import gzip
import io
import os
import stat
import subprocess
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tomli_w

from advens.benchmarks import archive as archives
from advens.benchmarks.archive import refuse_large_tables, unpack
from advens.benchmarks.sandbox import Limits
from advens.benchmarks.submission import opened, verify_archive
from advens.errors import InputError, RunError
from tests.hostile.conftest import recell

Members = list[tuple[tarfile.TarInfo, bytes]]
TOLD = ["--authors", "One,Two", "--paper", "none", "--code", "none", "--attempts", "2", "--conflicts", "none"]


@pytest.fixture(scope="session")
def suite(honest: Path) -> Path:
    """The suite of the honest run."""
    return honest.parent / "suite.toml"


@pytest.fixture(scope="session")
def packed(honest: Path, suite: Path) -> Path:
    """The honest run as an entry."""
    from advens.cli import invoke

    out = honest.parent / "entry.tar"
    assert invoke(["submit", str(honest), "--suite", str(suite), "--out", str(out), *TOLD]) == 0
    return out


@pytest.fixture
def entry(packed: Path, tmp_path: Path) -> Path:
    """It, unpacked, to be forged."""
    unpack(packed, tmp_path / "entry")
    return tmp_path / "entry"


@pytest.fixture
def nothing_starts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No process may be started, and nothing may be left behind."""

    def refused(*_: Any, **__: Any) -> None:
        raise AssertionError("a process was started")

    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(archives.tarfile.TarFile, "extractall", refused)
    monkeypatch.setattr(subprocess, "Popen", refused)
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    yield
    assert list(temporary.iterdir()) == []


def members(packed: Path) -> Members:
    with tarfile.open(packed) as tar:
        return [(member, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]


def written(path: Path, content: Members, **how: Any) -> Path:
    with tarfile.open(path, "w", **how) as tar:
        for member, data in content:
            tar.addfile(member, io.BytesIO(data) if member.size else None)
    return path


def member(name: str, data: bytes = b"", **changes: Any) -> tuple[tarfile.TarInfo, bytes]:
    made = tarfile.TarInfo(name)
    made.size = len(data)
    for key, value in changes.items():
        setattr(made, key, value)
    return made, data


LINK, HARD = {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}, {"type": tarfile.LNKTYPE}
ADDED = {
    "absolute": (member("/etc/x.parquet", b"x"), "is no file of an entry"),
    "above": (member("run/../../x.parquet", b"x"), "is no file of an entry"),
    "above as a part": (member("run/../x.parquet", b"x"), "is no file of an entry"),
    "beside": (member("run2/x.parquet", b"x"), "is no file of an entry"),
    "dots": (member("run/samples/..", b"x"), "is no file of an entry"),
    "code": (member("run/sitecustomize.py", b"x"), "is no file of an entry"),
    "deep": (member("run/a/b/c/x.parquet", b"x"), "is no file of an entry"),
    "board": (member("run/leaderboard.parquet", b"x"), "is no file of an entry"),
    "control": (member("run/\x1b[2J.parquet", b"x"), "'run/\\x1b[2J.parquet' is no file of an entry"),
    "folder": (member("run/samples", type=tarfile.DIRTYPE), "is no file of an entry"),
    "link": (member("run/plan2.parquet", **LINK), "is no plain file"),
    "hard link": (member("run/x.parquet", **HARD, linkname="run/suite.toml"), "is no plain file"),
    "pipe": (member("run/x.parquet", type=tarfile.FIFOTYPE), "is no plain file"),
    "device": (member("run/x.parquet", type=tarfile.BLKTYPE, devmajor=8), "is no plain file"),
    "twice": (member("run/suite.toml", b"x"), "is there twice"),
    "empty twice": (member("submission.toml"), "is there twice"),
}


@pytest.mark.usefixtures("nothing_starts")
@pytest.mark.parametrize("kind", ADDED)
def test_members_that_no_entry_has(
    kind: str, packed: Path, tmp_path: Path, advens: Callable[..., Any]
) -> None:
    added, words = ADDED[kind]
    bad = written(tmp_path / "bad.tar", [*members(packed), added])
    advens("verify", bad).refused(f"advens: {bad}: ", words)


@pytest.mark.usefixtures("nothing_starts")
def test_names_that_differ_in_capitals(packed: Path, tmp_path: Path, advens: Callable[..., Any]) -> None:
    pair = [member("run/samples/A.b.parquet", b"x"), member("run/samples/a.B.parquet", b"x")]
    bad = written(tmp_path / "bad.tar", [*members(packed), *pair])
    advens("verify", bad).refused("differs from it in capitals only")


@pytest.mark.usefixtures("nothing_starts")
@pytest.mark.parametrize(
    "headers",
    [
        {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(1 << 50)},
        {"GNU.sparse.map": "0,1", "GNU.sparse.size": str(1 << 50)},
        {"size": str(1 << 62)},
        {"size": "-5"},
        {"path": "/etc/passwd"},
        {"comment": "x" * 100_000},
    ],
    ids=range(6),
)
def test_headers_that_change_members(
    headers: dict[str, str], packed: Path, tmp_path: Path, advens: Callable[..., Any]
) -> None:
    added = member("run/x.parquet", b"5\n" + bytes(600), pax_headers=headers)
    bad = written(tmp_path / "bad.tar", [*members(packed), added], format=tarfile.PAX_FORMAT)
    advens("verify", bad).refused(f"advens: {bad}: ")


@pytest.mark.usefixtures("nothing_starts")
def test_too_many_and_too_large(
    packed: Path, advens: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(archives, "MOST_FILES", 3)
        advens("verify", packed).refused("there are more than 3 files in it")
    with monkeypatch.context() as patch:
        patch.setattr(archives, "LARGEST_TEXT", 100)
        advens("verify", packed).refused("is too large")
    monkeypatch.setattr(archives.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    advens("verify", packed).refused("are not free in")


@pytest.mark.usefixtures("nothing_starts")
def test_archives_that_are_cut_off_or_followed(
    packed: Path, tmp_path: Path, advens: Callable[..., Any]
) -> None:
    whole, bad = packed.read_bytes(), tmp_path / "bad.tar"
    last = max(start.offset for start, _ in members(packed))
    for cut in (0, 1, 100, 511, 512, 513, 5000, last - 1, last, last + 512, last + 600):
        bad.write_bytes(whole[:cut])
        advens("verify", bad).refused(f"advens: {bad}: ")
    for more in (b"x", packed.read_bytes(), bytes(1 << 20)):
        bad.write_bytes(whole + more)
        advens("verify", bad).refused("something follows its end")


@pytest.mark.usefixtures("nothing_starts")
def test_what_is_no_tar_archive(packed: Path, tmp_path: Path, advens: Callable[..., Any]) -> None:
    bad = tmp_path / "bad.tar"
    with zipfile.ZipFile(tmp_path / "zip", "w") as made:
        made.writestr("run/suite.toml", "x")
    for content in (
        b"", b"text\n", os.urandom(5000), bytes(20_000), gzip.compress(packed.read_bytes()),
        (tmp_path / "zip").read_bytes(),
    ):  # fmt: skip
        bad.write_bytes(content)
        advens("verify", bad).refused(f"advens: {bad}: ")


@pytest.mark.usefixtures("nothing_starts")
@pytest.mark.parametrize("name", ["submission.toml", "run/suite.toml"])
def test_an_entry_names_its_run(
    name: str, packed: Path, tmp_path: Path, advens: Callable[..., Any]
) -> None:
    bad = written(tmp_path / "bad.tar", [each for each in members(packed) if each[0].name != name])
    advens("verify", bad).refused(f"it is no entry: it holds no {name}")


def test_bytes_flipped_at_random(packed: Path, tmp_path: Path) -> None:
    """Whatever happens to the headers, what is unpacked lies in the folder and is regular."""
    import random

    whole, draw = packed.read_bytes(), random.Random(0)
    heads = [start.offset for start, _ in members(packed)]
    for trial in range(150):
        data = bytearray(whole)
        for _ in range(draw.randint(1, 4)):
            data[draw.choice(heads) + draw.randrange(512)] = draw.randrange(256)
        (tmp_path / "bad.tar").write_bytes(data)
        folder = tmp_path / f"{trial}" / "entry"
        folder.parent.mkdir()
        with suppress(InputError):
            unpack(tmp_path / "bad.tar", folder)
        assert {path.name for path in folder.parent.iterdir()} <= {"entry"}
        kinds = {stat.S_IFMT(path.lstat().st_mode) for path in folder.rglob("*")}
        assert kinds <= {stat.S_IFREG, stat.S_IFDIR}


def test_tables_that_are_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pq.write_table(pa.table({"zeros": pa.array(bytes(5000), pa.uint8())}), tmp_path / "x.parquet")
    (tmp_path / "damaged.parquet").write_bytes(b"x")
    refuse_large_tables(tmp_path)
    for limit in ("LARGEST_TABLE", "MOST_ROWS"):
        with monkeypatch.context() as patch:
            patch.setattr(archives, limit, 10)
            with pytest.raises(InputError, match=r"x\.parquet is too large"):
                refuse_large_tables(tmp_path)


def test_a_bomb_that_lies_meets_the_limit_of_memory(
    suite: Path, entry: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Rows of few bytes with one text of a MiB in all of them: 100 GiB."""
    from advens.results.store.files import _sealed

    rows = 100_000
    path = next((entry / "run" / "samples").glob("*.parquet"))
    one = pq.read_table(path).slice(0, 1)
    columns = [pa.repeat(column[0], rows) for column in one.columns]
    columns[0] = pa.DictionaryArray.from_arrays(pa.repeat(0, rows), pa.array(["x" * (1 << 20)]))
    table, sink = pa.table(columns, names=one.column_names), pa.BufferOutputStream()
    with pq.ParquetWriter(sink, table.schema, compression="zstd", store_schema=False) as file:
        file.write_table(table)
        file.add_key_value_metadata(one.schema.metadata | {b"advens.rows": str(rows).encode()})
    path.write_bytes(b"".join(_sealed(memoryview(sink.getvalue()))))
    assert path.stat().st_size < 1 << 16
    bad = _packed_again(entry, tmp_path / "bad.tar")
    assert verify_archive(bad, ["--suite", str(suite)], Limits(memory=4 << 30)) == 1
    said = capfd.readouterr().err
    assert said.splitlines()[-1].startswith("advens: ")
    assert "failed; delete it" in said


def test_a_name_with_code(
    evil: str, suite: Path, entry: Path, tmp_path: Path, advens: Callable[..., Any]
) -> None:
    recell(entry / "run", surrogate_specs=[evil])
    bad = _packed_again(entry, tmp_path / "bad.tar")
    advens("verify", bad, "--suite", suite).refused("would call os.system", "--trust")


def _packed_again(entry: Path, out: Path) -> Path:
    with out.open("wb") as file:
        archives.pack(entry / "run", (entry / "submission.toml").read_bytes(), file)
    return out


FORGED: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "format": ({"format": 2}, InputError, "this version of advens reads format 1"),
    "key": ({"sponsor": "x"}, InputError, "unknown key 'sponsor'"),
    "attempts": ({"attempts": 0}, InputError, "attempts = 0"),
    "authors": ({"authors": []}, InputError, "authors = "),
    "version": ({"suite": {"version": 9}}, InputError, "of version 9 of 'honest', and this advens has"),
    "digest": ({"suite": {"digest": "0"}}, RunError, "the digest is not that of the suite"),
    "own": ({"own": ["new"]}, RunError, "new as its own, where suite.toml adds nothing"),
}


@pytest.mark.parametrize("what", FORGED)
def test_submissions_that_say_what_is_not_so(what: str, suite: Path, entry: Path) -> None:
    changes, error, words = FORGED[what]
    said = archives_toml(entry)
    for key, value in changes.items():
        said[key] = said[key] | value if isinstance(value, dict) else value
    (entry / "submission.toml").write_text(tomli_w.dumps(said))
    with pytest.raises(error, match=words):
        opened(entry, str(suite))


def archives_toml(entry: Path) -> dict[str, Any]:
    from advens.benchmarks.suites import toml_table

    return toml_table((entry / "submission.toml").read_text(), "x")


@pytest.mark.parametrize("text", ["[" * 100_000, "\x00", "authors = 5", "", "\udcff"], ids=range(5))
def test_damaged_submissions(text: str, entry: Path, suite: Path, advens: Callable[..., Any]) -> None:
    (entry / "submission.toml").write_text(text, errors="surrogateescape")
    advens("verify", entry, "--suite", suite).refused()


def test_another_suite_in_the_place_of_the_one_it_names(suite: Path, entry: Path) -> None:
    path = entry / "run" / "suite.toml"
    path.write_text(path.read_text().replace("eps = 0.2", "eps = 0.3"))
    with pytest.raises(RunError, match="does not hold to the suite 'honest': threat is"):
        opened(entry, str(suite))
    with pytest.raises(InputError, match="does not come with advens; --suite FILE"):
        opened(entry)


def test_what_it_says_moves_no_cursor(suite: Path, entry: Path, advens: Callable[..., Any]) -> None:
    said = archives_toml(entry) | {"conflicts": "\x1b[2Jnone\nlabel: reproduced"}
    (entry / "submission.toml").write_text(tomli_w.dumps(said))
    out = advens("verify", entry, "--suite", suite).out
    assert "conflicts  \\x1b[2Jnone\\nlabel: reproduced" in out
    assert out.splitlines()[-1] == "label: consistent"
