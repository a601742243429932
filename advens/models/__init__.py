"""Model sources: ``digits:``, ``shapes:``, ``timm:``, ``torchvision:``, ``robustbench:``, ``computed:``, and
``pkg.module:factory``. Those that only read weights are loaded whoever names them; see `advens.trust`.

A source is declared in the registry `SOURCES`. Third-party packages add theirs through the entry-point group
``advens.models``: the entry point's name is the scheme, and it loads a function
``load(spec: advens.spec.Spec) -> Classifier``. The module of that function may define more:

* ``check(spec)`` raises InputError for a name that cannot be loaded.
* ``card(spec)`` gives the `ModelCard` without loading weights.
* ``absent(spec)`` says what has to be downloaded before the name can be loaded, or gives nothing.
* ``revision(spec)`` says where weights that are at hand came from and their revision, or gives nothing.
* ``blank(spec)`` gives the model of a name with weights drawn at random, for which nothing is downloaded.
* ``untrained(spec, num_classes)`` gives a model of the same architecture with weights drawn from torch's
  global generator.
* ``is_ensemble(spec)``, of sources of advens, says whether the model is an ensemble.
* ``would(spec)``, of sources of advens, says what a name does that needs trust, or gives nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatch
from importlib import import_module
from importlib.metadata import EntryPoint
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from advens.errors import InputError, first_line, unknown
from advens.registry import Info, Registry
from advens.spec import Spec
from advens.trust import call_text, confirm, trusting
from advens.zoo.recipes import TRAINING

if TYPE_CHECKING:
    from advens.classifier import Classifier


@dataclass(frozen=True)
class ModelSource:
    """What is declared of a model source; its module is imported only when a name needs it.

    Args:
        load: ``module:function``, a function from a parsed name to a `Classifier`.
        plugin: the entry point that declares it, as messages name it; empty for the sources below.
        foreign: whether a third party's code is called, which needs trust.
        lists: whether the module's ``names()`` lists its models.
        embedded: whether they are also listed where no source is named.
        trained_on: the data source that all its models were trained on; empty where that is not known.
        untrained: the option with which weights are drawn at random, as ``"pretrained=false"``; a source that
            has one also takes ``num_classes``, ``seed`` and ``checkpoint``.
    """

    load: str
    plugin: str = ""
    foreign: bool = False
    lists: bool = False
    embedded: bool = False
    trained_on: str = ""
    untrained: str = ""

    @property
    def module(self) -> str:
        """The name of the module."""
        return self.load.partition(":")[0]


def _declared(point: EntryPoint) -> tuple[ModelSource, Info]:
    """The entry of an entry point. Those of advens only read weights, and ask about names in files."""
    plugin = f"plug-in '{point.name}' ({point.value})"
    foreign = not point.value.startswith(("advens.attacks.", "advens.defenses."))
    source = ModelSource(f"{point.module}:{point.attr}", plugin, foreign)
    return source, Info(point.name, summary=f"{point.name}:...")


SOURCES: Registry[ModelSource] = Registry("model source", group="advens.models", declare=_declared)
_EMBEDDED = "advens.models.embedded:load"
for _info, _source in (
    (Info("digits", summary="digits:NAME"),
     ModelSource(_EMBEDDED, lists=True, embedded=True, trained_on=TRAINING["digits"])),
    (Info("shapes", summary="shapes:NAME"),
     ModelSource(_EMBEDDED, lists=True, embedded=True, trained_on=TRAINING["shapes"])),
    (Info("timm", summary="timm:NAME"),
     ModelSource("advens.models.timm:load", lists=True, untrained="pretrained=false")),
    (Info("torchvision", summary="torchvision:NAME"),
     ModelSource("advens.models.torchvision:load", lists=True, untrained="weights=none")),
    (Info("computed", summary="computed:PRECISION?of=MODEL"), ModelSource("advens.models.computed:load")),
    (Info("robustbench", summary="robustbench:NAME"), ModelSource("advens.models.robustbench:load")),
):  # fmt: skip
    SOURCES.register(_info, _source)
OWN = ModelSource("advens.models.module:load")
"""Of names ``pkg.module:factory``."""


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
    spec = Spec.parse(name, "model")
    source = _permitted(spec)
    return _from_plugin(source, spec) if source.plugin else resolve_name(source.load)(spec)


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
    card: Callable[[Spec], ModelCard] | None = _hook(spec, "card")
    return None if card is None else card(spec)


def absent(name: str) -> str:
    """What has to be downloaded before a model can be loaded, where its source tells; empty for nothing."""
    spec = Spec.parse(name, "model")
    asked: Callable[[Spec], str] | None = _hook(spec, "absent")
    return "" if asked is None else asked(spec)


def blank(name: str) -> Classifier | None:
    """A model as it is but for its weights, which are drawn at random so that nothing is downloaded.

    None where the source has no such thing.
    """
    spec = Spec.parse(name, "model")
    made: Callable[[Spec], Classifier | None] | None = _hook(spec, "blank")
    return None if made is None else made(spec)


def absent_bytes(name: str) -> int | None:
    """About how many bytes have to be downloaded before a model can be loaded; None where nothing tells.

    Weights are counted as they are in a network that takes no memory, in single precision.
    """
    import torch

    if not absent(name):
        return 0
    with torch.device("meta"):
        model = blank(name)
    if model is None:
        return None
    return int(sum(value.numel() * value.element_size() for value in model.net.state_dict().values()))


def revision(name: str) -> str:
    """Where the weights of a model came from and their revision, where its source tells; else empty."""
    spec = Spec.parse(name, "model")
    asked: Callable[[Spec], str] | None = _hook(spec, "revision")
    return "" if asked is None else asked(spec)


def list_models(pattern: str = "*") -> list[str]:
    """Names that match a wildcard: the embedded zoo; with ``timm:...`` or ``torchvision:...`` theirs."""
    own = {name: source for name, (source, _) in SOURCES.entries.items()}
    asked = own.get(pattern.partition(":")[0])
    chosen = [asked] if asked and asked.lists else [source for source in own.values() if source.embedded]
    every = dict.fromkeys(name for source in chosen for name in import_module(source.module).names())
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
    check = _hook(spec, "check")
    if check is not None:
        check(spec)


def names_ensemble(name: str) -> bool:
    """Whether a name stands for an ensemble, as far as its source tells without loading it."""
    spec = Spec.parse(name, "model")
    source = SOURCES.get(spec.scheme) if spec.scheme in SOURCES else OWN
    if source.foreign:  # asking would call its code
        return False
    asked: Callable[[Spec], bool] | None = getattr(import_module(source.module), "is_ensemble", None)
    return asked is not None and asked(spec)


def training_data(name: str) -> str:
    """The data source that a model was trained on, where its source declares one; else empty."""
    scheme = name.partition(":")[0]
    return SOURCES.get(scheme).trained_on if scheme in SOURCES else ""


def bare(name: str, num_classes: int) -> str:
    """The name of the same architecture that needs neither a download nor a file for its weights."""
    spec = Spec.parse(name, "model")
    option = SOURCES.get(spec.scheme).untrained if spec.scheme in SOURCES else ""
    if not option:
        return name
    query = {key: value for key, value in spec.query.items() if key != "checkpoint"}
    key, _, value = option.partition("=")
    return f"{spec.scheme}:{spec.rest}?{urlencode(query | {key: value, 'num_classes': num_classes})}"


def untrained(name: str, num_classes: int, size: tuple[int, int], seed: int) -> Classifier:
    """A model of the architecture that a name stands for, its weights drawn from ``seed``.

    The architecture of ``pkg.module:factory`` is that of the model which the factory returns under this seed.

    Args:
        name: a source name.
        num_classes: width of the logits.
        size: (H, W) of the images to come. Networks that run at this size see images as they are; others,
            and the embedded ones, resize them to their own size.
        seed: of the weights.

    Raises:
        InputError: the name stands for an ensemble, or for an architecture with another number of classes.
    """
    import torch

    spec = Spec.parse(name, "model")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        draw: Callable[[Spec, int], Classifier] | None = _hook(spec, "untrained")
        if draw is not None:
            model = draw(spec, num_classes)
        else:
            drawn = bare(name, num_classes)
            model = find_model(drawn if drawn == name else f"{drawn}&seed={seed}")
            model.name = name
            if runs_at(model, size):
                model.input_size = size
    if model.members:
        raise InputError(f"{name} is an ensemble; give the architecture of one member")
    return model


def runs_at(model: Classifier, size: tuple[int, int]) -> bool:
    """Whether the network of a model, which is put in eval mode, runs on images of a size (H, W)."""
    import torch

    try:
        with torch.no_grad():
            model.eval().net(torch.zeros(1, 3, *size))
    except (RuntimeError, AssertionError, ValueError):
        return False
    return True


def _from_plugin(source: ModelSource, spec: Spec) -> Classifier:
    """The model of an entry point's source; whatever goes wrong there is one line."""
    from advens.classifier import Classifier

    try:
        model = resolve_name(source.load)(spec)
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"model '{spec.text}': {source.plugin} failed: {type(error).__name__}: {first_line(error)}"
        ) from error
    if not isinstance(model, Classifier):
        raise InputError(
            f"model '{spec.text}': {source.plugin} gave a {type(model).__name__}, not a Classifier"
        )
    return model


def _hook(spec: Spec, name: str) -> Any:
    """A function of the module of a source, or None. A plug-in that does not import has none."""
    source = _permitted(spec)
    try:
        return getattr(import_module(source.module), name, None)
    except Exception:
        if not source.plugin:
            raise
        return None


def _permitted(spec: Spec) -> ModelSource:
    """The source of a name. Raises InputError when it is unknown, or the name needs trust and has none."""
    if spec.scheme in SOURCES:
        source = SOURCES.get(spec.scheme)
        if source.foreign:
            confirm(spec, "model", f"call the {source.plugin}")
        elif not source.plugin:
            confirm(spec, "model", getattr(import_module(source.module), "would", ""))
        return source
    from advens.models.module import beside_us, importable

    if "." not in spec.scheme and not importable(spec.scheme):
        if hint := beside_us(spec.scheme):
            raise InputError(f"unknown model source '{spec.scheme}'{hint}")
        raise unknown("model source", spec.scheme, SOURCES)
    confirm(spec, "model", call_text(spec))
    return OWN


__all__ = [
    "SOURCES",
    "ModelCard",
    "ModelSource",
    "absent",
    "absent_bytes",
    "bare",
    "blank",
    "check_name",
    "describe",
    "expand",
    "find_model",
    "known_card",
    "list_models",
    "load_model",
    "names_ensemble",
    "origins",
    "revision",
    "training_data",
    "untrained",
]
