"""A part of a run is ranked as if it were all there is."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from advens.errors import InputError
from advens.results.boards.leaderboard import leaderboard
from advens.results.boards.subset import subset
from advens.results.boards.summary import load
from advens.results.store import read_table, schema, write_table

TARGETS = {"digits:resnet": 0.9, "digits:vit": 0.7, "digits:vit-at": 0.3}
FAMILIES = {"digits:resnet": "cnn", "digits:vit": "vit", "digits:vit-at": "vit"}
STRENGTHS = {("pgd", "cnns"): 0.5, ("cwa", "cnns"): 0.9, ("cwa", "vits"): 0.6}


@pytest.fixture
def made(run, drawn):
    frame = drawn(STRENGTHS, TARGETS, {"cnns": ["digits:resnet"]}, n=60, seeds=2)
    frame["target_family"] = frame["target"].map(FAMILIES)
    return run(frame)


@pytest.mark.parametrize(
    ("chosen", "kept"),
    [
        ({"targets": "*vit*"}, lambda f: f["target"] != "digits:resnet"),
        ({"targets": "digits:vit,*resnet"}, lambda f: f["target"] != "digits:vit-at"),
        ({"attacks": "c*"}, lambda f: f["attack"] == "cwa"),
        ({"surrogates": "vits"}, lambda f: f["surrogates"] == "vits"),
        ({"where": "target_family == 'vit'"}, lambda f: f["target_family"] == "vit"),
        ({"where": "seed == 1 and not white_box"}, lambda f: (f["seed"] == 1) & ~f["white_box"]),
        ({"where": "family == 'fusion'", "attacks": "pgd"}, lambda f: f["attack"] == "pgd"),
    ],
)
def test_means_intervals_and_letters_are_those_of_the_part(made, chosen, kept):
    samples, cells = load([made.directory])
    part, own = subset(samples, cells, **chosen)
    by_hand = samples[kept(samples)]
    assert 0 < len(by_hand) < len(samples)
    pd.testing.assert_frame_equal(part, by_hand)
    assert set(own["attack"]) == set(by_hand["attack"].astype(str))
    board, alone = leaderboard(part, own), leaderboard(by_hand, own)
    pd.testing.assert_frame_equal(board, alone)


def test_a_condition_may_turn_the_order_round(rows):
    """The best attack on ViTs is not the best on all."""
    def images(attack, target, family, fooled):
        return [
            {"attack": attack, "target": target, "target_family": family, "sample_id": str(i),
             "adv_pred": 2 if i < fooled else 1, "cell": attack}
            for i in range(10)
        ]  # fmt: skip

    frame = rows([
        *images("a", "t:cnn", "cnn", 10), *images("a", "t:vit", "vit", 2),
        *images("b", "t:cnn", "cnn", 1), *images("b", "t:vit", "vit", 5),
    ])  # fmt: skip
    cells = pd.DataFrame(columns=["cell", "samples", *schema.CELL_FIELDS])
    assert leaderboard(frame)["attack"].tolist() == ["a", "b"]
    part, _ = subset(frame, cells, where="target_family == 'vit'")
    board = leaderboard(part)
    assert board["attack"].tolist() == ["b", "a"]
    assert np.allclose(board["mean_asr"], [0.5, 0.2])
    assert board.attrs["targets"] == ["t:vit"]


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"targets": "vitt"}, "unknown target in this run 'vitt'"),
        ({"attacks": "pdg"}, "unknown attack in this run 'pdg'; did you mean 'pgd'"),
        ({"surrogates": "x"}, "unknown surrogate set in this run 'x'; one of: cnns, vits"),
        ({"where": "target_family = 'vit'"}, "cannot be read .* target_family == 'vit'"),
        ({"where": "nonsense > 1"}, "cannot be read"),
        ({"where": "seed == 7"}, "no sample of the run is left"),
        ({"attacks": "pgd", "surrogates": "vits"}, "no sample of the run is left"),
    ],
)
def test_what_matches_nothing_is_said(made, chosen, message):
    with pytest.raises(InputError, match=message) as caught:
        subset(*load([made.directory]), **chosen)
    assert "\n" not in str(caught.value)


def test_runs_older_than_the_family_column_are_read(made):
    for path in made.samples.glob("*.parquet"):
        write_table(path, read_table(path, "samples").drop_columns(["target_family"]))
    samples, cells = load([made.directory])
    assert samples["target_family"].isna().all()
    assert len(leaderboard(samples, cells)) == 3
    with pytest.raises(InputError, match="no sample of the run is left"):
        subset(samples, cells, where="target_family == 'vit'")
