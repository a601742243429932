"""Weights collected along one way of further training: what LGV, snapshot ensembles and FGE share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Protocol

import torch

from advens.attacks.surrogates.builders.build import Work
from advens.attacks.surrogates.builders.train import train, updates
from advens.errors import InputError
from advens.seeding import derive


class Learning(Protocol):
    """The options of SGD that every trajectory has."""

    @property
    def momentum(self) -> float: ...
    @property
    def weight_decay(self) -> float: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def augment(self) -> float | str: ...
    @property
    def sharpness(self) -> float: ...


def trajectory(
    work: Work, how: Learning, *, epochs: int, at: Sequence[int], lr: Callable[[int], float],
    nesterov: bool = False,
) -> None:  # fmt: skip
    """Train a copy of the model on and commit its weights after the update counts ``at``, ascending.

    The copy is in train mode all the while: batch-norm moves, dropout drops.

    Args:
        lr: the learning rate of an update, by its number from 0.
        nesterov: whether the momentum is Nesterov's.
    """
    model = deepcopy(work.models[0])
    model.requires_grad_(True).train()
    learned = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(
        learned, lr=0.1, momentum=how.momentum, weight_decay=how.weight_decay,
        nesterov=nesterov and how.momentum > 0,
    )  # fmt: skip
    if work.done:
        model.net.load_state_dict(work.folder.member(work.done - 1, work.digests[-1]))
        optimizer.load_state_dict(work.kept["optimizer"])

    def collect(update: int, loss: float) -> None:
        work.note(work.models[0].name, update=update, lr=lr(update - 1), loss=loss)
        work.commit(model.net.state_dict(), optimizer=optimizer.state_dict())

    train(
        model, work.images, optimizer, epochs=epochs, batch_size=how.batch_size, lr=lr,
        at=at[work.done :], collect=collect, seed=derive(work.seed, "trajectory"),
        augment=how.augment, sharpness=how.sharpness, first=at[work.done - 1] if work.done else 0,
    )  # fmt: skip


def even_points(work: Work, how: Learning, epochs: int, pieces: int) -> list[int]:
    """Update counts that cut the training into equal pieces, to a whole update.

    Raises:
        InputError: a piece would hold no update.
    """
    each = updates(len(work.images), how.batch_size)
    total = each * epochs
    if total < pieces:
        raise InputError(
            f"data '{work.data.name}' has {len(work.images)} images, {each} batches of {how.batch_size}: "
            f"too few to cut {epochs} epoch(s) into {pieces}; give more images or a lower batch_size"
        )
    return [total * (piece + 1) // pieces for piece in range(pieces)]
