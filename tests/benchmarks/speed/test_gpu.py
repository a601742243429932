"""The timing of attacks on a GPU, on a CPU: every attack runs, and the passes are those it took."""

from __future__ import annotations

import json

import pytest
import torch
from click.testing import CliRunner

from advens.attacks import create_attack
from advens.benchmarks.speed.gpu import ATTACKS, EPS, main, recorded, replay, setting


@pytest.fixture(scope="module")
def here():
    return setting("cpu", tiny=True, batch=2, steps=1, compiled=False)


@pytest.mark.parametrize("name", ATTACKS)
def test_the_bare_passes_are_those_of_the_attack(here, name, monkeypatch):
    attack = create_attack(name, eps=EPS, steps=1)
    forwards, backwards = attack.passes(len(here.exact))
    with recorded(here.exact) as passes:
        attack(here.exact, here.x, here.y)
    assert sum(len(each.x) for each in passes) == forwards * len(here.x)
    taken = []
    real = torch.autograd.grad
    monkeypatch.setattr("torch.autograd.grad", lambda *a, **k: taken.append(1) or real(*a, **k))
    with recorded(here.exact) as again:
        replay(here.exact, passes, backwards)
    assert [each.model for each in again] == [each.model for each in passes]
    assert len(taken) == backwards


def test_a_line(tmp_path):
    done = CliRunner().invoke(
        main, ["--device", "cpu", "--tiny", "--only", "ens-logits", "--out", str(tmp_path / "gpu.json")]
    )
    assert done.exit_code == 0, done.output
    (line,) = json.loads((tmp_path / "gpu.json").read_text())["lines"]
    speed = line["images_per_second"]
    assert {"ours", "bare", "ours bf16", "bare bf16", "peer"} <= set(speed)
    assert line["share_of_bare"] == pytest.approx(speed["ours"] / speed["bare"])
    assert line["peak_bytes"]["ours"] > 0
