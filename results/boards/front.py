"""The Pareto front of transfer against passes: which attacks are worth considering for a budget."""

from __future__ import annotations

import pandas as pd

from advens.results.boards.leaderboard import groups, pareto
from advens.results.boards.means import INTERVALS, Means
from advens.results.boards.outcomes import KEYS, Contributions

GROUPS = ["models_group", "group"]


def front(board: pd.DataFrame, budget: float | None = None) -> pd.DataFrame:
    """The rows of a board that no other one on the same surrogates dominates within a budget.

    Args:
        board: ``suite``, ``attack``, ``surrogates``, ``mean_asr`` and passes, as a leaderboard has them.
        budget: the most backward passes an image; None for any number.

    Returns:
        The same columns, by suite and surrogates, the cheapest first. Letters that the board has are those
        of all its rows, and left empty here.
    """
    spent = board["backwards_per_sample"]
    able = board[spent.notna() & (True if budget is None else spent <= budget)]
    found = able[pareto(able)]
    order = ["suite", "surrogates", "backwards_per_sample", "forwards_per_sample", "attack"]
    return found.assign(**dict.fromkeys(GROUPS, "")).sort_values(order, ignore_index=True)


def lettered(found: pd.DataFrame, parts: Contributions) -> pd.DataFrame:
    """A front with intervals, and the letters of its own rows: of every set of surrogates by itself.

    Args:
        found: what `front` gave.
        parts: the outcomes that its board was made from.
    """
    places = pd.Series(range(len(parts.rows)), index=pd.MultiIndex.from_frame(parts.rows[KEYS]))
    boards = []
    for _, rows in found.groupby(["suite", "surrogates"], sort=False):
        means = Means(parts.pick(places.loc[pd.MultiIndex.from_frame(rows[KEYS])].tolist()))
        own = pd.concat([means.table[list(INTERVALS)], groups(means)], axis=1).set_axis(rows.index)
        boards.append(rows.assign(**{name: own[name] for name in own}))
    return pd.concat(boards, ignore_index=True) if boards else found
