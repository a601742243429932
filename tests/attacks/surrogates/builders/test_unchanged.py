"""Built members stay the same from version to version: the cache finds them by what they are made of."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from advens.classifier import Classifier
from advens.datasets import Dataset
from tests.attacks.surrogates.builders.test_build import BUILDERS

RECORDED = {
    "lgv": [
        [-0.1028, -0.0376, -0.0548, -0.016, -0.0912, -0.0193],
        [-0.1035, -0.0295, -0.0441, -0.0081, -0.0955, -0.0023],
        [-0.1063, -0.0262, -0.0263, -0.0123, -0.1026, 0.0118],
        [-0.1105, -0.0281, -0.0006, -0.028, -0.115, 0.0304],
    ],
    "lgv-swa": [[-0.0955, 0.0224, -0.0067, 0.09, -0.1499, 0.1656]],
    "lgv-subspace": [
        [-0.095, 0.0205, 0.0423, 0.0644, -0.1464, 0.187],
        [-0.0974, 0.0244, -0.0059, 0.0906, -0.1495, 0.1703],
        [-0.0962, 0.0266, 0.0178, 0.0834, -0.1435, 0.1794],
    ],
    "mba": [
        [-0.0887, 0.0274, -0.0107, 0.0947, -0.1438, 0.1628],
        [-0.0953, 0.0256, -0.0091, 0.088, -0.1481, 0.1665],
        [-0.0935, 0.0293, -0.0027, 0.1, -0.1379, 0.1683],
    ],
    "snapshots": [
        [-0.1072, -0.0379, -0.0566, -0.0184, -0.0967, -0.0191],
        [-0.1041, -0.0452, -0.0201, -0.0363, -0.1007, -0.0096],
        [-0.0979, -0.0586, 0.0434, -0.0696, -0.1022, 0.0036],
    ],
    "fge": [
        [-0.1033, -0.0299, -0.051, -0.0106, -0.0716, -0.0171],
        [-0.0864, -0.0268, -0.041, -0.0357, -0.0081, -0.0526],
        [-0.0477, -0.0529, -0.0533, -0.0602, -0.0154, -0.058],
    ],
    "soup": [[-0.0955, 0.0224, -0.0067, 0.09, -0.1499, 0.1656]],
    "greedy": [[-0.0993, 0.021, -0.0321, 0.1215, -0.1634, 0.1455]],
    "sharp": [
        [-0.1032, -0.0376, -0.0546, -0.0163, -0.086, -0.0209],
        [-0.1022, -0.0246, -0.0528, -0.0048, -0.0687, -0.0168],
        [-0.0998, -0.0159, -0.0491, 0.0025, -0.0504, -0.0139],
        [-0.0988, -0.0175, -0.0514, 0.0087, -0.0298, -0.013],
    ],
}
"""Two logits of three images, of every member, when they were recorded; another seed moves them by 0.004."""


@pytest.mark.parametrize("name", RECORDED)
def test_members_are_as_they_were_recorded(
    name: str, model: Classifier, data: Dataset, x: Tensor, cache: Path
) -> None:
    made = BUILDERS[name].build([model], data, seed=2, cache=cache)
    with torch.no_grad():
        found = [member(x)[:3, :2].flatten().tolist() for member in made]
    assert found == [pytest.approx(logits, abs=5e-4) for logits in RECORDED[name]]
