"""Made-up runs: samples whose numbers are chosen, written as a run directory when asked."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from advens.results.store import RunStore, schema, write_examples, write_table

SIDE = 2


def sample(**given: Any) -> dict[str, Any]:
    """One row of ``samples``; right before, wrong after, unless said otherwise."""
    row = {
        "suite": "s", "attack": "pgd", "attack_params": "{}", "surrogates": "cnns", "seed": 0,
        "target": "digits:vit", "sample_id": "0", "label": 1, "target_label": None,
        "clean_pred": 1, "adv_pred": 2, "linf": 0.1, "l2": 0.5, "l1": 2.0, "cell": "c0", "white_box": False,
        "member": None, "weight": 1.0, "target_family": "cnn", **given,
    }
    row["clean_correct"] = row["clean_pred"] == row["label"]
    if "success" not in given:
        row["success"] = (
            row["adv_pred"] == row["target_label"] if row["target_label"] is not None
            else row["clean_correct"] and row["adv_pred"] != row["label"]
        )
    return row


def samples_frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=schema.SCHEMAS["samples"].names)
    return frame.astype({"target_label": "Int64", "member": "Int64"})


def made_up(
    strengths: dict[tuple[str, str], float],
    targets: dict[str, float],
    white_box: dict[str, list[str]] | None = None,
    n: int = 200,
    seeds: int = 1,
    suite: str = "s",
) -> pd.DataFrame:
    """A run in which attack (name, set) fools a target with chance strength * weakness.

    What is drawn is shared by the attacks, so that they are paired as real ones are.
    """
    rng = np.random.default_rng(0)
    hardness = rng.random((len(targets), n))
    clean = rng.random((len(targets), n)) < 0.95
    rows = []
    for (attack, surrogates), strength in strengths.items():
        for t, (target, weakness) in enumerate(targets.items()):
            inside = target in (white_box or {}).get(surrogates, [])
            for seed in range(seeds):
                fooled = hardness[t] + 0.05 * rng.standard_normal(n) < (
                    0.97 if inside else strength * weakness
                )
                rows += [
                    sample(
                        suite=suite, attack=attack, surrogates=surrogates, seed=seed, target=target,
                        sample_id=f"{i:04d}", clean_pred=1 if clean[t, i] else 2,
                        adv_pred=3 if fooled[i] else (1 if clean[t, i] else 2), white_box=inside,
                        cell=re.sub(r"\W", "-", f"{attack}-{surrogates}-{seed}"),
                    )
                    for i in range(n)
                ]
    return samples_frame(rows)


def cell_of(**given: Any) -> dict[str, Any]:
    return {
        "suite": "s", "attack": "pgd", "attack_params": "{}", "family": "fusion",
        "surrogates": "cnns", "surrogate_specs": ["digits:resnet"], "surrogate_digests": ["ab"],
        "seed": 0, "shard": [0, 4], "norm": "linf", "eps": "8/255", "forwards_per_sample": 10.0,
        "backwards_per_sample": 10.0, "seconds_per_image": 0.002, "data": "digits:test",
        "data_fingerprint": "f", "device": "cpu", "version": "0", **given,
    }


def examples_frame(cell: str, ids: list[str]) -> pd.DataFrame:
    rng = np.random.default_rng(len(ids))
    return pd.DataFrame({
        "cell": cell, "sample_id": ids, "label": 1, "target_label": pd.array([None] * len(ids)),
        "image": [rng.integers(0, 256, 3 * SIDE**2, dtype=np.uint8).tobytes() for _ in ids],
        "height": SIDE, "width": SIDE, "linf": 0.1, "l2": 0.5, "l1": 2.0,
    })


def write_run(directory: Path, frame: pd.DataFrame, **cell: Any) -> RunStore:
    """Writes samples as a run: a file per cell and target, examples per cell."""
    store = RunStore(directory)
    for name, rows in frame.groupby("cell"):
        first = rows.iloc[0]
        ids = sorted(set(rows["sample_id"]))
        about = {key: str(first[key]) for key in ("suite", "attack", "surrogates")}
        write_examples(
            store.examples_path(str(name)), examples_frame(str(name), ids),
            json.loads(json.dumps(cell_of(**about, seed=int(first["seed"]), **cell))),
        )
        for target, part in rows.groupby("target"):
            key = re.sub(r"[^A-Za-z0-9.]", "-", str(target))
            write_table(store.samples_path(str(name), key), schema.to_table("samples", part))
    return store


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., RunStore]:
    def make(frame: pd.DataFrame, name: str = "run", **cell: Any) -> RunStore:
        return write_run(tmp_path / name, frame, **cell)

    return make


@pytest.fixture
def rows() -> Callable[[list[dict[str, Any]]], pd.DataFrame]:
    """``rows([{...}, ...])``: samples from what is special about each."""
    return lambda given: samples_frame([sample(**row) for row in given])


@pytest.fixture
def drawn() -> Callable[..., pd.DataFrame]:
    return made_up


@pytest.fixture
def examples() -> Callable[..., pd.DataFrame]:
    return examples_frame


@pytest.fixture
def about() -> Callable[..., dict[str, Any]]:
    return cell_of
