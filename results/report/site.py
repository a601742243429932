"""A site: many runs as static pages, an index, a page for every run, attack and model, and merged boards."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from advens.digest import value_digest
from advens.errors import InputError
from advens.files import new_folder, os_errors, read_regular
from advens.results.boards.leaderboard import leaderboard
from advens.results.boards.matrix import transfer_matrix
from advens.results.boards.robustness import robustness
from advens.results.boards.rows import Rows
from advens.results.boards.summary import radius
from advens.results.report import charts
from advens.results.report.collect import (
    Attacked,
    Cell,
    Check,
    Left,
    Part,
    Rate,
    Recipe,
    Report,
    Robustness,
    Row,
    Run,
    Transfer,
    collect,
    families_of,
    recipes_of,
    robustness_of,
    short_names,
    suite_of,
    transfer_of,
)
from advens.results.report.findings import findings, of_robustness, of_transfer
from advens.results.report.page import matrix_data, pictures, render, view, written

MANIFEST = "site.json"
"""The list of the files of a site: a folder that holds it, and nothing that it does not list, is replaced."""
SHOWN = 5
"""Rows of a board that the index shows."""
MOST_MODELS = 10
"""Models of a board of robustness that the index shows."""
Facts = tuple[tuple[str, str], ...]
Papers = Callable[[str, str], Sequence[tuple[str, str]]]
"""The sources of an attack, from what it is called and its specification: names of methods, and papers."""


@dataclass(frozen=True)
class Source:
    """A run that a site shows.

    Args:
        directory: of the run.
        title: what it is called, unlike all others.
        label: the recorded label of an entry; empty for a run.
        facts: what the authors of an entry say of it.
    """

    directory: Path
    title: str
    label: str = ""
    facts: Facts = ()


@dataclass(frozen=True)
class Shown:
    """A run with its page.

    Args:
        file: the address of its page.
        settings: what must agree for two boards to be merged; none for folders of defenses.
        recipes: the specification of every attack in it, by name.
    """

    source: Source
    report: Report
    file: str
    settings: Facts
    recipes: tuple[tuple[str, Recipe], ...]

    @property
    def title(self) -> str:
        """What it is called."""
        return self.source.title


@dataclass(frozen=True)
class Board:
    """The board of runs whose settings agree, of transfer or of robustness.

    Args:
        part: it, as pages show it.
        file: the address of its page; of a single run, where that run's page has it.
        apart: how its settings differ from those of the first board; nothing of the first.
    """

    runs: tuple[Shown, ...]
    settings: Facts
    part: Part
    file: str
    apart: tuple[str, ...]

    @property
    def title(self) -> str:
        """The runs in it."""
        return ", ".join(run.title for run in self.runs)

    @property
    def transfer(self) -> Transfer | None:
        """Attacks ranked by their transfer, and the matrix below."""
        return self.part.transfer

    @property
    def robustness(self) -> Robustness | None:
        """What attacks leave to every model."""
        return self.part.robustness


@dataclass(frozen=True)
class Ranked:
    """A row of a run's board, on the page of its attack.

    Args:
        part: the place of the part of the run that has it.
        of: how many rows the board has.
    """

    run: Shown
    part: int
    row: Row
    of: int


@dataclass(frozen=True)
class Kept:
    """What an attack leaves to a model in a run."""

    run: Shown
    part: int
    model: Attacked
    left: Left


@dataclass(frozen=True)
class Fooled:
    """An attack on a model as a target."""

    run: Shown
    part: int
    row: Row
    cell: Cell


@dataclass(frozen=True)
class Attack:
    """An attack in all runs.

    Args:
        papers: of its method and its parts.
        recipes: what it is made of, each with the runs that have it so.
    """

    name: str
    file: str
    family: str
    papers: Facts
    recipes: tuple[tuple[Recipe, tuple[str, ...]], ...]
    rows: tuple[Ranked, ...]
    kept: tuple[Kept, ...]

    @property
    def runs(self) -> list[str]:
        """The runs that it is in."""
        return sorted({e.run.title for e in self.rows} | {e.run.title for e in self.kept})

    @property
    def best(self) -> Ranked | None:
        """Its row with the highest mean."""
        known = [each for each in self.rows if each.row.new.value is not None]
        return max(known, key=lambda each: each.row.new.value or 0.0, default=None)


@dataclass(frozen=True)
class Model:
    """A model in all runs: one name with one digest of weights.

    Args:
        digest: empty where no run says it.
        clean: its accuracy without an attack, by run.
    """

    name: str
    file: str
    digest: str
    family: str
    clean: tuple[tuple[Shown, float | None, int], ...]
    fooled: tuple[Fooled, ...]
    kept: tuple[Kept, ...]
    worst: tuple[tuple[Shown, int, Attacked], ...]
    checks: tuple[tuple[Shown, Check], ...]

    @property
    def runs(self) -> list[str]:
        """The runs that it is in."""
        return sorted({run.title for run, _, _ in self.clean})

    @property
    def strongest(self) -> Fooled | None:
        """The held-out attack that fools it most often."""
        known = [e for e in self.fooled if not e.cell.white_box and e.cell.rate.value is not None]
        return max(known, key=lambda each: each.cell.rate.value or 0.0, default=None)

    @property
    def least(self) -> Rate | None:
        """The least accuracy that attacks leave to it in a run."""
        rates = [each.left.rate for each in self.kept] + [m.worst for _, _, m in self.worst if m.worst]
        known = [rate for rate in rates if rate.value is not None]
        return min(known, key=lambda rate: rate.value or 0.0, default=None)


@dataclass(frozen=True)
class Site:
    """All that a site shows.

    Args:
        left_out: runs that cannot be shown, and why.
    """

    runs: tuple[Shown, ...]
    boards: tuple[Board, ...]
    attacks: tuple[Attack, ...]
    models: tuple[Model, ...]
    left_out: Facts


def gather(sources: Iterable[Source], papers: Papers = lambda name, spec: ()) -> Site:
    """Everything that the pages of a site show.

    Args:
        sources: with titles that differ.

    Raises:
        InputError: none of them has a finished cell.
        RunError: a damaged file.
    """
    runs, left_out = [], []
    for source in sorted(sources, key=lambda each: each.title):
        try:
            runs.append(_shown(source))
        except InputError as error:
            left_out.append((source.title, str(error).replace(str(source.directory), source.title)))
    if not runs:
        raise InputError(left_out[0][1] if left_out else "there are no runs for a site")
    return Site(tuple(runs), _boards(runs), _attacks(runs, papers), _models(runs), tuple(left_out))


def _shown(source: Source) -> Shown:
    report = collect(source.directory)
    stores = [Run(source.directory / part.folder) for part in report.parts]
    recipes = {
        (attack, recipe.json): recipe
        for run in stores for (_, attack, _), recipe in recipes_of(run.cells).items()
    }  # fmt: skip
    settings: Facts = ()
    if report.defenses is None:
        settings = _settings(suite_of(source.directory), stores[0].cells)
    found = tuple((attack, recipe) for (attack, _), recipe in sorted(recipes.items(), key=lambda e: e[0]))
    return Shown(source, report, f"runs/{slug(source.title)}.html", settings, found)


def _settings(suite: Mapping[str, Any], cells: pd.DataFrame) -> Facts:
    """What must agree for two boards to be one: what results depend on beside attacks and models."""
    threat = suite.get("threat")
    others = threat if isinstance(threat, dict) else {}
    budgets = sorted({f"{n} {radius(e)}" for n, e in zip(cells["norm"], cells["eps"], strict=True)})
    found = {
        "data": sorted(set(map(str, cells["data_fingerprint"]))), "limit": suite.get("limit"),
        "budget of perturbations": budgets,
        **{key: others[key] for key in sorted(map(str, others)) if key not in ("norm", "eps")},
        "budget of passes": suite.get("budget"), "seeds": sorted(map(int, set(cells["seed"]))),
        "version of the suite": suite.get("version"), "advens": sorted(set(map(str, cells["version"]))),
    }  # fmt: skip
    return tuple((key, _written(value)) for key, value in found.items())


def _written(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return json.dumps(value, sort_keys=True) if isinstance(value, (dict, bool)) else str(value)


# --- boards ---------------------------------------------------------------------------------------


def _boards(runs: Sequence[Shown]) -> tuple[Board, ...]:
    """The boards of transfer of all runs, then those of robustness; of each those of most runs first."""
    single = [run for run in runs if run.settings]
    transfer = [run for run in single if run.report.parts[0].transfer is not None]
    robust = [run for run in single if run.report.parts[0].robustness is not None]
    return (
        *_grouped(transfer, "board-0", lambda own: Part("", transfer=_merged(own))),
        *_grouped(robust, "robustness-0", lambda own: Part("", robustness=_merged_robustness(own))),
    )


def _grouped(
    runs: Sequence[Shown], anchor: str, merge: Callable[[Sequence[Shown]], Part]
) -> Iterable[Board]:
    """A board for all runs whose settings agree.

    Args:
        anchor: where the page of a run has its board.
        merge: makes the board of several runs.
    """
    groups: dict[Facts, list[Shown]] = {}
    for run in runs:
        groups.setdefault(run.settings, []).append(run)
    ordered = sorted(groups.items(), key=lambda each: (-len(each[1]), each[1][0].title))
    for settings, own in ordered:
        apart = () if settings == ordered[0][0] else _differences(settings, ordered[0][0])
        part, file = own[0].report.parts[0], f"{own[0].file}#{anchor}"
        if len(own) > 1:
            part, file = merge(own), f"boards/{slug(', '.join(run.title for run in own))}.html"
        yield Board(tuple(own), settings, part, file, apart)


def _differences(settings: Facts, first: Facts) -> tuple[str, ...]:
    """How settings differ from others, a few words each."""
    here, there = dict(settings), dict(first)
    found = []
    for key in dict.fromkeys([*here, *there]):
        one, other = here.get(key, "none"), there.get(key, "none")
        if one != other:
            same = key == "data"  # digests say nothing to a reader
            found.append("other images" if same else f"{key} {one} in place of {other}")
    return tuple(found)


def _merged(runs: Sequence[Shown]) -> Transfer:
    """One board of several runs, as ``advens leaderboard`` computes it; sets are named with their run."""
    samples, cells = [], []
    for run in runs:
        rows = Rows(run.source.directory)
        names = sorted(set(map(str, rows.cells["suite"])))
        named = {
            name: run.title if len(names) == 1 else f"{run.title}: {name}" for name in names
        }
        samples.append(rows.samples.assign(suite=rows.samples["suite"].astype(str).map(named)))
        cells.append(rows.cells.assign(suite=rows.cells["suite"].astype(str).map(named)))
    together: pd.DataFrame = pd.concat(samples, ignore_index=True)
    spent: pd.DataFrame = pd.concat(cells, ignore_index=True)
    matrix = transfer_matrix(together)
    families = families_of(together, sorted(set(matrix["target"])))
    found = transfer_of(leaderboard(together, spent), matrix, spent, families, {})
    named_rows = tuple(replace(row, set=f"{row.set} ({row.suite})") for row in found.rows)
    return replace(found, rows=named_rows)


def _merged_robustness(runs: Sequence[Shown]) -> Robustness:
    """One board of several runs, in which the worst of all is over the attacks of all of them.

    Attacks of one name on one model are one where they made the same images, and are else named with their
    run. Models of one name with other weights are named with their digest.
    """
    loaded = [(run, Rows(run.source.directory)) for run in runs]
    cells: pd.DataFrame = pd.concat(
        [rows.cells.assign(run=run.title) for run, rows in loaded], ignore_index=True
    )
    cells = cells[cells["goal"] == "robustness"]
    names = cells["surrogate_specs"].map(lambda specs: specs[0])
    digests = cells["surrogate_digests"].map(lambda each: each[0])
    made = cells["cell"].groupby([digests, cells["attack"]]).transform("nunique")
    once = cells.groupby([digests, cells["attack"], "run"])["cell"].transform("nunique")
    several = digests.groupby(names).transform("nunique") > 1
    model = names.where(~several, names + " (" + digests.str[:8] + ")")
    attack = cells["attack"].where(made == once, cells["attack"] + " (" + cells["run"] + ")")
    called = dict(zip(zip(cells["run"], names, strict=True), model, strict=True))
    samples = [
        rows.samples.assign(target=[
            called.get((run.title, str(name)), str(name)) for name in rows.samples["target"]
        ]) for run, rows in loaded
    ]  # fmt: skip
    together: pd.DataFrame = pd.concat(samples, ignore_index=True)
    together = together.drop_duplicates(["cell", "target", "sample_id", "member"]).assign(suite="")
    cells = cells.assign(attack=attack, surrogate_specs=[[name] for name in model])
    board = robustness(together, cells)
    models = list(dict.fromkeys(map(str, board["model"])))
    parts = [run.report.parts[0].robustness for run in runs]
    return robustness_of(
        board, dict(zip(models, short_names(models, {}), strict=True)), board.attrs["notes"],
        list(dict.fromkeys(check for part in parts if part is not None for check in part.checks)),
        list({(each.model, each.key): each for p in parts if p is not None for each in p.growing}.values()),
    )  # fmt: skip


# --- attacks and models ---------------------------------------------------------------------------


def _attacks(runs: Sequence[Shown], papers: Papers) -> tuple[Attack, ...]:
    rows: dict[str, list[Ranked]] = {}
    kept: dict[str, list[Kept]] = {}
    for run, number, part in _parts(runs):
        for row in part.transfer.rows if part.transfer is not None else ():
            assert part.transfer is not None
            rows.setdefault(row.attack, []).append(Ranked(run, number, row, len(part.transfer.rows)))
        for model, left in _left(part):
            kept.setdefault(left.attack, []).append(Kept(run, number, model, left))
    found = []
    for name in sorted({*rows, *kept}):
        recipes: dict[str, tuple[Recipe, list[str]]] = {}
        for run in runs:
            for attack, recipe in run.recipes:
                if attack == name:
                    recipes.setdefault(recipe.json, (recipe, []))[1].append(run.title)
        own = rows.get(name, [])
        sources = dict(pair for spec in recipes or [""] for pair in papers(name, spec))
        found.append(Attack(
            name, f"attacks/{slug(name)}.html", next((e.row.family for e in own if e.row.family), ""),
            tuple(sources.items()), tuple((recipe, tuple(who)) for recipe, who in recipes.values()),
            tuple(own), tuple(kept.get(name, [])),
        ))  # fmt: skip
    return tuple(found)


def _models(runs: Sequence[Shown]) -> tuple[Model, ...]:
    made: dict[tuple[str, str], dict[str, list[Any]]] = {}
    digests = {run.title: dict(run.report.origin.models) for run in runs}

    def of(run: Shown, name: str, short: str, family: str = "") -> dict[str, list[Any]]:
        own = made.setdefault((name, digests[run.title].get(name, "")), {
            "clean": [], "fooled": [], "kept": [], "worst": [], "checks": [], "called": [], "family": [],
        })  # fmt: skip
        own["called"].append(name if name.endswith(short) else short)
        own["family"] += [family] if family else []
        return own

    for run, number, part in _parts(runs):
        if part.transfer is not None:
            for k, target in enumerate(part.transfer.targets):
                own = of(run, target.name, target.short, target.family)
                at = [
                    (row, cell) for row, cells in zip(part.transfer.rows, part.transfer.cells, strict=True)
                    if (cell := cells[k]) is not None
                ]  # fmt: skip
                own["fooled"] += [Fooled(run, number, row, cell) for row, cell in at]
                if at:
                    own["clean"].append((run, at[0][1].clean, part.images))
        for model in part.robustness.models if part.robustness is not None else ():
            own = of(run, model.model, model.short)
            own["clean"].append((run, model.clean, model.n))
            own["worst"].append((run, number, model))
            own["kept"] += [Kept(run, number, model, left) for left in model.attacks]
        for check in part.robustness.checks if part.robustness is not None else ():
            of(run, check.name, check.model)["checks"].append((run, check))
    names = [own["called"][0] for own in made.values()]
    found = []
    for (name, digest), own in made.items():
        called = own["called"][0]
        title = f"{called} ({digest[:8] or 'no digest'})" if names.count(called) > 1 else called
        fooled = sorted(own["fooled"], key=lambda e: (e.run.title, e.part, -(e.cell.rate.value or 0.0)))
        clean = {(run.title, accuracy, n): (run, accuracy, n) for run, accuracy, n in own["clean"]}
        found.append(Model(
            title, f"models/{slug(called, name, digest)}.html", digest, next(iter(own["family"]), ""),
            tuple(clean.values()), tuple(fooled), tuple(own["kept"]), tuple(own["worst"]),
            tuple(own["checks"]),
        ))  # fmt: skip
    return tuple(sorted(found, key=lambda model: (model.name, model.digest)))


def _parts(runs: Iterable[Shown]) -> Iterable[tuple[Shown, int, Part]]:
    for run in runs:
        for number, part in enumerate(run.report.parts):
            yield run, number, part


def _left(part: Part) -> Iterable[tuple[Attacked, Left]]:
    for model in part.robustness.models if part.robustness is not None else ():
        for left in model.attacks:
            yield model, left


# --- pages ----------------------------------------------------------------------------------------


def pages(site: Site, *, images: bool = True, title: str = "Runs") -> dict[str, bytes]:
    """The files of a site, by their addresses; the same runs give the same bytes.

    Args:
        images: whether pages of runs have a gallery.
    """
    found = {"index.html": index_page(site, title)}
    for run in site.runs:
        shown = pictures(run.source.directory, run.report) if images else None
        found[run.file] = render(
            run.report, shown, home="../index.html", label=run.source.label, entry=run.source.facts
        )
    for board in site.boards:
        if len(board.runs) > 1:
            found[board.file] = _board_page(board, title)
    links = {attack.name: attack.file for attack in site.attacks}
    for attack in site.attacks:
        models = {
            (run.title, attacked.model): model.file
            for model in site.models for run, _, attacked in model.worst
        }  # fmt: skip
        bars = [charts.bar((each.row.new, each.row.these)) for each in attack.rows]
        left = [charts.bar((each.left.rate,)) for each in attack.kept]
        found[attack.file] = _page("attack.html", attack.name, title, attack=attack, models=models,
                                   bars=bars, left=left)  # fmt: skip
    for model in site.models:
        bars = [charts.bar((each.cell.rate,)) for each in model.fooled]
        left = [charts.bar((each.left.rate,)) for each in model.kept]
        found[model.file] = _page("model.html", model.name, title, model=model, links=links, bars=bars,
                                  left=left)  # fmt: skip
    return {name: text.encode() for name, text in sorted(found.items())}


def index_page(site: Site, title: str = "Runs", *, live: bool = False) -> str:
    """The index of a site.

    Args:
        live: whether there is a page of progress beside it.
    """
    boards = []
    for board in site.boards:
        if board.transfer is not None:
            said = of_transfer(board.transfer, Part(""), 0) if board.transfer.rows else []
            rows = board.transfer.rows[:SHOWN]
            bars = [charts.bar((row.new, row.these)) for row in rows]
            boards.append((board, said[:2], list(zip(rows, bars, strict=True))))
    robust = [
        (board, [(model, charts.bar((model.least,))) for model in board.robustness.models[:MOST_MODELS]])
        for board in site.boards if board.robustness is not None
    ]  # fmt: skip
    return written(
        "index.html", title=f"{title} · advens site", skip=("boards", "boards"), several=True, site=site,
        heading=title, boards=boards, robust=robust, live=live, axis=charts.axis_header(),
        said={run.file: next(iter(findings(run.report)), None) for run in site.runs},
        links={attack.name: attack.file for attack in site.attacks},
    )  # fmt: skip


def _board_page(board: Board, title: str) -> str:
    part = board.part
    said = of_robustness(part) if board.robustness is not None else []
    if board.transfer is not None and board.transfer.rows:
        said = of_transfer(board.transfer, part, 0)
    return written(
        "board.html", title=f"{board.title} · {title}", skip=("findings", "findings"), several=True,
        data=[matrix_data(board.transfer)], board=board, part=part, view=view(part), site_title=title,
        findings=said,
    )  # fmt: skip


def _page(template: str, name: str, title: str, **given: Any) -> str:
    return written(
        template, title=f"{name} · {title}", skip=("rows", "rows"), several=True, site_title=title,
        axis=charts.axis_header(), **given,
    )  # fmt: skip


def slug(*names: str) -> str:
    """A file name for a name: what is readable of the first one, and a digest of all."""
    words = re.sub(r"[^a-z0-9]+", "-", names[0].lower())[:40].strip("-")
    return f"{words}-{value_digest(list(names), 8)}".lstrip("-")


# --- files ----------------------------------------------------------------------------------------


def refuse_others(out: Path) -> None:
    """Raise InputError unless a path is free for a site, or holds one and nothing else."""
    if out.is_symlink():
        raise InputError(f"--out {out} is a link; give the name of a folder")
    if not out.exists():
        return
    if not out.is_dir():
        raise InputError(f"--out {out} is a file; give the name of a folder")
    with os_errors("read", out):
        there = sorted(p for p in out.rglob("*") if p.is_symlink() or not p.is_dir())
    if not there:
        return
    listed: set[str] = set()
    if (out / MANIFEST).is_file():
        try:
            listed = set(json.loads(read_regular(out / MANIFEST))["files"]) | {MANIFEST}
        except (ValueError, TypeError, KeyError, RecursionError):
            listed = set()
    for path in there:
        name = path.relative_to(out).as_posix()
        if path.is_symlink() or name not in listed:
            raise InputError(f"--out {out} holds '{name}', which is of no site; give another folder")


def write_site(files: Mapping[str, bytes], out: Path) -> None:
    """Write the files of a site into a folder, in place of the site that it holds.

    Raises:
        InputError: the folder holds anything else, or cannot be written.
    """
    refuse_others(out)
    manifest = json.dumps({"files": sorted(files)}, indent=1) + "\n"
    with os_errors("write", out), new_folder(out) as fresh:
        for name, content in {**files, MANIFEST: manifest.encode()}.items():
            (fresh / name).parent.mkdir(exist_ok=True)
            (fresh / name).write_bytes(content)
