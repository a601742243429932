"""The mixed model beside the two-way test, on made data."""

from __future__ import annotations

import importlib.util
import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from advens.benchmarks.studies import mixed
from advens.benchmarks.studies.calibration import Made
from advens.benchmarks.studies.mixed import decisions, fitted
from advens.errors import InputError
from advens.results.boards.means import Means
from advens.results.boards.outcomes import contributions

needs_statsmodels = pytest.mark.skipif(
    importlib.util.find_spec("statsmodels") is None, reason="an extra: advens[studies]"
)


@needs_statsmodels
def test_effects_and_decisions_of_made_data():
    made = Made(
        rates=(0.3, 0.6, 0.6), images=80, targets=10, target=1.0, image=1.0, attack_target=0.3,
        attack_image=0.0,
    )  # fmt: skip
    blocks = list(made.draw(np.random.default_rng(2)).values)
    effects = fitted(blocks)
    first, second, third = effects.attack
    assert 1.2 < second - first < 2.2, "logit of 0.6 less that of 0.3, with the spread of the effects"
    assert abs(second - third) < 0.5
    assert 0.5 < effects.target < 1.5
    assert 0.6 < effects.image < 1.4
    assert 0.05 < effects.together < 0.6
    table = decisions(blocks, effects)
    assert (table["a"].tolist(), table["b"].tolist()) == ([0, 0, 1], [1, 2, 2])
    assert (table["model"] < 0.05).tolist() == [True, True, False]
    assert table["agree"].all()


def means(blocks):
    """Means of a run whose attacks are a0, a1 and so on."""
    values = np.stack(blocks)
    attack, image, target = np.indices(values.shape).reshape(3, -1)
    success, counted = np.nan_to_num(values).ravel() > 0, ~np.isnan(values).ravel()
    samples = pd.DataFrame({
        "suite": "s", "attack": [f"a{k}" for k in attack], "surrogates": "cnns", "seed": 0, "cell": "c",
        "target": [f"t{k}" for k in target], "target_family": "cnn", "sample_id": image.astype(str),
        "label": 1, "target_label": None, "clean_correct": counted, "adv_pred": np.where(success, 2, 1),
        "success": success, "white_box": False, "member": None, "weight": 1.0,
    })  # fmt: skip
    return Means(contributions(samples))


@needs_statsmodels
def test_what_is_said_of_a_run(monkeypatch, tmp_path):
    blocks = list(Made(rates=(0.3, 0.6), images=60, targets=6).draw(np.random.default_rng(0)).values)
    monkeypatch.setattr(mixed, "Rows", lambda run: SimpleNamespace(means=means(blocks)))
    said = CliRunner().invoke(mixed.main, [str(tmp_path)])
    assert said.exit_code == 0, said.output
    assert "| a1 (cnns) - a0 (cnns) |" in said.output, "in the order of the board"
    assert "The decisions agree on 1 of 1 pairs." in said.output
    monkeypatch.setattr(mixed, "Rows", lambda run: SimpleNamespace(means=means([b[:, :4] for b in blocks])))
    said = CliRunner().invoke(mixed.main, [str(tmp_path)])
    assert said.exit_code == 1
    assert "fewer than 5 held-out targets" in said.output


def test_without_statsmodels_it_says_what_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "statsmodels.genmod.bayes_mixed_glm", None)
    with pytest.raises(InputError, match="advens\\[studies\\]"):
        fitted([np.zeros((3, 5))])
