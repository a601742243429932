"""FFT against its formulas: a first attack on the target, guidance at both images, steps from the second."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from advens.attacks import create_attack
from advens.attacks.interfaces import Job
from advens.errors import InputError
from tests.attacks.features.conftest import scene

EPS = 16 / 255


def first(at: Any, steps: int, alpha: float) -> list[Tensor]:
    """Momentum on the mean target logit, from the clean images."""
    found = []
    for i, clean in enumerate(at.x):
        x, m = clean.clone(), torch.zeros_like(clean)
        for _ in range(steps):
            g = at.input_gradient(
                lambda leaf, i=i: sum(at.logits(k, leaf)[at.target[i]] for k in range(at.k)) / at.k, x
            )
            m = m + g / g.abs().mean()
            x = torch.clamp(torch.clamp(x + alpha * m.sign(), clean - EPS, clean + EPS), 0, 1)
        found.append(x)
    return found


@pytest.mark.parametrize(("n", "k"), [(1, 1), (7, 3)])
def test_fft(n: int, k: int, mi: Any, n2: Any) -> None:
    at, copies, keep, weight = scene(n, k, targeted=True), 3, 0.6, 0.4
    starts = first(at, 2, EPS / 3)

    def guidance(i: int, m: int, x: Tensor, label: int, whose: str) -> Tensor:
        total: Any = 0
        for c in range(copies):
            mask = at.once().uniform(at.x, 0, 1, "fft", whose, c)[i] < keep
            leaf = at.features(m, x * mask, 3).detach().requires_grad_()
            total = total + torch.autograd.grad(at.rest(m, leaf, 3)[label], leaf)[0]
        return n2(total)  # type: ignore[no-any-return]

    results = []
    for i, clean in enumerate(at.x):
        y, t = int(at.y[i]), int(at.target[i])  # type: ignore[index]
        guides = [
            guidance(i, m, starts[i], t, "target") - weight * guidance(i, m, clean, y, "label")
            for m in range(k)
        ]
        x, memory = starts[i], {}
        for _ in range(3):
            g = -at.guided(guides, x, 3)
            x = torch.clamp(torch.clamp(x + EPS / 5 * mi(g, memory).sign(), clean - EPS, clean + EPS), 0, 1)
        results.append(x)
    base = create_attack("mifgsm", loss="logit", steps=2, step_size=EPS / 3)
    found = at.run(
        "fft", steps=3, step_size=EPS / 5, copies=copies, keep=keep, weight=weight, first=base, transforms=[]
    )
    torch.testing.assert_close(found, torch.stack(results), rtol=0, atol=1e-9)


def test_it_raises_the_features_it_is_guided_by() -> None:
    at = scene(3, 2, targeted=True)
    attack: Any = create_attack("fft", eps=EPS, copies=4, transforms=[], first="ifgsm")
    oracle = attack.oracle(Job(at.models, at.x, at.y, at.target, at.once(), at.x))
    *_, last = attack.iterates(oracle.job, oracle)
    start = attack.feature.begin(oracle.tapped(0))
    assert oracle.passes == attack.passes(2) == (20 + 2 * 2 * 4 + 20, 20 + 2 * 2 * 4 + 20)
    each = [oracle.tapped(k) for k in range(2)]
    before, after = (sum(attack.feature.loss(s.run(x), s).sum() for s in each) for x in (start, last))
    assert after > before + 0.05


def test_any_attack_may_come_first() -> None:
    at = scene(2, 2, targeted=True)
    for name in ("cfm", "su", "mifgsm"):
        attack = create_attack("fft", copies=2, steps=2, first=create_attack(name, steps=2))
        assert attack.run(at.models, at.x, at.y, at.target).passes == attack.passes(2)


def test_refusals_and_passes() -> None:
    with pytest.raises(InputError, match="'fft' has no untargeted form"):
        scene(1, 1).run("fft", steps=1)
    assert create_attack("fft").passes(1) == (160 + 60 + 10, 160 + 60 + 10)
    for option in ({"weight": -1}, {"keep": 0}, {"copies": 0}):
        with pytest.raises(InputError, match="at least|above 0"):  # noqa: RUF043
            create_attack("fft", **option)
