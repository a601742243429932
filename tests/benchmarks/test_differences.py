"""Images stored as differences: the same run as with whole ones, and one line where the data are missing."""

from __future__ import annotations

import shutil
import sys
import types
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
from PIL import Image

from advens import open_run, registry
from advens.benchmarks.estimate import dry_run_lines
from advens.benchmarks.suites import Suite, departures, load, settings_digest, suite_identity
from advens.benchmarks.worker_cache import WorkerCache
from advens.cli import invoke
from advens.datasets import Dataset, load_data
from advens.errors import InputError, RunError
from advens.results.reading import read_examples
from advens.results.store import RunStore, read_cell, read_table, write_examples
from advens.results.store.images import are_differences
from tests.benchmarks.conftest import tiny

FORMS = ("differences", "images")
CHAIN: dict[str, Any] = {
    "goal": "robustness", "surrogates": {"one": ["toys:centroid?seed=1"]}, "sanity": False,
    "attacks": [{"name": "pgd-ce+square", "square.queries": 20}], "threat": {"eps": 0.05, "steps": 2},
    "targets": ["toys:centroid?seed=1"],
}  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, _surroundings: None) -> Path:
    """Runs of both forms, ``transfer-images`` and so on; copied before they are touched."""
    folder = tmp_path_factory.mktemp("differences")
    for kind, changes in (("transfer", {"seeds": [0, 1]}), ("chain", CHAIN)):
        for form in FORMS:
            path = folder / f"{kind}-{form}.toml"
            path.write_text(tomli_w.dumps(tiny(**changes)))
            out = str(folder / f"{kind}-{form}")
            assert invoke(["run", str(path), "--out", out, "--store", form, "--device", "cpu"]) == 0
    return folder


@pytest.mark.parametrize("kind", ["transfer", "chain"])
def test_both_forms_hold_the_same(runs: Path, kind: str) -> None:
    differences, images = (runs / f"{kind}-{form}" for form in FORMS)
    samples = sorted(path.name for path in images.glob("samples/*"))
    assert samples == sorted(path.name for path in differences.glob("samples/*"))
    for name in samples:
        assert (differences / "samples" / name).read_bytes() == (images / "samples" / name).read_bytes()
    if kind == "transfer":
        assert (differences / "matrix.parquet").read_bytes() == (images / "matrix.parquet").read_bytes()
    one, two = read_examples(differences), read_examples(images)
    assert (one.ids, one.cells) == (two.ids, two.cells)
    assert (one.images == two.images).all()
    for directory in (differences, images):
        store = RunStore(directory)
        for cell in store.cells():
            table = read_table(store.examples_path(cell), "examples")
            assert are_differences(table) == (directory == differences)
    sizes = [sum(path.stat().st_size for path in run.glob("examples/*")) for run in (differences, images)]
    assert sizes[0] < sizes[1]


@pytest.mark.parametrize("name", ["transfer-differences", "transfer-images", "chain-differences"])
def test_every_image_is_crafted_again_and_verified(advens: Any, runs: Path, name: str) -> None:
    assert "images identical" in advens("verify", runs / name, "--recraft", 1).done().out


def test_through_python_images_are_whole(runs: Path) -> None:
    run = open_run(runs / "transfer-differences")
    found = run.examples(attack="mifgsm", seed=1)
    assert found.images.shape == (20, 3, 32, 32)
    data = load_data("digits:test?limit=20")
    clean = np.stack([data.pixels(list(data.sample_ids).index(name)) for name in found.ids])
    assert 0.1 < np.abs(found.images.astype(int) - clean).max() / 255 <= 0.2 + 1e-9


# --- settings ------------------------------------------------------------------------------------------


def test_a_suite_is_the_same_with_either(runs: Path) -> None:
    one, two = (load(str(runs / f"transfer-{form}" / "suite.toml")) for form in FORMS)
    assert isinstance(one, Suite)
    assert isinstance(two, Suite)
    assert (one.store, two.store) == FORMS
    assert settings_digest(one) == settings_digest(two)
    assert suite_identity(one) == suite_identity(two)
    assert departures(one, two) == ([], [])


def test_an_unknown_form_is_one_line(advens: Any, suite: Any) -> None:
    advens("run", suite(store="pictures")).refused("store = 'pictures'", "'differences' or 'images'")


def test_a_run_may_hold_cells_of_both_forms(advens: Any, runs: Path, tmp_path: Path) -> None:
    out = shutil.copytree(runs / "transfer-differences", tmp_path / "out")
    store = RunStore(out)
    for cell in store.cells()[:2]:
        for path in out.glob(f"*/{cell}*"):
            path.unlink()
    advens("run", runs / "transfer-images.toml", "--out", out, "--set", "store=images").done()
    forms = {are_differences(read_table(store.examples_path(cell), "examples")) for cell in store.cells()}
    assert forms == {True, False}
    advens("verify", out).done()
    assert (out / "matrix.parquet").read_bytes() == (runs / "transfer-images/matrix.parquet").read_bytes()


def test_disk_space_is_told_for_either(made: Any) -> None:
    told = {
        form: next(
            line for line in dry_run_lines(made(store=form, data="digits:test")) if line.startswith("disk")
        )
        for form in FORMS
    }
    assert told["differences"] != told["images"]


# --- runs from before ----------------------------------------------------------------------------------


@pytest.fixture
def old(runs: Path, tmp_path: Path) -> Path:
    """A run as it was stored before there were differences."""
    out = shutil.copytree(runs / "transfer-images", tmp_path / "old")
    store = RunStore(out)
    for cell in store.cells():
        path = store.examples_path(cell)
        table, said = read_table(path), read_cell(path)
        del said["clean_sha256"]
        write_old(path, table.drop_columns(["difference"]), said)
    text = (out / "suite.toml").read_text()
    (out / "suite.toml").write_text(text.replace('store = "images"\n', ""))
    return out


def write_old(path: Path, table: Any, said: dict[str, Any]) -> None:
    from advens.results.store import schema, write_table

    write_examples(path, table.replace_schema_metadata(None), said)
    whole = read_table(path)
    field = whole.schema.field("image").with_nullable(False)
    whole = whole.set_column(whole.schema.get_field_index("image"), field, whole.column("image"))
    write_table(path, whole.drop_columns(["difference"]))
    assert schema.EXAMPLES.names[-1] == "difference"
    assert read_table(path, "examples").column_names == schema.EXAMPLES.names[:-1]


def test_old_runs_are_read_as_before(advens: Any, old: Path, runs: Path) -> None:
    advens("verify", old, "--recraft", 1).done()
    assert (read_examples(old).images == read_examples(runs / "transfer-images").images).all()
    advens("evaluate", old, "--targets", "toys:centroid?seed=5").done()
    advens("report", old).done()
    advens("verify", old).done()
    assert "data:image/png" in (old / "report.html").read_text()


# --- the data ------------------------------------------------------------------------------------------


@pytest.fixture
def photos(advens: Any, suite: Any, tmp_path: Path) -> Path:
    """A run ``out`` on a folder ``photos`` of images of one's own."""
    data, folder = load_data("digits:test?limit=20"), tmp_path / "photos"
    for k in range(20):
        path = folder / "images" / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(data.pixels(k).transpose(1, 2, 0)).save(path)
    rows = [f"{k}.png,{label}" for k, label in enumerate(data.labels)]
    (folder / "labels.csv").write_text("\n".join(["filename,label", *rows]))
    path = suite(data=f"csv:{folder}", attacks=[{"name": "mifgsm"}])
    if advens("run", path, "--out", tmp_path / "out").code:
        pytest.fail("the run failed")
    return tmp_path


def test_without_the_data_every_reader_says_so_in_one_line(advens: Any, photos: Path) -> None:
    out, matrix = photos / "out", (photos / "out/matrix.parquet").read_bytes()
    (photos / "photos").rename(photos / "elsewhere")
    said = f"{photos}/photos"
    advens("verify", out).refused(said, "does not exist")
    advens("evaluate", out, "--targets", "toys:centroid?seed=5").refused(said, "does not exist")
    with pytest.raises(InputError, match="holds differences from images of ") as e:
        open_run(out).examples()
    assert said in str(e.value)
    assert "\n" not in str(e.value)
    for command in ("status", "matrix", "leaderboard", "report"):
        advens(command, out).done()
    assert (out / "matrix.parquet").read_bytes() == matrix
    page = (out / "report.html").read_text()
    assert "Without clean images and adversarial ones, of which differences are stored" in page
    assert 'alt="difference to the clean image"' in page
    assert 'alt="adversarial image' not in page


def test_with_the_data_the_page_shows_all_three(advens: Any, photos: Path) -> None:
    advens("report", photos / "out").done()
    page = (photos / "out/report.html").read_text()
    for what in ("difference to the clean image", "adversarial image", "clean image"):
        assert f'alt="{what}' in page
    assert "Without clean images" not in page


def test_a_clean_image_that_was_changed_is_found(advens: Any, photos: Path) -> None:
    path = next(iter(sorted(photos.glob("photos/*/*.png"))))
    pixels = np.asarray(Image.open(path)).copy()
    pixels[0, 0, 0] ^= 1
    Image.fromarray(pixels).save(path)
    out = photos / "out"
    advens("verify", out).failed("mismatches")
    assert "the data are not those it was crafted on" in advens("verify", out).err
    advens("evaluate", out, "--targets", "toys:centroid?seed=5").refused("are not those this run was crafted")
    with pytest.raises(InputError, match="these are other data, or they decode to other pixels here"):
        open_run(out).examples()
    advens("report", out).done()
    assert "not those that were attacked" in (out / "report.html").read_text()


def test_a_decoder_that_gives_other_pixels_is_found(
    advens: Any, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files are the same, and so is the fingerprint of the data."""
    right = Dataset.pixels

    def other(self: Dataset, index: int) -> Any:
        return right(self, index) ^ np.uint8(1)

    monkeypatch.setattr(Dataset, "pixels", other)
    said = advens("verify", photos / "out")
    said.failed("mismatches")
    assert "the clean images decode to other pixels here than where it was crafted" in said.err
    with pytest.raises(InputError, match="they decode to other pixels here"):
        open_run(photos / "out").examples()
    advens("evaluate", photos / "out", "--targets", "toys:centroid?seed=5").refused("decode to other pixels")


def test_no_more_images_are_read_than_are_stored(runs: Path, tmp_path: Path) -> None:
    out = shutil.copytree(runs / "transfer-differences", tmp_path / "out")
    store = RunStore(out)
    path = store.examples_path(store.cells()[0])
    said = read_cell(path)
    write_examples(path, read_table(path), said | {"shard": [15, 1 << 40]})
    with pytest.raises(InputError, match="it has 20 images, and no 15 to 25"):
        read_examples(out)
    for shard in ([0], ["a", "b"], [0, 1, 2], [None, 4]):
        write_examples(path, read_table(path), said | {"shard": shard})
        with pytest.raises(RunError, match="has no proper shard"):
            read_examples(out)


@pytest.mark.parametrize("steady", [True, False])
def test_data_that_are_never_the_same_again_are_stored_whole(
    advens: Any, suite: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steady: bool
) -> None:
    """A plug-in that draws anew, as one with augmentations does; its files and so its fingerprint stay."""
    data = load_data("digits:test?limit=20")

    class Pairs:
        def __init__(self) -> None:
            self.targets = data.labels.tolist()
            self.samples = [(__file__, label) for label in self.targets]

        def __len__(self) -> int:
            return 20

        def __getitem__(self, row: int) -> tuple[Any, int]:
            drawn = 0 if steady else np.random.randint(0, 2)
            return np.roll(data.pixels(row), drawn, 2), int(data.labels[row])

    module = types.ModuleType("somebody")
    vars(module).update(pairs=lambda path: Pairs())
    monkeypatch.setitem(sys.modules, "somebody", module)
    points = [EntryPoint("pairs", "somebody:pairs", "advens.data")]
    known = registry.entry_points
    monkeypatch.setattr(
        registry, "entry_points",
        lambda group: EntryPoints(points) if group == "advens.data" else known(group=group),
    )  # fmt: skip
    path = suite(data="pairs:x", attacks=[{"name": "fgsm"}])
    advens("run", path, "--out", tmp_path / "out", "--trust", "pairs:*").done()
    store = RunStore(tmp_path / "out")
    forms = {are_differences(read_table(store.examples_path(cell), "examples")) for cell in store.cells()}
    assert forms == {steady}


def test_own_data_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = WorkerCache("cpu")
    read = cache._read
    monkeypatch.setattr(cache, "_read", lambda *_: pytest.fail("read again"))
    assert cache.reproducible("digits:test?limit=20", 0, 10)
    monkeypatch.setattr(cache, "_read", read)
    assert cache.shard("digits:test?limit=20", 0, 10).pixels.shape == (10, 3, 32, 32)
