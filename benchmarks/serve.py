"""A site served on this machine alone: pages in memory, made again as runs go on, and how far these are.

The server never opens a file for a request: an address is looked up among the pages that were made. It
listens on 127.0.0.1, answers GET and HEAD, and refuses requests for any other host name, as pages of other
sites make them once their name leads here.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from typing import Any
from urllib.parse import urlsplit

from advens.benchmarks.site import papers
from advens.benchmarks.status import progress, runs_in
from advens.errors import InputError, RunError
from advens.results.report.page import written
from advens.results.report.site import Source, gather, index_page, pages
from advens.results.store import RunStore

HOST = "127.0.0.1"
LATEST = 60
"""Finished files of a run that its rate is taken from."""
EVERY = 5
"""Seconds between two looks at the runs."""
TYPES = {"html": "text/html; charset=utf-8", "json": "application/json"}


@dataclass(frozen=True)
class Pace:
    """How fast a run goes.

    Args:
        per_minute: files that were finished; None where nothing can be said.
        seconds: that what is left takes; None where nothing can be said.
    """

    per_minute: float | None
    seconds: float | None

    @classmethod
    def of(cls, times: Sequence[float], now: float, left: int) -> Pace:
        """The pace of a run.

        Args:
            times: when files were finished.
            left: how many there are to come.
        """
        latest = sorted(times)[-LATEST:]
        if not left or len(latest) < 2 or now <= latest[0]:
            return cls(None, None)
        rate = (len(latest) - 1) / (now - latest[0])
        return cls(60 * rate, left / rate)


def duration(seconds: float | None) -> str:
    """``3 min`` for 170; a dash for what is not known."""
    if seconds is None:
        return "–"
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


class Live:
    """The pages of some runs as they are now.

    Args:
        sources: the runs and entries.
        title: of the site.
        images: whether pages of runs have a gallery.
    """

    def __init__(self, sources: Sequence[Source], title: str = "Runs", *, images: bool = True) -> None:
        self.sources, self.title, self.images = sources, title, images
        self.papers = papers()
        self.problem = ""
        self._seen: object = None
        self._files: dict[str, bytes] = {}
        self._progress: tuple[float, list[dict[str, Any]]] = (float("-inf"), [])
        self._lock = Lock()

    def update(self) -> None:
        """Make the pages again when a run has changed."""
        seen = [_stamp(source) for source in self.sources]
        if seen == self._seen:
            return
        try:
            site = gather(self.sources, self.papers)
            files = pages(site, images=self.images, title=self.title)
            files["index.html"] = index_page(site, self.title, live=True).encode()
            self._files, self.problem = files, ""
        except (InputError, RunError) as error:  # while files are written, or before the first are
            self.problem = str(error)
        self._seen = seen

    def follow(self) -> None:
        """Make the pages again as runs go on, until Ctrl-C."""
        with suppress(KeyboardInterrupt):
            while True:
                begun = time.monotonic()
                self.update()
                time.sleep(max(EVERY, 4 * (time.monotonic() - begun)))

    def progress(self) -> list[dict[str, Any]]:
        """How far every run with a plan is, at most two seconds old."""
        with self._lock:
            if time.monotonic() - self._progress[0] > 2:
                found = [line for source in self.sources for line in _progress(source)]
                self._progress = (time.monotonic(), found)
            return self._progress[1]

    def page(self, name: str) -> bytes | None:
        """A file of the site; None for any other name."""
        if name == "progress.json":
            return (json.dumps(self.progress(), indent=1) + "\n").encode()
        if name == "progress.html" or (name in ("", "index.html") and not self._files):
            runs = self.progress()
            going = any(run["todo"] for run in runs) or not self._files
            return written(
                "progress.html", title=f"Progress · {self.title}", skip=("rows", "runs"), several=True,
                runs=runs, latest=LATEST, problem=self.problem, refresh=EVERY if going else 0,
            ).encode()  # fmt: skip
        return self._files.get(name or "index.html")


def _stores(source: Source) -> list[RunStore]:
    try:
        return runs_in(source.directory)
    except InputError:
        return []


def _stamp(source: Source) -> list[tuple[str, float]]:
    """What changes with every file that a run gets."""
    return [
        (str(folder), folder.stat().st_mtime)
        for store in _stores(source)
        for folder in (store.directory, store.examples, store.samples)
        if folder.is_dir()
    ]


def _progress(source: Source) -> Iterator[dict[str, Any]]:
    for store in _stores(source):
        try:
            now = progress(store)
        except (InputError, RunError):
            continue  # without a plan, or one that is being written
        here = store.directory == source.directory
        times = [
            path.stat().st_mtime
            for folder in (store.examples, store.samples) if folder.is_dir()
            for path in folder.glob("*.parquet") if path.is_file()
        ]  # fmt: skip
        pace = Pace.of(times, time.time(), now.left)
        yield {
            "run": source.title if here else f"{source.title}/{store.directory.name}",
            "cells": now.cells, "crafted": now.crafted, "rounds": now.rounds,
            "evaluations": now.evaluations, "evaluated": now.evaluated, "todo": now.left,
            "per_minute": pace.per_minute, "left": "done" if not now.left else duration(pace.seconds),
            "failures": now.failures,
        }  # fmt: skip


@contextmanager
def serving(live: Live, port: int) -> Iterator[str]:
    """Serve pages in a thread of its own; gives the address.

    Raises:
        InputError: the port cannot be had.
    """

    class Handler(_Handler):
        pages = live

    try:
        server = ThreadingHTTPServer((HOST, port), Handler)
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or error
        raise InputError(f"cannot listen on {HOST}:{port}: {why}; give another --port") from None
    server.daemon_threads = True
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://{HOST}:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    pages: Live
    server: ThreadingHTTPServer
    timeout = 20
    server_version, sys_version = "advens", ""

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def _refuse(self) -> None:
        self._send(405, "text/plain", b"only GET and HEAD\n", [("Allow", "GET, HEAD")])

    do_POST = do_PUT = do_DELETE = do_PATCH = do_OPTIONS = do_TRACE = do_CONNECT = _refuse

    def _answer(self) -> None:
        port = self.server.server_port
        hosts = self.headers.get_all("Host") or []
        if len(hosts) != 1 or hosts[0].lower() not in (f"{HOST}:{port}", f"localhost:{port}"):
            self._send(403, "text/plain", b"this site is for this machine alone\n")
            return
        try:
            path = urlsplit(self.path).path
        except ValueError:
            path = ""
        content = self.pages.page(path[1:]) if self.path.startswith("/") else None
        if content is None:
            self._send(404, "text/plain", b"there is no such page\n")
            return
        kind = TYPES["json"] if path.endswith(".json") else TYPES["html"]
        self._send(200, kind, content)

    def _send(
        self, status: int, kind: str, content: bytes, more: Sequence[tuple[str, str]] = ()
    ) -> None:
        self.send_response(status)
        for name, value in (
            ("Content-Type", kind), ("Content-Length", str(len(content))), ("Cache-Control", "no-store"),
            ("X-Content-Type-Options", "nosniff"), ("Referrer-Policy", "no-referrer"),
            ("Cross-Origin-Resource-Policy", "same-origin"),
            ("Content-Security-Policy", "frame-ancestors 'none'"), *more,
        ):  # fmt: skip
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Requests are not logged."""
