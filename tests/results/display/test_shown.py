"""What is shown, to the letter: terminals narrow and wide, styles, and markdown, from small made-up frames.

The files in ``shown/`` were read by people. When a table changes on purpose, they are written anew with
``python tests/results/display/test_shown.py``; look at what changed.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

from advens.results.display.blocks import text_of
from advens.results.display.comparison import render_comparison
from advens.results.display.render import board_parts, render_board

SHOWN = Path(__file__).parent / "shown"
NAN = float("nan")


def matrix() -> pd.DataFrame:
    """Two suites; one target is a surrogate, one row lacks a target, one rate has no image."""
    rows = [
        ("one", "pgd", "cnns", "digits:resnet", True, 0.96, 0.9, 0.99),
        ("one", "pgd", "cnns", "digits:vit-at", False, 0.25, 0.2, 0.3),
        ("one", "pgd", "cnns", "digits:mambaout_femto", False, 0.5, 0.45, 0.55),
        ("one", "ghost-mi-cwa-with-a-long-name", "cnns", "digits:resnet", True, 1.0, 0.98, 1.0),
        ("one", "ghost-mi-cwa-with-a-long-name", "cnns", "digits:vit-at", False, 0.35, 0.3, 0.4),
        ("one", "ghost-mi-cwa-with-a-long-name", "cnns", "digits:mambaout_femto", False, NAN, 0.0, 1.0),
        ("two", "pgd", "vits", "digits:vit-at", False, 0.75, 0.7, 0.8),
    ]
    names = ["suite", "attack", "surrogates", "target", "white_box", "asr", "asr_low", "asr_high"]
    frame = pd.DataFrame(rows, columns=names).assign(n=100, seeds=1)
    keys = ["suite", "attack", "surrogates", "mean_asr", "models_low", "models_high", "asr_low", "asr_high"]
    frame.attrs = {"denominator": "target", "means": [
        dict(zip(keys, row, strict=True)) for row in (
            ("one", "pgd", "cnns", 0.25, 0.1, 0.52, 0.2, 0.3),
            ("one", "ghost-mi-cwa-with-a-long-name", "cnns", 0.35, 0.11, 0.6, 0.3, 0.4),
            ("two", "pgd", "vits", 0.75, None, None, 0.7, 0.8),
        )
    ]}  # fmt: skip
    return frame


def randomized() -> pd.DataFrame:
    """One suite, sharp rates, several seeds and numbers of images, a randomized target."""
    frame = matrix().iloc[:2].assign(n=[900, 1000], seeds=[3, 2], asr_low=[0.95, 0.24], asr_high=[0.97, 0.26])
    frame.attrs = {"denominator": "common", "randomized": ["defense:a", "defense:b"]}
    return frame


def no_white_box() -> pd.DataFrame:
    frame = matrix().iloc[1:3]
    frame.attrs = {}
    return frame


def board() -> pd.DataFrame:
    frame = pd.DataFrame({
        "suite": ["one", "one", "two"], "attack": ["cwa", "pgd", "pgd"],
        "surrogates": ["cnns", "cnns", "vits"],
        "rank": [1, 2, 3], "rank_low": [1, 1, None], "rank_high": [1, 2, None],
        "models_group": ["a", "a", ""], "group": ["a", "ab", "b"], "p_first": [NAN, 0.0312, NAN],
        "mean_asr": [0.7255, 0.55, NAN], "models_low": [0.4, 0.3, NAN], "models_high": [0.9, 0.8, NAN],
        "asr_low": [0.65, 0.5, NAN], "asr_high": [0.77, 0.61, NAN], "white_box_asr": [0.999, 1.0, NAN],
        "forwards_per_sample": [40.0, 10.5, NAN], "backwards_per_sample": [40.0, 10.0, NAN],
        "seconds_per_image": [0.0123, 1.5, NAN], "mean_linf": [0.0313, 0.0314, 0.03], "mean_l2": 1.0,
        "targets": [2, 2, 0], "n": [100, 90, 0], "pareto": [True, False, False], "family": ["fusion", "", ""],
        "asr cnn": [0.8, 0.5, NAN], "asr vit": [0.65, 0.6, NAN],
    }).astype({"rank_low": "Int64", "rank_high": "Int64"})
    frame.attrs = {"denominator": "all", "targets": ["digits:vit-at", "digits:vit"], "notes": ["mind this"]}
    return frame


def equal_board() -> pd.DataFrame:
    frame = board().iloc[:2].assign(n=100, asr_low=[0.72, 0.54], asr_high=[0.73, 0.56])
    frame.attrs = {"denominator": "target", "targets": ["digits:vit"]}
    return frame


def few_targets() -> pd.DataFrame:
    """Fewer than five targets: nothing about new models."""
    none = dict.fromkeys(["rank_low", "rank_high", "p_first", "models_low", "models_high"], NAN)
    frame = equal_board().assign(**none, models_group="")
    return frame.astype({"rank_low": "Int64", "rank_high": "Int64"})


def many_rows() -> pd.DataFrame:
    """More than 40 rows, of which two are shown here: no letters."""
    return pd.concat([equal_board().assign(models_group="", group="")] * 21, ignore_index=True)


def own_targets() -> pd.DataFrame:
    frame = equal_board()
    frame.attrs = {}
    return frame


def open_attacks() -> pd.DataFrame:
    frame = pd.DataFrame({
        "suite": "s", "model": ["digits:a", "digits:a", "digits:b"], "attack": ["pma", "worst of all", "pma"],
        "n": [50, 50, 40], "clean_accuracy": [0.95, 0.95, 0.9], "robust_accuracy": [0.5, 0.4, 0.25],
        "low": [0.4, 0.3, 0.2], "high": [0.6, 0.5, 0.3], "group": ["a", "", "a"],
        "forwards_per_sample": [10.0, NAN, 5.5], "backwards_per_sample": [9.0, NAN, 4.5],
        "seconds_per_image": [0.001, NAN, 0.002], "total_forwards": [20.0, NAN, 5.5],
        "total_backwards": [19.0, NAN, 4.5], "total_seconds": [0.0123, NAN, 0.002],
    })
    frame.attrs = {"notes": ["its gradients may be masked"]}
    return frame


def comparison() -> dict:
    each = {"surrogates": ["cnns"], "difference": 0.12, "low": 0.05, "high": 0.19, "p": 0.0123, "n": 100,
            "models_low": -0.03, "models_high": 0.27, "models_p": 0.312,
            "targets": ["digits:vit", "digits:vit-at"]}
    found = {**each, "a": "cwa", "b": "pgd", "denominator": "target", "each": [each]}
    return found


def comparisons() -> dict:
    found = comparison()
    other = {**found["each"][0], "surrogates": ["vits", "all"], "difference": -0.01, "low": -0.07,
             "high": 0.05, "p": 0.7, "models_low": None, "models_high": None, "models_p": None,
             "targets": ["digits:vit"]}
    return {**found, "each": [*found["each"], other], "surrogates": ["all", "cnns", "vits"], "p": 0.05,
            "models_low": None, "models_high": None, "models_p": None, "n": 200, "difference": 0.055,
            "targets": ["digits:vit"]}


def study() -> pd.DataFrame:
    return pd.DataFrame({
        "table": ["T", "T", "U"], "label": ["plain", "dverge", "barre"], "members": [3, 3, 4],
        "kind": ["mean", "mean", "randomized"], "trainings": [6, 6, 2], "n": [100, 100, 100],
        "n open": [40, 40, 50], "clean": [0.99, 0.975, 0.95], "clean low": [0.98, 0.95, 0.9],
        "clean high": [1.0, 1.0, 1.0], "open worst": [0.1, 0.5, NAN], "open worst low": [0.05, 0.4, NAN],
        "open worst high": [0.15, 0.6, NAN], "open worst group": ["b", "a", ""], "diversity": [NAN, 1.5, NAN],
        "diversity low": [NAN, 1.0, NAN], "diversity high": [NAN, 2.0, NAN], "mflops": [12.5, 12.5, 16.0],
        "mflops low": [12.5, 12.5, 16.0], "mflops high": [12.5, 12.5, 16.0], "missed": NAN, "missed low": NAN,
        "missed high": NAN,
    })


def styled(parts: list, width: int) -> str:
    """The styles of all that is not blank, a line for a line."""
    console = Console(width=width, file=io.StringIO())
    return "".join(
        " ".join(f"{seg.style or 'plain'}({seg.text.strip()})" for seg in line if seg.text.strip()) + "\n"
        for part in parts for line in console.render_lines(part, pad=False)
    )


CASES: dict[str, Callable[[], str]] = {
    "matrix-200": lambda: render_board("matrix", matrix(), width=200),
    "matrix-default": lambda: render_board("matrix", matrix()),
    "matrix-40": lambda: render_board("matrix", matrix(), width=40),
    "matrix-markdown": lambda: render_board("matrix", matrix(), "markdown"),
    "matrix-styles": lambda: styled(board_parts("matrix", matrix(), 100), 100),
    "matrix-randomized": lambda: render_board("matrix", randomized(), width=120),
    "matrix-no-white-box": lambda: render_board("matrix", no_white_box(), width=120),
    "board-160": lambda: render_board("leaderboard", board(), width=160),
    "board-60": lambda: render_board("leaderboard", board(), width=60),
    "board-markdown": lambda: render_board("leaderboard", board(), "markdown"),
    "board-styles": lambda: styled(board_parts("leaderboard", board(), 100), 100),
    "board-equal": lambda: render_board("leaderboard", equal_board(), width=160),
    "board-few-targets": lambda: render_board("leaderboard", few_targets(), width=160),
    "board-many-rows": lambda: render_board("leaderboard", many_rows(), width=160),
    "board-own-targets": lambda: render_board("leaderboard", own_targets(), width=160),
    "open-160": lambda: render_board("robustness", open_attacks(), width=160),
    "open-50": lambda: render_board("robustness", open_attacks(), width=50),
    "open-markdown": lambda: render_board("robustness", open_attacks(), "markdown"),
    "open-json": lambda: render_board("robustness", open_attacks(), "json"),
    "comparison-120": lambda: render_comparison(comparison(), width=120),
    "comparison-csv": lambda: render_comparison(comparison(), "csv"),
    "comparisons-default": lambda: render_comparison(comparisons()),
    "comparisons-csv": lambda: render_comparison(comparisons(), "csv"),
    "comparisons-markdown": lambda: render_comparison(comparisons(), "markdown"),
    "study-styles": lambda: styled(board_parts("study", study(), 100), 100),
    "study-60": lambda: text_of(board_parts("study", study(), 60), 60),
    "study-markdown": lambda: render_board("study", study(), "markdown"),
}


@pytest.mark.parametrize("name", CASES)
def test_shown(name: str) -> None:
    assert CASES[name]() == (SHOWN / f"{name}.txt").read_text()


def test_nothing_else_is_kept() -> None:
    assert {path.stem for path in SHOWN.iterdir()} == set(CASES)


if __name__ == "__main__":
    for case, made in CASES.items():
        (SHOWN / f"{case}.txt").write_text(made())
