"""Which names may call code: files from elsewhere are data.

Models and data are named by people and by files: suites, runs, saved ensembles, builds in a cache. What only
reads images and weights is loaded whoever names it. A function of a module, the source of a plug-in and
RobustBench, which unpickles what it downloads, are called only for a name that the user trusts; so are names
that choose where something is downloaded from or to.

The trusted names are a context variable that is empty unless somebody fills it, so nothing between a file
and a load can forget to pass them on; workers receive them with their task.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.metadata import entry_points
from typing import Any
from urllib.parse import parse_qs

import click

from advens.errors import InputError
from advens.spec import Spec

GROUPS = ("advens.models", "advens.data")
ASKING = ("robustbench", "timm", "torchvision")
"""Sources that come with advens and have names that need trust where a file names them."""
VIEW = ("size", "crop_pct", "interpolation", "classes", "limit", "seed")
"""Options that every data source takes; they change what is seen of it, and its factory is not given them."""

_trusted: ContextVar[frozenset[str]] = ContextVar("trusted", default=frozenset())


def trusted() -> frozenset[str]:
    """The names that may call code here."""
    return _trusted.get()


@contextmanager
def trusting(*names: str) -> Iterator[None]:
    """Within, these names may call code.

    Args:
        names: as they are written, options included; ``pkg.module:*`` stands for everything a module or a
            plug-in offers, with any options. The model inside ``changed:...?of=MODEL`` is trusted with it.
    """
    with _adding(inner for name in names for inner in _with_inner(name)):
        yield


def typed(*names: str) -> None:
    """The user of the running command typed these names: they may call plug-ins, and choose downloads.

    They may not call a function of a module: ``--trust`` is for that.
    """
    meant = [inner for name in names for inner in _with_inner(name) if _is_source(inner.partition(":")[0])]
    click.get_current_context().with_resource(_adding(meant))


def confirm(spec: Spec, kind: str, would: str | Callable[[Spec], str]) -> None:
    """Raise InputError unless a name that ``would`` do something is trusted.

    Args:
        spec, kind: the name, of a ``"model"`` or of ``"data"``.
        would: what the name does that needs trust, or a function that tells; empty for nothing.
    """
    names = trusted()
    if spec.text in names or f"{spec.scheme}:*" in names:
        return
    if kind == "data" and _without_view(spec.text) in set(map(_without_view, names)):
        return
    what = would if isinstance(would, str) else would(spec)
    if not what:
        return
    raise InputError(
        f"{kind} '{spec.text}' would {what}; if you trust it, add --trust {shlex.quote(spec.text)} "
        "(in Python: advens.trusting)"
    )


def trust_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """``--trust NAME``, as often as needed, for the time of a command."""

    def enter(context: click.Context, _: click.Parameter, names: tuple[str, ...]) -> None:
        context.with_resource(trusting(*names))

    return click.option(
        "--trust", multiple=True, metavar="NAME", expose_value=False, callback=enter, is_eager=True,
        help="Let this name of a model or of data call code, as pkg.module:factory does.",
    )(command)


def call_text(spec: Spec) -> str:
    """The call a name stands for: ``call os.system(command='ls')``."""
    arguments = ", ".join(f"{key}={value!r}" for key, value in spec.literals().items())
    return f"call {spec.scheme}.{spec.rest}({arguments})"


@contextmanager
def _adding(names: Iterable[str]) -> Iterator[None]:
    token = _trusted.set(_trusted.get().union(names))
    try:
        yield
    finally:
        _trusted.reset(token)


def _with_inner(name: str) -> set[str]:
    found = {name}
    if name.startswith("changed:"):
        for inner in parse_qs(name.partition("?")[2]).get("of", ()):
            found |= _with_inner(inner)
    return found


def _is_source(scheme: str) -> bool:
    return scheme in ASKING or any(entry_points(group=group, name=scheme) for group in GROUPS)


def _without_view(name: str) -> str:
    head, mark, query = name.partition("?")
    kept = "&".join(part for part in query.split("&") if part.partition("=")[0] not in VIEW)
    return f"{head}{mark}{kept}" if kept else head


__all__ = ["call_text", "confirm", "trust_option", "trusted", "trusting", "typed"]
