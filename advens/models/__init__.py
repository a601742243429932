"""Model sources: ``digits:``, ``shapes:``, ``timm:``, ``torchvision:``, ``robustbench:``, and
``pkg.module:factory``. Those that only read weights are loaded whoever names them; see `advens.trust`.

A source is a function from a parsed name to a `Classifier`. Third-party packages add theirs through
the entry-point group ``advens.models``: the entry point's name is the scheme, and it loads a function
``load(spec: advens.spec.Spec) -> Classifier``. Its module may also have ``check(spec)``, which raises
InputError for a name that cannot be, and ``card(spec)``, which tells a `ModelCard` without loading weights.
A source of advens's own has ``would(spec)`` where some of its names need trust: what they do, or nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import partial
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING
from urllib.parse import urlencode

from advens.errors import InputError, first_line, unknown
from advens.spec import Spec
from advens.trust import call_text, confirm, trusting

if TYPE_CHECKING:
    from advens.classifier import Classifier

GROUP = "advens.models"
SOURCES = {
    "digits": "advens.models.embedded",
    "shapes": "advens.models.embedded",
    "timm": "advens.models.timm",
    "torchvision": "advens.models.torchvision",
    "robustbench": "advens.models.robustbench",
}


@dataclass(frozen=True)
class ModelCard:
    """What a plan needs to know of a model, without holding it.

    Args:
        name, family, num_classes, input_size: as the `Classifier` has them.
        digest: of the weights and of how images are prepared for them.
        bases: digests of the models it was built from.
        weights: digest of the weights alone; empty where it is not told apart.
    """

    name: str
    family: str
    digest: str
    num_classes: int
    input_size: tuple[int, int] | None
    bases: tuple[str, ...] = ()
    weights: str = ""


def origins(model: Classifier | ModelCard) -> tuple[str, ...]:
    """Digests of what a model is made of, beside its own: its weights, and the models it was built from."""
    alone = (model.weights,) if model.weights not in ("", model.digest) else ()
    return (*alone, *model.bases)


def load_model(name: str) -> Classifier:
    """The `Classifier` of a source name such as ``"digits:resnet"``, on the CPU.

    Who calls this in Python trusts the name, which may be ``pkg.module:factory``; names in files that it
    leads to are not trusted by that.

    Raises:
        InputError: unknown source or name, missing or corrupt weights.
    """
    with trusting(name):
        return find_model(name)


def find_model(name: str) -> Classifier:
    """The same for a name that may come from a file: code is called only if the name is trusted."""
    return _source(spec := Spec.parse(name, "model"))(spec)


def describe(name: str) -> ModelCard:
    """The card of a model: from its source where that has one, else from the model, loaded once."""
    card = known_card(name)
    if card is not None:
        return card
    model = find_model(name)
    return ModelCard(
        name, model.family, model.digest, model.num_classes, model.input_size, model.bases,
        model.weights,
    )  # fmt: skip


def known_card(name: str) -> ModelCard | None:
    """The card of a model whose source tells it without loading weights; None for others."""
    spec = Spec.parse(name, "model")
    card: Callable[[Spec], ModelCard] | None = getattr(_module(spec), "card", None)
    return None if card is None else card(spec)


def absent(name: str) -> str:
    """What has to be downloaded before a model can be loaded, where its source tells; empty for nothing."""
    spec = Spec.parse(name, "model")
    asked: Callable[[Spec], str] | None = getattr(_module(spec), "absent", None)
    return "" if asked is None else asked(spec)


def list_models(pattern: str = "*") -> list[str]:
    """Names that match a wildcard: the embedded zoo; with ``timm:...`` or ``torchvision:...`` theirs."""
    from advens.models.embedded import names

    scheme = pattern.partition(":")[0]
    listed = scheme in ("timm", "torchvision")
    every = import_module(SOURCES[scheme]).names() if listed else names()
    return [name for name in every if fnmatch(name, pattern)]


def expand(pattern: str) -> list[str]:
    """A name, or the names a wildcard stands for. Raises InputError when there are none."""
    if not any(c in pattern.partition("?")[0] for c in "*["):
        return [pattern]
    found = list_models(pattern)
    if not found:
        raise unknown("model", pattern, list_models())
    return found


def check_name(name: str) -> None:
    """Raise InputError when a name cannot stand for a model, as far as can be told without loading."""
    spec = Spec.parse(name, "model")
    check = getattr(_module(spec), "check", None)
    if check is not None:
        check(spec)


def bare(name: str, classes: int) -> str:
    """The name of the same architecture that asks no hub and no file for weights."""
    spec = Spec.parse(name, "model")
    changes = {
        "timm": {"pretrained": "false", "num_classes": str(classes)},
        "torchvision": {"weights": "none", "num_classes": str(classes)},
    }.get(spec.scheme)
    if changes is None:
        return name
    query = {k: v for k, v in spec.query.items() if k != "checkpoint"} | changes
    return f"{spec.scheme}:{spec.rest}?{urlencode(query)}"


def _from_plugin(point: EntryPoint, spec: Spec) -> Classifier:
    """A third party's model; whatever goes wrong there is one line."""
    from advens.classifier import Classifier

    try:
        model = point.load()(spec)
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"model '{spec.text}': plug-in '{point.name}' ({point.value}) failed: "
            f"{type(error).__name__}: {first_line(error)}"
        ) from error
    if not isinstance(model, Classifier):
        raise InputError(
            f"model '{spec.text}': plug-in '{point.name}' ({point.value}) gave a "
            f"{type(model).__name__}, not a Classifier"
        )
    return model


def _module(spec: Spec) -> object:
    """The module of a source; None for one that does not import, which loading says in a line."""
    _permitted(spec)
    if spec.scheme in SOURCES:
        return import_module(SOURCES[spec.scheme])
    point = _point(spec.scheme)
    if point is not None:
        with suppress(Exception):
            return import_module(point.module)
    return None


def _source(spec: Spec) -> Callable[[Spec], Classifier]:
    _permitted(spec)
    if spec.scheme in SOURCES:
        load: Callable[[Spec], Classifier] = import_module(SOURCES[spec.scheme]).load
        return load
    point = _point(spec.scheme)
    if point is not None:
        return partial(_from_plugin, point)
    from advens.models.module import load as load_module

    return load_module


def _permitted(spec: Spec) -> None:
    """Raise InputError for an unknown source, and for one that calls code for a name nobody trusts."""
    if spec.scheme in SOURCES:
        confirm(spec, "model", getattr(import_module(SOURCES[spec.scheme]), "would", ""))
        return
    point = _point(spec.scheme)
    if point is not None:
        if not _is_ours(point):
            confirm(spec, "model", f"call the plug-in '{point.name}' ({point.value})")
        return
    from advens.models.module import beside_us, importable

    if "." not in spec.scheme and not importable(spec.scheme):
        if hint := beside_us(spec.scheme):
            raise InputError(f"unknown model source '{spec.scheme}'{hint}")
        plugins = [point.name for point in entry_points(group=GROUP)]
        raise unknown("model source", spec.scheme, [*SOURCES, *plugins])
    confirm(spec, "model", call_text(spec))


def _point(scheme: str) -> EntryPoint | None:
    """The entry point of a source. Raises InputError when two packages claim it."""
    points = {point.value: point for point in entry_points(group=GROUP, name=scheme)}
    if len(points) > 1:
        raise InputError(f"model source '{scheme}' is defined more than once: by {', '.join(points)}")
    return next(iter(points.values()), None)


def _is_ours(point: EntryPoint) -> bool:
    """Whether a source belongs to advens: it reads weights, and names inside its files follow this rule."""
    return point.value.startswith(("advens.attacks.", "advens.defenses."))


__all__ = [
    "InputError",
    "ModelCard",
    "absent",
    "bare",
    "check_name",
    "describe",
    "expand",
    "find_model",
    "known_card",
    "list_models",
    "load_model",
    "origins",
]
