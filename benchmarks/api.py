"""Runs from Python: `run` does a suite, `open_run` reads what a run stored.

    run = advens.run("quickstart", out="runs/quickstart")
    run.leaderboard                 # a pandas DataFrame
    ids, images = run.examples(attack="mifgsm", surrogates="ensemble", seed=0)
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any
from warnings import warn

from advens.benchmarks.suites import AnySuite, load, set_key, stored, suite_from
from advens.errors import InputError, InputWarning, RunError
from advens.files import inside
from advens.results.boards.board import BOARDS, path_of, read_board
from advens.results.boards.rows import Rows
from advens.results.reading import Examples, compare, read_examples, read_samples
from advens.results.store import RunStore
from advens.results.store.run_store import Filters
from advens.trust import trusting

if TYPE_CHECKING:
    import pandas as pd

    from advens.benchmarks.executors import Executor
    from advens.benchmarks.progress import Progress
    from advens.benchmarks.verify import Audit
    from advens.results.plot.runs import Plots


class Run:
    """What a run stored: its tables, rows and images.

    Args:
        directory: of the run, or of a folder of runs as suites of defenses leave them.

    Raises:
        InputError: there is no run.
    """

    def __init__(self, directory: Path | str) -> None:
        self.directory = Path(directory)
        if not inside(self.directory, "suite.toml").is_file():
            RunStore.open(self.directory)  # says what is missing

    def __repr__(self) -> str:
        return f"Run({str(self.directory)!r})"

    def _repr_html_(self) -> str:
        """A notebook shows a run by its tables."""
        shown = [f"<p><code>{self.directory}</code></p>"]
        for name in ("leaderboard", "robustness", "study", "defenses"):
            if path_of(self.directory, BOARDS.get(name)).is_file():
                shown.append(f"<h4>{name}</h4>{self.board(name)._repr_html_()}")
        return "\n".join(shown)

    @property
    def suite(self) -> AnySuite:
        """The suite, with every default written out. Raises InputError when there is none."""
        path = inside(self.directory, "suite.toml")
        if not path.is_file():
            raise InputError(f"{self.directory} holds no suite.toml")
        return stored(path)

    @property
    def matrix(self) -> pd.DataFrame:
        """The transferability matrix, a row for every attack, surrogate set and target."""
        return self.board("matrix")

    @property
    def leaderboard(self) -> pd.DataFrame:
        """Attacks ranked, with intervals, significance groups and compute."""
        return self.board("leaderboard")

    @property
    def robustness(self) -> pd.DataFrame:
        """Accuracy that white-box attacks leave, a row for every model and attack."""
        return self.board("robustness")

    @property
    def sanity(self) -> pd.DataFrame:
        """Checks that gradient attacks can measure each model, a row for every model and check."""
        return self.board("sanity")

    @property
    def defenses(self) -> pd.DataFrame:
        """A row for every defense of a suite of defenses."""
        return self.board("defenses")

    def board(self, name: str) -> pd.DataFrame:
        """A table by name, as it is stored; computed from the rows where no file holds it.

        Raises:
            InputError: an unknown name, or a run without the rows for this table.
            RunError: a damaged file.
        """
        board = BOARDS.get(name)
        if path_of(self.directory, board).is_file():
            return read_board(self.directory, name)
        return board.compute(Rows(self.directory))

    def samples(
        self, columns: Sequence[str] | None = None, filters: Filters | None = None
    ) -> pd.DataFrame:
        """The rows of ``samples``: one for every cell, target and image.

        See `advens.results.reading.read_samples`.
        """
        return read_samples(self.directory, columns, filters)

    def examples(
        self, attack: str | None = None, surrogates: str | None = None, seed: int | None = None
    ) -> Examples:
        """Stored adversarial images with the samples they belong to.

        See `advens.results.reading.read_examples`.
        """
        return read_examples(self.directory, attack, surrogates, seed)

    def compare(self, a: str, b: str, denominator: str = "target") -> dict[str, Any]:
        """The difference in success rate between two attacks, paired over images.

        See `advens.results.boards.compare.compare`.
        """
        return compare(self.directory, a, b, denominator)

    def report(self, out: Path | str | None = None, *, images: bool = True) -> Path:
        """Write the run as one self-contained page; ``report.html`` in its directory by default.

        See `advens.results.report.page.write_report`.
        """
        from advens.results.report.page import write_report

        return write_report(self.directory, out, images=images)

    @property
    def plot(self) -> Plots:
        """Figures of the run for papers and notebooks: ``run.plot.matrix()``.

        See `advens.results.plot.runs.Plots`.
        """
        from advens.results.plot.runs import Plots

        return Plots(self.directory)

    def verify(
        self, device: str = "cpu", *, recraft: float | None = None, challenge: str | None = None,
        suite: str | None = None, sample: str | None = None, seed: int | None = None,
        executor: str | Executor = "local", workers: int | None = None,
    ) -> list[str]:  # fmt: skip
        """What does not follow from the stored bytes, one line each; none for a sound run.

        Args:
            device, workers: of an executor that is named.
            recraft: the share of the cells to craft again and compare with the stored images; none without.
            challenge: the text that these cells are drawn with; a random one without.
            suite: whose settings the run must have: a bundled one by name, or a file.
            sample: which part of the evaluations is checked: ``"1%"``, or ``"200"`` of them; all without.
            seed: that these are drawn with; a random one without.
            executor: ``local``, ``ray``, a plug-in's name, or an executor.

        Raises:
            InputError: the run, its data or one of its models cannot be read, or there is no such suite.
            RunError: a part could not be checked, as a worker process died.
        """
        from advens.benchmarks.checks import Work
        from advens.benchmarks.executors import create_executor
        from advens.benchmarks.recraft import Sample
        from advens.benchmarks.selection import Selection, new_seed
        from advens.benchmarks.verify import verify_directory

        if isinstance(executor, str):
            executor = create_executor(executor, device=device, workers=workers)
        again = None if recraft is None else Sample(recraft, challenge or secrets.token_hex(8))
        drawn = None if sample is None else Selection.parse(sample, new_seed() if seed is None else seed)
        found: list[tuple[str, Audit]] = [
            *verify_directory(self.directory, Work(executor), recraft=again, sample=drawn, suite=suite)
        ]
        return [
            f"{name}: {line}" if name else line for name, audit in found for line in audit.mismatches
        ]


def run(
    suite: str | Path | Mapping[str, Any] | AnySuite,
    out: Path | str | None = None,
    *,
    executor: str | Executor = "local",
    device: str = "cpu",
    workers: int | None = None,
    settings: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    lock: Path | str | None = None,
) -> Run:
    """Do what is missing of a suite.

    Args:
        suite: the name of a bundled suite, the path of a TOML file, its table as a dictionary, or a suite.
            Names of models and data in a dictionary are trusted, as they are written in your own code; those
            in files are not.
        out: the run's directory; ``runs/NAME`` by default.
        executor: ``local``, ``ray``, a plug-in's name, or an executor.
        device, workers: of an executor that is named.
        settings: keys of the suite to override, by their dotted names: ``{"threat.eps": 0.1}``.
        progress: where to say how far the run is; nowhere by default.
        lock: a file of ``advens lock`` whose models and data the run is held to; for a suite that is named,
            by default the one beside it, if there is one.

    Failed checks of the sanity report are given as a warning; see ``Run.sanity``.

    Raises:
        InputError: the suite, a model or the data cannot be used, or the directory holds another run.
        RunError: some cells failed; finished ones are kept, and the same call goes on.
    """
    from advens.benchmarks.executors import create_executor
    from advens.benchmarks.pins import find_lock
    from advens.benchmarks.runner import run_suite

    wanted = _suite(suite, settings or {})
    directory = Path(out) if out is not None else Path("runs") / wanted.name
    if isinstance(executor, str):
        executor = create_executor(executor, device=device, workers=workers)
    own = _names(suite) if isinstance(suite, Mapping) else []
    with trusting(*own):
        report = run_suite(
            wanted, directory, executor=executor, progress=progress, lock=find_lock(suite, lock)
        )
    if report.failures:
        raise RunError(
            f"{len(report.failures)} cells failed ({report.failures[0][1]}); "
            f"see 'advens status {directory}'"
        )
    if report.unsound:
        warn("; ".join(report.unsound), InputWarning, stacklevel=2)
    return Run(directory)


def open_run(directory: Path | str) -> Run:
    """What a run stored. Raises InputError when there is no run."""
    return Run(directory)


def _suite(suite: str | Path | Mapping[str, Any] | AnySuite, settings: Mapping[str, Any]) -> AnySuite:
    if isinstance(suite, (str, Path)):
        return load(str(suite), settings)
    table = deepcopy(dict(suite)) if isinstance(suite, Mapping) else suite.model_dump(exclude_none=True)
    for key, value in settings.items():
        set_key(table, key, value)
    return suite_from(table, "suite")


def _names(value: Any) -> list[str]:
    """All text in a table: the names of models and data are among it."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        value = value.values()
    elif not isinstance(value, (list, tuple)):
        return []
    return [name for each in value for name in _names(each)]
