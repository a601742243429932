"""Picking surrogates: the score by hand, its submodularity, and what it is measured from."""

from __future__ import annotations

import math
from itertools import combinations

import pytest
import torch
from torch import Tensor, nn

from advens.attacks.surrogates.selection import Candidates, examine
from advens.errors import InputError


def candidates(k: int, seed: int = 0) -> Candidates:
    generator = torch.Generator().manual_seed(seed)
    s = torch.rand(k, k, generator=generator, dtype=torch.float64)
    s = (s + s.T) / 2
    return Candidates(torch.rand(k, generator=generator, dtype=torch.float64), s.fill_diagonal_(1))


def test_score_by_hand() -> None:
    s = torch.tensor([[1, 0.5, 0.1], [0.5, 1, 0.3], [0.1, 0.3, 1]], dtype=torch.float64)
    found = Candidates(torch.tensor([0.9, 0.8, 0.5], dtype=torch.float64), s)
    assert found.score([]) == 0
    assert found.score([0]) == pytest.approx(0.9 * 0.3)
    assert found.score([0, 1]) == pytest.approx(0.9 * 0.3 + 0.8 * 0.4 - 0.5 / 2)
    assert found.score([0, 1], redundancy=0) == pytest.approx(0.9 * 0.3 + 0.8 * 0.4)
    assert [k for k, _ in found.greedy(2, redundancy=3)] == [1, 2]  # 0 is worth more than 2, but is like 1
    assert [k for k, _ in found.greedy(2, redundancy=0)] == [1, 0]


def test_what_one_adds_never_grows_with_the_set() -> None:
    found = candidates(5)
    for size in range(4):
        for small in combinations(range(5), size):
            for more in set(range(5)) - set(small):
                for k in set(range(5)) - {*small, more}:
                    before = found.score([*small, k]) - found.score(small)
                    after = found.score([*small, more, k]) - found.score([*small, more])
                    assert after <= before + 1e-12


def test_gains_add_up() -> None:
    found = candidates(6)
    taken = found.greedy(6)
    assert sorted(k for k, _ in taken) == list(range(6))
    assert sum(gain for _, gain in taken) == pytest.approx(found.score(range(6)))
    with pytest.raises(InputError, match="cannot pick 7 of 6"):
        found.greedy(7)


class Linear(nn.Module):
    """Logits along given directions of the image."""

    def __init__(self, w: Tensor) -> None:
        super().__init__()
        self.w = nn.Parameter(w)

    def forward(self, x: Tensor) -> Tensor:
        out = x.flatten(1) @ self.w
        return torch.stack([out, -out], 1)


def test_measured_from_gradients_and_predictions() -> None:
    """Two of the same direction, one orthogonal, one opposite; one of them is right on everything."""
    a = torch.zeros(12)
    a[0] = 30.0
    b = torch.zeros(12)
    b[5] = 1e-3
    models = [Linear(a), Linear(a / 60), Linear(b), Linear(-a)]
    x = torch.rand(8, 3, 2, 2, generator=torch.Generator().manual_seed(0)) + 0.1
    y = torch.zeros(8, dtype=torch.long)
    seen: list[int] = []
    found = examine(models, x, y, batch=3, on_model=seen.append)
    assert seen == [0, 1, 2, 3]
    wanted = torch.eye(4, dtype=torch.float64)
    wanted[0, 1] = wanted[1, 0] = 1
    torch.testing.assert_close(found.similarity, wanted, rtol=0, atol=1e-3)
    assert found.agreement.dtype == torch.float64
    assert found.agreement[0] > 0.8
    assert found.agreement[2] < 0.01  # cannot tell
    assert all(p.requires_grad and p.grad is None for m in models for p in m.parameters())


def smooth(seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        made = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.Tanh(), nn.Linear(5, 3))
    return made.double()


@pytest.mark.parametrize("batch", [2, 7, 64])
def test_measured_image_by_image(batch: int) -> None:
    """Entropies of the mean prediction of each class, by its share; cosines of each image's gradients."""
    randomized = nn.Module()
    randomized.members = nn.ModuleList([smooth(5), smooth(6)])
    randomized.probabilities = torch.tensor([0.3, 0.7], dtype=torch.float64)
    models = [smooth(0), smooth(1), randomized]
    x = torch.rand(7, 3, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = torch.tensor([0, 2, 2, 0, 0, 2, 0])  # no image of class 1

    def probabilities(k: int, image: Tensor) -> Tensor:
        if k < 2:
            return torch.softmax(models[k](image[None])[0], 0)
        one, other = (torch.softmax(f(image[None])[0], 0) for f in randomized.members)
        return 0.3 * one + 0.7 * other

    units: list[list[Tensor]] = []
    agreement = []
    for k in range(3):
        rows, units_of = [], []
        for image, label in zip(x, y, strict=True):
            leaf = image.clone().requires_grad_()
            p = probabilities(k, leaf)
            (g,) = torch.autograd.grad(-p[label].log(), leaf)
            units_of.append(g.flatten() / g.flatten().norm())
            rows.append(p.detach())
        units.append(units_of)
        entropy = 0.0
        for label, share in ((0, 4 / 7), (2, 3 / 7)):
            mean = torch.stack([row for row, own in zip(rows, y, strict=True) if own == label]).mean(0)
            entropy -= share * float((mean * mean.log()).sum())
        agreement.append(1 - entropy / math.log(3))
    found = examine(models, x, y, batch=batch)
    assert found.agreement.tolist() == pytest.approx(agreement, rel=1e-4, abs=1e-6)
    for i in range(3):
        for j in range(3):
            cosine = sum(float(a @ b) for a, b in zip(units[i], units[j], strict=True)) / 7
            assert float(found.similarity[i, j]) == pytest.approx(max(cosine, 0), abs=2e-3)  # of half floats
    assert found.similarity.diagonal().tolist() == [1, 1, 1]
    assert 0.01 < float(found.similarity[0, 2]) < 0.99 or 0.01 < float(found.similarity[0, 1]) < 0.99


def test_of_equal_gains_the_first_is_taken() -> None:
    alike = Candidates(torch.ones(3, dtype=torch.float64), torch.ones(3, 3, dtype=torch.float64))
    assert alike.greedy(3) == [(0, 1.0), (1, 0.5), (2, 0.0)]
    assert alike.greedy(1) == [(0, 1.0)]
    one = Candidates(torch.ones(1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64))
    assert one.greedy(1) == [(0, 0.0)]
    with pytest.raises(InputError, match="cannot pick 0 of 3"):
        alike.greedy(0)


def test_no_images() -> None:
    with pytest.raises(InputError, match="no calibration images"):
        examine([nn.Flatten()], torch.zeros(0, 3, 2, 2), torch.zeros(0))
