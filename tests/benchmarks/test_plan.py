"""Plans: a cell's name is the hash of all that determines its images, and of nothing else."""

from __future__ import annotations

import pytest

from advens.benchmarks import cells
from advens.benchmarks.cells import Cell
from advens.benchmarks.plan import make_plan
from advens.datasets import load_data
from advens.errors import InputError
from advens.results.store import Listing, Piece


@pytest.fixture
def plan(made):
    def make(**changes):
        suite = made(**changes)
        return make_plan(suite, load_data(suite.source))

    return make


def keys(plan) -> list[str]:
    return [cell.key for cell in plan.cells]


def test_cells_are_attacks_times_sets_times_seeds_times_shards(plan):
    made = plan(seeds=[0, 1], data="digits:test?limit=25")
    assert len(made.cells) == 2 * 1 * 2 * 3
    assert len(set(keys(made))) == len(made.cells)
    assert [c.shard for c in made.cells[:3]] == [(0, 10), (10, 20), (20, 25)]
    assert keys(made) == keys(plan(seeds=[0, 1], data="digits:test?limit=25"))


@pytest.mark.parametrize(
    "changes",
    [
        {"threat__eps": 0.1},
        {"threat__norm": "l2"},
        {"threat__steps": 3},
        {"threat__targeted": True},
        {"seeds": [1]},
        {"attacks": [{"name": "mifgsm", "mu": 0.5}, {"name": "difgsm", "p": 0.9}]},
        {"attacks": [{"name": "mifgsm", "label": "a"}, {"name": "difgsm", "label": "b"}]},
        {"surrogates__pair": ["toys:centroid?seed=1", "toys:centroid?seed=5"]},
        {"surrogates__pair": ["toys:centroid?seed=2", "toys:centroid?seed=1"]},
        {"surrogates": {"two": ["toys:centroid?seed=1", "toys:centroid?seed=2"]}},
        {"data": "digits:test?limit=20&seed=1"},
        {"data": "digits:test?limit=20&size=24"},
        {"data": "digits:train?limit=20"},
        {"shard": 5},
        {"name": "other"},
    ],
    ids=str,
)
def test_what_determines_a_cell_changes_its_name(plan, changes):
    assert not set(keys(plan())) & set(keys(plan(**changes)))


@pytest.mark.parametrize(
    "changes",
    [
        {"batch_size": 3},
        {"targets": ["toys:centroid?seed=9"]},
        {"surrogates__pair": ["toys:alias?seed=1", "toys:centroid?seed=2"]},
        {"data": "digits:test", "limit": 20},
    ],
    ids=str,
)
def test_what_does_not_leaves_it(plan, changes):
    assert keys(plan()) == keys(plan(**changes))


def test_more_data_or_attacks_keep_the_cells_that_were(plan):
    assert set(keys(plan())) < set(keys(plan(data="digits:test?limit=30")))
    more = [{"name": "mifgsm"}, {"name": "difgsm"}, {"name": "tifgsm"}]
    assert set(keys(plan())) < set(keys(plan(attacks=more)))
    assert set(keys(plan())) < set(keys(plan(seeds=[0, 1])))


def test_new_weights_are_new_cells(plan, tmp_path):
    path = tmp_path / "weights"
    pair = ["toys:centroid?seed=2", f"toys:stored?path={path}"]
    path.write_text("5")
    before = keys(plan(surrogates__pair=pair))
    path.write_text("6")
    assert not set(before) & set(keys(plan(surrogates__pair=pair)))


def test_seeds_differ_by_shard_seed_and_attack(plan):
    cells = plan(seeds=[0, 1]).cells
    assert len({cell.random_seed for cell in cells}) == len(cells)


def test_white_box_is_told_by_weights(plan):
    made = plan(targets=["toys:alias?seed=1", "toys:centroid?seed=3"])
    assert made.white_box(made.cells[0], "toys:alias?seed=1")
    assert not made.white_box(made.cells[0], "toys:centroid?seed=3")


def test_a_cell_is_rebuilt_from_its_description(plan):
    cell = plan().cells[0]
    attack = cell.build()
    assert attack.steps == 2
    assert attack.threat.eps == 0.2
    again = Cell.from_json(cell.to_json())
    assert again == cell
    assert again.key == cell.key


def test_preprocessing_alone_makes_other_cells_and_no_held_out_target(plan):
    model = "timm:test_vit?pretrained=false&num_classes=10"
    same, other = f"{model}&mean=0.3", f"{model}&seed=1"
    made = plan(surrogates={"one": [model]}, targets=[same, other])
    again = plan(surrogates={"one": [same]}, targets=[model, other])
    assert not set(keys(made)) & set(keys(again)), "other images are crafted"
    for each, target in ((made, same), (again, model)):
        assert each.white_box(each.cells[0], target)
        assert not each.white_box(each.cells[0], other)
    with pytest.raises(InputError, match="every target has the weights of a surrogate of 'one'"):
        plan(surrogates={"one": [model]}, targets=[same])


def test_label_spaces_must_agree(plan):
    with pytest.raises(InputError, match=r"toys:centroid\?classes=12 has 12 classes and .* has 10"):
        plan(targets=["toys:centroid?classes=12"])


def test_labels_must_be_classes(plan, monkeypatch):
    monkeypatch.setattr("advens.benchmarks.plan.describe", _narrow)
    with pytest.raises(InputError, match=r"label 9 in digits:test.* is out of range"):
        plan()


def _narrow(name):
    from advens.models import ModelCard

    return ModelCard(name, "cnn", name, 5, (32, 32))


def test_weights_are_asked_of_every_name_once(plan, monkeypatch):
    import advens.benchmarks.plan as module

    asked = []
    real = module.describe
    monkeypatch.setattr(module, "describe", lambda name: asked.append(name) or real(name))
    plan()
    assert len(asked) == len(set(asked)) == 4


def test_what_is_missing_follows_from_what_is_there(plan):
    made = plan()
    first, last = made.cells[0], made.cells[-1]
    white, *others = made.targets
    done = {(first.key, made.keys[white]), *((last.key, key) for key in made.keys.values())}
    there = Listing(
        frozenset(), {f"{c}.{k}.parquet": (Piece(c, k, f"{c}.{k}.parquet", 0, 1),) for c, k in done}
    )
    missing = {cell.key: targets for cell, targets in made.pending(there)}
    assert missing[first.key] == tuple(others)
    assert last.key not in missing
    assert missing[made.cells[1].key] == made.targets
    assert len(list(made.pairs())) == 12


def test_a_name_is_computed_once(plan, monkeypatch):
    made = plan()
    before = keys(made)
    monkeypatch.setattr(cells, "value_digest", None)
    assert keys(made) == before
