"""A batch of training for tests of several defenses."""

from __future__ import annotations

import torch

from advens.defenses.phases import Batch
from advens.seeding import Draws


def random_batch(n: int, side: int, classes: int) -> Batch:
    """Images (n, 3, side, side) in float64 with labels, and another batch of the same shape."""
    g = torch.Generator().manual_seed(1)
    x, x_t = (torch.rand(n, 3, side, side, generator=g, dtype=torch.float64) for _ in range(2))
    y, y_t = (torch.randint(classes, (n,), generator=g) for _ in range(2))
    return Batch(x, y, lambda: (x_t, y_t), Draws(3, n), Draws(4, n), 0.5)
