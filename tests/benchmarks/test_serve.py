"""The served site: for this machine, for reading, from memory; and how far runs are."""

from __future__ import annotations

import http.client
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from advens.benchmarks.serve import Live, Pace, duration, serving
from advens.errors import InputError
from advens.results.report.site import Source
from tests.benchmarks.conftest import Said


@pytest.fixture
def live(advens: Callable[..., Said], suite: Callable[..., Path], tmp_path: Path) -> Live:
    advens("run", suite(), "--out", tmp_path / "run", "--no-report").done()
    (tmp_path / "secret.html").write_text("secret")
    (tmp_path / "run" / "link.html").symlink_to(tmp_path / "secret.html")
    made = Live([Source(tmp_path / "run", "run")], images=False)
    made.update()
    return made


@pytest.fixture
def ask(live: Live) -> Iterator[Callable[..., Any]]:
    with serving(live, 0) as address:
        port = int(address.rsplit(":", 1)[1].strip("/"))
        assert address == f"http://127.0.0.1:{port}/"

        def one(path: str, method: str = "GET", host: str | None = None) -> tuple[int, bytes, Any]:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
            connection.putrequest(method, path, skip_host=True)
            if host != "":
                connection.putheader("Host", host or f"127.0.0.1:{port}")
            connection.endheaders()
            answer = connection.getresponse()
            content = answer.read()
            connection.close()
            return answer.status, content, answer.headers

        yield one


def test_what_is_answered(ask: Callable[..., Any], live: Live, tmp_path: Path) -> None:
    status, index, headers = ask("/")
    assert status == 200
    assert b'href="progress.html"' in index
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Content-Security-Policy"] == "frame-ancestors 'none'"
    for link in re.findall(rb'href="([a-z/0-9-]+\.html)', index):
        assert ask(f"/{link.decode()}")[0] == 200
    status, content, headers = ask("/index.html", "HEAD")
    assert (status, content, int(headers["Content-Length"])) == (200, b"", len(index))
    for path in (
        "/../secret.html", "/run/link.html", "/link.html", "/%2e%2e/secret.html", "//secret.html", "/run",
        f"/{tmp_path}/secret.html", "/runs/", "/suite.toml", "http://127.0.0.1/index.html", "*", "//[",
    ):  # fmt: skip
        status, content, _ = ask(path)
        assert status == 404, path
        assert b"secret" not in content
    for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT"):
        assert ask("/index.html", method)[0] == 405
    assert ask("/", "BREW")[0] == 501
    for host in ("evil.example", "127.0.0.1", "127.0.0.1.evil.example:80", "[::1]:8008", ""):
        assert ask("/", host=host)[0] == 403, host


def test_progress(ask: Callable[..., Any], live: Live, tmp_path: Path) -> None:
    (run,) = json.loads(ask("/progress.json")[1])
    assert (run["crafted"], run["cells"], run["evaluated"], run["evaluations"]) == (4, 4, 12, 12)
    assert run["left"] == "done"
    assert b"refresh" not in ask("/progress.html")[1]
    first = next((tmp_path / "run" / "samples").iterdir())
    first.unlink()
    (tmp_path / "run" / "failures").mkdir(exist_ok=True)
    note = {"task": "<b>evaluating", "error": "no memory"}
    (tmp_path / "run" / "failures" / "c.json").write_text(json.dumps(note))
    live._progress = (float("-inf"), [])
    (run,) = json.loads(ask("/progress.json")[1])
    assert (run["evaluated"], run["todo"]) == (11, 1)
    page = ask("/progress.html")[1]
    assert b'http-equiv="refresh" content="5"' in page
    assert b"&lt;b&gt;evaluating: no memory" in page
    before = ask("/index.html")[1]
    for path in (tmp_path / "run" / "samples").iterdir():  # rows that are newer than the stored boards
        os.utime(path, (4e9, 4e9))
    live.update()
    assert ask("/index.html")[1] != before  # the evaluation that is gone


def test_before_the_first_cell(tmp_path: Path) -> None:
    (tmp_path / "suite.toml").write_text("name = 'begun'\n")
    live = Live([Source(tmp_path, "begun")])
    live.update()
    index = live.page("")
    assert index is not None
    assert b"begun holds no finished cells yet" in index
    assert b'http-equiv="refresh"' in index


def test_pace() -> None:
    assert Pace.of([0.0, 30.0, 60.0], 60.0, 4) == Pace(2.0, 120.0)
    assert Pace.of([0.0, 30.0, 60.0], 120.0, 4) == Pace(1.0, 240.0)  # nothing came for a minute
    for times, left in (([], 3), ([1.0], 3), ([0.0, 1.0], 0)):
        assert Pace.of(times, 60.0, left) == Pace(None, None)
    shown = [duration(each) for each in (None, 5, 170, 7200, 200_000)]
    assert shown == ["–", "5 s", "3 min", "2 h", "2 d"]


def test_a_port_that_is_taken(live: Live, advens: Callable[..., Said], tmp_path: Path) -> None:
    with serving(live, 0) as address:
        again = serving(live, int(address.rsplit(":", 1)[1].strip("/")))
        with pytest.raises(InputError, match="give another --port"):
            again.__enter__()
    advens("site", tmp_path / "run", "--serve", "--out", tmp_path / "x").refused("--serve writes nothing")
