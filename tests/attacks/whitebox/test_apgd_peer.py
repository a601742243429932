"""Auto-PGD beside torchattacks, from the same starts.

Where torchattacks departs, and how it is set apart here:

* It draws its starts from the global generator: both are given the same noise, per sample and run.
* Its first comparison of a run reads a loss that was never set, 0: with DLR the first step then never
  counts as a rise. Ours compares with the start, as the paper does.
* Its APGDT in l_2 takes the first image's step for the whole batch: not compared.
* It spends a backward pass on the last point of a run, which nothing uses.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import advens
from advens.attacks import create_attack
from advens.attacks.whitebox.engine import search
from advens.attacks.whitebox.oracle import RowOracle
from advens.attacks.whitebox.rows import Rows
from advens.classifier import borrowed
from advens.threat import Threat


class GivenStarts(RowOracle):
    """An oracle whose numbers come from a table (runs, N, C, H, W) in (-1, 1)."""

    table: Tensor
    steps: int

    def numbers(self, rows: Rows, shape: tuple[int, ...], *tag: object) -> Tensor:
        return (self.table[rows.t // self.steps, rows.place] + 1) / 2

    def normals(self, rows: Rows, shape: tuple[int, ...], *tag: object) -> Tensor:
        return self.table[rows.t // self.steps, rows.place]


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
    single, run = peer.attack_single_run, iter(range(max(1, targets)))

    def given(x_in: Tensor, y_in: Tensor) -> Any:
        """The peer's run, on the same noise for the same image."""
        at = [int((x == image).flatten(1).all(1).nonzero()[0]) for image in x_in]
        noise = table[next(run)][at]
        with monkeypatch.context() as patch:
            patch.setattr(torch, "rand", lambda *_: (noise + 1) / 2)
            patch.setattr(torch, "randn", lambda *_: noise)
            return single(x_in, y_in)

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
