"""Files are written whole or not at all, and so are folders."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from advens.errors import InputError
from advens.files import new_folder, open_regular, read_regular, write_bytes


def test_a_file_is_replaced_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "a" / "x"
    write_bytes(path, b"one")
    write_bytes(path, b"two", memoryview(b" three"))
    assert read_regular(path) == b"two three"
    assert os.listdir(path.parent) == ["x"]


def test_a_failure_keeps_the_file_that_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x"
    write_bytes(path, b"one")

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(InputError, match=rf"^cannot write {path}: No space left on device$"):
        write_bytes(path, b"two")
    assert (path.read_bytes(), os.listdir(tmp_path)) == (b"one", ["x"])


def test_a_folder_takes_its_place_when_it_is_filled(tmp_path: Path) -> None:
    path = tmp_path / "a" / "folder"
    for content in ("one", "two"):
        with new_folder(path) as folder:
            (folder / content).write_text("")
            assert not (path / content).exists()
        assert os.listdir(path) == [content]
    with pytest.raises(IsADirectoryError), new_folder(path) as folder:
        folder.write_text("")
    assert os.listdir(path) == ["two"]
    assert os.listdir(path.parent) == ["folder"]


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(InputError, match="is not a regular file"):
            open_regular(path)
