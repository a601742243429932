"""The frame: what is kept, found, continued and refused; the caller's models and generators."""

from __future__ import annotations

import copy
import json
import multiprocessing
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import nn

from advens.attacks.parts import from_spec, to_spec
from advens.attacks.surrogates.builders.cyclical import FGE, Snapshots
from advens.attacks.surrogates.builders.lgv import LGV, LGVSWA, LGVGaussian
from advens.attacks.surrogates.builders.mba import MBA
from advens.attacks.surrogates.builders.soup import Soup
from advens.cache import Folder
from advens.classifier import Classifier
from advens.datasets import Dataset, load_data
from advens.errors import InputError

SHORT = LGV(epochs=1, batch_size=25, lr=0.01)
BUILDERS = {
    "lgv": SHORT,
    "lgv-swa": LGVSWA(of=SHORT),
    "lgv-subspace": LGVGaussian(of=SHORT, samples=3),
    "mba": MBA(of=SHORT, samples=3, redraw=False),
    "snapshots": Snapshots(epochs=2, cycles=3, lr=0.02),
    "fge": FGE(cycles=3, cycle_epochs=1, lr=0.02, batch_size=50, sharpness=0.1),
    "soup": Soup(of=SHORT),
    "greedy": Soup(of=SHORT, kind="greedy"),
    "sharp": LGV(epochs=1, batch_size=50, lr=0.01, sharpness=0.1, augment="imagenet"),
}
every = pytest.mark.parametrize("builder", BUILDERS.values(), ids=BUILDERS.keys())


def notes(builder: Any) -> bool:
    """Whether a builder notes how its own members came about."""
    return not hasattr(builder, "of") or getattr(builder, "kind", "") == "greedy"


class Killed(Exception):
    pass


@every
def test_spec_round_trip(builder: Any) -> None:
    spec = json.loads(json.dumps(to_spec(builder)))
    assert from_spec("builder", spec) == builder


@every
def test_builds_what_it_says_and_loads_it_again(
    model: Classifier, data: Dataset, cache: Path, passes: Callable[[], int], builder: Any
) -> None:
    told: list[tuple[int, int]] = []
    made = builder.build([model], data, seed=2, cache=cache, progress=lambda *n: told.append(n))
    count = builder.members(1)
    assert told == [(done, count) for done in range(1, count + 1)]
    assert len(made) == count
    key = made[0].name.removeprefix("built:").partition("/")[0]
    assert [m.name for m in made] == [f"built:{key}/{k}" for k in range(count)]
    names = {path.name for path in (cache / key).iterdir()}
    noted = {"history.parquet"} if notes(builder) else set()
    assert names == {".lock", "about.json", *noted, *(f"member-{k:02d}.safetensors" for k in range(count))}
    assert all(m.bases == (model.digest, model.weights) for m in made)
    trained = passes()
    assert trained > 0
    again = builder.build([model], data, seed=2, cache=cache)
    assert passes() == trained
    assert [(m.name, m.digest) for m in again] == [(m.name, m.digest) for m in made]
    assert not any(p.requires_grad for m in again for p in m.parameters())
    assert not any(module.training for m in again for module in m.modules())


@every
def test_caller_finds_all_as_it_was(
    model: Classifier, data: Dataset, cache: Path, builder: Any
) -> None:
    model.train()
    model.net.get_submodule("1").eval()
    list(model.parameters())[2].requires_grad_(True)
    modes = [m.training for m in model.modules()]
    learn = [p.requires_grad for p in model.parameters()]
    before, digest = torch.get_rng_state(), model.digest
    with torch.no_grad(), torch.inference_mode():
        made = builder.build([model], data, cache=cache)
    assert model.digest == digest
    assert [m.training for m in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == learn
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), before)
    model.eval().requires_grad_(False)
    assert [m.digest for m in builder.build([model], data, cache=cache.with_name("b"))] == [
        m.digest for m in made
    ]


@every
@pytest.mark.parametrize("after", [1, 2])
def test_killed_and_built_again(
    model: Classifier, data: Dataset, tmp_path: Path, passes: Callable[[], int], builder: Any, after: int
) -> None:
    def kill(done: int, _: int) -> None:
        if done == after:
            raise Killed

    if builder.members(1) < after:
        pytest.skip("too short to be killed there")
    start = torch.get_rng_state()
    whole = builder.build([model], data, cache=tmp_path / "whole")
    before = passes()
    with pytest.raises(Killed):
        builder.build([model], data, cache=tmp_path / "cut", progress=kill)
    assert torch.equal(torch.get_rng_state(), start)
    half = passes() - before
    (key,) = {m.name.removeprefix("built:").partition("/")[0] for m in whole}
    assert not (tmp_path / "cut" / key / "about.json").exists()
    again = builder.build([model], data, cache=tmp_path / "cut")
    assert [(m.name, m.digest) for m in again] == [(m.name, m.digest) for m in whole]
    histories = [builder.history([model], data, cache=tmp_path / each) for each in ("whole", "cut")]
    pd.testing.assert_frame_equal(*histories)
    if builder.members(1) > 1 and not hasattr(builder, "of"):
        assert passes() - before == before  # nothing was done twice
        assert 0 < half < before


def test_drawn_surrogates_are_kept_as_mean_and_spread(
    model: Classifier, data: Dataset, tmp_path: Path
) -> None:
    def kill(done: int, _: int) -> None:
        raise Killed

    builder, told = MBA(of=SHORT, samples=5), list[tuple[int, int]]()
    whole = builder.build([model], data, cache=tmp_path / "a", progress=lambda *n: told.append(n))
    assert told == [(1, 5), (2, 5), (5, 5)]
    key = whole[0].name.removeprefix("built:").partition("/")[0]
    assert len(list((tmp_path / "a" / key).glob("member-*"))) == 2
    SHORT.build([model], data, cache=tmp_path / "b")
    with pytest.raises(Killed):
        builder.build([model], data, cache=tmp_path / "b", progress=kill)
    again = builder.build([model], data, cache=tmp_path / "b")
    assert [(m.name, m.digest) for m in again] == [(m.name, m.digest) for m in whole]
    assert len(again) == builder.members(1) == 5


def test_killed_between_weights_and_what_goes_on_from_them(
    model: Classifier, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = SHORT.build([model], data, cache=tmp_path / "whole")
    keep = Folder.keep

    def kill(self: Folder, state: Any) -> None:
        if len(state["digests"]) == 3:
            raise Killed
        keep(self, state)

    monkeypatch.setattr(Folder, "keep", kill)
    with pytest.raises(Killed):
        SHORT.build([model], data, cache=tmp_path / "cut")
    monkeypatch.setattr(Folder, "keep", keep)
    again = SHORT.build([model], data, cache=tmp_path / "cut")
    assert [m.digest for m in again] == [m.digest for m in whole]


def test_every_parameter_changes_the_digest(model: Classifier, make: Any, data: Dataset, cache: Path) -> None:
    def key(how: Any = SHORT, base: Any = model, seed: int = 0, on: Any = data) -> tuple[str, str]:
        first = how.build([base], on, seed=seed, cache=cache)[0]
        return first.name, first.digest

    changed: dict[str, float] = {
        "epochs": 2, "per_epoch": 2, "lr": 0.02, "momentum": 0.8, "weight_decay": 0.0, "batch_size": 24,
        "augment": 1.0, "sharpness": 0.1,
    }  # fmt: skip
    spec = to_spec(SHORT)
    found = [key()] + [key(from_spec("builder", spec | {k: v})) for k, v in changed.items()]
    found += [key(base=make(1)), key(seed=1), key(on=load_data("digits:train?limit=180"))]
    assert set(changed) == set(spec) - {"name"}
    assert len({name for name, _ in found}) == len(found)
    weights = {digest for _, digest in found}
    assert len(weights) == len(found) - 1  # the first weights do not depend on the number of epochs
    other = make()
    other.mean += 0.1
    assert key(base=other)[0] not in {name for name, _ in found}


def test_each_model_is_a_build_of_its_own(make: Any, data: Dataset, cache: Path) -> None:
    a, b = make(1), make(2, width=4)
    alone = SHORT.build([b], data, cache=cache)
    both = SHORT.build([a, b], data, cache=cache)
    assert len(both) == SHORT.members(2) == 8
    assert [m.name for m in both[4:]] == [m.name for m in alone]
    assert both[0].shared is both[3].shared is not both[4].shared  # type: ignore[attr-defined]


def test_a_built_surrogate_can_be_built_on(model: Classifier, data: Dataset, cache: Path) -> None:
    first = SHORT.build([model], data, cache=cache)[1]
    plain = model
    plain.net.load_state_dict(first.net.state_dict())
    from_snapshot = SHORT.build([first], data, cache=cache.with_name("a"))
    from_plain = SHORT.build([plain], data, cache=cache.with_name("b"))
    assert [m.digest for m in from_snapshot] == [m.digest for m in from_plain]
    assert from_snapshot[0].bases == (first.digest, *first.bases)  # type: ignore[attr-defined]
    assert from_plain[0].bases == (plain.digest, first.digest)  # type: ignore[attr-defined]


def _in_another_process(arguments: bytes) -> list[str]:
    torch.set_num_threads(1)
    model, cache = pickle.loads(arguments)
    return [m.digest for m in SHORT.build([model], load_data("digits:train?limit=200"), cache=cache)]


def test_two_processes_at_once(model: Classifier, data: Dataset, cache: Path) -> None:
    given = pickle.dumps((model, cache))
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        first, second = pool.map(_in_another_process, [given, given])
    assert first == second == [m.digest for m in SHORT.build([model], data, cache=cache)]


@pytest.mark.parametrize("name", ["member-01.safetensors", "about.json"])
def test_a_damaged_folder_is_named(
    model: Classifier, data: Dataset, cache: Path, name: str
) -> None:
    made = SHORT.build([model], data, cache=cache)
    path = cache / made[0].name[6:].partition("/")[0] / name
    sound = path.read_bytes()
    flipped = bytearray(sound)
    flipped[-100] ^= 1
    for content in (sound[:50], b"", *([bytes(flipped)] if "member" in name else [b"{}"])):
        path.write_bytes(content)
        with pytest.raises(InputError, match=f"{path.parent} is damaged .*delete it") as caught:
            SHORT.build([model], data, cache=cache)
        assert "\n" not in str(caught.value)
    path.unlink()
    if name != "about.json":
        with pytest.raises(InputError, match="damaged"):
            SHORT.build([model], data, cache=cache)


def test_damage_while_a_build_stands_still(model: Classifier, data: Dataset, cache: Path) -> None:
    def kill(done: int, _: int) -> None:
        if done == 2:
            raise Killed

    with pytest.raises(Killed):
        SHORT.build([model], data, cache=cache, progress=kill)
    (folder,) = cache.iterdir()
    for name in ("state.pt", "member-01.safetensors"):
        sound = (folder / name).read_bytes()
        (folder / name).write_bytes(sound[: len(sound) // 2])
        with pytest.raises(InputError, match=r"is damaged"):
            SHORT.build([model], data, cache=cache)
        (folder / name).write_bytes(sound)
    shutil.rmtree(folder)
    assert len(SHORT.build([model], data, cache=cache)) == 4


def test_a_cache_that_cannot_be_written(model: Classifier, data: Dataset, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot lock"):
        SHORT.build([model], data, cache=tmp_path / "file")


def test_bad_models_and_data(model: Classifier, data: Dataset, cache: Path) -> None:
    with pytest.raises(InputError, match="at least one model"):
        SHORT.build([], data, cache=cache)
    with pytest.raises(InputError, match="model 1 is a Linear"):
        SHORT.build([model, nn.Linear(2, 2)], data, cache=cache)  # type: ignore[list-item]
    idle = Classifier(nn.Identity(), name="idle", num_classes=10)
    with pytest.raises(InputError, match="'idle' has no weights"):
        SHORT.build([idle], data, cache=cache)
    few = Classifier(model.net, name="few", num_classes=4)
    with pytest.raises(InputError, match="label 9, out of range: model 'few' has 4 classes"):
        SHORT.build([few], data, cache=cache)
    with pytest.raises(InputError, match="seed = -1"):
        SHORT.build([model], data, seed=-1, cache=cache)
    assert not cache.exists()


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"name": "lvg"}, "'lvg'.*'lgv'"),
        ({"name": "lgv", "epoch": 3}, "no option 'epoch'.*'epochs'"),
        ({"name": "lgv", "epochs": 0}, "epochs = 0"),
        ({"name": "lgv", "lr": float("inf")}, "lr = inf"),
        ({"name": "lgv", "lr": float("nan")}, "lr = nan"),
        ({"name": "lgv", "momentum": 1}, "momentum = 1"),
        ({"name": "lgv", "batch_size": 1}, "batch_size = 1"),
        ({"name": "lgv-swa", "of": "lvg"}, "of = 'lvg'.*'lgv'"),
        ({"name": "lgv-swa", "of": {"name": "lgv", "lr": -1}}, "lr = -1"),
        ({"name": "lgv-subspace", "samples": 0}, "samples = 0"),
        ({"name": "lgv-subspace", "bn_data": 1.5}, "bn_data = 1.5"),
        ({"name": "lgv-swa", "of": "mba"}, "of = 'mba'.*unless redraw is false"),
        ({"name": "lgv", "augment": "cifar"}, "augment = 'cifar'"),
        ({"name": "snapshots", "sharpness": -0.1}, "sharpness = -0.1"),
        ({"name": "fge", "lr_low": 0.1}, "lr_low = 0.1 must be below lr = 0.05"),
        ({"name": "soup", "kind": "thick"}, "kind = 'thick'"),
    ],
)  # fmt: skip
def test_bad_options_are_one_line(spec: Any, said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        from_spec("builder", spec)
    assert "\n" not in str(caught.value)


def test_what_is_noted_of_a_build(model: Classifier, data: Dataset, cache: Path, make: Any) -> None:
    other = make(1, name="other")
    with pytest.raises(InputError, match="is not there: build first"):
        SHORT.history([model], data, cache=cache)
    for builder in (SHORT, LGVSWA(of=SHORT)):
        builder.build([model, other], data, cache=cache)
        noted = builder.history([model, other], data, cache=cache)
        assert list(noted["model"]) == ["small"] * 4 + ["other"] * 4
        assert list(noted["call"]) == [0, 1, 2, 3] * 2
        assert list(noted["update"]) == [2, 4, 6, 8] * 2
        assert set(noted["lr"]) == {0.01}
    soup = BUILDERS["greedy"]
    soup.build([model], data, cache=cache)
    tried = soup.history([model], data, cache=cache)
    assert len(tried) == 4
    assert tried["kept"].iloc[0]
    assert list(tried.columns) == ["model", "call", "accuracy", "kept"]


def test_older_builds_have_no_history(model: Classifier, data: Dataset, cache: Path) -> None:
    SHORT.build([model], data, cache=cache)
    (path,) = cache.glob("*/history.parquet")
    path.unlink()
    assert SHORT.history([model], data, cache=cache).empty
    path.write_bytes(b"PAR1")
    with pytest.raises(InputError, match="is damaged"):
        SHORT.history([model], data, cache=cache)


def test_the_loss_that_is_noted(model: Classifier, data: Dataset, cache: Path) -> None:
    dropout = model.net.get_submodule("3")
    assert isinstance(dropout, nn.Dropout)
    dropout.p = 0.0
    builder = LGV(epochs=1, per_epoch=1, batch_size=200)
    builder.build([model], data, cache=cache)
    batch = next(data.batches([slice(0, 200)]))
    learning = copy.deepcopy(model).train()
    loss = nn.functional.cross_entropy(learning(batch.pixels.float() / 255), batch.labels)
    noted = builder.history([model], data, cache=cache)["loss"]
    assert noted.tolist() == pytest.approx([float(loss)], rel=1e-5)
