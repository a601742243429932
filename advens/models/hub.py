"""Whether weights are at hand or can be downloaded: asked once, before a library tries again for a minute."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from advens.digest import file_digest
from advens.errors import InputError

PATIENCE = 3.0
"""Seconds that a host has to accept a connection."""
FILES = ("model.safetensors", "pytorch_model.bin")
"""What timm looks for in a repository, in order."""


def cached(repository: str, filename: str | None = None) -> Path | None:
    """The weights of a repository on the hub that are in the cache, or None."""
    from huggingface_hub import try_to_load_from_cache

    name, _, revision = repository.partition("@")
    files = (filename,) if filename else FILES
    found = (try_to_load_from_cache(name, file, revision=revision or None) for file in files)
    return next((Path(path) for path in found if isinstance(path, str)), None)


def revision(repository: str, filename: str | None = None) -> str:
    """``OWNER/NAME@COMMIT`` of the weights in the cache; empty where they are not there."""
    path = cached(repository, filename)  # .../snapshots/COMMIT/FILE
    return "" if path is None else f"{repository.partition('@')[0]}@{path.parent.name}"


def check(repository: str, filename: str | None = None) -> None:
    """Raise InputError when weights in the cache do not have the SHA-256 that the hub gave for them.

    The cache calls a file that the hub keeps as a large one by this SHA-256.
    """
    path = cached(repository, filename)
    if path is None:
        return
    promised = path.resolve().name
    if re.fullmatch(r"[0-9a-f]{64}", promised) and file_digest(path) != promised:
        raise InputError(
            f"the weights of {repository} in the cache are damaged: their SHA-256 is not the hub's, "
            f"{promised[:12]}...; delete {path.resolve()}"
        )


def unreachable() -> str:
    """Why the hub cannot be asked now; empty where it can."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    return "" if reachable(endpoint()) else f"{endpoint()} cannot be reached"


def downloaded(url: str) -> bool:
    """Whether torch's cache has the file of a URL."""
    return file_of(url).is_file()


def file_of(url: str) -> Path:
    """Where torch's cache keeps the file of a URL."""
    import torch

    return Path(torch.hub.get_dir()) / "checkpoints" / Path(urlsplit(url).path).name


def endpoint() -> str:
    """The hub's URL."""
    from huggingface_hub import constants

    return constants.ENDPOINT


def reachable(url: str) -> bool:
    """Whether the host of a URL, or the proxy before it, accepts a connection soon."""
    parts = urlsplit(url)
    proxy = None if proxy_bypass(parts.hostname or "") else getproxies().get(parts.scheme)
    if proxy:
        parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    where = (parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80))
    answers: list[bool] = []

    def ask() -> None:
        with suppress(OSError), socket.create_connection(where, PATIENCE):
            answers.append(True)

    thread = Thread(target=ask, daemon=True)  # looking up a name has no time limit of its own
    thread.start()
    thread.join(PATIENCE)
    return bool(answers)


@contextmanager
def offline(wanted: bool) -> Iterator[None]:
    """The hub's client takes what is in its cache, and does not ask the network; if wanted."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or wanted
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
