"""What the four kinds of parquet file hold: columns, units, meaning, and metadata around them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import pandas as pd
import pyarrow as pa

from advens.errors import RunError

SCHEMA_VERSION = 1
KIND = b"advens.kind"
VERSION = b"advens.schema_version"
ROWS = b"advens.rows"
CELL = b"advens.cell"
PREFIX = "advens."

_TEXT, _INT, _REAL, _BOOL = pa.string(), pa.int64(), pa.float64(), pa.bool_()

# name, type, unit, meaning; a name that ends in "?" may be null
_Column = tuple[str, pa.DataType, str, str]

_SAMPLES: tuple[_Column, ...] = (
    ("suite", _TEXT, "", "suite the row belongs to"),
    ("attack", _TEXT, "", "attack, by the label of its entry in the suite"),
    ("attack_params", _TEXT, "json", "every parameter of the attack"),
    ("surrogates", _TEXT, "", "name of the surrogate set"),
    ("seed", _INT, "", "seed of the suite the cell was crafted with"),
    ("target", _TEXT, "", "model the stored image was shown to"),
    ("sample_id", _TEXT, "", "image of the data set"),
    ("label", _INT, "class", "true class"),
    ("target_label?", _INT, "class", "class the attacker wants; null when untargeted"),
    ("clean_pred", _INT, "class", "the target's prediction on the clean image"),
    ("adv_pred", _INT, "class", "the target's prediction on the stored adversarial image"),
    ("clean_correct", _BOOL, "", "clean_pred is the true class"),
    ("success", _BOOL, "", "untargeted: right before, wrong after; targeted: the wanted class"),
    ("linf", _REAL, "intensity in [0, 1]", "l_inf norm of the stored perturbation"),
    ("l2", _REAL, "intensity in [0, 1]", "l_2 norm of the stored perturbation"),
    ("cell", _TEXT, "", "cell that crafted the image: the stem of its examples file"),
    ("white_box", _BOOL, "", "the target's weights are a surrogate's, or those it was built from"),
    ("member?", _INT, "", "of a randomized target: the member whose answer this is; else null"),
    ("weight", _REAL, "fraction", "how often the target answers so: a member's probability; else 1"),
    ("target_family?", _TEXT, "", "architecture of the target (cnn, vit, ...); null in older runs"),
)

_EXAMPLES: tuple[_Column, ...] = (
    ("cell", _TEXT, "", "cell that crafted the image"),
    ("sample_id", _TEXT, "", "image of the data set"),
    ("label", _INT, "class", "true class"),
    ("target_label?", _INT, "class", "class the attacker wants; null when untargeted"),
    ("image", pa.binary(), "uint8, CHW", "the adversarial image, raw bytes"),
    ("height", pa.int32(), "pixel", "height of the image"),
    ("width", pa.int32(), "pixel", "width of the image"),
    ("linf", _REAL, "intensity in [0, 1]", "l_inf norm of the stored perturbation"),
    ("l2", _REAL, "intensity in [0, 1]", "l_2 norm of the stored perturbation"),
    ("sha256", _TEXT, "hex", "digest of the image bytes"),
)

_MATRIX: tuple[_Column, ...] = (
    ("suite", _TEXT, "", "suite the row belongs to"),
    ("attack", _TEXT, "", "attack"),
    ("surrogates", _TEXT, "", "name of the surrogate set"),
    ("target", _TEXT, "", "model the images were shown to"),
    ("white_box", _BOOL, "", "the target is among the surrogates"),
    ("n", _INT, "image", "distinct images in the denominator"),
    ("clean_accuracy?", _REAL, "fraction", "of all images, right before the attack"),
    ("asr?", _REAL, "fraction", "attack success rate over the n images, mean over seeds"),
    ("asr_low", _REAL, "fraction", "lower end of the 95 % Wilson interval"),
    ("asr_high", _REAL, "fraction", "upper end of the 95 % Wilson interval"),
    ("robust_accuracy?", _REAL, "fraction", "of all images, right before and after the attack"),
    ("error_rate?", _REAL, "fraction", "of all images, wrong after the attack"),
    ("seeds", _INT, "", "number of seeds"),
)

_LEADERBOARD: tuple[_Column, ...] = (
    ("suite", _TEXT, "", "suite the row belongs to"),
    ("attack", _TEXT, "", "attack"),
    ("surrogates", _TEXT, "", "name of the surrogate set"),
    ("rank", _INT, "", "by mean_asr, 1 is the strongest"),
    ("group", _TEXT, "", "rows sharing a letter cannot be told apart (paired test, Holm, 5 %)"),
    ("mean_asr?", _REAL, "fraction", "mean attack success rate over held-out targets"),
    ("asr_low?", _REAL, "fraction", "lower end of the 95 % bootstrap interval over images"),
    ("asr_high?", _REAL, "fraction", "upper end of the 95 % bootstrap interval over images"),
    ("white_box_asr?", _REAL, "fraction", "mean attack success rate over white-box targets"),
    ("forwards_per_sample?", _REAL, "pass", "forward passes through surrogates per image"),
    ("backwards_per_sample?", _REAL, "pass", "backward passes through surrogates per image"),
    ("seconds_per_image?", _REAL, "s", "crafting time per image on the run's device"),
    ("mean_linf?", _REAL, "intensity in [0, 1]", "mean l_inf norm of the perturbations"),
    ("mean_l2?", _REAL, "intensity in [0, 1]", "mean l_2 norm of the perturbations"),
    ("targets", _INT, "model", "held-out targets in mean_asr"),
    ("n", _INT, "image", "distinct images in mean_asr"),
    ("family", _TEXT, "", "family of the attack in the registry"),
    ("pareto", _BOOL, "", "no attack on the same surrogates is as strong with less compute, or "
     "stronger with as much (compute: forwards + 2 backwards)"),
)


def _schema(kind: str, columns: tuple[_Column, ...]) -> pa.Schema:
    fields = [
        pa.field(
            name.rstrip("?"), type_, nullable=name.endswith("?"),
            metadata={"description": meaning, "unit": unit},
        )
        for name, type_, unit, meaning in columns
    ]
    return pa.schema(fields, metadata={KIND: kind.encode(), VERSION: str(SCHEMA_VERSION).encode()})


SCHEMAS: dict[str, pa.Schema] = {
    "samples": _schema("samples", _SAMPLES),
    "examples": _schema("examples", _EXAMPLES),
    "matrix": _schema("matrix", _MATRIX),
    "leaderboard": _schema("leaderboard", _LEADERBOARD),
}

CELL_FIELDS = (
    "suite", "attack", "attack_params", "family", "surrogates", "surrogate_specs",
    "surrogate_digests", "seed", "shard", "norm", "eps", "forwards_per_sample",
    "backwards_per_sample", "seconds_per_image", "data", "data_fingerprint", "device", "version",
)

CELL_EXTRAS = ("goal", "after", "notes", "bases", "silent_images", "silent_steps")
"""What the description of a cell may hold beside: of robustness runs, of built surrogates, and how many
images got a gradient of zeros in how many steps (runs from before it was counted hold nothing)."""


_WORDS = ("suite", "attack", "family", "surrogates", "norm", "data", "data_fingerprint", "device", "version")
_LISTS = ("surrogate_specs", "surrogate_digests", "shard")
_NUMBERS = ("forwards_per_sample", "backwards_per_sample", "seconds_per_image")
_CELL_TYPES: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(_WORDS, (str,)), **dict.fromkeys(_LISTS, (list,)),
    **dict.fromkeys(_NUMBERS, (int, float, type(None))),
    "attack_params": (dict, str), "seed": (int,), "eps": (int, float, str),
}  # fmt: skip


def misfits(cell: object) -> list[str]:
    """The fields that a cell's description lacks, or that hold something of another type."""
    if not isinstance(cell, dict):
        return list(CELL_FIELDS)
    return [name for name, kinds in _CELL_TYPES.items() if not _holds(cell.get(name, ...), kinds)] + [
        name for name in ("silent_images", "silent_steps") if not _holds(cell.get(name), (int, type(None)))
    ]


def _holds(value: object, kinds: tuple[type, ...]) -> bool:
    small = not isinstance(value, int) or abs(value) < 1 << 63
    return isinstance(value, kinds) and not isinstance(value, bool) and small


def to_table(
    kind: str, rows: pd.DataFrame | pa.Table | Mapping[str, Any], **metadata: object
) -> pa.Table:
    """Rows as a table of one kind, with the columns in order and the metadata in place.

    Args:
        kind: ``"samples"``, ``"examples"``, ``"matrix"`` or ``"leaderboard"``.
        rows: the columns of the kind; more than these is an error, and so is less. The ``sha256``
            of examples is computed when it is not given.
        metadata: kept in the file under ``advens.<name>`` (``suite_digest=...``); values that
            are not strings as JSON.

    Raises:
        RunError: when columns are missing, unknown, of another type, or null where they must not.
    """
    schema = SCHEMAS[kind]
    columns = _columns(rows)
    if kind == "examples" and "sha256" not in columns and "image" in columns:
        columns["sha256"] = [hashlib.sha256(image).hexdigest() for image in columns["image"]]
    missing = [name for name in schema.names if name not in columns]
    unknown = [name for name in columns if name not in schema.names]
    if missing or unknown:
        raise RunError(
            f"not a table of {kind}: missing columns {missing}, unknown columns {unknown}"
        )
    arrays = []
    for field in schema:
        try:
            array = pa.array(columns[field.name], type=field.type, from_pandas=True)
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise RunError(f"column '{field.name}' of {kind}: {error}") from error
        if array.null_count and not field.nullable:
            raise RunError(f"column '{field.name}' of {kind} holds {array.null_count} nulls")
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


def same_columns(schema: pa.Schema, kind: str) -> bool:
    """Whether names and types are those of the kind, in order.

    Nullable columns at the end may be missing: older runs did not have them.
    """
    wanted = SCHEMAS[kind]
    known = len(schema.names)
    return bool(
        schema.names == wanted.names[:known]
        and schema.types == wanted.types[:known]
        and all(field.nullable for field in list(wanted)[known:])
    )


def _columns(rows: pd.DataFrame | pa.Table | Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(rows, pa.Table):
        return {name: rows.column(name).combine_chunks() for name in rows.column_names}
    if isinstance(rows, pd.DataFrame):
        return {
            str(name): column.astype(column.cat.categories.dtype)
            if isinstance(column.dtype, pd.CategoricalDtype) else column
            for name, column in rows.items()
        }
    return dict(rows)
