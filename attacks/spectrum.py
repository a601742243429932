"""The discrete cosine transform of images, as matrices."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor


def spectral(x: Tensor, mask: Tensor) -> Tensor:
    """``IDCT(DCT(x) * mask)``, (N, C, H, W); linear in x, and its own transpose."""
    rows, columns = dct_matrix(x.shape[-2]).to(x), dct_matrix(x.shape[-1]).to(x)
    return rows.T @ ((rows @ x @ columns.T) * mask) @ columns


@lru_cache(maxsize=16)
def dct_matrix(n: int) -> Tensor:
    """The orthonormal DCT-II as a matrix (n, n), float64: its transpose is its inverse."""
    k = torch.arange(n, dtype=torch.float64)
    matrix = torch.cos(math.pi / n * (k[None, :] + 0.5) * k[:, None]) * math.sqrt(2 / n)
    matrix[0] /= math.sqrt(2)
    return matrix
