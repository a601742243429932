"""``advens site``: what is found in folders, entries with their labels, and robustness runs."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from advens.benchmarks.site import found_in, papers, titles
from tests.benchmarks.conftest import Said

ENTRIES = Path(__file__).parents[2] / "results" / "entries"


def test_runs_and_entries_on_one_site(
    advens: Callable[..., Said], suite: Callable[..., Path], tmp_path: Path
) -> None:
    runs, out = tmp_path / "runs", tmp_path / "public"
    advens("run", suite(), "--out", runs / "mine", "--no-report").done()
    advens(
        "robustness", "--models", "toys:centroid?seed=1", "--data", "digits:test?limit=8", "--attack",
        "pgd-ce", "--steps", "3", "--eps", "0.2", "--out", runs / "white-box", "--no-sanity",
    ).done()  # fmt: skip
    shutil.copytree(ENTRIES, tmp_path / "entries")
    (tmp_path / "entries" / "afar").mkdir()
    (tmp_path / "entries" / "afar" / "record.toml").write_text("archive = 'https://...'\n")
    said = advens("site", runs, tmp_path / "entries", "--out", out).done()
    assert said.out.startswith(f"site: {out / 'index.html'}, ")
    assert "left out: " in said.err
    assert "afar" in said.err
    index = (out / "index.html").read_text()
    assert "entry, re-crafted" in index
    pages = {path.name: path.read_text() for path in out.rglob("*.html")}
    whole = "".join(pages.values())
    assert str(tmp_path) not in whole
    assert "/tmp" not in whole
    (mifgsm,) = [text for name, text in pages.items() if name.startswith("mifgsm")]
    assert "Dong et al., CVPR 2018" in mifgsm
    assert mifgsm.count("reference</a>") == 4
    (model,) = [text for name, text in pages.items() if name.startswith("toys-centroid-seed-1")]
    assert "What white-box attacks leave" in model
    assert "the advens authors" in next(text for name, text in pages.items() if name.startswith("reference"))
    first = {path: path.read_bytes() for path in out.rglob("*.html")}
    advens("site", runs, tmp_path / "entries", "--out", out).done()
    assert {path: path.read_bytes() for path in out.rglob("*.html")} == first


def test_bad_folders_are_one_line(advens: Callable[..., Said], tmp_path: Path) -> None:
    advens("site", tmp_path / "nothing").refused("does not exist")
    (tmp_path / "empty" / "x").mkdir(parents=True)
    advens("site", tmp_path / "empty", "--out", tmp_path / "out").refused("holds no run and no entry")
    (tmp_path / "entry.tar").write_bytes(b"no archive")
    advens("site", tmp_path, "--out", tmp_path / "out").refused("entry.tar")
    advens("site", ENTRIES, "--out", tmp_path).refused("'entry.tar', which is of no site")
    assert not (tmp_path / "out").exists()


def test_titles_tell_runs_apart(tmp_path: Path) -> None:
    paths = [Path("/a/x/run"), Path("/a/y/run"), Path("/a/z/other"), Path("/e/mine/entry.tar")]
    assert titles(paths) == ["x/run", "y/run", "other", "mine"]
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "suite.toml").write_text("")
    assert found_in([tmp_path, tmp_path / "run"]) == [tmp_path / "run"]


def test_sources_of_attacks() -> None:
    of = papers()
    assert [name for name, _ in of("di-mi-adaea", "")] == ["mi-adaea", "di"]
    spec = '{"name": "composed", "transforms": [{"name": "di"}], "update": {"name": "mi"}}'
    assert {"di", "mi"} <= dict(of("my own label", spec)).keys()
    for odd in ("[1]", "[" * 100_000, "{", '{"fusion": {"name": ["x"]}, "x": [1, {"name": 2}]}'):
        assert of("?", odd) == ()
