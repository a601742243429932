"""The folder of one build: member by member while it goes on, ``about.json`` when it is whole.

``<cache>/<digest>/about.json`` beside ``member-00.safetensors`` and so on. The digest names what is built:
the builder's options, the weights it starts from, the data and the seed.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from advens.digest import weights_digest
from advens.errors import InputError, first_line

ABOUT, STATE, FORMAT = "about.json", "state.pt", 2
KEYS = ("bases", "family", "input_size", "members", "names", "num_classes")
"""What is read of a finished build."""
MOST_DRAWN = 10_000
"""Members that are drawn from a mean and a spread; more are taken for damage."""


def default_cache() -> Path:
    """``$ADVENS_CACHE/built``, or ``~/.cache/advens/built``."""
    root = os.environ.get("ADVENS_CACHE")
    return (Path(root) if root else Path.home() / ".cache" / "advens") / "built"


class Folder:
    """Where one build is kept. Files are written whole or not at all."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def about(self) -> dict[str, Any] | None:
        """What the finished build is; None when it is not finished."""
        if not (self.path / ABOUT).is_file():
            return None
        with self._sound():
            about: dict[str, Any] = json.loads((self.path / ABOUT).read_text())
            if about["format"] != FORMAT or not _complete(about):
                raise ValueError(f"{ABOUT} is not of format {FORMAT}")
        return about

    def finish(self, about: Mapping[str, Any]) -> None:
        """The build is whole; what was kept to go on is not needed any more."""
        self.write(ABOUT, (json.dumps({"format": FORMAT, **about}, indent=1) + "\n").encode())
        for left in (self.path / STATE, *self.path.glob(".*.tmp")):
            left.unlink(missing_ok=True)

    def state(self) -> dict[str, Any] | None:
        """What an unfinished build kept to go on from, if it did."""
        if not (self.path / STATE).is_file():
            return None
        with self._sound():
            kept: dict[str, Any] = torch.load(
                self.path / STATE, map_location="cpu", weights_only=True
            )
        return kept

    def keep(self, state: Mapping[str, Any]) -> None:
        """Replace what is kept to go on from."""
        buffer = io.BytesIO()
        torch.save(dict(state), buffer)
        self.write(STATE, buffer.getvalue())

    def member(self, index: int, digest: str) -> dict[str, Tensor]:
        """Weights of one member, checked."""
        from safetensors.torch import load

        with self._sound():
            read = load((self.path / _file(index)).read_bytes())
            if weights_digest(read) != digest:
                raise ValueError(f"{_file(index)} does not hold the weights that were written")
        return {name: tensor.clone() for name, tensor in read.items()}  # aligned as torch does it

    def write_member(self, index: int, state: Mapping[str, Tensor]) -> str:
        """Write weights; returns their digest."""
        from safetensors.torch import save

        copies = {k: t.detach().to("cpu", copy=True).contiguous() for k, t in state.items()}
        self.write(_file(index), save(copies))
        return weights_digest(copies)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """One builder at a time; others wait. The kernel frees the lock however a process ends."""
        import fcntl

        with self._os_errors("lock"):
            self.path.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            with self._os_errors("lock"):
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def write(self, name: str, content: bytes) -> None:
        """Put a file there, whole or not at all."""
        path = self.path / name
        fresh = path.with_name(f".{name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
        with self._os_errors("write"):
            try:
                with fresh.open("wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(fresh, path)
            finally:
                fresh.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _os_errors(self, action: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise InputError(f"cannot {action} {self.path}: {error.strerror or error}") from error

    @contextlib.contextmanager
    def _sound(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # unpickling and safetensors raise anything
            why = first_line(error)
            raise InputError(
                f"{self.path} is damaged ({why}); delete it to build again"
            ) from error


def _file(index: int) -> str:
    return f"member-{index:02d}.safetensors"


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
