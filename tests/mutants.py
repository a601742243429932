"""``make mutants``: single changes of the code (mutants) that the tests should notice, counted by folder.

The repository is laid out as it installs in ``build/mutants``, where mutmut makes the mutants. One pytest
process then collects the tests once and forks: first for a run of all tests that records which functions
each of them reaches, then for every mutant, which is run against the tests that reach its function until one
fails. Tests of the mutant's own module come first, then the others, the fastest first, up to a limit on
their time; what survives meets more of them at the end. With ``--sample N`` these are N mutants, drawn with a
seed from every folder in proportion to its size. What survives is listed, so that a test can be written or
the mutant recognised as the same program.

This file is also the pytest plug-in that does the forking.
"""

from __future__ import annotations

import argparse
import gc
import glob
import hashlib
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
TREE = ROOT / "build" / "mutants"
REACH = TREE / "reach.json"
"""Which functions every test reaches, and how long it takes."""
FIGURE = ROOT / "results" / "reference" / "mutants.md"
FOLDERS = ("results", "attacks", "defenses", "benchmarks")
TESTS = ("tests/results", "tests/attacks", "tests/defenses", *(
    f"tests/benchmarks/test_{name}.py" for name in ("forgeries", "likeness", "recraft", "tampering", "verify")
))  # fmt: skip
KILLED = ("killed", "timeout", "crash")
LOOKS = (12.0, 120.0)
"""Seconds of CPU that a mutant's tests take without the mutant, at most; what survives is looked at again."""
SLOWEST = 4.0
"""Seconds of CPU after which a test is left out."""
PATIENCE = (20.0, 5.0)
"""A mutant's tests may take so many seconds of CPU, plus so many times what they take without the mutant."""
FOREVER = 1e6
MOST_FAILING = 10
"""So many tests may fail without any change, as those do that read a clock on a busy machine."""
PROTOCOL = re.compile(r"^class .*\bProtocol\):$", re.MULTILINE)
"""The head of a protocol: its methods do nothing, and mutants beside them would have to be implemented."""
UNSEEN = r",\s*(strict=\w+|device=[\w.]+)"
"""``zip`` checks lengths that are never unequal, and the tests run on one device, the CPU."""


# --- in the pytest process -----------------------------------------------------------------------------


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: Any) -> bool:
    """Instead of running the tests once: record what they reach, then run them against every mutant."""
    if session.testsfailed:
        raise session.Interrupted(f"{session.testsfailed} errors in collecting the tests")
    given = json.loads(Path("job.json").read_text())
    gc.freeze()
    tests = _reached(session, given["workers"], Path(given["reach"]))
    until = time.monotonic() + 60 * given["minutes"]
    status: dict[str, str] = {}
    names, seen = given["mutants"], dict.fromkeys(given["mutants"], 0)
    for longest in LOOKS:
        chosen = {name: _chosen(name, tests, session.items, longest) for name in names}
        waiting = [(name, chosen[name][seen[name] :]) for name in names if len(chosen[name]) > seen[name]]
        status |= {name: "no tests" for name in names if not chosen[name]}
        for name, how in _in_turn(session, waiting, given["workers"], until):
            status[name] = how
            Path("status.json").write_text(json.dumps(status))
            sys.__stderr__.write(f"\r{len(status)} of {len(given['mutants'])} mutants, "
                                 f"{sum(how in KILLED for how in status.values())} killed ")  # fmt: skip
        seen = {name: len(tests_of) for name, tests_of in chosen.items()}
        names = [name for name in names if status.get(name) == "survived"]
        until = float("inf")
    Path("status.json").write_text(json.dumps(status))
    return True


class Reach:
    """The pytest plug-in that records which functions every test reaches, its fixtures included."""

    def __init__(self) -> None:
        self.tests: dict[str, dict[str, Any]] = {}
        self.by_fixture: dict[int, set[str]] = {}
        signal.signal(signal.SIGPROF, self._slow)

    def _slow(self, *_: object) -> None:
        raise TimeoutError(f"a test of more than {SLOWEST} seconds")

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: Any) -> Iterator[None]:
        """The CPU time of the test itself. One that is slow fails, and is left out by that."""
        about = self.tests[item.nodeid]
        before = time.process_time()
        signal.setitimer(signal.ITIMER_PROF, SLOWEST)
        try:
            return (yield)
        except TimeoutError:
            about["slow"] = True
            raise
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            about["seconds"] = time.process_time() - before

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any) -> Iterator[None]:
        """What is made once for several tests is reached by each of them."""
        before, hits = _hits().copy(), _hits()
        hits.clear()
        try:
            return (yield)
        finally:
            self.by_fixture.setdefault(id(fixturedef), set()).update(hits)
            hits.update(before)

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Whether a test fails as the code is."""
        about = self.tests.setdefault(report.nodeid, {"functions": [], "seconds": 0.0, "failed": False})
        about["failed"] |= report.failed

    def pytest_runtest_teardown(self, item: Any) -> None:
        """What the test reached."""
        hits = set(_hits())
        _hits().clear()
        for definitions in item._fixtureinfo.name2fixturedefs.values():
            for definition in definitions:
                hits |= self.by_fixture.get(id(definition), set())
        self.tests[item.nodeid]["functions"] = sorted(hits)


def _hits() -> set[str]:
    from mutmut.state import state

    hits: set[str] = state()._stats
    return hits


def _reached(session: Any, workers: int, kept: Path) -> dict[str, list[tuple[float, int]]]:
    """For every function the tests that reach it, as (seconds, index in ``session.items``).

    What was recorded earlier is kept for tests of the same name while the code stays the same.
    """
    code = tree_digest(Path("advens"))
    before = json.loads(kept.read_text()) if kept.is_file() else {}
    tests: dict[str, dict[str, Any]] = before["tests"] if before.get("code") == code else {}
    index = {item.nodeid: k for k, item in enumerate(session.items)}
    new = [item for item in session.items if item.nodeid not in tests]
    parts = [new[k::workers] for k in range(workers)]

    def record(part: int) -> int:
        plugin = Reach()
        session.config.pluginmanager.register(plugin)
        _run(session, parts[part], "stats", first_failure=False)
        Path(f"reach-{part}.json").write_text(json.dumps(plugin.tests))
        return 0

    for part in range(workers):
        parts[part].sort(key=lambda item: item.nodeid.partition("::")[0])  # fixtures of modules are made once
    pids = [_fork(lambda part=part: record(part), f"stats-{part}") for part in range(workers)]
    ends = [os.waitpid(pid, 0)[1] for pid in pids]
    if any(ends):
        raise session.Interrupted("the tests do not run without any change: see stats-*.log")
    for part in range(workers):
        tests |= json.loads(Path(f"reach-{part}.json").read_text())
    tests = {test: about for test, about in tests.items() if test in index}
    kept.write_text(json.dumps({"code": code, "tests": tests}))
    left_out = {test: "slow" in about for test, about in tests.items() if about["failed"]}
    for test, slow in left_out.items():
        sys.__stderr__.write(f"left out: {test} {'is slow' if slow else 'fails without any change'}\n")
    if list(left_out.values()).count(False) > MOST_FAILING:
        raise session.Interrupted("more tests than that fail without any change")
    found: dict[str, list[tuple[float, int]]] = defaultdict(list)
    for test in tests.keys() - left_out.keys():
        for function in tests[test]["functions"]:
            found[function].append((tests[test]["seconds"], index[test]))
    return found


def tree_digest(folder: Path) -> str:
    """The digest of all code below a folder."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("**/*.py")):
        digest.update(f"{path}".encode() + path.read_bytes())
    return digest.hexdigest()


def _chosen(
    mutant: str, tests: dict[str, list[tuple[float, int]]], items: list[Any], longest: float
) -> list[tuple[float, int]]:
    """The tests of a mutant as far as their time allows: those of its own module, then the fastest."""
    function = mutant.partition("__mutmut_")[0]
    module = mutant.partition(".x")[0].rpartition(".")[2]
    found, spent = [], 0.0
    reached = [(module not in items[k].path.stem, seconds, k) for seconds, k in tests.get(function, ())]
    for _, seconds, k in sorted(reached):
        spent += seconds
        if found and spent > longest:
            break
        found.append((seconds, k))
    return found


def _in_turn(
    session: Any, waiting: list[tuple[str, list[tuple[float, int]]]], workers: int, until: float
) -> Iterator[tuple[str, str]]:
    """(mutant, what became of it) as they end; none is begun when time is up."""
    running: dict[int, tuple[str, float]] = {}
    queue = iter(waiting)
    more = True
    while more or running:
        while more and len(running) < workers:
            name, chosen = next(queue, ("", []))
            more = bool(name) and time.monotonic() < until
            if more:
                items = [session.items[k] for _, k in chosen]
                allowed = PATIENCE[0] + PATIENCE[1] * sum(seconds for seconds, _ in chosen)
                pid = _fork(lambda: _run(session, items, name, allowed), "mutant")  # noqa: B023
                running[pid] = (name, time.monotonic() + 20 * allowed)
        for pid in list(running):
            name, deadline = running[pid]
            if time.monotonic() > deadline:
                os.killpg(pid, signal.SIGKILL)
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                del running[pid]
                yield name, _status(os.waitstatus_to_exitcode(status))
        time.sleep(0.05)


def _status(code: int) -> str:
    if code < 0:
        return "timeout" if -code in (signal.SIGXCPU, signal.SIGKILL) else "crash"
    return "killed" if code else "survived"


def _fork(work: Callable[[], int], log: str) -> int:
    """A child with a process group of its own; its exit code is what ``work`` gives."""
    pid = os.fork()
    if pid:
        return pid
    code = 3
    try:
        os.setpgid(0, 0)
        with open(f"{log}.log", "w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        code = work()
    finally:
        os._exit(code)


def _run(
    session: Any, items: list[Any], mutant: str, seconds: float | None = None, first_failure: bool = True
) -> int:
    """Run tests (until one fails): 1 if one fails, else 0. A process that takes too long is killed."""
    from mutmut.mutation.trampoline import set_mutant_under_test

    if seconds is not None:
        used = resource.getrusage(resource.RUSAGE_SELF)
        most = int(used.ru_utime + used.ru_stime + seconds) + 1
        resource.setrlimit(resource.RLIMIT_CPU, (most, most + 1))
    folder = Path("tmp", str(os.getpid())).absolute()
    folder.parent.mkdir(exist_ok=True)
    session.config._tmp_path_factory._given_basetemp = folder
    set_mutant_under_test(mutant)
    for k, item in enumerate(items):
        following = items[k + 1] if k + 1 < len(items) else None
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        if first_failure and session.testsfailed:
            break
    shutil.rmtree(folder, ignore_errors=True)
    return int(session.testsfailed > 0)


# --- around it ---------------------------------------------------------------------------------------


def lay_out() -> None:
    """The tree as it installs, and beside its changed copy the tests and what they read.

    Mutants of files that are still the same stay from an earlier time.
    """
    copy = TREE / "mutants"
    new = TREE / "new"
    shutil.rmtree(new, ignore_errors=True)
    build = "import setuptools; setuptools.setup()"
    arguments = ["-W", "ignore", "-c", build, "-q", "build_py", "--build-lib", str(new)]
    subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True)
    for path in new.glob("advens/**/*.py"):
        text = path.read_text()
        path.write_text(PROTOCOL.sub(r"\g<0>  # pragma: no mutate block", text))
    for old in TREE.glob("advens/**/*"):
        path = new / old.relative_to(TREE)
        if old.is_file() and not (path.is_file() and path.read_bytes() == old.read_bytes()):
            old.unlink()
            for made in copy.glob(f"{glob.escape(str(old.relative_to(TREE)))}*"):
                made.unlink()
    for path in new.glob("advens/**/*"):
        place = TREE / path.relative_to(new)
        if path.is_file() and not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, place)
    for place in copy.glob("*"):
        if place.name != "advens":
            shutil.rmtree(place) if place.is_dir() else place.unlink()
    copy.mkdir(exist_ok=True)
    shutil.copy2(ROOT / "pyproject.toml", TREE)
    for name in ("pyproject.toml", "README.md"):
        shutil.copy2(ROOT / name, copy)
    for folder in ("tests", "results/reference"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))


def mutants(workers: int) -> dict[str, str]:
    """Makes the mutants: all by name, with their folder, but those not counted."""
    from mutmut.__main__ import copy_src_dir, create_mutants
    from mutmut.mutation.data import MutantLineSpans
    from mutmut.utils.file_utils import walk_mutatable_files
    from mutmut.utils.format_utils import get_mutant_name

    copy_src_dir()
    create_mutants(workers)
    found = {}
    for path in walk_mutatable_files():
        spans = MutantLineSpans.load(path)
        names = list(spans.span_by_function_name) if spans else []
        texts = dict(zip(names, spans.read_function_sources(names) if spans else [], strict=True))
        for name in names:
            original = name.rpartition("_mutmut_")[0] + "_mutmut_orig"
            if name != original and not same(texts[original].replace(original, name), texts[name]):
                found[get_mutant_name(path, name)] = path.parts[1]
    return found


def same(original: str, mutant: str) -> bool:
    """Whether a change is not counted: of ``strict=`` or ``device=``, or of the case of letters alone."""
    plain = [re.sub(r",\s*\)", ")", re.sub(UNSEEN, "", text)) for text in (original, mutant)]
    return plain[0] == plain[1] or original.lower() == mutant.lower()


def drawn(named: dict[str, str], size: int, seed: int) -> list[str]:
    """``size`` mutants in random order, from every folder in proportion to its mutants."""
    groups = {folder: sorted(n for n, f in named.items() if f == folder) for folder in FOLDERS}
    exact = {folder: size * len(names) / len(named) for folder, names in groups.items()}
    take = {folder: int(share) for folder, share in exact.items()}
    for folder in sorted(exact, key=lambda f: take[f] - exact[f])[: size - sum(take.values())]:
        take[folder] += 1
    generator = random.Random(seed)
    names = [name for folder in FOLDERS for name in generator.sample(groups[folder], take[folder])]
    generator.shuffle(names)
    return names


def figure(status: dict[str, str], named: dict[str, str], command: str, commit: str) -> str:
    """The table by folder, with Wilson intervals when it is a sample, and what survived."""
    from advens.results.statistics import wilson

    lines = ["| folder | mutants | looked at | killed | survived | killed % |", "|---|---|---|---|---|---|"]
    for folder in (*FOLDERS, "all"):
        own = [how for name, how in status.items() if folder in (named[name], "all")]
        dead, n = sum(how in KILLED for how in own), len(own)
        total = sum(folder in (each, "all") for each in named.values())
        share = f"{100 * dead / n:.1f}" if n else "-"
        if 0 < n < total:
            low, high = wilson(dead, n)
            share += f" [{100 * low:.1f}, {100 * high:.1f}]"
        label = "benchmarks/verify.py, checks.py" if folder == "benchmarks" else folder
        lines.append(f"| {label} | {total} | {n} | {dead} | {n - dead} | {share} |")
    kinds = ", ".join(f"{count} {how}" for how, count in sorted(Counter(status.values()).items()))
    alive = [f"* `{name}`: {how}" for name, how in sorted(status.items()) if how not in KILLED]
    return "\n".join([
        f"`{command}` at commit {commit}: {kinds}. Brackets: Wilson 95 % intervals of a sample.", "",
        *lines, "", "Not killed:" if alive else "", "", *alive, "",
    ])  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sample", type=int, help="how many mutants; all of them by default")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--only", default="", help="only mutants whose name begins so: advens.results.store")
    parser.add_argument("--workers", type=int, default=1, help="processes")
    parser.add_argument("--minutes", type=float, default=FOREVER, help="none is begun after them")
    parser.add_argument("--out", type=Path, default=FIGURE)
    given = parser.parse_args()
    asked = ["git", "rev-parse", "--short=12", "HEAD"]
    commit = subprocess.run(asked, cwd=ROOT, text=True, capture_output=True, check=False).stdout.strip()
    lay_out()
    os.chdir(TREE)
    named = {n: folder for n, folder in mutants(given.workers).items() if n.startswith(given.only)}
    names = drawn(named, given.sample or len(named), given.seed)
    os.chdir(TREE / "mutants")
    job = {"mutants": names, "workers": given.workers, "minutes": given.minutes, "reach": str(REACH)}
    Path("job.json").write_text(json.dumps(job))
    options = ["-p", "tests.mutants", "-p", "no:cacheprovider", "-p", "no:xdist", "--capture=sys"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "100", "PYTHONPATH": os.getcwd()}
    subprocess.run([sys.executable, "-m", "pytest", *options, *TESTS], env=environment, check=True)
    status = json.loads(Path("status.json").read_text())
    command = "make mutants" + (f" SAMPLE={given.sample} SEED={given.seed}" if given.sample else "")
    command += f" MINUTES={given.minutes:g}" if given.minutes < FOREVER else ""
    given.out.write_text(figure(status, named, command, commit))
    sys.stdout.write(given.out.read_text())


if __name__ == "__main__":
    main()
