"""An advens command in a process of its own, for files that strangers sent.

What it guards against: nothing that a run names is executed anyway (``advens.trust``), so this is the second
line, for a mistake in advens or in a library that reads files. The process

* has a clean environment: paths of programs, libraries and caches, and no keys or tokens;
* cannot connect to anything: Python code is watched by an audit hook, and where Linux allows it the process
  has a network of its own that leads nowhere;
* writes only below one temporary folder and starts no program: by the same hook, and by Landlock where
  Linux has it, which holds for compiled code too;
* has limits of time, memory and of the size of a file.

What it does not guard against: it reads all that its user can read, and says on its output what it likes. A
stranger who can execute code in it could therefore let it say that all is well. Compiled code is held by the
kernel alone: where there is neither Landlock nor a network namespace, as on other systems than Linux, only
Python code is watched. A GPU's driver is outside. Who wants more than this verifies in a container or a
virtual machine of its own.
"""

from __future__ import annotations

import ctypes
import errno
import glob
import json
import os
import resource
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from math import ceil
from pathlib import Path
from typing import IO, Any

from advens.errors import InputError, first_line
from advens.printable import say

KEPT = (
    "PATH", "HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "PYTHONHOME", "PYTHONPATH", "VIRTUAL_ENV", "COLUMNS",
    "ADVENS_CACHE", "HF_HOME", "HF_HUB_CACHE", "TORCH_HOME", "XDG_CACHE_HOME", "CUDA_VISIBLE_DEVICES",
    "OMP_NUM_THREADS",
)  # fmt: skip
"""Variables that the process inherits."""
LINES = 10_000
"""Lines that are shown of what the process says."""
_START = (
    "import sys; sys.path[:] = [path for path in sys.path if path]; "
    "from advens.benchmarks.sandbox import _inside; sys.exit(_inside(sys.argv[1]))"
)


@dataclass(frozen=True)
class Limits:
    """What the process may use.

    Args:
        seconds: of time.
        memory: bytes of its own; as many as the machine has by default.
        file: bytes of a file that it writes.
    """

    seconds: float = 3600
    memory: int = 0
    file: int = 1 << 24


def run_sandboxed(
    arguments: Sequence[str], folder: Path, limits: Limits, shown: Mapping[str, str]
) -> int:
    """Run ``advens ARGUMENTS`` where it can write below a folder only, and show what it says, line by line.

    Args:
        arguments: of the command line.
        folder: which exists, and which the caller removes.
        shown: texts to replace in its lines, as the folder's path by the name that the user knows.

    Returns:
        The exit code: 0, 1 or 2.

    Raises:
        InputError: the process was ended because it passed a limit, or ended in another way.
    """
    temporary = folder / "tmp"
    temporary.mkdir(exist_ok=True)
    environment = {name: os.environ[name] for name in KEPT if name in os.environ} | {
        "TMPDIR": str(temporary), "HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1",
        "CUDA_CACHE_DISABLE": "1", "JOBLIB_MULTIPROCESSING": "0",
    }  # fmt: skip
    told = {"arguments": list(arguments), "folder": str(folder.resolve()), "limits": asdict(limits)}
    process = subprocess.Popen(
        [sys.executable, "-c", _START, json.dumps(told)], env=environment, text=True, errors="replace",
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    readers = [
        threading.Thread(target=_show, args=(stream, shown, err), daemon=True)
        for stream, err in ((process.stdout, False), (process.stderr, True))
    ]
    for reader in readers:
        reader.start()
    try:
        code = process.wait(limits.seconds)
    except subprocess.TimeoutExpired:
        raise InputError(
            f"not finished within {limits.seconds / 60:g} minutes; --time-limit MINUTES allows more"
        ) from None
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for reader in readers:
            reader.join()
    if code < 0:
        name = signal.Signals(-code).name if -code in {*signal.Signals} else f"signal {-code}"
        raise InputError(f"the process that read it was ended ({name}): it is damaged or too large")
    if code not in (0, 1, 2):
        raise InputError(f"the process that read it ended with exit code {code}")
    return code


def _show(stream: IO[str], shown: Mapping[str, str], err: bool) -> None:
    """Print the lines of a stream; all of it is read, so that the process can end."""
    count = 0
    with stream:
        while line := stream.readline(10_000):
            count += 1
            if count > LINES:
                continue
            for given, wanted in shown.items():
                line = line.replace(given, wanted)
            say(line.rstrip("\n"), err=err)
    if count > LINES:
        say(f"{count - LINES} more lines are left out", err=err)


def _inside(told: str) -> int:
    """The process: gives up what it does not need, then runs the command."""
    given = json.loads(told)
    confine(given["folder"], Limits(**given["limits"]))
    from advens.cli import invoke

    try:
        return invoke(given["arguments"])
    except MemoryError:
        say("advens: more memory is needed than the process has", err=True)
    except Exception as error:  # a file that nobody thought of
        say(f"advens: cannot be read: {type(error).__name__}: {first_line(error)}", err=True)
    return 2


def confine(folder: str, limits: Limits) -> None:
    """Let this process write below a folder only, connect to nothing, and use no more than the limits.

    Args:
        folder: its path without links.
    """
    _limit(limits)
    _leave_network()
    _write_only_below(folder)
    sys.addaudithook(_watch(folder))


def _limit(limits: Limits) -> None:
    wanted = {
        resource.RLIMIT_CPU: ceil(limits.seconds * (os.cpu_count() or 1)), resource.RLIMIT_FSIZE: limits.file,
        # private memory, and not addresses, of which drivers of GPUs reserve far more than there is memory
        resource.RLIMIT_DATA: limits.memory or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        resource.RLIMIT_CORE: 0,
    }  # fmt: skip
    for kind, most in wanted.items():
        hard = resource.getrlimit(kind)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        with suppress(ValueError, OSError):  # another system, which has no such limit
            resource.setrlimit(kind, (most, most))


def _leave_network() -> None:
    """Enter a user and network namespace of its own; nothing happens where Linux does not allow it."""
    new_user, new_network = 0x10000000, 0x40000000
    user, group = os.getuid(), os.getgid()
    with suppress(AttributeError, OSError):
        if ctypes.CDLL(None).unshare(new_user | new_network) == 0:
            Path("/proc/self/setgroups").write_text("deny")
            Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
            Path("/proc/self/gid_map").write_text(f"{group} {group} 1")


def _write_only_below(folder: str) -> None:
    """Landlock: no file outside is written, made or removed, no program executed, no TCP connection made.

    Nothing happens where the kernel lacks it. Numbers are those of ``linux/landlock.h``.
    """
    create, add, restrict, no_new_privileges = 444, 445, 446, 38
    execute, write, remove_folder, refer, truncate = 1, 1 << 1, 1 << 4, 1 << 13, 1 << 14
    change = sum(1 << bit for bit in range(5, 13)) | write | remove_folder  # remove and make what there is
    with suppress(AttributeError, OSError):
        libc = ctypes.CDLL(None, use_errno=True)
        version = libc.syscall(create, None, 0, 1) if sys.platform == "linux" else -1
        if version < 1:
            return
        change |= (refer if version >= 2 else 0) | (truncate if version >= 3 else 0)
        network = [0b11] if version >= 4 else []  # to bind, to connect
        handled = struct.pack(f"{1 + len(network)}Q", change | execute, *network)
        ruleset = libc.syscall(create, handled, len(handled), 0)
        devices = ["/dev/null", *glob.glob("/dev/nvidia*")]
        for path, allowed in [(folder, change), *((device, write) for device in devices)]:
            if not os.path.exists(path):
                continue
            opened = os.open(path, os.O_PATH)  # type: ignore[attr-defined, unused-ignore]
            libc.syscall(add, ruleset, 1, struct.pack("=Qi", allowed, opened), 0)
            os.close(opened)
        libc.prctl(no_new_privileges, 1, 0, 0, 0)
        libc.syscall(restrict, ruleset, 0)
        os.close(ruleset)


_REFUSED = {
    "socket.bind", "socket.connect", "socket.getaddrinfo", "socket.gethostbyaddr", "socket.gethostbyname",
    "socket.getnameinfo", "socket.sendmsg", "socket.sendto", "subprocess.Popen", "pty.spawn", "os.exec",
    "os.fork", "os.forkpty", "os.kill", "os.killpg", "os.posix_spawn", "os.spawn", "os.system",
}  # fmt: skip
_CHANGES = {
    "os.chflags", "os.chmod", "os.chown", "os.link", "os.mkdir", "os.remove", "os.removexattr", "os.rename",
    "os.rmdir", "os.setxattr", "os.symlink", "os.truncate", "os.utime",
}  # fmt: skip
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def _watch(folder: str) -> Any:
    """An audit hook that refuses what the process may not do."""

    def inside(path: object) -> bool:
        if not isinstance(path, (str, bytes, os.PathLike)):
            return True  # a file that is open already
        real = os.path.realpath(os.fsdecode(path))
        return real == os.devnull or real == folder or real.startswith(folder + os.sep)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            refused = bool((arguments[2] or 0) & _WRITES) and not inside(arguments[0])
        elif event in _CHANGES:
            both = arguments[:2] if event in ("os.link", "os.rename", "os.symlink") else arguments[:1]
            refused = not all(map(inside, both))
        else:
            refused = event in _REFUSED
        if refused:
            raise PermissionError(errno.EACCES, f"{event} is refused in the sandbox", _named(arguments))

    return hook


def _named(arguments: tuple[Any, ...]) -> str | None:
    return str(arguments[0]) if arguments and isinstance(arguments[0], str) else None
