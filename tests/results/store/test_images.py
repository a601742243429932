"""Adversarial images come back byte for byte, stored whole or as differences, and never as others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from advens.errors import InputError, RunError
from advens.results.store import read_table, schema, write_examples
from advens.results.store.images import (
    Pixels,
    are_differences,
    changed,
    clean_digest,
    decoded,
    digests,
    image_columns,
    signed_differences,
    whole_images,
)

N, SIDE = 5, 4


def noise(seed: int) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (N, 3, SIDE, SIDE), dtype=np.uint8)


def near(clean: Pixels, levels: int) -> Pixels:
    moved = clean + np.random.default_rng(9).integers(-levels, levels + 1, clean.shape)
    return np.clip(moved, 0, 255).astype(np.uint8)


def never() -> Pixels:
    raise AssertionError("whole images need no clean ones")


@pytest.fixture
def stored(tmp_path: Path, about: Callable[..., dict[str, Any]]) -> Callable[..., pa.Table]:
    """Images written to a file and read again as a table."""

    def write(images: Pixels, clean: Pixels | None = None, **told: Any) -> pa.Table:
        path = tmp_path / "c0.parquet"
        known = {} if clean is None else {"clean_sha256": clean_digest(clean)}
        linf = np.abs(images.astype(int) - (noise(0) if clean is None else clean)).max((1, 2, 3)) / 255
        rows = {
            "cell": ["c0"] * N, "sample_id": list("abcde"), "label": [1] * N, "target_label": [None] * N,
            "linf": linf, "l2": [1.0] * N, "l1": [1.0] * N, **image_columns(images, clean),
        }  # fmt: skip
        write_examples(path, rows, about(**{**known, **told}))
        return read_table(path, "examples")

    return write


@pytest.mark.parametrize("images", [noise(1), noise(0), near(noise(0), 8), 255 - noise(0)])
def test_any_two_images_give_their_difference_and_come_back(
    stored: Callable[..., pa.Table], images: Pixels
) -> None:
    table = stored(images, noise(0))
    assert are_differences(table)
    assert table.column("image").null_count == N
    assert (whole_images(table, lambda: noise(0)) == images).all()
    assert table.column("sha256").to_pylist() == digests(images)
    whole = stored(images)
    assert not are_differences(whole)
    assert whole.column("difference").null_count == N
    found = whole_images(whole, never)
    assert (found == images).all()
    found[0] = 0  # as any array
    assert whole.column("sha256").to_pylist() == digests(images)


def test_parts_and_pieces_of_a_table(stored: Callable[..., pa.Table]) -> None:
    images, clean = near(noise(0), 3), noise(0)
    for table in (stored(images, clean), stored(images)):
        part = table.slice(2, 2)
        assert (decoded(part, lambda: clean[2:4]) == images[2:4]).all()
        pieces = pa.concat_tables([table.slice(0, 3), table.slice(3)])
        assert (whole_images(pieces, lambda: clean) == images).all()


def test_tables_from_before_there_were_differences(stored: Callable[..., pa.Table]) -> None:
    table = stored(noise(1)).drop_columns(["difference"])
    assert schema.EXAMPLES.fits(table.schema)
    assert (whole_images(table, never) == noise(1)).all()
    assert signed_differences(table) is None


def test_other_clean_images_are_found(stored: Callable[..., pa.Table]) -> None:
    clean = noise(0)
    table = stored(near(clean, 8), clean)
    other = clean.copy()
    other[3, 0, 0, 0] ^= 1
    with pytest.raises(InputError, match="these are other data, or they decode to other pixels here"):
        whole_images(table, lambda: other)
    assert changed(table, digests(decoded(table, lambda: other))) == ["d"]
    for wrong in (clean[:4], clean[:, :, :2]):
        with pytest.raises(InputError, match=r"the clean images are \d of \dx4, and not 5 of 4x4"):
            whole_images(table, lambda wrong=wrong: wrong)


def test_other_differences_are_found(stored: Callable[..., pa.Table]) -> None:
    clean = noise(0)
    table = stored(near(clean, 8), clean)
    values = table.column("difference").to_pylist()
    values[1] = bytes(len(values[1]))
    at = table.schema.get_field_index("difference")
    forged = table.set_column(at, table.schema.field(at), pa.array(values, pa.binary()))
    with pytest.raises(RunError, match=r"1 of its images were changed after they were written \(first: b\)"):
        whole_images(forged, lambda: clean)


def replaced(table: pa.Table, name: str, values: list[Any]) -> pa.Table:
    at = table.schema.get_field_index(name)
    return table.set_column(at, table.schema.field(at), pa.array(values, table.schema.field(at).type))


@pytest.mark.parametrize("stored_as", ["image", "difference"])
def test_one_form_of_all_images(stored: Callable[..., pa.Table], stored_as: str) -> None:
    clean = noise(0)
    table = stored(noise(1), None if stored_as == "image" else clean)
    other = "difference" if stored_as == "image" else "image"
    values = table.column(stored_as).to_pylist()
    for forged in (
        replaced(table, other, values), replaced(table, other, [values[0], *[None] * (N - 1)]),
        replaced(table, stored_as, [None] * N), replaced(table, stored_as, [None, *values[1:]]),
    ):  # fmt: skip
        with pytest.raises(RunError, match="neither all images nor all differences"):
            decoded(forged, lambda: clean)


@pytest.mark.parametrize("stored_as", ["image", "difference"])
def test_images_of_other_sizes_are_refused(stored: Callable[..., pa.Table], stored_as: str) -> None:
    clean = noise(0)
    table = stored(noise(1), None if stored_as == "image" else clean)
    values = table.column(stored_as).to_pylist()
    shifted = [values[0] + values[1][:3], values[1][3:], *values[2:]]  # as many bytes in all
    for forged in (
        replaced(table, stored_as, shifted), replaced(table, "height", [-SIDE] * N),
        replaced(replaced(table, "height", [-SIDE] * N), "width", [-SIDE] * N),
        replaced(table, "width", [1 << 30] * N), replaced(table, "width", [0] * N),
    ):  # fmt: skip
        with pytest.raises(RunError, match="not of the size the table says"):
            decoded(forged, lambda: clean)
    with pytest.raises(RunError, match="holds no images"):
        decoded(table.slice(0, 0), lambda: clean)


def test_differences_that_are_numbers_without_the_clean_images(stored: Callable[..., pa.Table]) -> None:
    clean = noise(0)
    images = near(clean, 127)
    found = signed_differences(stored(images, clean))
    assert found is not None
    assert (found == images.astype(int) - clean).all()
    assert signed_differences(stored(255 - clean, clean)) is None  # -128 and 128 are one byte
    assert signed_differences(stored(images)) is None
