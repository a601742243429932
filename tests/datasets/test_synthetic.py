"""``synthetic:``: images made from their numbers."""

from __future__ import annotations

import hashlib
import time

import numpy as np
import pytest

from advens.datasets import load_data, synthetic
from advens.errors import InputError


def test_image_depends_on_seed_and_number_only() -> None:
    few, many = load_data("synthetic:shapes?n=10"), load_data("synthetic:shapes?n=1000")
    assert np.array_equal(few.pixels(7), many.pixels(7))
    assert few.fingerprint([3, 7]) == many.fingerprint([3, 7])
    other = load_data("synthetic:shapes?n=10&seed=1")
    assert not np.array_equal(few.pixels(7), other.pixels(7))
    assert few.fingerprint([7]) != other.fingerprint([7])
    assert not np.array_equal(many.pixels(7), many.pixels(17))
    assert many.fingerprint([7]) != many.fingerprint([17])


def test_shapes() -> None:
    data = load_data("synthetic:shapes?n=30")
    assert data.size == (32, 32)
    assert data.num_classes == 10
    assert data.labels.tolist() == [*range(10)] * 3
    image = data.pixels(0)
    assert image.shape == (3, 32, 32)
    assert image.dtype == np.uint8
    assert len({data.pixels(i).tobytes() for i in range(30)}) == 30


def test_classes_can_be_told_apart() -> None:
    # a sheet of each class's foreground, far from its ground in every channel
    data = load_data("synthetic:shapes?n=100")
    for i in range(100):
        levels = data.pixels(i).reshape(3, -1)
        assert (levels.max(1).astype(int) - levels.min(1) >= 50).all(), data.sample_ids[i]


def test_bytes_never_change() -> None:
    # finished runs are named after them; raise synthetic.VERSION when this has to change
    data = load_data("synthetic:shapes?n=20")
    total = hashlib.sha256(b"".join(data.pixels(i).tobytes() for i in range(20)))
    assert (synthetic.VERSION, total.hexdigest()[:16]) == (1, "fb84f803091a0bbf")


def test_a_million_open_at_once_and_have_a_fingerprint_without_pixels(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(synthetic.SyntheticSource, "pixels", lambda *_: pytest.fail("drawn"))
    start = time.perf_counter()
    data = load_data("synthetic:shapes?n=1000000")
    data.fingerprint(slice(999_000, 1_000_000))
    assert time.perf_counter() - start < 3
    assert len(data) == len(data.sample_ids) == 1_000_000
    assert data.sample_ids[-1] == "shapes-0-0999999"
    assert list(data.sample_ids[3:5]) == ["shapes-0-0000003", "shapes-0-0000004"]


def test_seed_serves_images_and_shuffle() -> None:
    data = load_data("synthetic:shapes?n=50&seed=4&limit=5")
    whole = load_data("synthetic:shapes?n=50&seed=4")
    order = np.random.RandomState(4).permutation(50)[:5]
    assert data.sample_ids == tuple(whole.sample_ids[i] for i in order)
    assert np.array_equal(data.pixels(0), whole.pixels(order[0]))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("synthetic:shape", "unknown synthetic data 'shape'; did you mean 'shapes'"),
        ("synthetic:shapes?n=0", "n = '0' must be a whole number from 1"),
        ("synthetic:shapes?n=1.5", "n = '1.5' must be"),
        ("synthetic:shapes?count=5", "unknown option 'count'"),
    ],
)
def test_errors(spec: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_data(spec)
