"""What every source shares: views, options, fingerprints, batches."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import CenterCrop, InterpolationMode, Resize

from advens.datasets import ArraySource, Dataset, list_data, load_data
from advens.errors import InputError


def arrays(n: int = 7, targets: bool = False) -> ArraySource:
    draw = np.random.RandomState(0)
    return ArraySource(
        draw.randint(0, 256, (n, 3, 4, 4)).astype(np.uint8),
        np.arange(n, dtype=np.int64) % 3,
        tuple(f"row-{i}" for i in range(n)),
        3,
        target_labels=(np.arange(n, dtype=np.int64) + 1) % 3 if targets else None,
    )


def test_sample_is_exact_bytes_over_255() -> None:
    data = load_data("digits:test")
    image, label, sample_id = data[3]
    assert image.dtype == torch.float32
    assert image.shape == (3, 32, 32)
    pixels = torch.from_numpy(data.pixels(3))
    assert torch.equal(image, pixels.float() / 255)
    assert torch.equal((image * 255).round().to(torch.uint8), pixels)
    assert label == data.labels[3]
    assert sample_id == data.sample_ids[3]
    assert type(label) is int


def test_digits() -> None:
    test, train = load_data("digits:test"), load_data("digits:train")
    assert (len(test), len(train), test.num_classes, test.size) == (500, 1297, 10, (32, 32))
    assert np.bincount(test.labels).tolist() == [50] * 10
    assert not set(test.sample_ids) & set(train.sample_ids)
    assert len(set(test.sample_ids)) == 500
    assert test.target_labels is None
    assert test.class_names is not None
    assert test.class_names[4] == "4"


def test_indexing_is_that_of_a_sequence() -> None:
    data = Dataset(arrays(), "a")
    assert data[-1].sample_id == "row-6"
    assert [sample.label for sample in data] == data.labels.tolist()
    with pytest.raises(IndexError):
        data[7]


def test_pixels_are_a_copy() -> None:
    data = load_data("digits:test")
    before = data.digest
    data.pixels(0)[:] = 0
    assert load_data("digits:test").digest == before


def test_limit_is_a_prefix_of_a_seeded_shuffle() -> None:
    whole = load_data("digits:test")
    few, many = load_data("digits:test?limit=20&seed=3"), load_data("digits:test?limit=90&seed=3")
    assert few.sample_ids == many.sample_ids[:20]
    assert len(set(many.sample_ids)) == 90
    # the order is numpy's frozen stream, so that a published subset can be drawn again
    expected = np.random.RandomState(3).permutation(500)[:20]
    assert few.sample_ids == tuple(whole.sample_ids[i] for i in expected)
    assert np.array_equal(few.labels, whole.labels[expected])
    assert np.array_equal(few.pixels(5), whole.pixels(expected[5]))
    assert few.sample_ids != load_data("digits:test?limit=20").sample_ids
    assert load_data("digits:test?limit=20&seed=0").sample_ids == (
        load_data("digits:test?limit=20").sample_ids
    )


@pytest.mark.parametrize(
    ("height", "width", "size"),
    [(300, 401, 224), (401, 300, 224), (33, 57, 20), (57, 33, 20), (20, 31, 40)],
)
def test_size_is_torchvisions_resize_and_crop(
    tmp_path: Path, height: int, width: int, size: int
) -> None:
    small = np.random.RandomState(1).randint(0, 256, (9, 9, 3)).astype(np.uint8)
    image = Image.fromarray(small).resize((width, height))
    (tmp_path / "c").mkdir()
    image.save(tmp_path / "c" / "i.png")
    data = load_data(f"folder:{tmp_path}?size={size}")
    wanted = CenterCrop(size)(Resize(size, interpolation=InterpolationMode.BICUBIC)(image))
    assert data.size == (size, size)
    assert np.array_equal(data.pixels(0), np.asarray(wanted).transpose(2, 0, 1))


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize(
    ("crop_pct", "resized"), [("0.875", 256), ("0.9", 248), ("224/232", 232), ("1", 224), ("0.95", 235)]
)
def test_crop_pct_resizes_more_and_crops(
    tmp_path: Path, interpolation: str, crop_pct: str, resized: int
) -> None:
    image = Image.fromarray(np.random.RandomState(1).randint(0, 256, (30, 41, 3)).astype(np.uint8))
    (tmp_path / "c").mkdir()
    image.save(tmp_path / "c" / "i.png")
    data = load_data(f"folder:{tmp_path}?size=224&crop_pct={crop_pct}&interpolation={interpolation}")
    wanted = CenterCrop(224)(Resize(resized, interpolation=InterpolationMode(interpolation))(image))
    assert data.size == (224, 224)
    assert np.array_equal(data.pixels(0), np.asarray(wanted).transpose(2, 0, 1))


def test_crop_is_part_of_the_fingerprint_and_survives_a_limit() -> None:
    plain = load_data("digits:test?size=28&limit=5")
    queries = ["&crop_pct=0.875", "&interpolation=bilinear", "&crop_pct=0.875&interpolation=bilinear"]
    digests = [load_data(f"digits:test?size=28&limit=5{query}").digest for query in queries]
    assert len({plain.digest, *digests}) == 4
    assert load_data("digits:test?size=28&limit=5&crop_pct=1.0&interpolation=bicubic").digest == plain.digest
    image = load_data("digits:test").pixels(int(plain.rows[0]))
    cropped = load_data("digits:test?size=28&limit=5&crop_pct=0.875").pixels(0)
    assert np.array_equal(cropped, image[:, 2:30, 2:30])


@pytest.mark.parametrize(
    ("query", "said"),
    [("size=8&crop_pct=1.2", "crop_pct = '1.2' must be a number such as 0.875 or 224/256, above 0 and"),
     ("size=8&crop_pct=0", "crop_pct = '0' must be"), ("size=8&crop_pct=a", "crop_pct = 'a' must be"),
     ("size=8&crop_pct=1/0", "crop_pct = '1/0' must be"),
     ("size=8&crop_pct=1e-9", "crop_pct = '1e-9' must be"),
     ("crop_pct=0.875", "crop_pct needs the size of the crop; add &size=224"),
     ("interpolation=bilinear", "interpolation needs the size of the crop; add &size=224"),
     ("size=8&interpolation=bilinera", "interpolation 'bilinera'; did you mean 'bilinear'?")],
)  # fmt: skip
def test_crops_that_cannot_be(query: str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        load_data(f"digits:test?{query}")
    assert said in str(caught.value)


def test_size_of_the_image_itself_changes_nothing(folder: Path) -> None:
    plain, sized = load_data(f"folder:{folder}"), load_data(f"folder:{folder}?size=12")
    assert np.array_equal(plain.pixels(2), sized.pixels(2))


def test_fingerprint_says_what_the_rows_are() -> None:
    data = Dataset(arrays(targets=True), "a")
    base = data.fingerprint([0, 1, 2])
    assert base == Dataset(arrays(targets=True), "another name").fingerprint(range(3))
    assert base == data.fingerprint(slice(0, 3))
    assert base == Dataset(arrays(targets=True), "a", rows=[2, 1, 0]).fingerprint([2, 1, 0])
    assert data.digest == data.fingerprint(range(7))
    others = [
        data.fingerprint([0, 2, 1]),
        data.fingerprint([0, 1]),
        data.fingerprint([0, 1, 3]),
        Dataset(arrays(), "a").fingerprint([0, 1, 2]),
        Dataset(arrays(targets=True), "a", size=4).fingerprint([0, 1, 2]),
    ]
    assert len({base, *others}) == 6


@pytest.mark.parametrize("field", ["images", "labels", "sample_ids", "target_labels"])
def test_fingerprint_changes_with_one_value_of_its_rows_only(field: str) -> None:
    base, changed = arrays(targets=True), arrays(targets=True)
    if field == "sample_ids":
        object.__setattr__(changed, "sample_ids", ("row-0", "other", *changed.sample_ids[2:]))
    else:
        values = getattr(changed, field)
        values.reshape(len(values), -1)[1, 0] ^= 1
    one, other = Dataset(base, "a"), Dataset(changed, "a")
    assert one.fingerprint([0, 1]) != other.fingerprint([0, 1])
    assert one.fingerprint([0, 2]) == other.fingerprint([0, 2])


def test_digits_fingerprint_never_changes() -> None:
    # cells of finished runs are named after it
    assert load_data("digits:test?limit=3").digest == DIGITS_DIGEST


DIGITS_DIGEST = "03e98ae0ef989a3582c70f0c89ddfef0603c30ba8c5cd74ca5f494c899018b70"


def test_batches_give_the_slices_in_order() -> None:
    data = Dataset(arrays(targets=True), "a", rows=[4, 0, 6, 2])
    first, second = data.batches([slice(2, 4), slice(0, 3)])
    assert first.sample_ids == ("row-6", "row-2")
    assert second.sample_ids == ("row-4", "row-0", "row-6")
    assert second.pixels.dtype == torch.uint8
    assert second.labels.dtype == torch.int64
    assert second.labels.tolist() == [1, 0, 0]
    assert second.target_labels is not None
    assert second.target_labels.tolist() == [2, 1, 1]
    for place, index in enumerate((0, 1, 2)):
        assert np.array_equal(second.pixels[place].numpy(), data.pixels(index))


def test_batches_decode_when_reached() -> None:
    class Counting(ArraySource):
        def pixels(self, row: int):  # type: ignore[no-untyped-def]
            reached.append(row)
            return super().pixels(row)

    reached: list[int] = []
    base = arrays()
    data = Dataset(Counting(base.images, base.labels, base.sample_ids, 3), "a")
    batches = data.batches([slice(0, 2), slice(2, 4)])
    assert reached == []
    next(batches)
    assert sorted(reached) == [0, 1]


def test_worker_batches_equal_those_of_this_process(folder: Path) -> None:
    data = load_data(f"folder:{folder}?limit=5&seed=1")
    slices = [slice(0, 2), slice(2, 4), slice(4, 5)]
    torch.manual_seed(0)
    before = torch.get_rng_state()
    here, there = list(data.batches(slices)), list(data.batches(slices, workers=2))
    assert torch.equal(before, torch.get_rng_state())
    assert len(here) == len(there) == 3
    for one, other in zip(here, there, strict=True):
        assert torch.equal(one.pixels, other.pixels)
        assert torch.equal(one.labels, other.labels)
        assert one.sample_ids == other.sample_ids
    # an error in a worker is the same one line
    (folder / "dog" / "x.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(InputError) as caught:
        list(data.batches(slices, workers=2))
    assert "x.png" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("digit:test", "did you mean 'digits'"),
        ("digits", "no source"),
        ("digits:tset", "did you mean 'test'"),
        ("digits:test?sise=3", "unknown option 'sise'; did you mean 'size'"),
        ("digits:test?limit=501", "limit = 501 .* from 1 to 500"),
        ("digits:test?limit=0", "limit = 0 must be 1 or more"),
        ("digits:test?limit=ten", "limit = 'ten' is not a whole number"),
        ("digits:test?size=0", "size = 0 must be from 1"),
        ("digits:test?limit=5&seed=-1", "seed = -1 must be from 0"),
        ("digits:test?seed=1", "add &limit=N"),
        ("digits:test?limit=5&limit=6", "given twice"),
    ],
)
def test_bad_names_are_refused_in_one_line(spec: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load_data(spec)
    assert "\n" not in str(caught.value)


def test_empty_slices_and_empty_data_are_refused() -> None:
    with pytest.raises(InputError, match="slice 7:9 holds none of the 7 images"):
        list(Dataset(arrays(), "a").batches([slice(0, 2), slice(7, 9)]))
    with pytest.raises(InputError, match="'a' holds no images"):
        Dataset(arrays(0), "a")


def test_every_source_is_listed() -> None:
    listed = dict(list_data())
    assert list(listed)[:6] == ["digits", "folder", "csv", "parquet", "torchvision", "synthetic"]
    assert all(usage.startswith(f"{scheme}:") for scheme, usage in listed.items())


def test_opening_data_does_not_import_torch() -> None:
    code = (
        "import sys; from advens.datasets import list_data, load_data; list_data();"
        "load_data('synthetic:shapes?n=5&limit=2').pixels(0);"
        "sys.exit(bool({'torch', 'torchvision', 'pyarrow'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
