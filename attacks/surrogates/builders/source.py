"""The model source ``built:DIGEST/INDEX``: members of finished builds in the cache."""

from __future__ import annotations

import re
from collections import defaultdict
from typing import Any
from weakref import WeakSet

from advens.attacks.surrogates.builders.build import digests, member
from advens.attacks.surrogates.builders.cached import described
from advens.attacks.surrogates.builders.snapshot import Snapshot, bare
from advens.cache import Folder, cache_root
from advens.errors import InputError
from advens.models import ModelCard, find_model
from advens.spec import Spec

_held: defaultdict[tuple[str, str], WeakSet[Snapshot]] = defaultdict(WeakSet)
"""Members in use, by build; members of the same build that are loaded later share their network."""


def load(spec: Spec) -> Snapshot:
    """A member of a build, on the CPU. All that one process loads of a build share one network.

    Raises:
        InputError: there is no such build or member in the cache, it is damaged, or the model it comes
            from cannot be loaded by its name.
    """
    key, index, folder, about = _found(spec)
    siblings = _held[str(folder.path), key]
    sibling = next(iter(siblings), None)
    if sibling is None:
        base = find_model(about["names"][0])
        made = member(key, folder, about, index, base, bare(base.net))
    else:
        made = member(key, folder, about, index, sibling, sibling.shared).cpu()
    siblings.add(made)
    return made


def card(spec: Spec) -> ModelCard:
    """What the cache says of a member, without loading weights."""
    key, index, _, about = _found(spec)
    size = about["input_size"]
    return ModelCard(
        spec.text, about["family"], digests(key, about)[index], about["num_classes"],
        None if size is None else (size[0], size[1]), tuple(about["bases"]),
    )  # fmt: skip


def check(spec: Spec) -> None:
    """Raise InputError when the cache has no such member."""
    _found(spec)


def _found(spec: Spec) -> tuple[str, int, Folder, dict[str, Any]]:
    spec.only()
    match = re.fullmatch(r"([0-9a-f]+)/(\d+)", spec.rest)
    if match is None:
        raise InputError(f"model '{spec.text}': write built:DIGEST/INDEX, as a builder names its members")
    key, index, folder = match[1], int(match[2]), Folder(cache_root("built") / match[1])
    about = described(folder)
    if about is None:
        raise InputError(f"model '{spec.text}': {folder.path} holds no finished build; build it again")
    if index >= (count := len(digests(key, about))):
        raise InputError(f"model '{spec.text}': the build has {count} members, from 0")
    return key, index, folder, about
