"""The sentences at the head of a report: what boards say, and nothing that their statistics do not carry."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from advens.results.boards.defenses import lettered
from advens.results.boards.leaderboard import LEVEL
from advens.results.formats import shorten
from advens.results.report.collect import (
    Attacked,
    Cell,
    Defenses,
    Line,
    Part,
    Report,
    Row,
    Transfer,
    in_percent,
)
from advens.results.statistics import LEAST_TARGETS, LEAST_TRAININGS

PLAIN = (
    '"transforms": []', '"filters": []', '"estimator": {"name": "plain"}', '"name": "composed"',
)  # fmt: skip
"""What the specification of a plain baseline says: no transforms, no filters, the gradient itself."""
MOST_NAMED = 8
"""Surrogates of a set that are named one by one."""
UNIFORM = ("ens-logits", "ens-probs", "ens-loss")


@dataclass(frozen=True)
class Finding:
    """A sentence.

    Args:
        about: what it is about, two or three words.
        text: one or more whole sentences.
        where: the section that has the evidence.
    """

    about: str
    text: str
    where: str


def findings(report: Report) -> list[Finding]:
    """The sentences of a report, the most important one first."""
    found: list[Finding] = []
    if report.defenses is not None:
        found += of_defenses(report.defenses)
        for number, part in enumerate(report.parts):
            found += _warnings(part, number)
        return found
    for number, part in enumerate(report.parts):
        if part.transfer is not None and part.transfer.rows:
            found += of_transfer(part.transfer, part, number)
        if part.robustness is not None:
            found += of_robustness(part, number)
    return found


# --- transfer -------------------------------------------------------------------------------------


def of_transfer(transfer: Transfer, part: Part, number: int = 0) -> list[Finding]:
    """What the leaderboard and the matrix say."""
    prefix = f"{part.title}: " if part.title else ""
    first = transfer.rows[0]
    if first.new.value is None:
        return [Finding("Transfer", f"{prefix}No target is held out from any attack, so that no transfer was "
                        "measured.", f"board-{number}")]  # fmt: skip
    found = [Finding("Strongest transfer", prefix + _strongest(transfer), f"board-{number}")]
    if len(transfer.rows) > 1:
        found.append(Finding("Told apart", prefix + _apart(transfer), f"board-{number}"))
        if cost := _cost(transfer):
            found.append(Finding("Cost", prefix + cost, f"cost-{number}"))
    if hardest := _hardest(transfer):
        found.append(Finding("Hardest target", prefix + hardest, f"matrix-{number}"))
    if plain := _baseline(transfer):
        found.append(Finding("Plain baseline", prefix + plain, f"board-{number}"))
    return found


def terms(part: Part) -> str:
    """What a reader must know of transfer to understand its sentences; empty for other parts."""
    if part.transfer is None or not part.transfer.rows:
        return ""
    first = part.transfer.rows[0]
    members = shorten(list(first.recipe.surrogates))
    if len(members) > MOST_NAMED:
        said = f" The set {first.set} has {len(members)} of them."
    elif len(members) > 1:
        said = f" The set {first.set} is {', '.join(members[:-1])} and {members[-1]}."
    else:
        said = ""
    success = (
        "gives the class that the attacker wants"
        if part.targeted
        else "classifies correctly before the attack and incorrectly after it"
    )
    return (
        f"An attack is crafted on surrogates, models that the attacker has, and tried on targets.{said} It "
        f"succeeds on an image that a target {success}. Held-out targets are no surrogates, nor like one."
    )


def _strongest(transfer: Transfer) -> str:
    row = transfer.rows[0]
    mean = f"{row.new.percent} % of the images"
    over = (
        f"over {row.targets} held-out target{'s' * (row.targets != 1)}"
        if transfer.held_out is not None or len(transfer.rows) == 1
        else f"over its own {row.targets} held-out targets"
    )
    begin = f"{row.name} has the highest mean success rate {over}: {mean}"
    if row.new.low is not None:
        return (
            f"{begin}. For new models and new images the 95 % interval is {row.new.ends} %; for these "
            f"targets and new images it is {row.these.ends} %."
        )
    return (
        f"{begin}; for these targets and new images the 95 % interval is {row.these.ends} %. With fewer than "
        f"{LEAST_TARGETS} held-out targets nothing can be said of new models."
    )


def _apart(transfer: Transfer) -> str:
    """Whether the first row differs from the others, for new models where they are in reach."""
    first, second = transfer.rows[:2]
    if second.new.value is None:
        return "No other row has a held-out target to be compared on."
    if not _compared(first, second, transfer):
        return (
            f"The next row is {second.name} with {second.new.percent} %. The two means are over "
            "different targets and are not compared."
        )
    gap = _points(first, second)
    begin = f"The next row is {second.name}, {gap} points behind"
    if first.new.low is not None:
        return f"{begin}. {_for_new_models(transfer)}{_for_these(transfer)}"
    return f"{begin}.{_for_these(transfer)}"


def _for_new_models(transfer: Transfer) -> str:
    first, second = transfer.rows[:2]
    p = second.p_first
    test = f" (p = {p:.2g}, two-way test over images and targets, Holm)" if p is not None else ""
    alike = [row for row in transfer.rows[1:] if row.p_first is not None and row.p_first >= LEVEL]
    unknown = [row for row in transfer.rows[1:] if row.p_first is None]
    if p is not None and p < LEVEL:
        text = f"For new models and new images they are told apart{test}"
        if alike:
            text += f", but {_count(alike, 'lower row')} cannot be told apart from the first"
    elif p is None:
        text = "For new models and new images the two are not compared"
    else:
        text = f"For new models and new images they cannot be told apart{test}"
        others = len(transfer.rows) - 1 - len(unknown)
        if len(alike) > 1:
            more = f"{len(alike) - 1} more of the {others} rows"
            text += f"; the same holds of {more} that are compared with the first"
    if first.ranks is None:
        return f"{text}."
    low, high = first.ranks
    rank = f"{low} to {high}" if high != low else str(low)
    return (
        f"{text}. The 95 % interval of the first row's rank is {rank}; unlike the p-values it is not "
        "corrected for the number of rows."
    )


def _for_these(transfer: Transfer) -> str:
    first, second = transfer.rows[:2]
    if not first.these_letters or not second.these_letters:
        return ""
    apart = not set(first.these_letters) & set(second.these_letters)
    said = "are told apart" if apart else "cannot be told apart"
    also = "For these targets and new images" if first.new.low is None else "For these very targets"
    return f" {also} they {said} (paired test over images, Holm, 5 %)."


def _cost(transfer: Transfer) -> str:
    """What the first row costs, beside the best cheaper row not told apart from it, or the next row."""
    first = transfer.rows[0]
    if not first.compute:
        return ""
    spent = f"{first.name} takes {_passes(first)} per image"
    new = first.new.low is not None

    def alike(row: Row) -> bool:
        if not _compared(first, row, transfer):
            return False
        if new and row.p_first is not None:
            return row.p_first >= LEVEL
        letters = "new_letters" if new else "these_letters"
        return bool(set(getattr(first, letters)) & set(getattr(row, letters)))

    cheaper = [
        row
        for row in transfer.rows[1:]
        if row.compute and row.compute < first.compute and alike(row)
    ]
    question = "for new models" if new else "for these targets"
    if cheaper:
        row = min(cheaper, key=lambda each: each.rank)
        return (
            f"{spent}. {row.name}, which cannot be told apart from it {question}, takes {_share(row, first)} "
            f"of that and reaches {row.new.percent} %."
        )
    second = next((row for row in transfer.rows[1:] if row.compute), None)
    if second is None:
        return f"{spent}."
    return f"{spent}; {second.name} takes {_share(second, first)} of that."


def _hardest(transfer: Transfer) -> str:
    """The held-out target on which the best attack on it reaches least."""
    best: list[tuple[float, str, Row, Cell]] = []
    for column, target in enumerate(transfer.targets):
        found = [
            (cell.rate.value, -row.rank, row, cell)
            for row, cells in zip(transfer.rows, transfer.cells, strict=True)
            if (cell := cells[column]) is not None and cell.counted and cell.rate.value is not None
        ]
        if found:
            value, _, row, cell = max(found, key=lambda each: each[:2])
            best.append((value, target.short, row, cell))
    if len(best) < 2:
        return ""
    best.sort(key=lambda each: (each[0], each[1]))
    (_, name, row, cell), (_, other, other_row, next_cell) = best[:2]
    text = (
        f"Of the held-out targets {name} withstands most: no attack fools it on more than {cell.rate} "
        f"of the images ({row.name})"
    )
    apart = (cell.rate.high or 1.0) < (next_cell.rate.low or 0.0)
    following = f"{other}, where {other_row.name} reaches {next_cell.rate}"
    overlap = "" if apart else "; their intervals overlap, so that the order of the two is open"
    return f"{text}. Next is {following}{overlap}."


def _baseline(transfer: Transfer) -> str:
    """Where the plain attack on the first row's surrogates stands."""
    first = transfer.rows[0]
    row = baseline(transfer)
    if row is None:
        return ""
    if row is first:
        return f"{first.name} is the plain baseline itself: no other row has a higher mean."
    begin = f"The plain {row.name} stands at rank {row.rank} with {row.new.percent} %"
    if not _compared(first, row, transfer):
        return f"{begin}, over other targets."
    begin += f", {_points(first, row)} points behind the first"
    if row.p_first is not None:
        said = "told apart from it" if row.p_first < LEVEL else "not told apart from it"
        return f"{begin}; for new models and new images it is {said} (p = {row.p_first:.2g})."
    if first.these_letters and row.these_letters:
        apart = not set(first.these_letters) & set(row.these_letters)
        return f"{begin}; for these targets it is {'' if apart else 'not '}told apart from it."
    return f"{begin}."


def baseline(transfer: Transfer) -> Row | None:
    """The strongest plain attack on the surrogates of the first row; None without one.

    Plain is an attack with uniform fusion, the gradient at the image itself, no transforms and no filters.
    """
    first = transfer.rows[0]
    for row in transfer.rows:
        same = row.suite == first.suite and row.surrogates == first.surrogates
        if same and row.new.value is not None and plain(row):
            return row
    return None


def plain(row: Row) -> bool:
    """Whether a row is of a plain attack."""
    spec = row.recipe.json
    uniform = any(f'"fusion": {{"name": "{name}"}}' in spec for name in UNIFORM)
    return uniform and all(piece in spec for piece in PLAIN)


def _compared(first: Row, other: Row, transfer: Transfer) -> bool:
    """Whether the means of two rows are over the same targets, as the board compares them."""
    if other.new.value is None:
        return False
    if transfer.held_out is not None:
        return True
    return other.p_first is not None or bool(set(first.these_letters) & set(other.these_letters))


# --- robustness and defenses ----------------------------------------------------------------------


def of_robustness(part: Part, number: int = 0) -> list[Finding]:
    """What white-box attacks leave to each model."""
    assert part.robustness is not None
    prefix = f"{part.title}: " if part.title else ""
    models = [each for each in part.robustness.models if each.attacks]
    found = [
        Finding(
            "Robust accuracy" if k == 0 else model.short,
            prefix + _kept(model),
            f"robustness-{number}",
        )
        for k, model in enumerate(models[:4])
    ]
    if len(models) > 4:
        found.append(Finding("More models", f"{prefix}{len(models) - 4} more models are in the table.",
                             f"robustness-{number}"))  # fmt: skip
    return [*found, *_warnings(part, number)]


def _warnings(part: Part, number: int) -> list[Finding]:
    """What should be read before the accuracies of a part are used."""
    found: list[Finding] = []
    if part.robustness is None:
        return found
    where, prefix = f"robustness-{number}", f"{part.title}: " if part.title else ""
    failed = [check for check in part.robustness.checks if not check.passed]
    if failed:
        names = ", ".join(dict.fromkeys(check.model for check in failed))
        said = (
            f"{prefix}{_count(failed, 'check')} of the sanity report failed ({names}): what attacks leave of "
            "these models overstates their robustness."
        )
        found.append(Finding("Sanity report", _sentence(said), where))
    if part.robustness.notes:
        warnings = _count(part.robustness.notes, "warning")
        said = f"{prefix}{warnings} should be read before these numbers are used."
        found.append(Finding("Warnings", _sentence(said), where))
    return found


def _kept(model: Attacked) -> str:
    strongest = model.strongest
    under = f"under {strongest.attack}"
    rate = strongest.rate
    if model.worst is not None:
        rate, under = model.worst, f"under the worst of {len(model.attacks)} attacks and sequences"
    text = (
        f"{model.short} keeps {rate} of all {model.n} images right {under}; without an attack it is "
        f"right on {in_percent(model.clean)} %."
    )
    if len(model.attacks) > 1:
        alike = [
            left.attack for left in model.attacks
            if left is not strongest and set(left.letters) & set(strongest.letters)
        ]  # fmt: skip
        text += f" No attack alone leaves less than {strongest.attack} ({strongest.rate.percent} %)"
        text += (
            f"; {_count(alike, 'attack')} cannot be told apart from it."
            if alike
            else ", told apart from all others."
        )
    if strongest.converged is False:
        text += " The attack has not converged: more rounds may leave less."
    return text


def of_defenses(defenses: Defenses) -> list[Finding]:
    """Which lines of each table keep most."""
    found = []
    for title, lines in defenses.tables.items():
        for measure, said in (
            (_transfer_of(defenses), "transferred images"),
            ("open worst", "white-box attacks"),
        ):
            known = [line for line in lines if measure in line.measures]
            if known:
                about = "Under transfer" if said.startswith("transfer") else "White-box"
                text = _best(known, measure, said, defenses)
                found.append(
                    Finding(about, f"Table {title}: {text}" if title else text, "defenses")
                )
    return found


def _best(lines: Sequence[Line], measure: str, said: str, defenses: Defenses) -> str:
    def value(line: Line) -> float:
        return line.measures[measure].value or 0.0

    best = max(lines, key=value)
    name = line_name(best)
    same = [line for line in lines if value(line) == value(best)]
    if len(same) > 1:
        names = (
            " and ".join(line_name(line) for line in same[:2])
            if len(same) == 2
            else f"{len(same)} lines"
        )
        return (
            f"{names} keep the same and most under {said}: {best.measures[measure]} of the images."
        )
    text = f"{name} keeps most under {said}: {best.measures[measure]} of the images"
    if len(lines) == 1:
        return f"{name} keeps {best.measures[measure]} of the images under {said}."
    if not defenses.pooled:
        return (
            f"{text}. Each line is one model, so that nothing is said of the defense trained again."
        )
    if best.trainings < LEAST_TRAININGS:
        return f"{text}. It has fewer than {LEAST_TRAININGS} trainings, too few to tell defenses apart."
    letters, group = lettered(best.letters.get(measure, ""))
    others = [lettered(line.letters.get(measure, "")) for line in lines if line is not best]
    compared = [own for own, number in others if own and letters and number == group]
    if not compared:
        return f"{text}. No other line was trained with about as much compute, so it is compared with none."
    alike = [own for own in compared if set(own) & set(letters)]
    with_it = _count(compared, "other line") + " trained with about as much compute"
    test = "trainings and images, Holm, 5 %"
    if not alike:
        return f"{text}, told apart from {with_it} ({test})."
    if len(compared) == 1:
        return f"{text}. {_sentence(with_it)} cannot be told apart from it ({test})."
    return f"{text}. Of {with_it}, {_count(alike, 'line')} cannot be told apart from it ({test})."


def _transfer_of(defenses: Defenses) -> str:
    return f"transfer {defenses.budgets[-1]}"


def line_name(line: Line) -> str:
    """How sentences and rows call a line of a table."""
    return f"{line.label} of {line.members}" if line.members > 1 else line.label


# --- words ----------------------------------------------------------------------------------------


def _points(first: Row, other: Row) -> str:
    return f"{100 * ((first.new.value or 0.0) - (other.new.value or 0.0)):.1f}"


def _passes(row: Row) -> str:
    return f"{row.forwards:g} forward and {row.backwards:g} backward passes"


def _share(row: Row, first: Row) -> str:
    return f"{100 * (row.compute or 0.0) / (first.compute or 1.0):.0f} %"


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]


def _count(found: Iterable[object], noun: str) -> str:
    number = len(list(found))
    words = {1: "one", 2: "two", 3: "three", 4: "four", 5: "five"}
    return f"{words.get(number, str(number))} {noun}{'s' * (number != 1)}"
