"""The study of likeness, on made-up pairs."""

from __future__ import annotations

import numpy as np

from advens.benchmarks.studies.likeness import Pair, markdown


def test_the_table_tells_copies_from_models_trained_apart() -> None:
    random, labels = np.random.RandomState(0), np.arange(100) % 10
    one, other, noise = random.randn(3, 100, 10)
    pairs = [
        Pair("`made`: different", ("a", "b"), (one, other), labels),
        Pair("copy: noisy", ("a", "c"), (one, one + 0.01 * noise), labels),
    ]
    table = markdown(pairs)
    apart, copy = (line.split(" | ")[2:] for line in table.splitlines()[2:4])
    assert abs(float(apart[0])) < 0.15
    assert float(copy[0]) > 0.999
    assert float(copy[2].strip(" |")) <= float(copy[1])
    assert "Of the 1 pairs that were trained apart, a and b are the most alike" in table
