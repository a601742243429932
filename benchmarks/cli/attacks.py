"""``advens attacks``: what there is, one entry, or which are worth their passes."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("name", required=False)
@click.option("--parts", is_flag=True, help="List the parts that attacks are composed of, or show one.")
@click.option("--front", is_flag=True, help="List the attacks that no other one beats for fewer passes.")
@click.option("--budget", type=click.IntRange(1), help="With --front: the most backward passes an image.")
@click.option("--run", type=click.Path(path_type=Path), help="With --front: of this run, not the reference.")
def attacks(name: str | None, parts: bool, front: bool, budget: int | None, run: Path | None) -> None:
    """List attacks (NAME may be a wildcard), or show one with its parameters, defaults and paper.

    NAME may also be a part, such as di. With --front, NAME says which attacks count.
    """
    if front:
        if parts:
            raise click.UsageError("--front and --parts are two lists; ask for one")
        _front(name or "*", budget, run)
        return
    if budget is not None or run is not None:
        raise click.UsageError("--budget and --run go with --front")
    from advens.attacks.commands import list_or_show

    list_or_show(name, parts)


def _front(pattern: str, budget: int | None, run: Path | None) -> None:
    from fnmatch import fnmatch

    from advens.errors import InputError
    from advens.listing import show
    from advens.results.boards import kept
    from advens.results.boards.front import front, lettered
    from advens.results.boards.leaderboard import leaderboard
    from advens.results.boards.means import Means
    from advens.results.boards.outcomes import contributions
    from advens.results.boards.rows import load

    if run is None:
        parts, spent = kept.read(kept.CATALOGUE)
        source = "the reference runs of digits-catalogue (--run DIR for yours)"
        board = spent.assign(mean_asr=Means(parts).rates)
    else:
        samples, cells = load([run])
        parts, source = contributions(samples), str(run)
        board = leaderboard(samples, cells)
    board = board[[fnmatch(attack, pattern) for attack in board["attack"]]]
    found = front(board, budget)
    if found.empty:
        most = f" takes at most {budget} backward passes an image" if budget else ""
        raise InputError(f"no attack '{pattern}'{most} here")
    found = lettered(found, parts)
    rows = [
        (row["surrogates"], row["attack"], f"{row['forwards_per_sample']:g}/{row['backwards_per_sample']:g}",
         _percent(row["mean_asr"]), f"{_percent(row['models_low'])}-{_percent(row['models_high'])}",
         row["models_group"] or "", row["group"] or "")
        for row in found.to_dict("records")
    ]  # fmt: skip
    show(
        ("surrogates", "attack", "F/B", "mean ASR", "new models", "letters", "these targets"), rows,
        f"{source}: mean attack success rate in % over held-out targets, with its 95 % interval for new "
        "models. Rows of the same surrogates that share a letter cannot be told apart, for new models and "
        "images and for these targets and new images.",
    )  # fmt: skip


def _percent(value: float | None) -> str:
    return "-" if value is None or value != value else f"{100 * value:.1f}"

