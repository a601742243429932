"""Saved ensembles: a folder, ``ensemble.json`` beside one safetensors file a member.

`load_model` finds one as ``defense:PATH``, its first members, where they were trained member by member, as
``defense:PATH?members=2``, and its second member alone as ``defense:PATH?member=2``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch

from advens.classifier import Classifier
from advens.defenses.ensembles import FORMAT, INDEX, Ensemble, RandomizedEnsemble, member_file
from advens.digest import weights_digest
from advens.errors import InputError, first_line
from advens.files import read_regular
from advens.models import bare, find_model, names_ensemble
from advens.spec import Spec

PARTS = ("members", "member")
"""Options of a name that take a part of an ensemble."""
_inside: ContextVar[tuple[Path, ...]] = ContextVar("_inside", default=())
"""The ensembles that are being read, the outermost first: a member may be an ensemble."""


def load(path: str | Path, count: int | None = None) -> Ensemble | RandomizedEnsemble:
    """A saved ensemble, on the CPU, frozen.

    Args:
        count: take only the first ``count`` members, as if no others had been trained.

    Raises:
        InputError: no ensemble is there, its files are damaged or not those it was saved with, or its first
            members depend on the later ones.
    """
    path = Path(path)
    if path.resolve() in _inside.get():
        raise InputError(f"{path} is no saved ensemble: it is a member of itself")
    token = _inside.set((*_inside.get(), path.resolve()))
    try:
        about = json.loads(read_regular(path / INDEX))
        if about["format"] != FORMAT or about["kind"] not in ("mean", "randomized"):
            raise InputError(f"{path} is a saved ensemble of a format that is not known here")
        if count is not None:
            about |= _first(path, about["members"], count)
        members = [_member(path / member_file(k), card) for k, card in enumerate(about["members"])]
        if about["kind"] == "mean":
            return Ensemble(members, about["over"])
        return RandomizedEnsemble(members, about["probabilities"], about["seed"])
    except InputError:
        raise
    except FileNotFoundError as error:
        missing = Path(str(error.filename)).name
        what = f"there is no {missing} in it" if path.is_dir() else "no folder is there"
        raise InputError(f"{path} is no saved ensemble: {what}") from None
    except Exception as error:  # a description may be wrong in any way, and safetensors raise their own kinds
        raise InputError(f"{path} is no saved ensemble, or damaged ({first_line(error)})") from error
    finally:
        _inside.reset(token)


def _member(path: Path, card: Any) -> Classifier:
    """One member from its file and its description; the weights are checked before the network is built."""
    from safetensors.torch import load as read

    # cloned, so that the memory is aligned as torch does it and the arithmetic the same
    state = {key: tensor.clone() for key, tensor in read(read_regular(path)).items()}
    name = str(card["name"])
    if not names_ensemble(name) and weights_digest(state) != card["digest"]:
        raise InputError(f"{path.parent}: the weights in {path.name} are not those that were saved")
    member = find_model(bare(name, int(card["num_classes"])))
    member.net.load_state_dict(state, assign=True)
    member.name, member.input_size = name, _pair(card["input_size"])
    member.interpolation = card["interpolation"]
    member.mean, member.std = (
        torch.tensor(card[key], dtype=torch.float64).to(getattr(member, key)).view(1, 3, 1, 1)
        for key in ("mean", "std")
    )
    if "transform_input" in card:
        vars(member.net)["transform_input"] = bool(card["transform_input"])
    member.requires_grad_(False)
    if member.weights != card["digest"]:
        raise InputError(f"{path.parent}: the weights in {path.name} are not those that were saved")
    return member


def is_ensemble(spec: Spec) -> bool:
    """Whether a name stands for all or the first members of one: its digest is of more than its weights."""
    return "member" not in spec.query


def source(spec: Spec) -> Classifier:
    """The model source ``defense:PATH``."""
    return named(spec, Path(spec.rest))


def named(spec: Spec, path: Path) -> Classifier:
    """What a name takes of the ensemble at ``path``: all of it, its first members or one of them."""
    spec.only(*PARTS)
    whole = load(path, spec.number("members"))
    model: Classifier = whole
    if (place := spec.number("member")) is not None:
        if "members" in spec.query:
            raise InputError(f"'{spec.text}': give 'members', the first ones, or 'member', only that one")
        if not 1 <= place <= len(whole.members):
            raise InputError(f"{path} has {len(whole.members)} members; member = {place} cannot be taken")
        model = whole.members[place - 1]  # type: ignore[assignment]
    model.name = spec.text
    return model


def _first(path: Path, cards: list[Any], count: int) -> dict[str, Any]:
    """The description of the ensemble of the first members."""
    training = path / "training.json"
    nested = json.loads(read_regular(training)).get("nested") if training.is_file() else None
    if not nested:
        raise InputError(f"{path} was not trained member by member; train one with {count} members")
    if not 1 <= count <= len(cards):
        raise InputError(f"{path} has {len(cards)} members; members = {count} cannot be taken")
    return {"members": cards[:count], "probabilities": nested[count - 1]}


def _pair(size: Sequence[int] | None) -> tuple[int, int] | None:
    return None if size is None else (size[0], size[1])
