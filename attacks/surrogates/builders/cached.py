"""The description of a finished build in the cache, and whether one that is read is complete."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from advens.cache import ABOUT, Folder

FORMAT = 2
KEYS = ("bases", "family", "input_size", "members", "names", "num_classes")
"""What is read of a finished build."""
MOST_DRAWN = 10_000
"""Members that are drawn from a mean and a spread; more are taken for damage."""


def described(folder: Folder) -> dict[str, Any] | None:
    """The description of a finished build; None when it is not finished.

    Raises:
        InputError: the description is damaged or of another format.
    """
    about = folder.about()
    if about is None:
        return None
    with folder.sound():
        if about["format"] != FORMAT or not _complete(about):
            raise ValueError(f"{ABOUT} is not of format {FORMAT}")
    return about


def _complete(about: Mapping[str, Any]) -> bool:
    """Whether the entries that every build has are there, each of its type."""
    texts = all(
        isinstance(about.get(key), list) and all(isinstance(text, str) for text in about[key])
        for key in ("bases", "members", "names")
    )
    size, drawn = about.get("input_size"), about.get("drawn", 0)
    return (
        texts and bool(about["names"])
        and all(key in about for key in KEYS)
        and isinstance(about["family"], str)
        and isinstance(about["num_classes"], int)
        and (size is None or (isinstance(size, list) and [type(side) for side in size] == [int, int]))
        and (not drawn or (isinstance(drawn, int) and 0 < drawn <= MOST_DRAWN and len(about["members"]) == 2))
    )
