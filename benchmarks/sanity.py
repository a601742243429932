"""The sanity report of a run: every model that is attacked white-box is checked once, by a task.

What is checked, and when a check fails, is in `advens.attacks.whitebox.sanity`. The result is kept beside the
run, in ``sanity/``, by all that it depends on, so that a rerun checks only models that are new.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from advens.attacks.whitebox.adaptive import Adaptive
from advens.attacks.whitebox.sanity import Limits, SanityReport, sanity_report
from advens.benchmarks.cells import Cell
from advens.benchmarks.suites import SanityTable, Suite, expanded
from advens.benchmarks.tasks import opened
from advens.benchmarks.worker_cache import default_batch, worker_cache
from advens.digest import value_digest
from advens.errors import InputError, RunError
from advens.files import os_errors, read_regular
from advens.models import describe
from advens.results.boards.board import BOARDS, path_of, read_board
from advens.results.boards.sanity import OFF, failed_lines, write_sanity
from advens.results.store import RunStore, write_bytes
from advens.threat import Threat

VERSION = 1
"""Raised when the same task would give another report."""
FOLDER = "sanity"
UNMEASURED = "report"
"""Name of the check that failed when a model could not be checked at all."""


@dataclass(frozen=True)
class CheckModel:
    """Check one model.

    Args:
        name: of the model.
        source: the data, of which at most ``images``, evenly spread, are used.
        norm, eps: the ball of the evaluation.
        surrogates: models that images are transferred from.
        eot: passes that the attacks of the evaluation average.
        seed: of all randomness.
        images, share, level: see `Limits`.
        stand_in: name and digest of the stand-in that an adaptive attack of the evaluation goes through.
    """

    name: str
    source: str
    norm: str
    eps: float | str
    surrogates: tuple[str, ...]
    eot: int
    seed: int
    images: int
    share: float
    level: float
    stand_in: tuple[str, str] | None = None

    @property
    def title(self) -> str:
        return self.name

    def do(self, device: str) -> dict[str, Any]:
        """Checks. Returns what is kept of the report."""
        cache = worker_cache(device)
        batch = cache.spread(self.source, self.images)
        model, *surrogates = cache.models.get([self.name, *self.surrogates])
        report = sanity_report(
            model, cache.images(batch.pixels), batch.labels.to(cache.device), Threat(self.norm, self.eps),
            surrogates=surrogates, eot=self.eot, seed=self.seed,
            limits=Limits(self.images, self.share, self.level), batch=default_batch(batch.pixels),
            stand_in=self.stand_in,
        )  # fmt: skip
        return kept(report)

    @cached_property
    def key(self) -> str:
        """The digest of all that the report depends on."""
        about = asdict(self) | {"data": opened(self.source).digest}
        about["models"] = [describe(name).digest for name in (self.name, *self.surrogates)]
        return value_digest([VERSION, about], 20)


def kept(report: SanityReport) -> dict[str, Any]:
    """A report as JSON."""
    return {
        "checks": [asdict(check) for check in report.checks],
        "curves": [
            {"curve": curve.over, "at": at, "accuracy": accuracy, "n": report.images}
            for curve in report.curves for at, accuracy in zip(curve.at, curve.accuracy, strict=True)
        ],
        "passes": [report.forwards, report.backwards],
    }  # fmt: skip


def unmeasured(error: RunError) -> dict[str, Any]:
    """What stands for the report of a model that could not be checked."""
    check = {"check": UNMEASURED, "passed": False, "value": 1.0, "bound": 0.0, "detail": str(error)}
    return {"checks": [{"name": check.pop("check"), **check}], "curves": []}


def tasks_of(suite: Suite, cells: Iterable[Cell]) -> list[CheckModel]:
    """A task for every model that the cells of a robustness run attack; none where the report is off."""
    if suite.sanity is False:
        return []
    limits = SanityTable() if suite.sanity is True else suite.sanity
    eot: dict[str, int] = {}
    through: dict[str, tuple[str, str]] = {}
    for cell in cells:
        attack: Any = cell.build()
        eot[cell.specs[0]] = max(eot.get(cell.specs[0], 1), getattr(attack, "eot", 1))
        if isinstance(attack, Adaptive) and attack.stand_in:
            through.setdefault(cell.specs[0], (attack.stand_in, attack.source))
    threat = suite.threat.threat()
    return [
        CheckModel(
            name, suite.source, threat.norm, threat.eps, expanded(limits.surrogates), passes, suite.seeds[0],
            limits.images, limits.share, limits.level, through.get(name),
        )
        for name, passes in eot.items()
    ]  # fmt: skip


def kept_path(store: RunStore, task: CheckModel) -> Path:
    """Where what came of a task is kept."""
    return store.path(FOLDER, f"{task.key}.json")


def read_kept(store: RunStore, task: CheckModel) -> dict[str, Any] | None:
    """What an earlier run kept of a task; None without a sound file."""
    path = kept_path(store, task)
    if not path.is_file():
        return None
    try:
        found: dict[str, Any] = json.loads(read_regular(path))
        return found if {"checks", "curves"} <= set(found) else None
    except (ValueError, TypeError, RecursionError):
        return None


def keep(store: RunStore, task: CheckModel, report: Mapping[str, Any]) -> None:
    """Keep what came of a task."""
    write_bytes(kept_path(store, task), (json.dumps(report, indent=1) + "\n").encode())


def write_report(
    store: RunStore, reports: Mapping[CheckModel, Mapping[str, Any]], off: bool
) -> list[str]:
    """Write the tables of a run from the reports of its models, and remove reports that no task wants.

    Returns:
        A line for every failed check.
    """
    for path in strange(store, reports):
        with os_errors("remove", path):
            path.unlink(missing_ok=True)
    rows = [_rows(task.name, report) for task, report in reports.items()]
    checks, curves = ([row for each in rows for row in each[k]] for k in (0, 1))
    write_sanity(store.directory, checks, curves, off)
    return failed_lines(read_board(store.directory, "sanity"))


def strange(store: RunStore, tasks: Iterable[CheckModel]) -> list[Path]:
    """Files among the reports that are of none of these tasks."""
    known = {kept_path(store, task).name for task in tasks}
    return [store.path(FOLDER, path.name) for path in sorted(store.path(FOLDER).glob("*"))
            if path.name not in known]  # fmt: skip


def _rows(model: str, report: Mapping[str, Any]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The rows of both tables that a report gives."""
    checks = [
        {"model": model, "check": check["name"], **{k: v for k, v in check.items() if k != "name"}}
        for check in report["checks"]
    ]
    return checks, [{"model": model, **row} for row in report["curves"]]


def sanity_mismatches(
    store: RunStore, suite: Suite, tasks: Sequence[CheckModel], notes: list[str],
    device: str | None = None,
) -> Iterator[str]:  # fmt: skip
    """What is wrong with the sanity report of a run.

    Args:
        tasks: that the report comes of.
        notes: where it is said what was not checked.
        device: where every model is checked again; none is without.
    """
    if not path_of(store.directory, BOARDS.get("sanity")).is_file():
        if "sanity" in suite.model_fields_set:
            yield "sanity.parquet is missing"
        else:
            notes.append("the run is from before there were sanity reports, and holds none")
        return
    try:
        stored, curves = (read_board(store.directory, name) for name in ("sanity", "curves"))
    except (RunError, InputError) as error:
        yield str(error)
        return
    wanted = {task.name for task in tasks}
    if bool(stored.attrs.get(OFF)) != (suite.sanity is False):
        yield "sanity.parquet does not say what the suite says of whether the report was switched off"
    if set(stored["model"]) != wanted or not set(curves["model"]) <= wanted:
        yield "sanity.parquet and curves.parquet are not of the models that were attacked"
        return
    inside = stored["value"] <= stored["bound"]
    for row in stored[inside & ~stored["passed"]].itertuples():
        yield f"sanity.parquet: check '{row.check}' of {row.model} failed within its bound"
    for path in strange(store, tasks):
        yield f"{FOLDER}/{path.name} is the report of no model of the run"
    for task in tasks:
        yield from _kept_mismatches(store, task, stored, curves)
    if not tasks:
        return
    if device is None:
        notes.append("the sanity report was not measured again (--recraft does)")
        return
    for task in tasks:
        yield from _measured_again(task, stored[stored["model"] == task.name], device)


def _kept_mismatches(store: RunStore, task: CheckModel, stored: Any, curves: Any) -> Iterator[str]:
    """What is wrong between a report that was kept and the tables; entries hold the tables alone."""
    path = kept_path(store, task)
    if not path.is_file():
        return
    report = read_kept(store, task)
    if report is None:
        yield f"{FOLDER}/{path.name} is damaged"
        return
    try:
        wanted = _rows(task.name, report)
    except (KeyError, TypeError, ValueError, AttributeError):
        yield f"{FOLDER}/{path.name} is damaged"
        return
    for name, table, rows in (("sanity", stored, wanted[0]), ("curves", curves, wanted[1])):
        if table[table["model"] == task.name].to_dict("records") != rows:
            yield f"{name}.parquet is not what {FOLDER}/{path.name} says of {task.name}"


def _measured_again(task: CheckModel, stored: Any, device: str) -> Iterator[str]:
    """Numbers may differ by what the report itself allows: another machine rounds differently."""
    try:
        again = {check["name"]: check for check in task.do(device)["checks"]}
    except RunError as error:
        again = {UNMEASURED: {"value": 1.0, "bound": 0.0, "passed": False, "detail": str(error)}}
    if list(stored["check"]) != list(again):
        yield f"sanity.parquet: the checks of {task.name} are not those of the report"
        return
    slack = Limits(task.images, task.share, task.level).slack(task.images)
    for row in stored.itertuples():
        found = again[row.check]
        near = abs(row.value - found["bound"]) <= slack
        if abs(row.value - found["value"]) > slack or (row.passed != found["passed"] and not near):
            yield f"sanity.parquet: check '{row.check}' of {task.name} is not what was measured again"


__all__ = [
    "CheckModel", "keep", "read_kept", "sanity_mismatches", "tasks_of", "unmeasured",
    "write_report",
]
