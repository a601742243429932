"""Adaptive attacks: a white-box attack that takes its gradients through a stand-in of the user's own.

Where a defense hides its gradients, behind quantisation, a filter or a loop, somebody who knows the defense
writes a differentiable stand-in for it: the network without the filter, a smooth filter, an unrolled loop.
The attack then looks forward through the model and backward through the stand-in (BPDA, Athalye et al. 2018),
or at the stand-in alone. Whichever it is, only what breaks the model itself counts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from importlib import import_module
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Annotated, Any, Literal, cast

import torch
from pydantic import Field, PlainValidator, ValidationInfo, field_validator
from torch import Tensor, nn

from advens.attacks.expectation import is_randomized
from advens.attacks.interfaces import Attack, Passes
from advens.attacks.parts import PARTS, from_spec, part
from advens.attacks.registry import RECIPES, create_attack, override, recipe
from advens.attacks.whitebox.cascade import Cascade
from advens.attacks.whitebox.descent import PMA
from advens.attacks.whitebox.engine import WhiteBox
from advens.attacks.whitebox.oracle import RowOracle
from advens.errors import InputError, first_line, nearest
from advens.models.module import beside_us
from advens.spec import Spec
from advens.threat import Threat
from advens.trust import call_text, confirm

PAPER = "Athalye et al., ICML 2018 (BPDA); Tramer et al., NeurIPS 2020 (adaptive attacks)"

NORMS = ("linf", "l2", "l1")
_sources: ContextVar[Mapping[str, str]] = ContextVar("sources", default=MappingProxyType({}))

StandIn = Callable[[Tensor], Tensor]
"""Images (N, C, H, W) to logits (N, classes), differentiable."""


@contextmanager
def recorded(sources: Mapping[str, str]) -> Iterator[None]:
    """Within, the files of these stand-ins have these digests, and are not looked for."""
    token = _sources.set(sources)
    try:
        yield
    finally:
        _sources.reset(token)


def _attack(value: Any) -> Attack:
    """An attack from its name, a table or the attack itself; only those that go row by row are taken."""
    name = value.get("name") if isinstance(value, Mapping) else value
    if isinstance(name, str) and name in RECIPES and (value is name or name not in PARTS["attack"]):
        options = {} if value is name else {key: v for key, v in value.items() if key != "name"}
        made = create_attack(name, **options)
    else:
        made = from_spec("attack", value)
    if not isinstance(made, WhiteBox) or isinstance(made, (Cascade, Adaptive)):
        raise ValueError("the attack is a single white-box attack that goes row by row, as 'pma' or 'pgd-ce'")
    return cast("Attack", made)


@part("attack", "adaptive", family="white-box", norms=NORMS, paper=PAPER, year=2018)
class Adaptive(WhiteBox):
    """A white-box attack through a differentiable stand-in of the user's own.

    The stand-in is a function of a module, ``pkg.module:function``. It takes the model, or one member of a
    randomized ensemble, and returns what maps images to logits. It is called only where its name is trusted
    (``--trust``), and the digest of its source file is recorded with the attack.

    Args:
        threat: the ball.
        attack: the attack that is run, by name or as a table; any loss can be named in it.
        stand_in: ``pkg.module:function``; without one the attack is run on the model itself.
        outputs: whose outputs the attack sees: those of the ``model``, while gradients go through the
            stand-in (BPDA), or those of the ``stand-in``, gradients included.
        source: SHA-256 of the module's file. It is filled in, and a file that has changed is refused.
    """

    threat: Threat = Threat("linf", "8/255")
    attack: Annotated[Attack, PlainValidator(_attack)] = PMA()
    stand_in: str = ""
    outputs: Literal["model", "stand-in"] = "model"
    source: Annotated[str, Field(validate_default=True)] = ""

    @field_validator("source")
    @classmethod
    def _recorded(cls, source: str, info: ValidationInfo) -> str:
        name = info.data.get("stand_in", "")
        known = source or _sources.get().get(name)
        return known or ("" if not name else source_digest(_module(name), name))

    @property
    def iterations(self) -> int:
        """Iterations of the attack."""
        return int(getattr(self.attack, "iterations", 0))

    @property
    def eot(self) -> int:  # type: ignore[override]
        """Passes that the attack averages."""
        return int(getattr(self.attack, "eot", 1))

    def rounds(self, oracle: RowOracle) -> list[tuple[WhiteBox, RowOracle]]:
        """The attack with the view of the model that it is run on."""
        attack: WhiteBox = override(self.attack, eps=self.threat.eps, norm=self.threat.norm)  # type: ignore[assignment]
        if not self.stand_in:
            return [(attack, oracle)]
        make = stand_in(self.stand_in, self.source)
        made = [_Alone(make(member)) for member in oracle.members]
        if self.outputs == "stand-in":
            return [(attack, oracle.through(made, judged=True))]
        pairs = zip(oracle.members, made, strict=True)
        return [(attack, oracle.through([Through(*pair) for pair in pairs], judged=False))]

    def passes(self, surrogates: int) -> Passes:
        """Those of the attack, and as many forward passes of the stand-in as there are gradients or looks."""
        p = self.attack.passes(surrogates)
        if not self.stand_in:
            return p
        return Passes(p.forward + (p.backward if self.outputs == "model" else p.forward), p.backward)


class Through(nn.Module):
    """A model whose gradient is that of a stand-in; its outputs are the model's, bit for bit."""

    def __init__(self, model: nn.Module, stand_in: StandIn) -> None:
        super().__init__()
        self.model, self.stand_in = model, stand_in

    def forward(self, x: Tensor) -> Tensor:
        """The model's logits (N, classes)."""
        with torch.no_grad():
            real: Tensor = self.model(x)
        if not torch.is_grad_enabled():
            return real
        return cast("Tensor", _Backward.apply(self.stand_in(x), real))


class _Alone(nn.Module):
    """A stand-in as a module, whatever callable it is."""

    def __init__(self, stand_in: StandIn) -> None:
        super().__init__()
        self.stand_in = stand_in

    def forward(self, x: Tensor) -> Tensor:
        """The stand-in's logits (N, classes)."""
        return self.stand_in(x)


class _Backward(torch.autograd.Function):
    """The value of the second argument with the gradient of the first."""

    @staticmethod
    def forward(ctx: Any, seen: Tensor, real: Tensor) -> Tensor:
        if seen.shape != real.shape:
            raise InputError(
                f"the stand-in returns {tuple(seen.shape)} where the model returns {tuple(real.shape)}"
            )
        return real.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


def seen_by(attack: object, model: nn.Module) -> nn.Module:
    """The model as an attack sees its gradients: through the stand-in, where an adaptive attack has one."""
    if isinstance(attack, Adaptive) and attack.stand_in:
        return adapted(model, attack.stand_in, attack.source)
    return model


def adapted(model: nn.Module, name: str, source: str) -> nn.Module:
    """A model, or a randomized ensemble, whose gradients are those of a stand-in."""
    make = stand_in(name, source)
    if not is_randomized(model):
        return Through(model, make(model))
    whole = nn.Module()
    members: list[nn.Module] = list(model.members)  # type: ignore[arg-type]
    whole.members = nn.ModuleList(Through(member, make(member)) for member in members)
    whole.probabilities = model.probabilities
    return whole


def stand_in(name: str, source: str = "") -> Callable[[nn.Module], StandIn]:
    """The function of a name.

    Args:
        source: the digest that the file of its module had when the attack was made.

    Raises:
        InputError: it is not trusted, cannot be found, or its file has changed.
    """
    module, spec = _module(name), Spec.parse(name, "stand-in")
    if source and source_digest(module, name) != source:
        raise InputError(f"stand-in '{name}': its file is not the one that the attack was made with")
    found = getattr(module, spec.rest, None)
    if not callable(found):
        known = [key for key, value in vars(module).items() if callable(value)]
        hint = nearest(spec.rest, known)
        raise InputError(f"stand-in '{name}': module {spec.scheme} has no function '{spec.rest}'{hint}")
    return cast("Callable[[nn.Module], StandIn]", found)


def source_digest(module: ModuleType, name: str) -> str:
    """SHA-256 of a module's file."""
    file = getattr(module, "__file__", None)
    if file is None or not Path(file).is_file():
        raise InputError(f"stand-in '{name}': its module is no file, so that it cannot be recorded")
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()


def _module(name: str) -> ModuleType:
    spec = Spec.parse(name, "stand-in")
    spec.only()
    confirm(spec, "stand-in", call_text(spec))
    try:
        return import_module(spec.scheme)
    except Exception as error:  # whatever the user's own code raises
        hint = beside_us(spec.scheme) if isinstance(error, ModuleNotFoundError) else ""
        raise InputError(f"stand-in '{name}': {first_line(error)}{hint}") from error


@recipe("adaptive", symbol="AdaptiveAttack", family="white-box", norms=NORMS, paper=PAPER, year=2018)
def AdaptiveAttack() -> Adaptive:
    """PMA, or another attack, through a differentiable stand-in of your own (BPDA)."""
    return Adaptive()
