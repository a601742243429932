"""Controls: plain or adversarial training that takes as much compute as a defense does.

What a defense gains over its control is not owed to longer training. Compute is counted in passes of single
images through single members, forward and backward ones together, as `advens.defenses.compute` counts them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

from advens.defenses import trained
from advens.defenses.compute import COUNTS
from advens.defenses.keeping import VALIDATION_STEPS
from advens.defenses.phases import Defense
from advens.defenses.plain import AdversarialTraining, Alone, PlainEnsemble
from advens.defenses.registry import DEFENSES
from advens.files import read_regular
from advens.spec import Spec

Kind = Literal["at", "plain"]
Control = AdversarialTraining | PlainEnsemble


def kind_of(defense: Defense) -> Kind:
    """``at`` for a defense that learns on adversarial images, else ``plain``."""
    attacked = getattr(defense, "on_adversarial", False) or getattr(defense, "adversarial", 0)
    return "at" if attacked else "plain"


def control(defense: Defense, kind: Kind) -> Control:
    """The control of a defense, with the defense's number of epochs and all else that the two share.

    It is one adversarially trained member, attacked in training as those of the defense are, without AWP; or
    a plain ensemble of as many members.
    """
    if kind == "plain":
        return PlainEnsemble(members=defense.members, training=defense.training)
    theirs = {}
    for name in ("eps", "step_size", "steps"):
        for key in (f"adversarial_{name}", name):  # DVERGE's own eps is not that of its adversarial training
            if hasattr(defense, key):
                theirs[name] = getattr(defense, key)
                break
    return AdversarialTraining(members=1, training=defense.training, **theirs)


def with_epochs(found: Control, epochs: int) -> Control:
    """The same control with another number of epochs."""
    return replace(found, training=replace(found.training, epochs=epochs))


def options(found: Control) -> dict[str, Any]:
    """The options that `advens.defenses.create_defense` makes a control of."""
    own = asdict(found)
    training: dict[str, Any] = own.pop("training")
    return own | training


def passes(found: Control, images: int, *, batch_norm: bool = False) -> int:
    """The passes that training a control takes; exactly what is counted.

    Args:
        found: the control.
        images: training images.
        batch_norm: whether its members have batch-norm, whose statistics averaged weights need anew.
    """
    how = found.training
    held = round(images * how.validation)
    seen = images - held
    learned = seen - (seen % how.batch_size == 1)  # a batch of one image is left out
    gradients = found.steps + 1 if isinstance(found, AdversarialTraining) else 1
    validated = held * (2 * VALIDATION_STEPS + 1 if how.validation_eps else 1)
    total = how.epochs * (2 * gradients * learned + validated)
    if batch_norm and how.average == "swa":
        total += (how.epochs - how.epochs // 2) * seen
    return found.members * total


def equal_compute(
    found: Control, images: int, wanted: float, *, batch_norm: bool = False
) -> Control:
    """A control with as many epochs as bring its passes nearest to ``wanted``, at least one; see `passes`."""
    two = passes(with_epochs(found, 2), images, batch_norm=batch_norm)
    return with_epochs(found, max(1, round(2 * wanted / two)))


def training_compute(name: str) -> dict[str, float] | None:
    """The counted compute of the training of a model; None where it is not known.

    Args:
        name: of a saved or cached ensemble, ``defense:PATH`` or ``trained:DIGEST``, or a part of one. A
            member alone has taken the compute of all that it depends on.

    Returns:
        `COUNTS`, and ``images``, the number of training images, where it was noted.
    """
    spec = Spec.parse(name, "model")
    if spec.scheme not in ("defense", "trained"):
        return None
    path = Path(spec.rest) if spec.scheme == "defense" else trained.folder_of(spec)
    about = path / "training.json"
    if not about.is_file():
        return None
    try:
        said = json.loads(read_regular(about))
        found = said["compute"][_place(said, spec)]
        counted = {what: float(found[what]) for what in COUNTS}
        counted |= {"images": int(said["images"])} if "images" in said else {}
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):  # older, or damaged
        return None
    return counted if all(map(math.isfinite, counted.values())) and min(counted.values()) > 0 else None


def _place(said: Mapping[str, Any], spec: Spec) -> int:
    """Where the compute of a part stands in the list of a training."""
    if len(said["compute"]) == 1:
        return 0
    if (member := spec.number("member")) is not None:
        alone = said["defense"] in DEFENSES and issubclass(DEFENSES.get(said["defense"]), Alone)
        return 0 if alone else member - 1
    return (spec.number("members") or 0) - 1
