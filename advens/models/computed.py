"""The model source ``computed:PRECISION?of=MODEL``: a model whose networks compute in reduced precision.

``PRECISION`` is ``bf16`` or ``tf32``, see `advens.classifier.Classifier`. ``of`` is the model's own name,
with ``?`` and ``&`` percent-encoded. Such a model is one of its own: rows and cells name it, and its digest
differs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from advens.errors import InputError, unknown
from advens.models import ModelCard, check_name, describe, find_model, names_ensemble, origins
from advens.spec import Spec

if TYPE_CHECKING:
    from advens.classifier import Classifier

REDUCED = ("bf16", "tf32")


def computed(name: str, precision: str) -> str:
    """The name of a model in a precision; its own name in ``float32``."""
    if precision == "float32":
        return name
    return f"computed:{precision}?{urlencode({'of': name}, safe=':/')}"


def plain(name: str) -> str:
    """The name of the same model in float32."""
    spec = Spec.parse(name, "model")
    return _parsed(spec)[1] if spec.scheme == "computed" else name


def load(spec: Spec) -> Classifier:
    """The model, on the CPU.

    Raises:
        InputError: an unknown precision or model, or one whose networks are not told apart.
    """
    precision, of = _parsed(spec)
    model = find_model(of)
    bases = (model.digest, *origins(model))
    for each in _networks(model, of):
        each.precision = precision
    model.name, model.bases = spec.text, bases
    return model


def card(spec: Spec) -> ModelCard | None:
    """What is known without loading weights; nothing of an ensemble."""
    from advens.classifier import reduced_digest

    precision, of = _parsed(spec)
    if names_ensemble(of):
        return None
    base = describe(of)
    return ModelCard(
        spec.text, base.family, reduced_digest(base.digest, precision), base.num_classes, base.input_size,
        (base.digest, *origins(base)), base.weights or base.digest,
    )  # fmt: skip


def check(spec: Spec) -> None:
    """Raise InputError for a name that cannot be."""
    check_name(_parsed(spec)[1])


def is_ensemble(spec: Spec) -> bool:
    """Whether the model is one."""
    return names_ensemble(_parsed(spec)[1])


def _networks(model: Classifier, of: str) -> list[Any]:
    """The model itself, or the single networks of an ensemble."""
    from advens.classifier import Classifier

    if model.members:
        members: Any = model.members
        return [network for member in members for network in _networks(member, of)]
    if not isinstance(model, Classifier) or type(model).digest is not Classifier.digest:
        raise InputError(f"model '{of}' cannot be computed in another precision, but what it is made of can")
    return [model]


def _parsed(spec: Spec) -> tuple[str, str]:
    """The precision and the model's name."""
    if spec.rest not in REDUCED:
        raise unknown("precision", spec.rest, REDUCED)
    spec.only("of")
    if "of" not in spec.query:
        raise InputError(f"'{spec.text}': write computed:{spec.rest}?of=MODEL")
    return spec.rest, spec.query["of"]
