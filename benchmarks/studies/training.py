"""What more training gives defenses: accuracy against compute, and accuracy over the number of epochs.

    python -m advens.benchmarks.studies.training lines runs/digits-defenses
    python -m advens.benchmarks.studies.training compute runs/digits-defenses
    python -m advens.benchmarks.studies.training epochs runs/digits-defenses-epochs

All are made of the two boards ``defenses`` and ``images`` of a run; those of ``digits-defenses`` are kept in
``results/reference/digits-defenses``. ``lines`` has every measure, as ``advens leaderboard`` shows them.
``compute`` orders the lines of each table by the passes of their training, and says how far each is from
its control, which was trained with as many. ``epochs`` puts lines beside each other whose labels differ in
the number of epochs alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click
import pandas as pd

from advens.cli import script
from advens.errors import InputError
from advens.results.boards.board import read_board
from advens.results.boards.defenses import KEYS, pooled
from advens.results.display.render import render_board
from advens.results.display.text import as_markdown
from advens.results.statistics import Array, holm, trainings_difference, trainings_test

EPOCHS = re.compile(r"(?P<label>.+), (?P<epochs>\d+) epochs")
WORST = "open worst"


def shown(images: pd.DataFrame) -> list[str]:
    """The measures of the tables: transfer at the largest budget, and the worst of the white-box attacks."""
    transfer = [name for name in images["measure"].unique() if name.startswith("transfer ")]
    return [*transfer[-1:], WORST]


def compute_tables(each: pd.DataFrame, images: pd.DataFrame) -> str:
    """Each table of a suite, its lines by the passes of their training, beside their controls.

    Args:
        each, images: the boards ``defenses`` and ``images``.
    """
    lines = pooled(each, images)
    lines["passes"] = lines["train_forwards"] + lines["train_backwards"]
    texts = []
    for table, part in lines.sort_values("passes", kind="stable").groupby("table", sort=False):
        own = images.merge(each.loc[each["table"] == table, [*KEYS, "defense"]], on="defense")
        header = ["defense", "members", "passes", "clean"]
        columns: list[list[str]] = [
            [*part["label"]], [str(n) for n in part["members"]],
            [f"{passes:,.0f}" for passes in part["passes"]], _rates(part, "clean"),
        ]  # fmt: skip
        for measure in shown(images):
            named = measure.removeprefix("open ")
            header += [named, f"{named}, minus control"]
            columns += [_rates(part, measure), _beside_controls(part, own[own["measure"] == measure])]
        header.append("control")
        columns.append([_text(name) or "-" for name in part["control"]])
        texts.append(f"**{table}**\n\n" + as_markdown(header, zip(*columns, strict=True), []))
    texts.append(
        f"Accuracy in %, the mean over {int(lines['trainings'].max())} trainings ± half of a 95 % interval "
        "for new trainings and new images. passes: forward and backward passes of a training through single "
        "members, for each training image. minus control: the difference in points from the control, with a "
        "95 % interval; a star marks what Welch's test over trainings and images tells apart from the "
        "control (on logits, 5 %, Holm's correction over a column).\n"
    )
    return "\n".join(texts)


def _beside_controls(part: pd.DataFrame, images: pd.DataFrame) -> list[str]:
    """Of each line the difference from its control, which has a label of the same table."""
    left = {
        key: own.pivot_table("left", "sample_id", "defense", observed=True).to_numpy(float)
        for key, own in images.groupby(["label", "members"], sort=False)
    }
    controls = {name: key for key in left for name in (key[0], f"{key[0]} of {key[1]}")}
    of = dict(zip(zip(part["label"], part["members"], strict=True), part["control"], strict=True))
    pairs = {key: controls[name] for key, name in of.items() if _text(name) in controls}
    p = dict(zip(pairs, holm([trainings_test(left[a], left[b]) for a, b in pairs.items()]), strict=True))
    return [_difference(left[key], left[pairs[key]], p[key]) if key in pairs else "-" for key in of]


def _difference(a: Array, b: Array, p: float) -> str:
    found = trainings_difference(a, b)
    value, low, high = (100 * x for x in (found.value, found.low, found.high))
    return f"{value:+.1f} [{low:+.1f}, {high:+.1f}]" + "*" * bool(p < 0.05)


def epochs_tables(each: pd.DataFrame, images: pd.DataFrame) -> str:
    """The lines of a suite that differ in the number of epochs alone, beside each other.

    Args:
        each, images: the boards ``defenses`` and ``images``.

    Raises:
        InputError: a label does not end in the number of epochs.
    """
    lines, measures = pooled(each, images), shown(images)
    said = [EPOCHS.fullmatch(str(label)) for label in lines["label"]]
    if not all(said):
        raise InputError("the labels of the defenses do not all end in ', N epochs'")
    lines["label"] = [match["label"] for match in said if match]
    lines["epochs"] = [int(match["epochs"]) for match in said if match]
    counts = sorted(lines["epochs"].unique())
    header = ["defense", "members"]
    header += [f"{name.removeprefix('open ')}, {count} epochs" for name in measures for count in counts]
    texts = []
    for table, part in lines.groupby("table", sort=False):
        rows = []
        for (label, members), own in part.groupby(["label", "members"], sort=False):
            by = own.set_index("epochs")
            rates = {name: dict(zip(by.index, _rates(by, name), strict=True)) for name in measures}
            row = [rates[name].get(count, "-") for name in measures for count in counts]
            rows.append([str(label), str(members), *row])
        texts.append(f"**{table}**\n\n" + as_markdown(header, rows, []))
    texts.append(
        f"Accuracy in % ± half of a 95 % interval: of {int(lines['trainings'].max())} training each over "
        f"{int(lines['n open'].max())} images.\n"
        if lines["trainings"].max() == 1 else
        f"Accuracy in %, the mean over {int(lines['trainings'].max())} trainings ± half of a 95 % interval "
        "for new trainings and new images.\n"
    )  # fmt: skip
    return "\n".join(texts)


def _rates(part: pd.DataFrame, name: str) -> list[str]:
    ends: Iterable[Any] = part[[name, f"{name} low", f"{name} high"]].itertuples(index=False, name=None)
    return [f"{100 * value:.1f} ±{50 * (high - low):.1f}" for value, low, high in ends]


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def lines_tables(each: pd.DataFrame, images: pd.DataFrame) -> str:
    """Every measure of every line, with letters.

    Args:
        each, images: the boards ``defenses`` and ``images``.
    """
    return render_board("study", pooled(each, images), "markdown")


TABLES = {"lines": lines_tables, "compute": compute_tables, "epochs": epochs_tables}


@click.command()
@click.argument("which", type=click.Choice([*TABLES]))
@click.argument("directory", type=click.Path(exists=True, file_okay=False, path_type=Path))
def main(which: str, directory: Path) -> None:
    """Print the tables of a finished suite of defenses, or of its two boards alone."""
    each, images = read_board(directory, "defenses"), read_board(directory, "images")
    if "label" not in each:
        raise InputError(f"{directory} holds no suite of defenses")
    click.echo(TABLES[which](each, images), nl=False)


if __name__ == "__main__":
    script(main)
