"""Ensembles as one model: the mean of their members, or a member drawn for every call."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from advens.attacks.expectation import log_expected
from advens.classifier import Classifier, borrowed, correctness
from advens.digest import value_digest, weights_digest
from advens.errors import InputError, nearest
from advens.files import new_folder
from advens.models import bare, load_model
from advens.seeding import derive

MEANS = ("probs", "logits")
INDEX, FORMAT = "ensemble.json", 1
"""The description in the folder of a saved ensemble, and the version of its format."""


class Together(Classifier):
    """Several members as one classifier. They keep their state, trainable or frozen.

    Args:
        members: at least one, each mapping images (N, C, H, W) in [0, 1] to logits.
        name: of the ensemble; by default made of the members' names.
        num_classes: width of the logits; by default that of the members.
    """

    kind: str

    def __init__(
        self, members: Sequence[nn.Module], name: str | None = None, num_classes: int | None = None
    ) -> None:
        if not members:
            raise InputError("an ensemble needs at least one member")
        sizes = {getattr(member, "input_size", None) for member in members}
        families = {str(getattr(member, "family", "cnn")) for member in members}
        names = [str(getattr(member, "name", type(member).__name__)) for member in members]
        with borrowed(members):  # a Classifier freezes what it is given; these come back as they were
            super().__init__(
                nn.ModuleList(members),
                name=name or f"{self.kind}({', '.join(names)})",
                num_classes=_classes(members, num_classes),
                family=families.pop() if len(families) == 1 else "hybrid",
                input_size=sizes.pop() if len(sizes) == 1 else None,
            )
        self.training = self.net.training = any(member.training for member in members)

    @property
    def members(self) -> nn.ModuleList:
        """The models of the ensemble."""
        net: nn.ModuleList = self.net  # type: ignore[assignment]
        return net

    @property
    def digest(self) -> str:
        """Hex sha256 of the members' digests and of how their outputs are combined."""
        return self._of([m.digest if isinstance(m, Classifier) else weights_digest(m) for m in self.members])

    @property
    def weights(self) -> str:
        """Hex sha256 of the members' weights and of how their outputs are combined."""
        return self._of([m.weights if isinstance(m, Classifier) else weights_digest(m) for m in self.members])

    def _of(self, members: Sequence[str]) -> str:
        return value_digest({"kind": self.kind, "members": members} | self.settings())

    def settings(self) -> dict[str, Any]:
        """JSON-able options that change what is computed."""
        raise NotImplementedError

    def member_logits(self, x: Tensor) -> Tensor:
        """Logits of every member, (K, N, num_classes)."""
        return torch.stack([member(x) for member in self.members])

    def save(self, path: str | Path) -> None:
        """Write a folder that `advens.defenses.saved.load` reads. An ensemble that is there is replaced.

        Raises:
            InputError: a member is not a `Classifier` of a source, or something else is at ``path``.
        """
        path = Path(path)
        if path.exists() and not (path / INDEX).is_file():
            raise InputError(f"{path} exists and is no saved ensemble")
        with new_folder(path) as folder:
            self.write(folder)

    def write(self, folder: Path) -> None:
        """Write the files of a saved ensemble into a folder. Raises as `save`."""
        from safetensors.torch import save_file

        cards = [_card(k, member) for k, member in enumerate(self.members)]
        for k, member in enumerate(self.members):
            state = member.net.state_dict()  # type: ignore[union-attr]
            copies = {key: t.detach().cpu().contiguous().clone() for key, t in state.items()}
            save_file(copies, folder / member_file(k))
        about = {"format": FORMAT, "kind": self.kind, "members": cards} | self.settings()
        (folder / INDEX).write_text(json.dumps(about, indent=1) + "\n")


class Ensemble(Together):
    """The mean of several models.

    Args:
        members: see above.
        over: what is averaged: ``"probs"``, whose mean is returned as its logarithm, or ``"logits"``.
    """

    kind = "mean"

    def __init__(self, members: Sequence[nn.Module], over: str = "probs", **options: Any) -> None:
        if over not in MEANS:
            raise InputError(f"unknown mean '{over}'{nearest(str(over), MEANS)}")
        super().__init__(members, **options)
        self.over, self.log_probabilities = over, over == "probs"

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, num_classes)."""
        each = self.member_logits(x)
        if self.over == "logits":
            return each.mean(0)
        return each.log_softmax(-1).logsumexp(0) - math.log(len(each))

    def settings(self) -> dict[str, Any]:
        return {"over": self.over}


class RandomizedEnsemble(Together):
    """One of several models, drawn anew for every call.

    White-box attacks take ``members`` and ``probabilities`` and work with the expectation, not with a draw.
    Draws come from a generator of this ensemble's own, seeded by ``seed`` and the number of calls so far.

    Args:
        members: see above.
        probabilities: of drawing each member; each is at least 0 and they sum to 1. Equal by default.
        seed: of the draws.
    """

    kind = "randomized"
    probabilities: Tensor

    def __init__(
        self,
        members: Sequence[nn.Module],
        probabilities: Sequence[float] | Tensor | None = None,
        seed: int = 0,
        **options: Any,
    ) -> None:
        checked = _probabilities(probabilities, len(members))
        super().__init__(members, **options)
        self.probabilities = checked
        self.seed, self.calls = seed, 0

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, num_classes) of the member that is drawn, one for the whole batch."""
        out: Tensor = self.members[self.draw()](x)
        return out

    def draw(self) -> int:
        """The index of a member, drawn by its probability."""
        generator = torch.Generator().manual_seed(derive(self.seed, "member", self.calls))
        self.calls += 1
        weights = self.probabilities.detach().cpu().double()
        return int(torch.multinomial(weights, 1, generator=generator))

    def log_expected(self, x: Tensor) -> Tensor:
        """Log of the expected probabilities, (N, num_classes)."""
        return log_expected(self.member_logits(x), self.probabilities)

    def expected_accuracy(self, x: Tensor, y: Tensor) -> Tensor:
        """The probability (N,), float64, that a drawn member predicts ``y``; exact, without a draw."""
        return correctness(self, x, y)

    def settings(self) -> dict[str, Any]:
        return {"probabilities": self.probabilities.double().tolist(), "seed": self.seed}


def _probabilities(given: Sequence[float] | Tensor | None, members: int) -> Tensor:
    if given is None:
        return torch.full((members,), 1 / max(1, members), dtype=torch.float64)
    try:
        values = torch.as_tensor(given, dtype=torch.float64).detach().clone()
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"probabilities = {given!r} is not a list of numbers") from None
    if values.shape != (members,):
        said = len(values) if values.dim() == 1 else tuple(values.shape)
        raise InputError(f"{members} members need {members} probabilities; got {said}")
    if not bool((values >= 0).all()):
        raise InputError(f"probabilities = {values.tolist()}: none may be below 0")
    if not abs(float(values.sum()) - 1) <= 1e-6:
        raise InputError(f"probabilities = {values.tolist()} sum to {float(values.sum()):.6g}, not to 1")
    return values


def _classes(members: Sequence[nn.Module], wanted: int | None) -> int:
    known = {n for m in members if isinstance(n := getattr(m, "num_classes", None), int)}
    if wanted is not None:
        known.add(wanted)
    if len(known) > 1:
        raise InputError(f"members of an ensemble share their classes; these have {sorted(known)}")
    if not known:
        raise InputError("cannot tell how many classes the members have; give num_classes")
    return known.pop()


def member_file(k: int) -> str:
    """The name of the file that holds the weights of member k."""
    return f"member-{k}.safetensors"


def _card(k: int, member: nn.Module) -> dict[str, Any]:
    """What is needed to rebuild a member, beside its weights; this is tried at once."""
    if not isinstance(member, Classifier) or ":" not in member.name:
        raise InputError(
            f"member {k} is no Classifier of a source such as 'digits:resnet'; it could not be rebuilt"
        )
    again = load_model(bare(member.name, member.num_classes))
    if _shapes(again) != _shapes(member):
        raise InputError(f"member {k} is not of the architecture that '{member.name}' stands for")
    # torchvision's inception_v3 says it outside its weights, and a bare one otherwise
    transformed = {k: v for k, v in vars(member.net).items() if k == "transform_input"}
    return {
        "name": member.name, "digest": member.weights, "num_classes": member.num_classes,
        "mean": member.mean.flatten().tolist(), "std": member.std.flatten().tolist(),
        "input_size": member.input_size, "interpolation": member.interpolation, **transformed,
    }  # fmt: skip


def _shapes(member: Classifier) -> dict[str, torch.Size]:
    return {key: tensor.shape for key, tensor in member.net.state_dict().items()}
