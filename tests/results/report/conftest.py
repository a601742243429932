"""Transfers with chosen numbers, and pages taken apart."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any

import pytest

from advens.results.report.collect import (
    Cell,
    Origin,
    Part,
    Rate,
    Recipe,
    Report,
    Row,
    Target,
    Transfer,
)

PLAIN = {
    "estimator": {"name": "plain"}, "filters": [], "fusion": {"name": "ens-logits"}, "name": "composed",
    "steps": 10, "threat": {"eps": 0.2, "norm": "linf"}, "transforms": [],
}  # fmt: skip


def row(rank: int, mean: float | None, **given: Any) -> Row:
    """A row of a board; for new models it is compared with the first unless said otherwise."""
    spec = given.pop("spec", PLAIN | {"update": {"name": "mi"}})
    known = {
        "suite": "s", "attack": f"attack-{rank}", "surrogates": "cnns", "set": "cnns", "rank": rank,
        "ranks": (rank, rank), "new": Rate(mean, 0.1, 0.9), "these": Rate(mean, 0.3, 0.6), "new_letters": "a",
        "these_letters": "a", "p_first": None if rank == 1 else 0.5, "white_box": 1.0, "forwards": 10.0,
        "backwards": 10.0, "seconds": 0.01, "pareto": True, "targets": 6, "n": 100, "family": "fusion",
        "recipe": Recipe((("steps", "10"),), ("m:a",), json.dumps(spec, sort_keys=True)),
    }  # fmt: skip
    return Row(**(known | given))


def transfer(rows: Sequence[Row], rates: Sequence[Sequence[float]] = (), **given: Any) -> Transfer:
    """A transfer with held-out targets ``t0``, ``t1``, ... of one family."""
    rates = rates or [[0.5] * 6] * len(rows)
    cells = tuple(
        tuple(
            Cell(Rate(v, max(v - 0.05, 0), min(v + 0.05, 1)), 100, 1.0, 1 - v, v, False, True) for v in line
        )
        for line in rates
    )
    targets = tuple(Target(f"m:t{k}", f"t{k}", "cnn") for k in range(len(rates[0])))
    known = {
        "held_out": tuple(t.name for t in targets), "out_of_reach": False, "notes": (), "randomized": (),
        "seeds": 1,
    }  # fmt: skip
    return Transfer(tuple(rows), targets, cells, **(known | given))


def report(made: Transfer, name: str = "made-up") -> Report:
    """A report of one transfer."""
    return Report(name, "transfer", (Part("", transfer=made, images=100),), None, Origin("", (), (), ()))


@dataclass
class Page(HTMLParser):
    """A page taken apart: its elements, its tables as rows of text, and the text of scripts and styles."""

    tags: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    tables: list[list[list[str]]] = field(default_factory=list)
    blocks: list[tuple[str, str]] = field(default_factory=list)
    text: str = ""
    within: bool = False

    @classmethod
    def of(cls, html: str) -> Page:
        page = cls()
        HTMLParser.__init__(page)
        page.feed(html)
        page.tables = [[[cell.strip() for cell in row] for row in table] for table in page.tables]
        return page

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self.blocks.append((tag, ""))
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self.within = True

    def handle_endtag(self, tag: str) -> None:
        self.within = self.within and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] in ("script", "style") and self.blocks[-1][1] == "":
            self.blocks[-1] = (self.blocks[-1][0], data)
            return
        self.text += data
        if self.within:
            self.tables[-1][-1][-1] += data

    @property
    def data(self) -> Any:
        """What the script reads."""
        return json.loads(self.blocks[1][1])


@pytest.fixture
def page() -> Callable[[str], Page]:
    return Page.of


__all__ = ["PLAIN", "Page", "report", "row", "transfer"]
