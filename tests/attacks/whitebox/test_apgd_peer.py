"""Auto-PGD beside torchattacks, from the same starts.

Where torchattacks departs, and how it is set apart here:

* It draws its starts from the global generator: both are given the same noise, per sample and run.
* Its first comparison of a run reads a loss that was never set, 0: with DLR the first step then never
  counts as a rise. Ours compares with the start, as the paper does.
* Its APGDT in l_2 takes the first image's step for the whole batch: not compared.
* It spends a backward pass on the last point of a run, which nothing uses.
"""

from __future__ import annotations

import pytest
import torch

import advens
from advens.attacks import create_attack
from advens.attacks.whitebox.engine import search
from advens.classifier import borrowed
from advens.threat import Threat
from tests.attacks.whitebox.conftest import GivenStarts, from_given_starts


@pytest.mark.parametrize(
    ("name", "norm", "eps"),
    [("apgd-ce", "linf", 0.2), ("apgd-dlr", "linf", 0.2), ("apgd-t", "linf", 0.2),
     ("apgd-ce", "l2", 3.0)],
)  # fmt: skip
def test_beside_torchattacks(
    name: str, norm: str, eps: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Robust accuracy on 100 images within a point."""
    torchattacks = pytest.importorskip("torchattacks")
    model = advens.load_model("digits:resnet-at")
    batch = next(advens.load_data("digits:test").batches([slice(0, 100)]))
    x, y = batch.pixels.float() / 255, batch.labels
    n, steps, targets = len(x), 50, 2 if name == "apgd-t" else 0
    generator = torch.Generator().manual_seed(5)
    table = 2 * torch.rand((max(1, targets), *x.shape), generator=generator) - 1
    kind = {"linf": "Linf", "l2": "L2"}[norm]
    if targets:
        peer = torchattacks.APGDT(model, norm=kind, eps=eps, steps=steps, n_classes=targets + 1)
    else:
        peer = torchattacks.APGD(model, norm=kind, eps=eps, steps=steps, loss=name[5:])
    given = from_given_starts(peer.attack_single_run, x, table, monkeypatch)
    monkeypatch.setattr(peer, "attack_single_run", given)
    with torch.random.fork_rng():
        theirs = peer(x, y)
    attack = create_attack(
        name, norm=norm, eps=eps, steps=steps, **({"targets": targets} if targets else {})
    )
    with borrowed([model]):
        oracle = GivenStarts([model], Threat(norm, eps), x, y)
        oracle.table, oracle.steps = table, steps
        right = oracle.begin(torch.arange(n))
        search(attack, oracle, right, batch=50)
        robust, ours = (model(images).argmax(1) == y for images in (theirs, oracle.x_adv))
    assert torch.equal(ours, oracle.correct > 0)
    assert robust.sum() < len(right) - 4, "the peer did nothing"
    assert abs(int(robust.sum()) - int(ours.sum())) <= 1
    assert (robust != ours).sum() <= 1, "the same starts, so the same samples"
