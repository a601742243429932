"""What Python reads from a run."""

from __future__ import annotations

import re

import numpy as np
import pytest

from advens.errors import InputError
from advens.results import reading
from advens.results.boards.compare import compare
from advens.results.store import CorruptFile, RunStore, read_table, write_examples

TARGETS = {"digits:vit": 0.7, "digits:vit-at": 0.3}


@pytest.fixture
def store(run, drawn):
    strengths = {("pgd", "cnns"): 0.5, ("cwa", "cnns"): 0.9, ("cwa", "vits"): 0.6}
    return run(drawn(strengths, TARGETS, n=12, seeds=2))


@pytest.mark.parametrize(
    ("filters", "condition"),
    [
        (None, "index == index"),
        ({"attack": "cwa"}, "attack == 'cwa'"),
        ({"attack": ["cwa", "pgd"], "seed": 1}, "seed == 1"),
        ({"attack": ("cwa",), "success": True}, "attack == 'cwa' and success"),
        ([("attack", "=", "pgd"), ("sample_id", "<", "0005")], "attack == 'pgd' and sample_id < '0005'"),
        ([("target", "in", ["digits:vit"])], "target == 'digits:vit'"),
        ({"attack": "none"}, "seed < 0"),
    ],
)
def test_samples_that_fit(store, filters, condition):
    columns = ["attack", "seed", "target", "sample_id", "success"]
    found = reading.read_samples(store.directory, columns, filters)
    wanted = store.read_samples().query(condition)[columns]
    assert found.astype(str).to_numpy().tolist() == wanted.astype(str).to_numpy().tolist()


def test_all_columns_and_filters_on_others(store):
    assert list(reading.read_samples(store.directory)) == list(store.read_samples())
    found = reading.read_samples(store.directory, ["sample_id"], {"attack": "pgd", "seed": 0})
    assert list(found) == ["sample_id"]
    assert len(found) == 24


@pytest.mark.parametrize(
    ("columns", "filters", "said"),
    [
        (["atack"], None, "did you mean 'attack'"), (None, {"sed": 1}, "did you mean 'seed'"),
        (None, {"seed": "one"}, "the filters do not fit the samples"),
        (None, [("seed", "~", 1)], "the filters do not fit the samples"),
    ],
)  # fmt: skip
def test_what_cannot_be_asked_is_one_line(store, columns, filters, said):
    with pytest.raises(InputError, match=said) as error:
        reading.read_samples(store.directory, columns, filters)
    assert "\n" not in str(error.value)


def test_no_run_is_bad_input(tmp_path):
    for read in (reading.read_samples, reading.read_examples):
        with pytest.raises(InputError, match="does not exist"):
            read(tmp_path / "none")
    (tmp_path / "suite.toml").write_text("")
    assert reading.read_samples(tmp_path).empty
    with pytest.raises(InputError, match="no finished images yet"):
        reading.read_examples(tmp_path)


def test_examples_are_those_of_the_cells(store):
    found = reading.read_examples(store.directory, attack="cwa", surrogates="vits", seed=1)
    ids, images, cells = found
    assert images.shape == (12, 3, 2, 2)
    assert images.dtype == np.uint8
    assert ids == [f"{i:04d}" for i in range(12)]
    assert set(cells) == {"cwa-vits-1"}
    table = read_table(store.examples_path("cwa-vits-1"), "examples")
    for k, image in enumerate(table["image"].to_pylist()):
        assert images[k].tobytes() == image
    assert set(reading.read_examples(store.directory, attack="cwa").cells) == {
        "cwa-cnns-0", "cwa-cnns-1", "cwa-vits-0", "cwa-vits-1"
    }
    assert len(reading.read_examples(store.directory).ids) == 6 * 12


def test_examples_that_nobody_crafted(store):
    with pytest.raises(InputError, match=r"attack among these images.*did you mean 'cwa'"):
        reading.read_examples(store.directory, attack="cwaa")
    with pytest.raises(InputError, match="surrogate set among these images"):
        reading.read_examples(store.directory, attack="pgd", surrogates="vits")
    with pytest.raises(InputError, match="seed among these images"):
        reading.read_examples(store.directory, seed=9)


def test_images_of_several_sizes_do_not_stack(store, examples, about):
    frame = examples("big", ["0"]).assign(image=[bytes(48)], height=4, width=4)
    write_examples(store.examples_path("big"), frame, about(attack="big"))
    assert reading.read_examples(store.directory, attack="big").images.shape == (1, 3, 4, 4)
    with pytest.raises(InputError, match="of several sizes; choose one"):
        reading.read_examples(store.directory)


def test_damaged_files_are_named(store):
    path = store.examples_path("cwa-vits-1")
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(CorruptFile, match=re.escape(str(path))):
        reading.read_examples(store.directory)


def test_two_attacks_side_by_side(store):
    found = reading.compare(store.directory, "cwa@cnns", "pgd")
    samples = RunStore(store.directory).read_samples()
    assert found == compare(samples, "cwa@cnns", "pgd")
    assert reading.compare(store.directory, "cwa@cnns", "pgd", "all")["denominator"] == "all"
