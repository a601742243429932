"""The tables that every board is computed from, samples and examples, and the metadata around any table."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from advens.errors import RunError
from advens.results.columns import (
    BOOL,
    INT,
    KIND,
    REAL,
    SCHEMA_VERSION,
    TEXT,
    VERSION,
    Column,
    Layout,
)

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "CELL", "CELL_EXTRAS", "CELL_FIELDS", "EXAMPLES", "KIND", "LAYOUTS", "PAIRS", "PREFIX", "ROWS", "SAMPLES",
    "SCHEMAS", "SCHEMA_VERSION", "VERSION", "misfits", "to_table", "with_metadata",
]

ROWS = b"advens.rows"
CELL = b"advens.cell"
PAIRS = b"advens.pairs"
PREFIX = "advens."

SAMPLES = Layout("samples", (
    Column("suite", TEXT, "suite the row belongs to"),
    Column("attack", TEXT, "attack, by the label of its entry in the suite"),
    Column("attack_params", TEXT, "every parameter of the attack", unit="json"),
    Column("surrogates", TEXT, "name of the surrogate set"),
    Column("seed", INT, "seed of the suite the cell was crafted with"),
    Column("target", TEXT, "model the stored image was shown to"),
    Column("sample_id", TEXT, "image of the data set"),
    Column("label", INT, "true class", unit="class"),
    Column("target_label", INT, "class the attacker wants; null when untargeted", unit="class",
           nullable=True),
    Column("clean_pred", INT, "the target's prediction on the clean image", unit="class"),
    Column("adv_pred", INT, "the target's prediction on the stored adversarial image", unit="class"),
    Column("clean_correct", BOOL, "clean_pred is the true class"),
    Column("success", BOOL, "untargeted: right before, wrong after; targeted: the wanted class"),
    Column("linf", REAL, "l_inf norm of the stored perturbation", unit="intensity in [0, 1]"),
    Column("l2", REAL, "l_2 norm of the stored perturbation", unit="intensity in [0, 1]"),
    Column("cell", TEXT, "cell that crafted the image: the stem of its examples file"),
    Column("white_box", BOOL, "the target's weights are a surrogate's, or those it was built from"),
    Column("member", INT, "of a randomized target: the member whose answer this is; else null",
           nullable=True),
    Column("weight", REAL, "probability with which a randomized target answers with this member; else 1",
           unit="fraction"),
    Column("target_family", TEXT, "architecture of the target (cnn, vit, ...); null in older runs",
           nullable=True),
    Column("l1", REAL, "l_1 norm of the stored perturbation; missing in older runs",
           unit="intensity in [0, 1]", nullable=True),
))  # fmt: skip

EXAMPLES = Layout("examples", (
    Column("cell", TEXT, "cell that crafted the image"),
    Column("sample_id", TEXT, "image of the data set"),
    Column("label", INT, "true class", unit="class"),
    Column("target_label", INT, "class the attacker wants; null when untargeted", unit="class",
           nullable=True),
    Column("image", pa.binary(), "the adversarial image, raw bytes; null where the difference is stored",
           unit="uint8, CHW", nullable=True),
    Column("height", pa.int32(), "height of the image", unit="pixel"),
    Column("width", pa.int32(), "width of the image", unit="pixel"),
    Column("linf", REAL, "l_inf norm of the stored perturbation", unit="intensity in [0, 1]"),
    Column("l2", REAL, "l_2 norm of the stored perturbation", unit="intensity in [0, 1]"),
    Column("sha256", TEXT, "digest of the bytes of the whole adversarial image", unit="hex"),
    Column("l1", REAL, "l_1 norm of the stored perturbation; missing in older runs",
           unit="intensity in [0, 1]", nullable=True),
    Column("difference", pa.binary(), "the adversarial image minus the clean one, modulo 256; null where the "
           "whole image is stored, missing in older runs", unit="uint8, CHW", nullable=True),
))  # fmt: skip

TRACES = Layout("traces", (
    Column("what", TEXT, "what was observed: loss, cosine, weights, ..."),
    Column("step", INT, "step of the attack"),
    Column("sample_id", TEXT, "image of the data set"),
    Column("surrogate", TEXT, "surrogate it was observed of; null where it is about all", nullable=True),
    Column("value", REAL, "the observation"),
))  # fmt: skip

HISTORY = Layout("history", (
    Column("surrogates", TEXT, "set of surrogates that was built"),
    Column("seed", INT, "seed that it was built with"),
    Column("model", TEXT, "model that was built from, or tried"),
    Column("call", INT, "number of the trial of a search, or of the collection of weights, from 0"),
    Column("what", TEXT, "what was tried or observed: objective, loss, lr, ..."),
    Column("value", REAL, "its value; 1 and 0 for yes and no"),
))  # fmt: skip

LIKENESS = Layout("likeness", (
    Column("target", TEXT, "target that is compared"),
    Column("surrogates", TEXT, "surrogate set that it is compared with; null for another target",
           nullable=True),
    Column("model", TEXT, "model that it is compared with: of a set, the one that it is most like"),
    Column("images", INT, "clean images that both models answered", unit="image"),
    Column("likeness", REAL, "correlation of the answers, beyond what the labels explain; null where the "
           "images are too few to tell", nullable=True),
    Column("near_duplicate", BOOL, "the two behave as one model"),
))  # fmt: skip

LAYOUTS = {layout.kind: layout for layout in (SAMPLES, EXAMPLES, TRACES, HISTORY, LIKENESS)}
SCHEMAS = {kind: layout.schema() for kind, layout in LAYOUTS.items()}

CELL_FIELDS = (
    "suite", "attack", "attack_params", "family", "surrogates", "surrogate_specs",
    "surrogate_digests", "seed", "shard", "norm", "eps", "forwards_per_sample",
    "backwards_per_sample", "seconds_per_image", "data", "data_fingerprint", "device", "version",
)

CELL_EXTRAS = (
    "goal", "after", "notes", "bases", "round", "until", "silent_images", "silent_steps", "threads",
    "arithmetic", "clean_sha256",
)  # fmt: skip
"""What the description of a cell may hold beside: of robustness runs, of built surrogates, and how many
images got a gradient of zeros in how many steps, how many threads crafted, what rounding depends on, and the
digest of the clean images of the shard (runs from before these were recorded hold nothing)."""


_WORDS = ("suite", "attack", "family", "surrogates", "norm", "data", "data_fingerprint", "device", "version")
_LISTS = ("surrogate_specs", "surrogate_digests", "shard")
_NUMBERS = ("forwards_per_sample", "backwards_per_sample", "seconds_per_image")
_CELL_TYPES: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(_WORDS, (str,)), **dict.fromkeys(_LISTS, (list,)),
    **dict.fromkeys(_NUMBERS, (int, float, type(None))),
    "attack_params": (dict, str), "seed": (int,), "eps": (int, float, str),
}  # fmt: skip
_OPTIONAL = {
    "silent_images": int, "silent_steps": int, "threads": int, "arithmetic": str, "round": int,
    "until": float, "clean_sha256": str,
}  # fmt: skip


def misfits(cell: object) -> list[str]:
    """The fields that a cell's description lacks, or that hold something of another type."""
    if not isinstance(cell, dict):
        return list(CELL_FIELDS)
    wrong = [name for name, kinds in _CELL_TYPES.items() if not _holds(cell.get(name, ...), kinds)] + [
        name for name, kind in _OPTIONAL.items() if not _holds(cell.get(name), (kind, type(None)))
    ]
    if "shard" not in wrong and [_holds(each, (int,)) for each in cell["shard"]] != [True, True]:
        wrong.append("shard")
    return wrong


def _holds(value: object, kinds: tuple[type, ...]) -> bool:
    small = not isinstance(value, int) or abs(value) < 1 << 63
    return isinstance(value, kinds) and not isinstance(value, bool) and small


def to_table(
    kind: str | Layout, rows: pd.DataFrame | pa.Table | Mapping[str, Any], **metadata: object
) -> pa.Table:
    """Rows as a table of one kind, with the columns in order and the metadata in place.

    Args:
        kind: ``"samples"``, ``"examples"``, or the layout of a board.
        rows: the columns of the kind; more than these is an error, and so is less. Of examples, the
            ``sha256`` is computed when it is not given, and without a ``difference`` images are whole.
        metadata: kept in the file under ``advens.<name>`` (``suite_digest=...``); values that
            are not strings as JSON.

    Raises:
        RunError: when columns are missing, unknown, of another type, or null where they must not.
    """
    layout = LAYOUTS[kind] if isinstance(kind, str) else kind
    columns = _columns(rows)
    if layout is EXAMPLES and "sha256" not in columns and "image" in columns:
        columns["sha256"] = [hashlib.sha256(image).hexdigest() for image in columns["image"]]
    if layout is EXAMPLES and "image" in columns:
        columns.setdefault("difference", [None] * len(columns["image"]))
    missing, unknown = layout.missing(columns), layout.unknown(columns)
    if missing or unknown:
        raise RunError(
            f"not a table of {layout.kind}: missing columns {missing}, unknown columns {unknown}"
        )
    schema = layout.schema(layout.names if layout.fixed else list(columns))
    arrays = []
    for field in schema:
        try:
            array = pa.array(columns[field.name], type=field.type, from_pandas=True)
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise RunError(f"column '{field.name}' of {layout.kind}: {error}") from error
        if array.null_count and not field.nullable:
            raise RunError(f"column '{field.name}' of {layout.kind} holds {array.null_count} nulls")
        arrays.append(array)
    table = pa.Table.from_arrays(arrays, schema=schema)
    return with_metadata(table, **metadata)


def with_metadata(table: pa.Table, **metadata: object) -> pa.Table:
    """The table with entries added to its file metadata, under ``advens.<name>``."""
    entries = {
        f"{PREFIX}{name}".encode(): (
            value if isinstance(value, str) else json.dumps(value, sort_keys=True)
        ).encode()
        for name, value in sorted(metadata.items())
        if value is not None
    }
    return table.replace_schema_metadata({**(table.schema.metadata or {}), **entries})


def _columns(rows: pd.DataFrame | pa.Table | Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(rows, pa.Table):
        return {name: rows.column(name).combine_chunks() for name in rows.column_names}
    if isinstance(rows, Mapping):
        return dict(rows)
    return {  # a category is written as the text it stands for
        str(name): column.astype(column.cat.categories.dtype) if column.dtype == "category" else column
        for name, column in rows.items()
    }
