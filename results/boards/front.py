"""The Pareto front of transfer against passes: which attacks are worth considering for a budget."""

from __future__ import annotations

import pandas as pd

from advens.results.boards.leaderboard import leaderboard, pareto

GROUPS = ["models_group", "group"]


def front(board: pd.DataFrame, budget: float | None = None) -> pd.DataFrame:
    """The rows of a leaderboard that no other one on the same surrogates dominates within a budget.

    Args:
        board: a leaderboard. Its letters are those of all rows, and left empty here.
        budget: the most backward passes an image; None for any number.

    Returns:
        The same columns, by suite and surrogates, the cheapest first.
    """
    spent = board["backwards_per_sample"]
    able = board[spent.notna() & (True if budget is None else spent <= budget)]
    found = able[pareto(able)]
    order = ["suite", "surrogates", "backwards_per_sample", "forwards_per_sample", "attack"]
    return found.assign(**dict.fromkeys(GROUPS, "")).sort_values(order, ignore_index=True)


def lettered(found: pd.DataFrame, samples: pd.DataFrame) -> pd.DataFrame:
    """A front with the letters of its own rows: of every set of surrogates by itself.

    Args:
        found: what `front` gave.
        samples: of the run, columns of the ``samples`` schema.
    """
    keys, parts = ["suite", "attack", "surrogates"], []
    for _, rows in found.groupby(["suite", "surrogates"], sort=False):
        own = samples.merge(rows[keys], on=keys)
        groups = leaderboard(own).set_index(keys)[GROUPS]
        parts.append(rows.drop(columns=GROUPS).join(groups, on=keys))
    return pd.concat(parts, ignore_index=True)[list(found)] if parts else found
