"""``pkg.module:factory``: a model of your own.

The factory returns a `Classifier`, or any ``torch.nn.Module`` that maps images (N, 3, H, W) in [0, 1]
to logits. Options go to the factory as keywords, except ``num_classes`` and ``family`` when the
factory does not take them.
"""

from __future__ import annotations

import inspect
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from torch import nn

from advens.classifier import FAMILIES, Classifier
from advens.errors import InputError, first_line, nearest
from advens.spec import Spec


def importable(name: str) -> bool:
    """Whether a module of this name can be found."""
    try:
        return find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def beside_us(name: str) -> str:
    """A hint at a module that lies in the current folder, where Python does not look for it."""
    first = name.partition(".")[0]
    here = [path for path in (Path(f"{first}.py"), Path(first) / "__init__.py") if path.is_file()]
    return f"; {here[0]} lies here, where Python does not look: set PYTHONPATH=." if here else ""


def load(spec: Spec) -> Classifier:
    """Import the module, call the factory, wrap what it returns."""
    try:
        module = import_module(spec.scheme)
    except Exception as error:  # whatever the user's own code raises
        hint = beside_us(spec.scheme) if isinstance(error, ModuleNotFoundError) else ""
        kind = "" if isinstance(error, ImportError) else f"{type(error).__name__}: "
        raise InputError(f"model '{spec.text}': {kind}{first_line(error)}{hint}") from error
    factory = getattr(module, spec.rest, None)
    if not callable(factory):
        known = [name for name, value in vars(module).items() if callable(value)]
        hint = nearest(spec.rest, known)
        raise InputError(
            f"model '{spec.text}': module {spec.scheme} has no factory '{spec.rest}'{hint}"
        )
    options = spec.literals()
    try:
        takes = set(inspect.signature(factory).parameters)
    except ValueError:  # a builtin tells nothing of itself
        takes = set()
    ours = {
        key: options.pop(key)
        for key in ("num_classes", "family")
        if key not in takes and key in options
    }
    try:
        net = factory(**options)
    except (TypeError, ValueError) as error:
        raise InputError(f"model '{spec.text}': {first_line(error)}") from error
    except Exception as error:
        raise InputError(
            f"model '{spec.text}': the factory failed: {type(error).__name__}: {first_line(error)}"
        ) from error
    if isinstance(net, Classifier):
        return net
    if not isinstance(net, nn.Module):
        raise InputError(
            f"model '{spec.text}': the factory returned {type(net).__name__}, not a torch Module"
        )
    family = str(ours.get("family", getattr(net, "family", "cnn")))
    if family not in FAMILIES:
        raise InputError(
            f"model '{spec.text}': unknown family '{family}'{nearest(family, FAMILIES)}"
        )
    classes = ours.get("num_classes") or _classes(net, spec)
    if not isinstance(classes, int):
        raise InputError(f"model '{spec.text}': num_classes = '{classes}' is not a whole number")
    return Classifier(
        net,
        name=spec.text,
        num_classes=classes,
        family=family,
    )


def _classes(net: nn.Module, spec: Spec) -> int:
    declared = getattr(net, "num_classes", None)
    if isinstance(declared, int):
        return declared
    widths = [module.out_features for module in net.modules() if isinstance(module, nn.Linear)]
    if not widths:
        raise InputError(
            f"model '{spec.text}': cannot tell how many classes it has; add ?num_classes=N"
        )
    return widths[-1]
