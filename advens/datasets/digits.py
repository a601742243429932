"""The embedded data: scikit-learn's handwritten digits, 1,797 real 8x8 images, shown as 3x32x32.

A fixed stratified split: 50 images of every class (500) for testing, the other 1,297 for training.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from advens.datasets.source import ArraySource
from advens.errors import unknown

TEST_PER_CLASS = 50
SPLITS = ("train", "test")


@lru_cache(maxsize=2)
def digits_arrays(split: str) -> tuple[NDArray[np.uint8], NDArray[np.int64], tuple[str, ...]]:
    """Pixels (N, 3, 32, 32) uint8, labels (N,) int64 and sample ids of one split.

    The ids are the rows of scikit-learn's table. The split is drawn from a frozen generator
    (`RandomState` never changes its stream), so it is the same on every machine and version.
    """
    from sklearn.datasets import load_digits

    table = load_digits()
    labels = table.target.astype(np.int64)
    draw = np.random.RandomState(0)
    test = np.concatenate(
        [draw.permutation(np.flatnonzero(labels == c))[:TEST_PER_CLASS] for c in range(10)]
    )
    if split == "train":
        rows = np.setdiff1d(np.arange(len(labels)), test)
    else:
        rows = draw.permutation(test)
    pixels = _upsample(table.images[rows])
    return pixels, labels[rows], tuple(f"digits-{row:04d}" for row in rows)


def load(path: str) -> ArraySource:
    """One split, ``train`` or ``test``. Raises InputError for another name."""
    if path not in SPLITS:
        raise unknown("split of digits:", path, SPLITS)
    pixels, labels, ids = digits_arrays(path)
    return ArraySource(pixels, labels, ids, 10, tuple("0123456789"))


def _upsample(images: NDArray[np.float64]) -> NDArray[np.uint8]:
    """(N, 8, 8) grey levels 0..16 to (N, 3, 32, 32) bytes, bilinear (half-pixel centres).

    Every intermediate value is a multiple of 1/64, so the arithmetic is exact and the bytes are
    the same everywhere.
    """
    for axis in (1, 2):
        centre = (np.arange(32) + 0.5) / 4 - 0.5
        low = np.clip(np.floor(centre).astype(int), 0, 7)
        high = np.clip(low + 1, 0, 7)
        weight = np.clip(centre - low, 0.0, 1.0)
        shape = [1, 1, 1]
        shape[axis] = 32
        weight = weight.reshape(shape)
        images = images.take(low, axis) * (1 - weight) + images.take(high, axis) * weight
    grey = np.rint(images * 255 / 16).astype(np.uint8)
    return np.repeat(grey[:, None], 3, axis=1)
