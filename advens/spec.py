"""``scheme:rest?key=value&key=value``: how models and data are named."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from os.path import isdir, isfile, join
from typing import Any
from urllib.parse import parse_qsl

from advens.errors import InputError, nearest

LONGEST = 4096
"""Characters of a name, as of a path."""


@dataclass(frozen=True)
class Spec:
    """A parsed source name.

    Args:
        text: as written.
        scheme: before the first colon.
        rest: between the colon and the question mark.
        query: the options, as strings.
    """

    text: str
    scheme: str
    rest: str
    query: Mapping[str, str] = field(default_factory=dict)

    @staticmethod
    def parse(text: str, kind: str) -> Spec:
        """Split a name; ``kind`` (``"model"``, ``"data"``) is the word used in messages."""
        if len(text) > LONGEST:
            raise InputError(f"{kind} '{text[:60]}...': a name has at most {LONGEST} characters")
        if not text.isprintable():
            raise InputError(f"{kind} '{text}' has control characters in its name")
        head, _, tail = text.partition("?")
        scheme, colon, rest = head.partition(":")
        if not colon or not scheme or not rest:
            raise InputError(f"{kind} '{text}' has no source; write {_with_source(head, kind)}")
        query: dict[str, str] = {}
        for key, value in parse_qsl(tail, keep_blank_values=True):
            if key in query:
                raise InputError(f"{kind} '{text}': '{key}' is given twice")
            query[key] = value
        return Spec(text, scheme, rest, query)

    def only(self, *allowed: str) -> None:
        """Raise InputError when the query has a key that is not allowed."""
        for key in self.query:
            if key not in allowed:
                hint = nearest(key, allowed) or f"; '{self.scheme}:' takes no options here"
                raise InputError(f"'{self.text}': unknown option '{key}'{hint}")

    def number(self, key: str, default: int | None = None) -> int | None:
        """An integer option."""
        if key not in self.query:
            return default
        try:
            return int(self.query[key])
        except ValueError:
            raise InputError(
                f"'{self.text}': {key} = '{self.query[key]}' is not a whole number"
            ) from None

    def literals(self, skip: Iterable[str] = ()) -> dict[str, Any]:
        """The query as Python values where they read as such (``2``, ``true``, ``(1, 2)``)."""
        return {key: literal(value) for key, value in self.query.items() if key not in set(skip)}


def _with_source(path: str, kind: str) -> str:
    """How a name without a source may have been meant, where it is the path of something."""
    if kind == "model" and isfile(path):
        return f"the network that the checkpoint is for, as timm:resnet50?checkpoint={path}"
    if kind == "data" and isdir(path):
        tables = any(isfile(join(path, name)) for name in ("labels.csv", "images.csv"))
        return f"csv:{path}" if tables else f"folder:{path}"
    if kind == "data" and isfile(path) and path.endswith(".parquet"):
        return f"parquet:{path}"
    return "SOURCE:NAME, as digits:..."


def literal(text: str) -> Any:
    """A number, boolean, tuple or list where the text is one; else the text."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
