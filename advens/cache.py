"""The cache of what was trained once: one folder for each digest of all that decides its content.

``<cache>/<digest>/`` holds ``about.json``, once the work is finished, beside ``member-00.safetensors`` and so
on; until then ``state.pt`` holds what is needed to resume.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from advens.digest import weights_digest
from advens.errors import InputError, first_line
from advens.files import os_errors, write_bytes

if TYPE_CHECKING:
    from torch import Tensor

ABOUT, STATE = "about.json", "state.pt"


def cache_root(kind: str) -> Path:
    """``$ADVENS_CACHE/KIND``, or ``~/.cache/advens/KIND``."""
    root = os.environ.get("ADVENS_CACHE")
    return (Path(root) if root else Path.home() / ".cache" / "advens") / kind


class Folder:
    """One folder of the cache. Its files are written whole or not at all."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def about(self) -> dict[str, Any] | None:
        """The description of the finished work; None when it is not finished."""
        if not (self.path / ABOUT).is_file():
            return None
        with self.sound():
            about: dict[str, Any] = json.loads((self.path / ABOUT).read_text())
        return about

    def finish(self, about: Mapping[str, Any]) -> None:
        """Write the description: the work is finished. The state that was kept for resuming is removed."""
        self.write(ABOUT, (json.dumps(about, indent=1) + "\n").encode())
        for left in (self.path / STATE, *self.path.glob("*.tmp")):
            left.unlink(missing_ok=True)

    def state(self) -> dict[str, Any] | None:
        """The state from which unfinished work resumes, on the CPU; None when there is none."""
        import torch

        if not (self.path / STATE).is_file():
            return None
        with self.sound():
            kept: dict[str, Any] = torch.load(self.path / STATE, map_location="cpu", weights_only=True)
        return kept

    def keep(self, state: Mapping[str, Any]) -> None:
        """Replace the state from which unfinished work resumes."""
        import torch

        buffer = io.BytesIO()
        torch.save(dict(state), buffer)
        self.write(STATE, buffer.getvalue())

    def member(self, index: int, digest: str) -> dict[str, Tensor]:
        """The weights of one member. Raises InputError when their digest is another."""
        from safetensors.torch import load

        with self.sound():
            read = load((self.path / _file(index)).read_bytes())
            if weights_digest(read) != digest:
                raise ValueError(f"{_file(index)} does not hold the weights that were written")
        return {name: tensor.clone() for name, tensor in read.items()}  # aligned as torch does it

    def write_member(self, index: int, state: Mapping[str, Tensor]) -> str:
        """Write the weights of one member; returns their digest."""
        from safetensors.torch import save

        copies = {k: t.detach().to("cpu", copy=True).contiguous() for k, t in state.items()}
        self.write(_file(index), save(copies))
        return weights_digest(copies)

    def write(self, name: str, content: bytes) -> None:
        """Write a file, whole or not at all."""
        write_bytes(self.path / name, content)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """One process works in the folder; others wait. The kernel frees the lock however a process ends."""
        import fcntl

        with os_errors("lock", self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            with os_errors("lock", self.path):
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    @contextlib.contextmanager
    def sound(self) -> Iterator[None]:
        """Whatever goes wrong while a file of the folder is read becomes an InputError of one line."""
        try:
            yield
        except Exception as error:  # unpickling and safetensors raise anything
            why = first_line(error)
            raise InputError(f"{self.path} is damaged ({why}); delete it to start again") from error


def _file(index: int) -> str:
    return f"member-{index:02d}.safetensors"
