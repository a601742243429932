"""``advens craft``: pictures and bytes that agree, inside the ball, without a suite."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from advens.attacks.parts import PARTS, part
from advens.benchmarks.export import png_names
from advens.datasets import load_data
from advens.models import load_model
from advens.results.store import RunStore, read_cell, read_table
from advens.results.store.images import CleanImages, read_images

PAIR = "toys:centroid?seed=1,toys:centroid?seed=2"


@pytest.fixture
def craft(advens, tmp_path):
    def call(attack="mifgsm", *more, surrogates=PAIR, data="digits:test?limit=12", out="out"):
        return advens("craft", attack, "--surrogates", surrogates, "--data", data,
                      "--out", tmp_path / out, *more)  # fmt: skip

    return call


def stored(directory):
    store = RunStore(directory)
    return [read_table(store.examples_path(cell), "examples") for cell in store.cells()]


@pytest.mark.parametrize(("norm", "eps"), [("linf", "16/255"), ("l2", "1.5")])
def test_pictures_are_the_stored_bytes_and_lie_in_the_ball(craft, tmp_path, norm, eps):
    said = craft("mifgsm", "--norm", norm, "--eps", eps, "--steps", 2).done()
    assert "12 images in" in said.out
    assert "of the images fool toys:centroid?seed=2 (a surrogate)" in said.out
    data, seen = load_data("digits:test?limit=12"), 0
    store = RunStore(tmp_path / "out")
    for cell in store.cells():
        table, images = read_images(store, cell, CleanImages())
        for row, pixels in zip(table.to_pylist(), images, strict=True):
            picture = np.asarray(Image.open(tmp_path / "out/images" / f"{row['sample_id']}.png"))
            assert (picture.transpose(2, 0, 1) == pixels).all()
            clean = data.pixels(list(data.sample_ids).index(row["sample_id"]))
            delta = (pixels.astype(float) - clean) / 255
            size = abs(delta).max() if norm == "linf" else np.sqrt((delta**2).sum())
            limit = 16 / 255 if norm == "linf" else 1.5
            assert 0.5 * limit < size <= limit + 1e-9
            seen += 1
    assert seen == len(list((tmp_path / "out/images").iterdir())) == 12


def test_again_is_nothing_to_do(craft, tmp_path):
    first = craft()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.p*")}
    assert len(before) == 12 + 1 + 2 + 3  # pictures, examples, samples of two targets, three tables
    second = craft()
    assert second.out == first.out
    assert "crafting" in first.err
    assert "crafting" not in second.err
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.p*")}
    assert after == before


def test_a_damaged_picture_is_written_again(craft, tmp_path):
    craft()
    picture = next((tmp_path / "out/images").iterdir())
    before = picture.read_bytes()
    picture.write_bytes(before[:40])
    craft().done()
    assert picture.read_bytes() == before


def test_targeted(craft, advens, tmp_path):
    said = craft("mifgsm", "--targeted", "--eps", 0.4, "--seed", 3).done()
    assert "reach the wanted class on" in said.out
    (table,) = stored(tmp_path / "out")
    wanted, labels = table.column("target_label").to_numpy(), table.column("label").to_numpy()
    assert (wanted != labels).all()
    rate = float(said.out.split("%")[0]) / 100
    assert rate > 0.3  # a tenth would reach it by chance
    advens("verify", tmp_path / "out").done()


def test_options_of_the_attack(craft, tmp_path):
    craft("mifgsm", "--set", "mu=0.5", "--set", "transforms=['di']", "--steps", 3).done()
    (_,) = stored(tmp_path / "out")
    params = read_params(tmp_path / "out")
    assert params["update"]["mu"] == 0.5
    assert params["transforms"][0]["name"] == "di"
    assert params["steps"] == 3


def read_params(directory):
    from advens.results.store import read_cell

    store = RunStore(directory)
    return read_cell(store.examples_path(store.cells()[0]))["attack_params"]


def test_no_pictures(craft, tmp_path):
    said = craft("fgsm", "--no-png").done()
    assert "images" not in said.out.splitlines()[-1].split("in ")[-1]
    assert not (tmp_path / "out/images").exists()
    assert stored(tmp_path / "out")


def test_seeds_and_batch_sizes(craft, tmp_path, images):
    craft("pgd", "--seed", 0, out="a").done()
    craft("pgd", "--seed", 0, "--batch-size", 5, out="b").done()
    craft("pgd", "--seed", 1, out="c").done()
    a, b, c = (images(tmp_path / name) for name in "abc")
    assert a == b
    assert list(a.values()) != list(c.values())


@pytest.mark.parametrize(
    ("more", "changes", "words"),
    [
        ([], {"attack": "mifgms"}, ["unknown attack 'mifgms'", "'mifgsm'"]),
        ([], {"surrogates": "digits:resnett"}, ["did you mean 'digits:resnet'"]),
        ([], {"surrogates": " , "}, ["--surrogates", "names nothing"]),
        ([], {"data": "digits:tset"}, ["'tset'", "'test'"]),
        (["--eps", "8"], {}, ["eps = 8", "at most 1"]),
        (["--eps", "x"], {}, ["eps", "not a number"]),
        (["--norm", "linff"], {}, ["unknown norm 'linff'", "'linf'"]),
        (["--steps", "0"], {}, ["--steps"]),
        (["--set", "muu=1"], {}, ["no option 'muu'", "'mu'"]),
        (["--set", "budget=many"], {}, ["budget", "many"]),
        (["--set", "budget=0"], {}, ["budget = 0"]),
        (["--set", "eps=0.5"], {}, ["--eps"]),
        (["--set", "mu"], {}, ["KEY=VALUE"]),
        (["--device", "cudda"], {}, ["device 'cudda'"]),
        (["--device", "cuda:99"], {}, ["device 'cuda:99'"]),
        (["--seed", "-1"], {}, ["--seed"]),
    ],
)
def test_mistakes(craft, tmp_path, more, changes, words):
    craft(changes.pop("attack", "mifgsm"), *more, **changes).refused(*words)
    assert not list((tmp_path / "out").rglob("*.p*"))


def test_not_into_a_run(craft, advens, suite, tmp_path, times):
    advens("run", suite(), "--out", tmp_path / "out").done()
    before = times(tmp_path / "out")
    craft().refused("holds a run", "--out")
    assert times(tmp_path / "out") == before


def test_a_mistake_that_shows_at_the_first_cell_leaves_nothing(craft, tmp_path):
    craft("fia", "--set", "layer=nowhere").refused("has no module 'nowhere'")
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".lock"]
    craft("fia", "--set", "layer=linear").done()
    craft("fia", "--set", "layer=nowhere").refused("holds a run")


def test_a_failing_attack(craft):
    craft("mifgsm", "--norm", "l2", "--eps", 1, surrogates="toys:picky?seed=1").failed("RuntimeError")


def test_no_two_samples_share_a_picture(craft, tmp_path):
    data, folder = load_data("digits:test"), tmp_path / "photos"
    names = ["a.png", "a.bmp", "b.v1.png", "b.v2.png"]
    for i, name in enumerate(names):
        (folder / "0").mkdir(parents=True, exist_ok=True)
        Image.fromarray(data.pixels(i).transpose(1, 2, 0)).save(folder / "0" / name)
    (tmp_path / "classes.txt").write_text("0 0\n")
    craft("fgsm", data=f"folder:{folder}?classes={tmp_path}/classes.txt").done()
    found = sorted(path.name for path in (tmp_path / "out/images/0").iterdir())
    assert found == ["a.bmp.png", "a.png.png", "b.v1.png", "b.v2.png"]
    assert png_names(["x.1", "x.2", "y.JPG"]) == {
        "x.1": "x.1.png", "x.2": "x.2.png", "y.JPG": "y.png",
    }  # fmt: skip


def test_names_that_lead_away(craft, tmp_path):
    picture = io.BytesIO()
    Image.new("RGB", (32, 32)).save(picture, "PNG")
    columns = {"image": [picture.getvalue()], "label": [0], "sample_id": ["../away"]}
    pq.write_table(pa.table(columns), tmp_path / "photos.parquet")
    craft("fgsm", data=f"parquet:{tmp_path}/photos.parquet").refused("../away", "--no-png")
    assert not (tmp_path / "out/away.png").exists()


def test_a_trace_is_written_on_request(tmp_path: Path) -> None:
    import pandas as pd

    from advens.cli import invoke

    out = tmp_path / "traced"
    command = [
        "craft", "adaea", "--surrogates", "digits:mambaout,digits:convnext",
        "--data", "digits:test?limit=4&seed=0", "--eps", "0.2", "--steps", "2", "--out", str(out),
    ]  # fmt: skip
    assert invoke(command) == 0
    assert not (out / "traces").exists()
    assert invoke([*command, "--trace"]) == 0
    (path,) = (out / "traces").iterdir()
    trace = pd.read_parquet(path)
    assert set(trace["what"]) == {"loss", "cosine", "weights", "filtered", "flatness", "closeness"}
    losses = trace[trace["what"] == "loss"]
    assert len(losses) == 2 * 4 * 2
    assert set(losses["surrogate"]) == {"digits:mambaout", "digits:convnext"}
    assert trace[trace["what"] == "cosine"]["surrogate"].isna().all()


@pytest.fixture
def pair() -> Iterator[None]:
    """A builder of two models, whatever it gets."""

    @part("builder", "pair")
    class Pair:
        """Two models.

        Args:
            first: seed of the first.
        """

        first: int = 7

        def members(self, models: int) -> int:
            return 2

        def build(self, models: Any, data: Any, **more: Any) -> list[Any]:
            return [load_model(f"toys:centroid?seed={self.first + i}") for i in range(2)]

    yield
    del PARTS["builder"].entries["pair"]


BASE = ("--surrogates", "toys:centroid?seed=1", "--data", "digits:test?limit=6", "--no-png")


@pytest.mark.usefixtures("pair")
def test_surrogates_built_first(advens: Any, tmp_path: Path) -> None:
    more = "--build", "pair", "--train", "digits:train?limit=4", "--targets", "toys:centroid?seed=3"
    said = advens(
        "craft", "fgsm", *BASE, *more, "--set", "build.first=9", "--out", tmp_path / "out"
    ).done()
    lines = said.out.splitlines()
    assert "toys:centroid?seed=1 (built from it); on the plain surrogates " in lines[0]
    assert "toys:centroid?seed=3; on the plain surrogates " in lines[1]
    store = RunStore(tmp_path / "out")
    told = {tuple(read_cell(store.examples_path(cell))["surrogate_specs"]) for cell in store.cells()}
    assert told == {
        ("toys:centroid?seed=1",), ("toys:centroid?seed=9", "toys:centroid?seed=10"),
    }  # fmt: skip


@pytest.mark.usefixtures("pair")
def test_on_the_images_that_are_attacked(advens: Any, tmp_path: Path) -> None:
    note = "surrogates were built on the images that are attacked"
    assert note in advens("craft", "fgsm", *BASE, "--build", "pair", "--out", tmp_path / "a").done().out
    given = "--train", "digits:test?limit=9"
    said = advens("craft", "fgsm", *BASE, "--build", "pair", *given, "--out", tmp_path / "b").refused()
    assert "6 of the images" in said
    said = advens("craft", "fgsm", *BASE, "--build", "vit-search", "--out", tmp_path / "c").refused()
    assert "give --train" in said


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--build", "pear"), "unknown builder 'pear'"),
        (("--train", "digits:train"), "builds no surrogates"),
        (("--set", "build.lr=0.1"), "builds no surrogates"),
        (("--targets", ","), "--targets names nothing"),
    ],
)
def test_mistakes_about_builders(advens: Any, tmp_path: Path, more: Any, words: str) -> None:
    assert words in advens("craft", "fgsm", *BASE, *more, "--out", tmp_path / "out").refused()
    assert not (tmp_path / "out").exists()
