"""SU against its formulas: two views, their logits and the cosine of their features."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from advens.attacks import create_attack
from advens.attacks.transforms.local import Local
from advens.cli import invoke
from advens.errors import InputError
from tests.attacks.features.conftest import scene
from tests.attacks.transforms.conftest import context_of

EPS = 16 / 255


def piece(at: Any, i: int, x: Tensor, t: int, area: float, interval: float) -> Tensor:
    """An enlarged crop of the clean six-pixel image, with the perturbation of all of it."""
    draws = at.at_step(t).fork("local")
    size = 36 * draws.number(area, area + interval, "area")
    ratio = math.exp(draws.number(math.log(3 / 4), math.log(4 / 3), "ratio"))
    w, h = round(math.sqrt(size * ratio)), round(math.sqrt(size / ratio))
    top, left = draws.integers(6 - h + 1, 1, "top")[0], draws.integers(6 - w + 1, 1, "left")[0]
    crop = at.x[i][:, top : top + h, left : left + w]
    return F.interpolate(crop[None], (6, 6), mode="bilinear", align_corners=False)[0] + (x - at.x[i])


@pytest.mark.parametrize(("n", "k"), [(1, 1), (7, 3)])
def test_su(n: int, k: int, mi: Any) -> None:
    at, weight = scene(n, k, targeted=True), 5.0

    def step(t: int, i: int, x: Tensor, memory: dict[str, Any]) -> Tensor:
        def loss(leaf: Tensor) -> Tensor:
            total = leaf.new_zeros(())
            for m in range(k):
                views = [leaf, piece(at, i, leaf, t, 0.2, 0.3)]
                f, g = (at.features(m, view, 3).flatten() for view in views)
                z = sum(at.logits(m, view)[at.target[i]] for view in views) / 2  # type: ignore[index]
                total = total + (z + weight * (f * g).sum() / (f.norm() * g.norm())) / k
            return total

        return EPS / 3 * mi(at.input_gradient(loss, x), memory).sign()

    local = {"name": "local", "area": 0.2, "interval": 0.3}
    options: dict[str, Any] = {"weight": weight, "transforms": [local]}
    at.same(step, "su", 4, step_size=EPS / 3, **options)
    attack = create_attack("su", eps=EPS, steps=3, **options)
    one, both = (
        attack.run(at.models, at.x, at.y, at.target, copies_at_once=count).x_adv for count in (1, 2)
    )
    torch.testing.assert_close(one, both, rtol=0, atol=1e-12)


def test_the_cosine_is_what_it_adds() -> None:
    """Without it, and on the image alone, it is the logit attack."""
    at = scene(3, 2, targeted=True)
    steps = {"steps": 3, "step_size": EPS / 3}
    for local, weight in ((["local"], 0), ([], 9)):
        logit = at.run("ens-loss", loss="logit", update="mi", transforms=local, **steps)
        torch.testing.assert_close(at.run("su", transforms=local, weight=weight, **steps), logit)
    logit = at.run("ens-loss", loss="logit", update="mi", transforms=["local"], **steps)
    assert not torch.equal(at.run("su", transforms=["local"], weight=1, **steps), logit)


def test_a_larger_weight_makes_features_alike() -> None:
    at = scene(3, 1, targeted=True)
    alike = []
    for weight in (0, 100):
        x = at.run("su", transforms=["local"], weight=weight, steps=5, eps=0.2, step_size=0.04)
        cosines = []
        for i in range(3):
            views = x[i], piece(at, i, x[i], 4, 0.1, 0)
            cosines.append(F.cosine_similarity(*(at.features(0, v, 3).flatten() for v in views), 0))
        alike.append(float(torch.stack(cosines).mean().detach()))
    assert 1 - alike[1] < 0.7 * (1 - alike[0])


def test_views() -> None:
    x = torch.rand(2, 3, 40, 30)
    context = context_of(x, 3)
    assert torch.equal(Local()(x, 0, context), x)
    local = Local()(x, 1, context)
    torch.testing.assert_close(Local()(x + 0.2, 1, context), local + 0.2)
    all_of_it = Local(area=1.0)
    assert not torch.equal(local, Local()(x, 1, context_of(x, 4)))
    whole = all_of_it(torch.ones(1, 3, 8, 8), 1, context_of(torch.ones(1, 3, 8, 8)))
    assert torch.equal(whole, torch.ones(1, 3, 8, 8))


def test_only_targets_will_do(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    at = scene(1, 1)
    with pytest.raises(InputError, match="'su' has no untargeted form: it needs targets"):
        at.run("su", steps=1)
    there = ["--surrogates", "digits:resnet", "--data", "digits:test", "--out", str(tmp_path / "c")]
    for name in ("su", "su-ens-loss"):
        assert invoke(["craft", name, *there]) == 2
        assert "has no untargeted form: set targeted in [threat]" in capsys.readouterr().err


def test_passes_and_bad_numbers() -> None:
    assert create_attack("su").passes(2) == (1200, 1200)
    for option in ({"area": 2}, {"interval": -1}, {"layer": 0}):
        with pytest.raises(InputError, match="from 0 to 1|a depth above 0"):  # noqa: RUF043
            create_attack("su", **option)
