"""Folders of the cache: where they lie, what they keep, and what is said when one is damaged."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from advens.cache import Folder, cache_root
from advens.errors import InputError


def test_where_the_cache_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADVENS_CACHE", str(tmp_path))
    assert cache_root("built") == tmp_path / "built"
    monkeypatch.delenv("ADVENS_CACHE")
    monkeypatch.setenv("HOME", "/somewhere")
    assert cache_root("trained") == Path("/somewhere/.cache/advens/trained")


def test_finished_work_keeps_its_members_and_no_state(tmp_path: Path) -> None:
    folder, weights = Folder(tmp_path / "digest"), {"w": torch.arange(3.0)}
    with folder.locked():
        assert (folder.about(), folder.state()) == (None, None)
        digest = folder.write_member(0, weights)
        folder.keep({"done": 1, "w": weights["w"]})
        kept = folder.state()
        assert kept is not None
        assert (kept["done"], kept["w"].tolist()) == (1, [0, 1, 2])
        (folder.path / "state.pt.1-ab.tmp").write_bytes(b"half")  # of a process that was killed
        folder.finish({"format": 2})
    assert folder.about() == {"format": 2}
    assert torch.equal(folder.member(0, digest)["w"], weights["w"])
    assert sorted(os.listdir(folder.path)) == [".lock", "about.json", "member-00.safetensors"]


def test_damage_is_one_line_that_names_the_folder(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "digest")
    digest = folder.write_member(0, {"w": torch.ones(2)})
    folder.write_member(0, {"w": torch.zeros(2)})
    for name in ("about.json", "state.pt"):
        folder.write(name, b"{")
    members = (lambda: folder.member(0, digest), lambda: folder.member(1, digest))
    for read in (folder.about, folder.state, *members):
        with pytest.raises(InputError, match=f"^{folder.path} is damaged .*; delete it to start again$"):
            read()
