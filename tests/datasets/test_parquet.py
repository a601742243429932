"""``parquet:``: shards with images inside."""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from advens.datasets import load_data, parquet, parquet_tables
from advens.errors import InputError


def png(pixels: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0))).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def shards(tmp_path: Path, noise: Callable[..., Any]) -> Path:
    """Two shards, rows 0..4 and 5..6, of two rows a group; row k is noise(k), label k % 3."""
    root = tmp_path / "shards"
    root.mkdir()
    for name, rows in (("a.parquet", range(5)), ("b.parquet", range(5, 7))):
        columns = {"image": [png(noise(k)) for k in rows], "label": [k % 3 for k in rows]}
        pq.write_table(pa.table(columns), root / name, row_group_size=2)
    return root


def write(path: Path, **columns: Any) -> str:
    pq.write_table(pa.table(columns), path)
    return f"parquet:{path}"


def test_shards_are_one_data_set(shards: Path, noise: Callable[..., Any]) -> None:
    data = load_data(f"parquet:{shards}")
    assert data.labels.tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert data.sample_ids[4:6] == ("a.parquet#4", "b.parquet#0")
    assert data.num_classes == 3
    assert data.size is None  # only decoding would tell
    for k in (6, 0, 5, 3, 4, 1, 2):
        assert np.array_equal(data.pixels(k), noise(k))
    assert len(load_data(f"parquet:{shards}/b*.parquet")) == 2
    assert len(load_data(f"parquet:{shards}/b.parquet")) == 2


def test_row_groups_are_read_on_demand_and_once_a_batch(
    shards: Path, monkeypatch: pytest.MonkeyPatch, noise: Callable[..., Any]
) -> None:
    read: list[tuple[str, int]] = []

    def counted(file: Path, group: int, column: str) -> Any:
        read.append((file.name, group))
        return original(file, group, column)

    original = parquet_tables.read_images
    monkeypatch.setattr(parquet, "read_images", counted)
    data = load_data(f"parquet:{shards}?limit=7&seed=2")
    assert read == []
    (batch,) = data.batches([slice(0, 7)])
    assert read == [("a.parquet", 0), ("a.parquet", 1), ("a.parquet", 2), ("b.parquet", 0)]
    for place, row in enumerate(np.random.RandomState(2).permutation(7)):
        assert np.array_equal(batch.pixels[place].numpy(), noise(row))
    again = pickle.loads(pickle.dumps(data))  # to a worker process, without the images held
    assert again.source._held.images is None
    assert np.array_equal(again.pixels(0), data.pixels(0))
    assert again.digest == data.digest


def test_worker_reads_shards(shards: Path) -> None:
    data = load_data(f"parquet:{shards}")
    data.pixels(0)  # the file is open in this process already
    slices = [slice(0, 3), slice(3, 7)]
    for one, other in zip(data.batches(slices), data.batches(slices, workers=1), strict=True):
        assert one.pixels.equal(other.pixels)


def test_optional_columns(tmp_path: Path, noise: Callable[..., Any]) -> None:
    images = [png(noise(k)) for k in range(2)]
    spec = write(
        tmp_path / "x.parquet",
        image=images,
        label=[1, 0],
        sample_id=["p", "q"],
        target_label=[4, 2],
    )
    data = load_data(spec)
    assert data.sample_ids == ("p", "q")
    assert data.target_labels is not None
    assert data.target_labels.tolist() == [4, 2]
    assert data.num_classes == 5


def test_raw_pixels(tmp_path: Path, noise: Callable[..., Any]) -> None:
    raw = [noise(k, 6, 9) for k in range(2)]
    spec = write(
        tmp_path / "x.parquet",
        image=[image.tobytes() for image in raw],
        label=[1, 0],
        height=[6, 6],
        width=[9, 9],
    )
    data = load_data(spec)
    assert data.size == (6, 9)
    assert np.array_equal(data.pixels(1), raw[1])


def test_stated_sizes_of_encoded_images_are_not_trusted(
    tmp_path: Path, noise: Callable[..., Any]
) -> None:
    images = [png(noise(k)) for k in range(2)]  # resized after their sizes were noted
    spec = write(
        tmp_path / "x.parquet", image=images, label=[1, 0], height=[500, 333], width=[375, 500]
    )
    data = load_data(spec)
    assert data.size is None
    assert np.array_equal(data.pixels(1), noise(1))


def test_huggingface_layout(tmp_path: Path, noise: Callable[..., Any]) -> None:
    features = {"label": {"names": ["cat", "dog", "emu"], "_type": "ClassLabel"}}
    table = pa.table(
        {"image": [{"bytes": png(noise(k)), "path": f"{k}.png"} for k in range(2)], "label": [1, 0]}
    ).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, tmp_path / "x.parquet")
    data = load_data(f"parquet:{tmp_path}/x.parquet")
    assert data.class_names == ("cat", "dog", "emu")
    assert data.num_classes == 3
    assert np.array_equal(data.pixels(1), noise(1))


def huggingface(table: pa.Table, **features: Any) -> pa.Table:
    return table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


FINE = {"names": ["apple", "bee", "cup"], "_type": "ClassLabel"}
COARSE = {"names": ["fruit", "insect"], "_type": "ClassLabel"}


def test_columns_of_other_names(tmp_path: Path, noise: Callable[..., Any]) -> None:
    """As CIFAR-100 lies on Hugging Face: img, fine_label, coarse_label."""
    images = [{"bytes": png(noise(k)), "path": None} for k in range(2)]
    table = pa.table({"img": images, "fine_label": [2, 0], "coarse_label": [0, 1]})
    pq.write_table(table, tmp_path / "plain.parquet")
    spec = f"parquet:{tmp_path}/plain.parquet"
    data = load_data(f"{spec}?image=img&label=fine_label")
    assert data.labels.tolist() == [2, 0]
    assert np.array_equal(data.pixels(1), noise(1))
    assert load_data(f"{spec}?image=img&label=coarse_label").labels.tolist() == [0, 1]
    with pytest.raises(InputError, match="no column 'fine_lable'; did you mean 'fine_label'"):
        load_data(f"{spec}?image=img&label=fine_lable")

    declared = huggingface(table, img={"_type": "Image"}, fine_label=FINE, coarse_label=COARSE)
    pq.write_table(declared, tmp_path / "declared.parquet")
    spec = f"parquet:{tmp_path}/declared.parquet"
    with pytest.raises(InputError, match=r"no column 'label'; add \?label=fine_label \(or coarse_label\)"):
        load_data(spec)
    assert load_data(f"{spec}?label=coarse_label").class_names == ("fruit", "insect")
    pq.write_table(huggingface(table, img={"_type": "Image"}, fine_label=FINE), tmp_path / "one.parquet")
    only = load_data(f"parquet:{tmp_path}/one.parquet")
    assert only.labels.tolist() == [2, 0]
    assert only.class_names == ("apple", "bee", "cup")


def test_labels_beyond_the_named_classes_are_refused(tmp_path: Path) -> None:
    table = huggingface(pa.table({"image": [b"", b""], "label": [1, 99]}), label=COARSE)
    pq.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(InputError, match="row 1: label 99 is beyond the 2 classes that the file names"):
        load_data(f"parquet:{tmp_path}/x.parquet")


def test_splits_are_not_mixed(tmp_path: Path, noise: Callable[..., Any]) -> None:
    for name, label in (("train-00000-of-00002", 0), ("train-00001-of-00002", 1), ("test-00000-of-00001", 2)):
        write(tmp_path / f"{name}.parquet", image=[png(noise(label))], label=[label])
    with pytest.raises(InputError, match=r"shards of several splits: test, train; add \?split=test"):
        load_data(f"parquet:{tmp_path}")
    assert load_data(f"parquet:{tmp_path}?split=train").labels.tolist() == [0, 1]
    assert load_data(f"parquet:{tmp_path}?split=test").labels.tolist() == [2]
    with pytest.raises(InputError, match="no split 'validation'; there are test, train"):
        load_data(f"parquet:{tmp_path}?split=validation")
    write(tmp_path / "val.parquet", image=[png(noise(0))], label=[0])
    assert load_data(f"parquet:{tmp_path}?split=val").labels.tolist() == [0]


def test_shards_name_the_same_classes(tmp_path: Path) -> None:
    table = pa.table({"image": [b""], "label": [0]})
    pq.write_table(huggingface(table, label=COARSE), tmp_path / "a.parquet")
    pq.write_table(huggingface(table, label=FINE), tmp_path / "b.parquet")
    with pytest.raises(InputError, match=r"shards differ: .*a\.parquet' has classes called 'fruit, insect'"):
        load_data(f"parquet:{tmp_path}")


def test_fingerprint_follows_one_pixel_not_the_layout(
    tmp_path: Path, noise: Callable[..., Any]
) -> None:
    def digest(name: str, change: int, groups: int, rows: list[int] | None = None) -> str:
        images = [noise(k) for k in range(4)]
        images[2][0, 0, 0] ^= change
        columns = {
            "image": [png(image) for image in images],
            "label": [0] * 4,
            "sample_id": ["a", "b", "c", "d"],
        }
        pq.write_table(pa.table(columns), tmp_path / name, row_group_size=groups)
        return load_data(f"parquet:{tmp_path / name}").fingerprint(rows or range(4))

    base = digest("x.parquet", 0, 4)
    assert digest("y.parquet", 0, 2) == base
    assert digest("z.parquet", 1, 4) != base
    assert digest("x.parquet", 0, 2, [3, 0]) == digest("y.parquet", 0, 4, [3, 0])
    assert digest("x.parquet", 0, 2, [3, 0]) == digest("z.parquet", 1, 4, [3, 0])
    assert digest("x.parquet", 0, 2, [3, 0]) != digest("z.parquet", 0, 4, [0, 3])


def test_mixed_sizes_are_named_when_met(tmp_path: Path, noise: Callable[..., Any]) -> None:
    images = [png(noise(0)), png(noise(1)), png(noise(2, 7, 9)), png(noise(3, 7, 9))]
    spec = write(tmp_path / "x.parquet", image=images, label=[0, 1, 0, 1])
    message = r"'x.parquet#0' is 12x12, 'x.parquet#2' is 7x9 .* add \?size=224"
    with pytest.raises(InputError, match=message):
        list(load_data(spec).batches([slice(0, 2), slice(1, 4)]))
    data = load_data(spec)
    data.pixels(0)
    with pytest.raises(InputError, match=message):
        data.pixels(2)
    # every worker's own slice is uniform
    with pytest.raises(InputError, match=message):
        list(load_data(spec).batches([slice(0, 2), slice(2, 4)], workers=2))
    assert load_data(f"{spec}?size=8").pixels(2).shape == (3, 8, 8)


def test_damaged_files_are_named(shards: Path) -> None:
    whole = (shards / "b.parquet").read_bytes()
    (shards / "b.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"b\.parquet' is not a whole parquet file") as caught:
        load_data(f"parquet:{shards}")
    assert "\n" not in str(caught.value)
    (shards / "b.parquet").write_bytes(b"")
    with pytest.raises(InputError, match=r"b\.parquet' is not a whole parquet file"):
        load_data(f"parquet:{shards}")


def test_undecodable_cells_are_named(tmp_path: Path, noise: Callable[..., Any]) -> None:
    cells = [png(noise(0)), b"no picture", None]
    data = load_data(write(tmp_path / "x.parquet", image=cells, label=[0, 1, 2]))
    with pytest.raises(InputError, match=r"'x\.parquet#1' is not an image"):
        data.pixels(1)
    with pytest.raises(InputError, match=r"'x\.parquet#2' is missing"):
        data.pixels(2)
    spec = write(tmp_path / "y.parquet", image=[b"12345"], label=[0], height=[2], width=[2])
    with pytest.raises(InputError, match=r"has 5 bytes: .* 3 x 2 x 2 raw pixels"):
        load_data(spec).pixels(0)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"img": [b""], "label": [0]}, "no column 'image'; did you mean 'img'"),
        ({"image": [b""], "labels": [0]}, "no column 'label'; did you mean 'labels'"),
        ({"image": ["path.png"], "label": [0]}, "'image' is of type string"),
        ({"image": [{"path": "a"}], "label": [0]}, "'image' is of type struct"),
        ({"image": [b""], "label": ["cat"]}, "'label' is of type string; integers"),
        ({"image": [b"", b""], "label": [0, None]}, "'label' has 1 missing values"),
        ({"image": [b"", b""], "label": [0, -2]}, "row 1: label -2 is negative"),
        ({"image": [b""], "label": [0], "target_label": [-1]}, "target_label -1 is negative"),
        ({"image": [b"", b""], "label": [0, 0], "sample_id": ["a", "a"]}, "'a' is in .* already"),
        ({"image": pa.array([], pa.binary()), "label": pa.array([], pa.int64())}, "has no rows"),
    ],
)
def test_column_errors(tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_data(write(tmp_path / "x.parquet", **columns))


def test_path_errors(shards: Path) -> None:
    with pytest.raises(InputError, match="does not exist; did you mean 'shards'"):
        load_data(f"parquet:{shards.parent}/shard")
    (shards / "empty").mkdir()
    with pytest.raises(InputError, match=r"holds no \*\.parquet files"):
        load_data(f"parquet:{shards}/empty")
    columns = {"image": [b""], "label": [0], "target_label": [1]}
    pq.write_table(pa.table(columns), shards / "c.parquet")
    with pytest.raises(InputError, match=r"c\.parquet' has targets, '.*a\.parquet' has none"):
        load_data(f"parquet:{shards}")
