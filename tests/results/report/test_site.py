"""A site says what the parquet files say, merges what may be merged, and writes nothing else anywhere."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import tomli_w

from advens.errors import InputError
from advens.results.boards import read_board, write_board
from advens.results.boards.summary import boards
from advens.results.formats import percent
from advens.results.report.site import MANIFEST, Site, Source, gather, pages, slug, write_site
from advens.results.store import RunStore
from tests.results.report.conftest import Page

TARGETS = {f"digits:t{k}": 0.3 + 0.1 * k for k in range(6)}
EVIL = "<script>alert('1')</script>\"&\x1b[31m\u202e{{ 7*7 }}/../../x"
Make = Callable[..., RunStore]


@pytest.fixture
def made(run: Make, drawn: Callable[..., pd.DataFrame]) -> Callable[..., Path]:
    """A run with its boards and suite, by its folder's name."""

    def make(
        name: str, attacks: Sequence[str] = ("weak", "strong"), suite: dict[str, Any] | None = None,
        targets: dict[str, float] = TARGETS, **cell: Any,
    ) -> Path:  # fmt: skip
        strengths = {(attack, "cnns"): 0.3 + 0.2 * k for k, attack in enumerate(attacks)}
        store = run(drawn(strengths, targets, n=40, suite=name), name, **cell)
        table = {"name": name, "version": 1, "threat": {"norm": "linf", "eps": "8/255", "steps": 10}}
        (store.directory / "suite.toml").write_text(tomli_w.dumps(table | (suite or {})))
        for board in ("matrix", "leaderboard"):
            write_board(store.directory, board)
        return store.directory

    return make


def gathered(*directories: Path, **given: Any) -> Site:
    return gather([Source(path, path.name, **given) for path in directories])


def test_runs_whose_settings_agree_share_a_board(made: Callable[..., Path]) -> None:
    one, two = made("one"), made("two", ["other"])
    site = gathered(two, one)
    (board,) = site.boards
    assert board.title == "one, two"
    (wanted,) = boards([one, two])
    page = Page.of(pages(site, images=False)[board.file].decode())
    _, *rows = page.tables[1]
    assert len(rows) == len(wanted) == 3
    for cells, at in zip(rows, wanted.to_dict(orient="records"), strict=True):
        assert cells[0] == str(at["rank"])
        assert cells[1] == f"{at['attack']}{at['surrogates']} ({at['suite']})"
        assert cells[2] == percent(at["mean_asr"], 1)
        assert cells[4] == "".join(
            f"{percent(at[low], 1)}–{percent(at[high], 1)}"
            for low, high in (("models_low", "models_high"), ("asr_low", "asr_high"))
        )
        assert cells[6] == at["models_group"] + at["group"]


@pytest.mark.parametrize(
    ("suite", "cell", "said"),
    [
        ({"limit": 40}, {}, "limit 40 in place of none"),
        ({"version": 2}, {}, "version of the suite 2 in place of 1"),
        ({"threat": {"steps": 20}}, {}, "steps 20 in place of 10"),
        ({"budget": 40}, {}, "budget of passes 40 in place of none"),
        ({}, {"data_fingerprint": "g"}, "other images"),
        ({}, {"eps": 0.2}, "perturbations linf 0.2 in place of linf 0.0313725490"),
        ({}, {"version": "1"}, "advens 1 in place of 0"),
    ],
)
def test_runs_with_other_settings_stay_apart(
    suite: dict[str, Any], cell: dict[str, Any], said: str, made: Callable[..., Path]
) -> None:
    site = gathered(made("one"), made("two", suite=suite, **cell))
    first, second = site.boards
    assert first.apart == ()
    assert [board.title for board in site.boards] == ["one", "two"]
    found = "; ".join(second.apart)
    assert said in found
    assert f"Kept apart from the first board: {found}." in Page.of(
        pages(site, images=False)["index.html"].decode()
    ).text.replace("\xa0", " ")


def test_eps_in_two_spellings_is_one(made: Callable[..., Path]) -> None:
    assert len(gathered(made("one"), made("two", eps=8 / 255)).boards) == 1


def test_pages_of_attacks_and_models_are_those_of_the_parquet(made: Callable[..., Path]) -> None:
    one, two = made("one"), made("two", suite={"limit": 40})
    site = gathered(one, two)
    files = pages(site, images=False)
    found = {path.name: read_board(path, "leaderboard").set_index("attack") for path in (one, two)}
    (attack,) = [each for each in site.attacks if each.name == "strong"]
    _, *rows = Page.of(files[attack.file].decode()).tables[0]
    assert [cells[0] for cells in rows] == ["one", "two"]
    for cells in rows:
        at = found[cells[0]].loc["strong"]
        assert cells[1:3] == ["cnns", percent(at["mean_asr"], 1)]
        assert cells[5] == f"{at['rank']} of 2"
        assert cells[8] == "10 / 10"
    (model,) = [each for each in site.models if each.name == "digits:t3"]
    clean, rates = Page.of(files[model.file].decode()).tables
    matrix = read_board(one, "matrix").set_index(["attack", "target"])
    assert clean[1][:2] == ["one", percent(matrix.loc[("weak", "digits:t3"), "clean_accuracy"], 1)]
    for cells in rates[1:]:
        at = matrix.loc[(cells[0].removesuffix("cnns"), "digits:t3")]
        assert cells[2] == percent(at["asr"], 1)
        assert cells[4] == f"{percent(at['asr_low'], 1)}–{percent(at['asr_high'], 1)}"
        assert cells[5] == str(at["n"])
    assert [cells[1] for cells in rates[1:]] == ["one", "one", "two", "two"]


def test_other_weights_are_another_model(made: Callable[..., Path]) -> None:
    one, two = made("one"), made("two")
    for path, digest in ((one, "a" * 64), (two, "b" * 64)):
        (path / "environment.json").write_text('{"models": {"digits:t0": "' + digest + '"}}')
    names = [model.name for model in gathered(one, two).models]
    assert names[:3] == ["digits:t0 (aaaaaaaa)", "digits:t0 (bbbbbbbb)", "digits:t1"]


def test_links_lead_to_pages_and_nothing_is_loaded(made: Callable[..., Path]) -> None:
    files = pages(gathered(made("one"), made("two"), label="re-crafted", facts=(("authors", "A"),)))
    for name, content in files.items():
        html = content.decode()
        page = Page.of(html)
        ids = {attributes.get("id") for _, attributes in page.tags}
        for tag, attributes in page.tags:
            assert not [key for key in attributes if key.startswith("on") or key == "style"], tag
            assert (attributes.get("src") or "data:").startswith("data:")
            link = attributes.get("href") or "data:,"
            if link == "data:,":
                continue
            address, _, place = link.partition("#")
            target = (Path("/s") / name).parent.joinpath(address).resolve().relative_to("/s").as_posix()
            assert not address or target in files, (name, link)
            if not address:
                assert place in ids, (name, link)
        assert "unsafe" not in html
        assert "http:" not in html
        assert "https:" not in html
        assert ("script-src" in html) == ("<script" in html)
    text = Page.of(files["index.html"].decode()).text
    assert "2 of them entries" in text
    assert "entry, re-crafted" in text
    assert "recorded label is re-crafted" in Page.of(files[f"runs/{slug('one')}.html"].decode()).text


def test_same_runs_same_bytes(made: Callable[..., Path], tmp_path: Path) -> None:
    one, two = made("one"), made("two")
    first = pages(gathered(one, two))
    for path in (one, two):
        shutil.copytree(path, tmp_path / "elsewhere" / path.name)
    assert pages(gathered(*(tmp_path / "elsewhere" / name for name in ("two", "one")))) == first


def test_hostile_names_are_inert(made: Callable[..., Path], tmp_path: Path) -> None:
    one = made("one", [EVIL, "x"], {"name": EVIL}, {**TARGETS, EVIL: 0.4})
    files = pages(gather([Source(one, EVIL), Source(made("two"), "two")]))
    for name, content in files.items():
        assert re.fullmatch(r"([a-z]+/)?[a-z0-9][a-z0-9-]*\.html", name)
        assert not set(content.decode()) & {"\x1b", "\u202e"}
        assert b"<script>alert" not in content
    write_site(files, tmp_path / "made" / "site")
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["site"]


def test_slugs_are_file_names() -> None:
    assert slug("Ü / .. \0") != slug("Ü / .. ")
    for name in ("", ".", "..", "CON", "a" * 500, EVIL, "-x"):
        assert re.fullmatch(r"[a-z0-9][a-z0-9-]{0,48}", slug(name))


def test_a_site_takes_the_place_of_a_site_and_of_nothing_else(tmp_path: Path) -> None:
    out = tmp_path / "site"
    out.mkdir()
    write_site({"index.html": b"1", "runs/a.html": b"2"}, out)
    write_site({"index.html": b"3"}, out)
    assert sorted(path.name for path in out.iterdir()) == ["index.html", MANIFEST]
    (out / "mine.txt").write_text("kept")
    with pytest.raises(InputError, match=r"holds 'mine.txt', which is of no site"):
        write_site({}, out)
    (out / "mine.txt").unlink()
    (out / "index.html").unlink()
    (out / "index.html").symlink_to(tmp_path)
    with pytest.raises(InputError, match="which is of no site"):
        write_site({}, out)
    (out / "index.html").unlink()
    (out / MANIFEST).write_text("[" * 100_000)
    with pytest.raises(InputError, match=MANIFEST):
        write_site({}, out)
    (tmp_path / "link").symlink_to(out)
    with pytest.raises(InputError, match="is a link"):
        write_site({}, tmp_path / "link")
    with pytest.raises(InputError, match="is a file"):
        write_site({}, out / MANIFEST)
    assert (out / MANIFEST).exists()


def test_unfinished_runs_are_named(made: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "suite.toml").write_text("name = 'begun'\n")
    site = gathered(made("one"), tmp_path / "begun")
    assert site.left_out == (("begun", "begun holds no finished cells yet"),)
    assert "Not shown: begun" in pages(site, images=False)["index.html"].decode()
    with pytest.raises(InputError, match="no finished cells"):
        gathered(tmp_path / "begun")


@pytest.fixture
def attacked(run: Make, rows: Callable[..., pd.DataFrame]) -> Callable[..., Path]:
    """A run of white-box attacks on ten images of a model; each breaks some of them."""

    def make(name: str, attacks: dict[str, set[int]], own: str = "", **cell: Any) -> Path:
        frame = rows([
            {"suite": name, "attack": attack, "surrogates": "vit", "target": "digits:vit", "white_box": True,
             "sample_id": str(k), "adv_pred": 2 if k in broken else 1, "cell": f"{own}{attack}"}
            for attack, broken in attacks.items() for k in range(10)
        ])  # fmt: skip
        about = {"goal": "robustness", "after": "", "notes": None, "surrogate_specs": ["digits:vit"]}
        store = run(frame, name, **about | cell)
        (store.directory / "suite.toml").write_text(tomli_w.dumps({"name": name, "goal": "robustness"}))
        write_board(store.directory, "robustness")
        return store.directory

    return make


def left(site: Site) -> dict[str, float | None]:
    (board,) = site.boards
    assert board.robustness is not None
    (model,) = board.robustness.models
    return {each.attack: each.rate.value for each in model.attacks} | {"all": model.least.value}


def test_boards_of_robustness_are_merged(attacked: Callable[..., Path]) -> None:
    one = attacked("one", {"pgd": {0, 1}, "apgd": {0, 1, 2}}, own="x")
    two = attacked("two", {"apgd": {5}, "cw": {7}}, own="y")
    site = gathered(one, two)
    assert left(site) == {"pgd": 0.8, "apgd (one)": 0.7, "apgd (two)": 0.9, "cw": 0.9, "all": 0.5}
    files = pages(site, images=False)
    (board,) = site.boards
    page = Page.of(files[board.file].decode())
    assert [row[1] for row in page.tables[0][1:]] == ["90.0", "90.0", "80.0", "70.0", "50.0"]
    said = "vit keeps 50.0 % [23.7–76.3] of all 10 images right under the worst of 4"
    assert said in page.text.replace("\xa0", " ")
    index = Page.of(files["index.html"].decode())
    row = next(row for row in index.tables[0] if row[0] == "vit")
    assert (row[1], row[2], row[5], row[6], row[7]) == ("100.0", "50.0", "4", "apgd (one)", "10")
    assert "The board of these 2 runs" in index.text


def test_the_same_images_in_two_runs_are_one_attack(attacked: Callable[..., Path]) -> None:
    one = attacked("one", {"pgd": {0, 1}})
    two = attacked("two", {"pgd": {0, 1}, "cw": {7}})
    assert left(gathered(one, two)) == {"pgd": 0.8, "cw": 0.9, "all": 0.7}


def test_boards_of_robustness_are_kept_apart(
    attacked: Callable[..., Path], made: Callable[..., Path]
) -> None:
    one = attacked("one", {"pgd": {0}})
    two = attacked("two", {"pgd": {1}}, eps="4/255")
    site = gathered(one, two, made("three"))
    assert [board.title for board in site.boards] == ["three", "one", "two"]
    assert site.boards[1].apart == ()
    assert "budget of perturbations" in site.boards[2].apart[0]
    index = Page.of(pages(site, images=False)["index.html"].decode()).text
    assert "Kept apart from the first board of robustness: budget of perturbations" in index


def test_other_weights_of_one_name_are_another_model(attacked: Callable[..., Path]) -> None:
    one = attacked("one", {"pgd": {0}}, own="x", surrogate_digests=["aaaaaaaa11"])
    two = attacked("two", {"pgd": {1, 2}}, own="y", surrogate_digests=["bbbbbbbb22"])
    (board,) = gathered(one, two).boards
    assert board.robustness is not None
    found = {model.short: model.least.value for model in board.robustness.models}
    assert found == {"vit (aaaaaaaa)": 0.9, "vit (bbbbbbbb)": 0.8}
