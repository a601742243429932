"""``make mutants``: single changes of the code (mutants) that the tests should notice, counted by folder.

The repository is laid out as it installs in ``build/mutants``, mutmut changes it there, and every mutant
is run against the tests that reach its function, the fastest first. With ``--sample N`` these are N
mutants, drawn with a seed from every folder in proportion to its size. What survives is listed, so that a
test can be written or the mutant recognised as the same program.

This file is also the pytest plug-in that puts the tests of a mutant in order.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
TREE = ROOT / "build" / "mutants"
FIGURE = ROOT / "results" / "reference" / "mutants.md"
FOLDERS = ("results", "attacks", "defenses", "benchmarks")
KILLED = ("killed", "timeout", "segfault")
STRICT = r",\s*strict=\w+"
"""``zip`` checks lengths that are never unequal."""


def pytest_collection_modifyitems(items: list[Any]) -> None:
    """The fastest first: most mutants die young."""
    stats = Path("mutmut-stats.json")
    if stats.is_file():
        seconds = json.loads(stats.read_text())["duration_by_test"]
        items.sort(key=lambda item: seconds.get(item.nodeid, 0.0))


def lay_out() -> None:
    """The tree as it installs, with the tests and what they read beside it."""
    TREE.mkdir(parents=True, exist_ok=True)
    build = "import setuptools; setuptools.setup()"
    arguments = ["-W", "ignore", "-c", build, "-q", "build_py", "--build-lib", str(TREE)]
    subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True)
    for name in ("pyproject.toml", "README.md"):
        shutil.copy2(ROOT / name, TREE)
    for folder in ("tests", "results/reference"):
        for place in (TREE, TREE / "mutants"):
            shutil.rmtree(place / folder, ignore_errors=True)
        shutil.copytree(ROOT / folder, TREE / folder, ignore=shutil.ignore_patterns("__pycache__"))


def mutants(workers: int) -> dict[str, str]:
    """Makes the mutants that are not made yet: all by name, with their folder, but those not counted."""
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
    """Whether a change is not counted: of ``strict=``, or of the case of letters alone."""
    plain = [re.sub(r",\s*\)", ")", re.sub(STRICT, "", text)) for text in (original, mutant)]
    return plain[0] == plain[1] or original.lower() == mutant.lower()


def drawn(named: dict[str, str], size: int, seed: int) -> list[str]:
    """``size`` mutants, from every folder in proportion to its mutants (largest remainders)."""
    groups = {folder: sorted(n for n, f in named.items() if f == folder) for folder in FOLDERS}
    exact = {folder: size * len(names) / len(named) for folder, names in groups.items()}
    take = {folder: int(share) for folder, share in exact.items()}
    for folder in sorted(exact, key=lambda f: take[f] - exact[f])[: size - sum(take.values())]:
        take[folder] += 1
    generator = random.Random(seed)
    return [name for folder in FOLDERS for name in generator.sample(groups[folder], take[folder])]


def results(names: Iterable[str]) -> dict[str, str]:
    """What became of the mutants: ``killed``, ``survived``, ``no tests``, ``timeout`` ..."""
    from mutmut.stats import status_by_exit_code

    codes: dict[str, int | None] = {}
    for path in Path("mutants").rglob("*.meta"):
        codes |= json.loads(path.read_text())["exit_code_by_key"]
    return {name: status_by_exit_code[codes[name]] for name in names}


def figure(status: dict[str, str], named: dict[str, str], command: str) -> str:
    """The table by folder, with Wilson intervals when it is a sample, and what survived."""
    from advens.results.statistics import wilson

    commit = subprocess.run(
        ["git", "rev-parse", "--short=12", "HEAD"], cwd=ROOT, text=True, capture_output=True, check=False
    ).stdout.strip()
    lines = ["| folder | mutants | looked at | killed | survived | killed % |", "|---|---|---|---|---|---|"]
    for folder in (*FOLDERS, "all"):
        own = [how for name, how in status.items() if folder in (named[name], "all")]
        dead, n = sum(how in KILLED for how in own), len(own)
        total = sum(folder in (each, "all") for each in named.values())
        share = f"{100 * dead / n:.1f}" if n else "-"
        if 0 < n < total:
            low, high = wilson(dead, n)
            share += f" [{100 * low:.1f}, {100 * high:.1f}]"
        label = "benchmarks/verify.py" if folder == "benchmarks" else folder
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
    parser.add_argument("--out", type=Path, default=FIGURE)
    given = parser.parse_args()
    lay_out()
    os.chdir(TREE)
    made = mutants(given.workers)
    named = {name: folder for name, folder in made.items() if name.startswith(given.only)}
    names = drawn(named, given.sample, given.seed) if given.sample else sorted(named)
    run = [str(Path(sys.executable).parent / "mutmut"), "run", "--max-children", str(given.workers)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "100"}
    chosen = names if len(names) < len(named) or given.only else []
    subprocess.run([*run, *chosen], env=environment, check=True)
    command = "make mutants" + (f" SAMPLE={given.sample} SEED={given.seed}" if given.sample else "")
    given.out.write_text(figure(results(names), named, command))
    sys.stdout.write(given.out.read_text())


if __name__ == "__main__":
    main()
