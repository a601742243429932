"""What Python reads from a run: samples, adversarial images, the comparison of two attacks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from advens.errors import InputError, unknown
from advens.results.store import RunStore, read_cell
from advens.results.store.run_store import Filters

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray


class Examples(NamedTuple):
    """Adversarial images of a run.

    Attributes:
        ids: the image of the data set that each was crafted from, N of them.
        images: (N, 3, H, W) uint8.
        cells: the cell that crafted each, N of them.
    """

    ids: list[str]
    images: NDArray[np.uint8]
    cells: list[str]


def read_samples(
    directory: Path | str, columns: Sequence[str] | None = None, filters: Filters | None = None
) -> pd.DataFrame:
    """The samples of a run: a row for every attack, surrogate set, seed, target and image.

    Args:
        columns: those wanted; None is all of them.
        filters: only rows that fit: a value or several for each column, ``{"attack": ["pgd", "cwa"]}``,
            or pyarrow's ``[("linf", "<", 0.1), ...]``, which must all hold.

    Raises:
        InputError: the directory holds no run, an unknown column, or filters that do not fit.
        CorruptFile: naming a file that is damaged.
    """
    return RunStore.open(directory).read_samples(columns, filters=filters)


def read_examples(
    directory: Path | str,
    attack: str | None = None,
    surrogates: str | None = None,
    seed: int | None = None,
) -> Examples:
    """The adversarial images of a run, by attack, surrogate set, seed and place in the data.

    Args:
        attack, surrogates, seed: only those crafted by it, on it, with it; None takes all.

    Raises:
        InputError: the directory holds no run, no image fits, those that fit are of several sizes, or they
            are stored as differences and the data are not at hand.
        CorruptFile: naming a file that is damaged.
    """
    import numpy as np

    from advens.results.store.images import CleanImages, read_images

    store = RunStore.open(directory)
    cells = {name: read_cell(store.examples_path(name)) for name in store.cells()}
    for key, value in (("attack", attack), ("surrogates", surrogates), ("seed", seed)):
        if value is None:
            continue
        chosen = {name: cell for name, cell in cells.items() if cell[key] == value}
        if not chosen:
            kind = {"surrogates": "surrogate set"}.get(key, key)
            raise unknown(f"{kind} among these images", str(value), {str(c[key]) for c in cells.values()})
        cells = chosen
    if not cells:
        raise InputError(f"{directory} holds no finished images yet")

    def place(name: str) -> tuple[Any, ...]:
        cell = cells[name]
        return cell["attack"], cell["surrogates"], cell["seed"], cell["shard"], name

    ids: list[str] = []
    owners: list[str] = []
    images: list[NDArray[np.uint8]] = []
    clean = CleanImages()
    for name in sorted(cells, key=place):
        table, own = read_images(store, name, clean)
        images.append(own)
        ids += table.column("sample_id").to_pylist()
        owners += [name] * len(own)
    if len({each.shape[1:] for each in images}) != 1:
        raise InputError("the images are of several sizes; choose one attack, surrogate set or seed")
    return Examples(ids, np.concatenate(images), owners)


def compare(directory: Path | str, a: str, b: str, denominator: str = "target") -> dict[str, Any]:
    """The difference in success rate between two attacks of a run, paired over images.

    See `advens.results.boards.compare.compare`.
    """
    from advens.results.boards.compare import compare as compared
    from advens.results.boards.rows import load

    return compared(load([directory])[0], a, b, denominator)
