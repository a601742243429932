"""Entries: what ``advens submit`` asks for, what it packs, and what is verified of it."""

from __future__ import annotations

import json
import platform
import shutil
import socket
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from advens.benchmarks.archive import pack, unpack
from advens.benchmarks.environment import source_digest
from advens.benchmarks.submission import About, about_from, submit
from advens.digest import file_digest
from advens.errors import InputError

TOLD = {
    "authors": "A. One, B. Two", "paper": "none", "code": "https://example.org/code", "attempts": "3",
    "conflicts": "none",
}  # fmt: skip


def options(**changes: str | None) -> list[str]:
    """The options of a submission, changed; None leaves one out."""
    given = {key: value for key, value in (TOLD | changes).items() if value is not None}
    return [part for key, value in given.items() for part in (f"--{key}", value)]


@pytest.fixture
def finished(tmp_path: Path, advens: Callable[..., Any], suite: Callable[..., Path]) -> tuple[Path, Path]:
    """A finished run and its suite."""
    path = suite()
    advens("run", path, "--out", tmp_path / "run").done()
    return tmp_path / "run", path


@pytest.fixture
def unpacked(finished: tuple[Path, Path], tmp_path: Path) -> Callable[[], dict[str, bytes]]:
    """``unpacked()``: what a packed archive of the run holds."""

    def read() -> dict[str, bytes]:
        with (tmp_path / "packed.tar").open("wb") as file:
            pack(finished[0], b"", file)
        with tarfile.open(tmp_path / "packed.tar") as tar:
            return {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]

    return read


def test_from_a_run_to_an_entry_that_verifies(
    finished: tuple[Path, Path], tmp_path: Path, advens: Callable[..., Any]
) -> None:
    run, suite = finished
    out = tmp_path / "made" / "entry.tar"
    said = advens("submit", run, "--suite", suite, "--out", out, *options(), "--trust", "toys:*").done()
    assert "label: consistent" in said.out
    size = out.stat().st_size / 1e6
    assert said.out.splitlines()[-2:] == [
        f"{out}: {size:.2f} MB, an entry of tiny, version 1", f'sha256 = "{file_digest(out)}"',
    ]  # fmt: skip
    assert [path.name for path in out.parent.iterdir()] == ["entry.tar"]
    unpack(out, tmp_path / "entry")
    shown = advens("verify", tmp_path / "entry", "--suite", suite).done().out.splitlines()
    for line in (
        "suite      tiny, version 1", "authors    A. One, B. Two", "attempts   3", "conflicts  none",
        "4 cells and 120 predictions checked", "label: consistent",
    ):  # fmt: skip
        assert line in shown
    assert (tmp_path / "entry" / "run" / "leaderboard.parquet").is_file()
    assert f"digest = \"{source_digest()}\"" in (tmp_path / "entry" / "submission.toml").read_text()


def test_what_was_changed_is_not_packed(
    finished: tuple[Path, Path], tmp_path: Path, advens: Callable[..., Any]
) -> None:
    run, suite = finished
    next((run / "samples").glob("*.parquet")).unlink()
    out = tmp_path / "entry.tar"
    said = advens("submit", run, "--suite", suite, "--out", out, *options(), "--trust", "toys:*")
    assert said.code == 1
    assert "MISMATCH  1 evaluations of suite.toml are missing" in said.err
    assert said.err.splitlines()[-1] == f"advens: {run} does not verify as an entry; {out} is not written"
    assert not [path for path in tmp_path.iterdir() if "entry" in path.name]


@pytest.mark.parametrize("lost", TOLD)
def test_everything_is_asked_for(lost: str, tmp_path: Path, advens: Callable[..., Any]) -> None:
    call = ("submit", tmp_path, "--suite", "quickstart", "--out", tmp_path / "entry.tar")
    advens(*call, *options(**{lost: None})).refused(f"does not say {lost}; give --{lost}")
    if lost == "attempts":
        advens(*call, *options(attempts="0")).refused("'--attempts'")
    else:
        advens(*call, *options(**{lost: " "})).refused(lost)
    assert list(tmp_path.iterdir()) == []


def test_what_authors_say_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "about.toml"
    path.write_text('authors = ["A"]\npaper = "p"\ncode = "c"\nattempts = 2\nconflicts = "none"\n')
    about = About(authors=["A"], paper="p", code="c", attempts=2, conflicts="none")
    assert about_from({}, path) == about
    assert about_from({"attempts": 5, "authors": None}, path).attempts == 5
    path.write_text('authors = ["A"]\npaper = "p"\n[suite]\nname = "of another entry"\n')
    with pytest.raises(InputError, match=r"does not say code, attempts, conflicts; .* to .*about\.toml"):
        about_from({}, path)
    path.write_text('author = "A"\npaper = "p"\ncode = "c"\nattempts = 2\nconflicts = "none"\n')
    with pytest.raises(InputError, match="unknown key 'author'; did you mean 'authors'"):
        about_from({"authors": ["A"]}, path)
    with pytest.raises(InputError, match="cannot read"):
        about_from({}, tmp_path / "absent.toml")


def test_the_run_is_one_of_the_suite(
    finished: tuple[Path, Path], tmp_path: Path, advens: Callable[..., Any], suite: Callable[..., Path]
) -> None:
    run, _ = finished
    out = tmp_path / "entry.tar"
    call = ("submit", run, "--out", out, *options())
    other = suite("other.toml", threat__eps=0.1)
    advens(*call, "--suite", other).refused(f"{run} is no run of the suite '{other}': threat is")
    more = suite("more.toml", attacks=[{"name": "mifgsm"}, {"name": "difgsm"}, {"name": "pgd"}])
    advens(*call, "--suite", more).refused("attacks: 'pgd' is missing")
    advens(*call, "--suite", "quickstartt").refused("unknown suite 'quickstartt'; did you mean")
    call = ("submit", tmp_path, "--out", out, *options())
    advens(*call, "--suite", "quickstart").refused("holds no suite.toml")
    assert not out.exists()


def test_attacks_of_its_own_are_named(
    finished: tuple[Path, Path], tmp_path: Path, suite: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("advens.benchmarks.submission.verify_archive", lambda *_, **__: 0)
    about = About(authors=["A"], paper="p", code="c", attempts=2, conflicts="none")
    fewer = suite("fewer.toml", attacks=[{"name": "mifgsm"}])
    from advens.benchmarks.sandbox import Limits

    said = submit(finished[0], str(fewer), about, tmp_path / "entry.tar", [], Limits())
    assert said.own == ["difgsm"]


def test_the_same_run_gives_the_same_bytes(
    finished: tuple[Path, Path], tmp_path: Path, unpacked: Callable[[], dict[str, bytes]]
) -> None:
    run, _ = finished
    names = list(unpacked())
    first = (tmp_path / "packed.tar").read_bytes()
    copy = tmp_path / "copy"
    shutil.copytree(run, copy, copy_function=shutil.copy)  # other times
    (copy / "traces").mkdir()
    (copy / "traces" / "x.parquet").write_bytes(b"x")
    (copy / "samples" / "x.parquet.tmp").write_bytes(b"x")
    with (tmp_path / "again.tar").open("wb") as file:
        pack(copy, b"", file)
    assert (tmp_path / "again.tar").read_bytes() == first
    assert names == [*sorted(names[:-1]), "submission.toml"]
    assert not [name for name in names if "leaderboard" in name or "matrix" in name]
    with tarfile.open(tmp_path / "packed.tar") as tar:
        assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in tar} == {(0, 0, 0, "", "", 0o644)}


def test_no_machine_is_named(
    finished: tuple[Path, Path], tmp_path: Path, unpacked: Callable[[], dict[str, bytes]]
) -> None:
    content = unpacked()
    about = json.loads(content["run/environment.json"])
    assert about["platform"] == f"{platform.system()}-{platform.machine()}"
    assert platform.release() not in content["run/environment.json"].decode()
    for name, data in content.items():
        for telling in (socket.gethostname(), str(tmp_path), str(Path.home())):
            if len(telling) > 5:
                assert telling.encode() not in data, name


def test_links_are_not_followed(finished: tuple[Path, Path], tmp_path: Path) -> None:
    run, _ = finished
    (run / "plan.json").rename(tmp_path / "plan.json")
    (run / "plan.json").symlink_to(tmp_path / "plan.json")
    with (tmp_path / "x.tar").open("wb") as file, pytest.raises(InputError, match=r"plan\.json is a link"):
        pack(run, b"", file)


def test_models_that_others_have_to_get_are_named(suite: Callable[..., Path]) -> None:
    from advens.benchmarks.submission import user_files
    from advens.benchmarks.suites import load

    changed = suite(
        data="folder:mine", targets=["timm:resnet18?checkpoint=mine.pth", "digits:resnet"],
        surrogates={"one": ["defense:mine"], "sets": {"build": "lgv", "model": "digits:vit"}},
    )  # fmt: skip
    assert user_files(load(str(changed))) == [
        "folder:mine", "timm:resnet18?checkpoint=mine.pth", "defense:mine",
        "the surrogates 'sets', which are built",
    ]  # fmt: skip
    assert user_files(load("quickstart")) == []
