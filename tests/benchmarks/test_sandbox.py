"""The sandbox: what Python code and compiled code in it cannot do, each tried alone."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from advens.benchmarks.sandbox import Limits, run_sandboxed
from advens.errors import InputError

BEGIN = """
import ctypes, json, os, socket, subprocess, sys
from advens.benchmarks import sandbox
sandbox._watch = WATCH
sandbox.confine(FOLDER, sandbox.Limits(**LIMITS))
libc = ctypes.CDLL(None)
"""
HOOK, KERNEL = "sandbox._watch", "lambda folder: lambda event, arguments: None"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The only place that may be written."""
    path = tmp_path.resolve() / "inside"
    path.mkdir()
    return path


@pytest.fixture
def confined(folder: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """``confined(code)``: Python code in a confined process; ``watch=KERNEL`` is without the audit hook."""

    def run(code: str, watch: str = HOOK, **limits: int) -> subprocess.CompletedProcess[str]:
        begin = BEGIN.replace("WATCH", watch).replace("FOLDER", repr(str(folder)))
        begin = begin.replace("LIMITS", repr({"seconds": 60, **limits}))
        return subprocess.run(
            [sys.executable, "-c", begin + code], capture_output=True, text=True, timeout=60, check=False
        )

    return run


@pytest.fixture
def listener() -> Iterator[int]:
    """The port of somebody who would be glad to hear."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def has_landlock() -> bool:
    import ctypes

    return sys.platform == "linux" and ctypes.CDLL(None).syscall(444, None, 0, 1) >= 4


WAYS_OUT = {
    "write": "open(OUTSIDE, 'w')",
    "append": "open(OUTSIDE, 'a')",
    "open": "os.open(OUTSIDE, os.O_CREAT | os.O_WRONLY)",
    "folder": "os.mkdir(OUTSIDE)",
    "link": "os.symlink(OUTSIDE, 'x'); os.link(__import__('sys').executable, OUTSIDE)",
    "rename": "open(INSIDE, 'w').close(); os.rename(INSIDE, OUTSIDE)",
    "dots": "open(INSIDE + '/../../outside', 'w')",
    "program": "subprocess.run(['touch', OUTSIDE], check=True)",
    "shell": "assert os.system('touch ' + OUTSIDE) == 0",
}


@pytest.mark.parametrize("way", WAYS_OUT)
def test_nothing_is_written_outside(
    way: str, tmp_path: Path, folder: Path, confined: Callable[..., Any]
) -> None:
    code = WAYS_OUT[way].replace("OUTSIDE", repr(str(tmp_path / "outside")))
    done = confined(code.replace("INSIDE", repr(str(folder / "file"))))
    assert "PermissionError" in done.stderr or "FileNotFoundError" in done.stderr, done
    assert not (tmp_path / "outside").exists()


def test_inside_files_are_written_moved_and_removed(folder: Path, confined: Callable[..., Any]) -> None:
    code = """
os.chdir(FOLDER)
os.makedirs("a/b")
open("a/b/c", "w").write("text")
os.rename("a/b/c", "a/d")
os.remove("a/d")
os.rmdir("a/b")
print(open("/dev/null", "w").write("x"), os.listdir("a"))
"""
    assert confined(code.replace("FOLDER", repr(str(folder)))).stdout == "1 []\n"


@pytest.mark.skipif(not has_landlock(), reason="this kernel has no Landlock that holds connections")
@pytest.mark.parametrize("call", ["creat(PATH, 0o600)", "mkdir(PATH, 0o700)", "system(b'touch ' + PATH)"])
def test_compiled_code_is_held_by_the_kernel(call: str, tmp_path: Path, confined: Callable[..., Any]) -> None:
    path = tmp_path / "outside"
    done = confined(f"print(libc.{call.replace('PATH', repr(os.fsencode(path)))} != 0)", KERNEL)
    assert done.stdout == "True\n", done
    assert not path.exists()


@pytest.mark.parametrize("watch", [HOOK, KERNEL])
def test_nobody_is_reached(watch: str, listener: int, confined: Callable[..., Any]) -> None:
    if watch == KERNEL and not has_landlock():
        pytest.skip("this kernel may leave the network open to compiled code")
    done = confined(f"socket.create_connection(('127.0.0.1', {listener}), timeout=5)", watch)
    assert "Error" in done.stderr.splitlines()[-1]
    done = confined("socket.getaddrinfo('localhost', 80)")
    assert "socket.getaddrinfo is refused in the sandbox" in done.stderr


def test_files_and_memory_have_limits(folder: Path, confined: Callable[..., Any]) -> None:
    code = f"with open({str(folder / 'large')!r}, 'wb') as file: file.write(bytes(2000))"
    assert "File too large" in confined(code, file=1000).stderr
    assert (folder / "large").stat().st_size <= 1000
    assert "MemoryError" in confined("bytes(1 << 30)", memory=1 << 29).stderr


def test_only_what_is_needed_is_inherited(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    seen: list[dict[str, str]] = []
    real = subprocess.Popen

    def watched(*arguments: Any, **how: Any) -> Any:
        seen.append(how["env"])
        return real(*arguments, **how)

    monkeypatch.setattr(subprocess, "Popen", watched)
    assert run_sandboxed(["status", str(folder)], folder, Limits(), {str(folder): "entry.tar"}) == 2
    assert "secret" not in json.dumps(seen)
    assert seen[0]["TMPDIR"] == str(folder / "tmp")
    assert capfd.readouterr().err.startswith("advens: entry.tar holds no run")


def test_time_is_limited(folder: Path) -> None:
    with pytest.raises(InputError, match=r"not finished within 0\.01 minutes; --time-limit MINUTES"):
        run_sandboxed(["run", "quickstart", "--out", str(folder)], folder, Limits(seconds=0.6), {})
