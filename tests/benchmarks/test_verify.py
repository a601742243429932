"""Audits: an honest run passes, and every kind of tampering is found, with exit code 1."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from advens.attacks import create_attack
from advens.benchmarks.checks import Check, Work
from advens.benchmarks.verify import verify_run
from advens.cli import invoke
from advens.datasets import load_data
from advens.defenses.ensembles import RandomizedEnsemble
from advens.models import load_model
from advens.results.store import (
    RunStore,
    read_cell,
    read_table,
    schema,
    write_examples,
    write_table,
)
from advens.results.store.images import decoded, digests


@pytest.fixture(scope="module")
def honest(tmp_path_factory, _surroundings):
    """A finished run; copied before it is touched."""
    import tomli_w

    folder = tmp_path_factory.mktemp("verify")
    table = {
        "name": "tiny", "data": "digits:test?limit=20", "shard": 10,
        "targets": ["toys:centroid?seed=1", "toys:centroid?seed=3"],
        "threat": {"eps": 0.2, "steps": 2},
        "surrogates": {"pair": ["toys:centroid?seed=1", "toys:centroid?seed=2"]},
        "attacks": [{"name": "mifgsm"}, {"name": "difgsm"}],
    }  # fmt: skip
    (folder / "suite.toml").write_text(tomli_w.dumps(table))
    assert invoke(["run", str(folder / "suite.toml"), "--out", str(folder / "out")]) == 0
    return folder / "out"


@pytest.fixture
def store(honest, tmp_path) -> RunStore:
    shutil.copytree(honest, tmp_path / "out")
    return RunStore(tmp_path / "out")


@pytest.fixture
def caught(advens, store):
    """Asserts that `verify` finds mismatches that hold these words, and nothing else ends it."""

    def check(*words: str) -> None:
        said = advens("verify", store.directory)
        said.failed("mismatches")
        mismatches = [line for line in said.err.splitlines() if line.startswith("MISMATCH  ")]
        assert mismatches
        for word in words:
            assert any(word in line for line in mismatches), said.err

    return check


def column(table: pa.Table, name: str, change) -> pa.Table:
    """The table with one column changed: ``change(values)`` edits a list."""
    values = table.column(name).to_pylist()
    change(values)
    index = table.schema.get_field_index(name)
    field = table.schema.field(name)
    return table.set_column(index, field, pa.array(values, field.type))


def first_examples(store: RunStore):
    return store.examples_path(store.cells()[0])


def samples_of(store: RunStore, target: str = "toys:centroid?seed=3"):
    for pair in sorted(store.evaluated()):
        path = store.samples_path(*pair)
        if read_table(path).column("target")[0].as_py() == target:
            return path
    raise AssertionError


def test_an_honest_run(advens, store, times):
    before = times(store.directory)
    said = advens("verify", store.directory).done()
    assert "4 cells and 80 predictions checked" in said.out
    assert times(store.directory) == before


def test_a_byte_changed_with_another_writer(caught, store):
    path = first_examples(store)
    table = pq.read_table(path)
    pq.write_table(column(table, "difference", flip), path)
    caught(path.name, "not those that were written")


def flip(images: list[bytes]) -> None:
    images[3] = images[3][:500] + bytes([images[3][500] ^ 1]) + images[3][501:]


def digested(table: pa.Table) -> pa.Table:
    start, stop = json.loads(table.schema.metadata[schema.CELL])["shard"]
    data = load_data("digits:test?limit=20")
    clean = np.stack([data.pixels(row) for row in range(start, stop)])

    def fresh(values: list[str]) -> None:
        values[:] = digests(decoded(table, lambda: clean))

    return column(table, "sha256", fresh)


def test_a_byte_changed_with_our_writer(caught, store):
    path = first_examples(store)
    table = column(read_table(path), "difference", flip)
    write_table(path, table)
    name = table.column("sample_id")[3].as_py()
    caught(f"the image of {name} was changed after it was written")


def test_a_byte_changed_and_its_digest_too(caught, store):
    path = first_examples(store)
    write_table(path, digested(column(read_table(path), "difference", flip)))
    caught("stored l2 norms are not those of the images")


def test_an_image_outside_the_ball(caught, store):
    path = first_examples(store)

    def push(differences: list[bytes]) -> None:
        differences[3] = bytes([differences[3][0] ^ 128]) + differences[3][1:]

    write_table(path, digested(column(read_table(path), "difference", push)))
    caught("leaves the ball by 0.")


def test_an_image_of_another_size(caught, store):
    path = first_examples(store)
    write_table(path, column(read_table(path), "difference", lambda v: v.insert(0, v.pop()[:-3])))
    caught("not of the size")


@pytest.mark.parametrize("place", [10, 200, 0.5, -60, -300, -3])
@pytest.mark.parametrize("folder", ["examples", "samples"])
def test_one_flipped_byte(caught, store, folder, place):
    path = sorted((store.directory / folder).iterdir())[0]
    data = bytearray(path.read_bytes())
    data[int(len(data) * place) if isinstance(place, float) else place] ^= 4
    path.write_bytes(data)
    caught(path.name)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("adv_pred", lambda v: (v + 1) % 10, "1 stored adv_pred of toys:centroid?seed=3"),
        ("adv_pred", lambda v: 77, "1 stored adv_pred of toys:centroid?seed=3"),
        ("clean_pred", lambda v: (v + 1) % 10, "1 stored clean_pred of toys:centroid?seed=3"),
        ("success", lambda v: not v, "column 'success'"),
        ("clean_correct", lambda v: not v, "column 'clean_correct'"),
        ("white_box", lambda v: not v, "column 'white_box'"),
        ("label", lambda v: (v + 1) % 10, "column 'label'"),
        ("linf", lambda v: v / 2, "column 'linf'"),
        ("l2", lambda v: v / 2, "column 'l2'"),
        ("l1", lambda v: v / 2, "column 'l1'"),
        ("sample_id", lambda v: "digits-9999", "column 'sample_id'"),
        ("attack", lambda v: "best", "column 'attack'"),
        ("surrogates", lambda v: "none", "column 'surrogates'"),
        ("seed", lambda v: 4, "column 'seed'"),
        ("cell", lambda v: "c" * 32, "column 'cell'"),
        ("target_label", lambda v: 4, "column 'target_label'"),
    ],
)
def test_a_sample_that_was_changed(caught, store, name, value, words):
    path = samples_of(store)
    write_table(path, column(read_table(path), name, lambda v: v.__setitem__(5, value(v[5]))))
    caught(words)


def test_a_target_that_was_renamed(caught, store):
    path = samples_of(store)
    write_table(path, column(read_table(path), "target",
                             lambda v: v.__setitem__(slice(None), ["digits:vit"] * len(v))))  # fmt: skip
    caught("the weights of digits:vit are not those that were evaluated")


@pytest.mark.parametrize("rows", [0, 9])
def test_rows_that_were_left_out(caught, store, rows):
    path = samples_of(store)
    write_table(path, read_table(path).slice(0, rows))
    caught(f"{rows or 'no'} rows")


@pytest.mark.parametrize("rows", [0, 9])
def test_images_that_were_left_out(caught, store, rows):
    path = first_examples(store)
    write_table(path, read_table(path).slice(0, rows))
    caught("its samples are not those of the shard")


def test_samples_of_another_cell(caught, store):
    one, two = (store.samples_path(*pair) for pair in sorted(store.evaluated())[::2][:2])
    shutil.copy(one, two)
    caught("column 'cell'")


@pytest.mark.parametrize("kind", ["matrix", "leaderboard"])
@pytest.mark.parametrize("change", ["edit", "drop", "damage"])
def test_summaries_that_were_changed(caught, store, kind, change):
    path = store.directory / f"{kind}.parquet"
    name = {"matrix": "asr", "leaderboard": "mean_asr"}[kind]
    if change == "edit":
        write_table(path, column(read_table(path), name, lambda v: v.__setitem__(0, v[0] - 0.01)))
    elif change == "drop":
        write_table(path, read_table(path).slice(1))
    else:
        path.write_bytes(path.read_bytes()[:-1] + b"2")
    caught(f"{kind}.parquet")


def test_a_board_with_other_names(caught, store):
    path = store.leaderboard
    write_table(path, column(read_table(path), "attack", lambda v: v.reverse()))
    caught("leaderboard.parquet is not what the samples and cells give")


def test_examples_that_were_renamed(caught, store):
    path = first_examples(store)
    path.rename(path.with_name("0" * 32 + ".parquet"))
    caught("does not hash to its name", "rows of a cell whose examples are missing")


def test_examples_that_were_swapped(caught, store):
    one, two = (store.examples_path(cell) for cell in store.cells()[:2])
    data = one.read_bytes()
    shutil.copy(two, one)
    two.write_bytes(data)
    caught("does not hash to its name")


def rewritten(store: RunStore, **changes) -> None:
    """The first examples file with its description changed, sealed again."""
    path = first_examples(store)
    table, cell = read_table(path), {**read_cell(path), **changes}
    write_examples(path, table.replace_schema_metadata(None), cell)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": 1}, "hash to its name"),
        ({"shard": [0, 11]}, "hash to its name"),
        ({"attack": "best"}, "hash to its name"),
        ({"surrogates": "none"}, "hash to its name"),
        ({"surrogate_digests": ["0" * 64, "1" * 64]}, "hash to its name"),
        ({"data_fingerprint": "0" * 64}, "hash to its name"),
        ({"targeted": True}, "hash to its name"),
        ({"eps": 0.3}, "the ball it names is not the attack's"),
        ({"norm": "l2"}, "the ball it names is not the attack's"),
        ({"eps": "much"}, "description"),
        ({"eps": None}, "description"),
        ({"shard": None}, "description"),
        ({"data": "digits:train?limit=20"}, "the data are not those it was crafted on"),
        ({"surrogate_specs": ["digits:vit", "digits:vit-b"]}, "weights of its surrogates"),
        ({"surrogate_specs": ["digits:vit"]}, ""),
        ({"forwards_per_sample": 1}, "passes"),
        ({"backwards_per_sample": 1}, "passes"),
        ({"seconds_per_image": 0.0}, "leaderboard"),
    ],
    ids=str,
)
def test_a_description_that_was_changed(caught, store, changes, words):
    rewritten(store, **changes)
    caught(words)


def test_an_eps_changed_everywhere(caught, store):
    """The name of the file is the hash of the attack: a larger ball cannot be claimed afterwards."""
    path = first_examples(store)
    cell = read_cell(path)
    cell["attack_params"]["threat"]["eps"] = 0.3
    rewritten(store, eps=0.3, attack_params=cell["attack_params"])
    caught("hash to its name")


def test_a_description_with_holes(caught, store):
    path = first_examples(store)
    table, cell = read_table(path), read_cell(path)
    del cell["shard_size"]
    write_table(path, schema.with_metadata(table, cell=json.dumps(cell)))
    caught("description")


def test_a_target_with_new_weights(advens, suite, tmp_path):
    weights = tmp_path / "weights"
    weights.write_text("5")
    path, out = suite(targets=[f"toys:stored?path={weights}"]), tmp_path / "out"
    advens("run", path, "--out", out).done()
    advens("verify", out).done()
    weights.write_text("6")
    said = advens("verify", out)
    said.failed("mismatches")
    assert said.err.count("weights of toys:stored") == 4


def test_ties_are_no_mismatches(advens, store, monkeypatch):
    """Two best logits that nearly tie may swap on another machine."""
    import advens.benchmarks.checks as module

    path = samples_of(store)
    table = read_table(path)
    predicted = table.column("adv_pred")[5].as_py()
    label = table.column("label")[5].as_py()
    other = next(c for c in range(10) if c not in (predicted, label))
    if predicted == label:  # keep what follows from the prediction true
        pytest.skip("the sixth image was not fooled")
    write_table(path, column(table, "adv_pred", lambda v: v.__setitem__(5, other)))
    monkeypatch.setattr(module, "BORDERLINE", 1e9)
    said = advens("verify", store.directory).done()
    assert "1 borderline" in said.out


def test_nothing_to_verify(advens, tmp_path):
    advens("verify", tmp_path / "none").refused("does not exist")
    advens("verify", tmp_path).refused("holds no run")
    (tmp_path / "suite.toml").write_text("")
    advens("verify", tmp_path).refused("holds no finished cells")


def test_a_run_without_its_data(advens, suite, tmp_path):
    from PIL import Image

    for label in range(10):
        (tmp_path / "photos" / str(label)).mkdir(parents=True)
        Image.new("RGB", (32, 32), (label, 0, 0)).save(tmp_path / "photos" / str(label) / "a.png")
    advens("run", suite(data=f"folder:{tmp_path}/photos"), "--out", tmp_path / "out").done()
    shutil.rmtree(tmp_path / "photos")
    advens("verify", tmp_path / "out").refused("photos", "does not exist")


def mismatches(store: RunStore) -> list[str]:
    """What an audit of the run says, line by line."""
    return verify_run(store, Work()).mismatches


def where(store: RunStore) -> str:
    cell = read_cell(first_examples(store))
    return f"{store.cells()[0]}.parquet ({cell['attack']} on pair)"


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("label", lambda v: (v + 1) % 10, "labels differ from the data's"),
        ("cell", lambda v: "c" * 32, "rows of another cell"),
        ("linf", lambda v: v / 2, "stored linf norms are not those of the images"),
        ("l2", lambda v: v + 1e-7, "stored l2 norms are not those of the images"),
        ("l1", lambda v: v + 1e-7, "stored l1 norms are not those of the images"),
        ("l1", lambda v: None, "stored l1 norms are not those of the images"),
        ("target_label", lambda v: 4, "wanted classes are not those of the data and seed"),
        ("sample_id", lambda v: "digits-9999", "its samples are not those of the shard"),
    ],
)
def test_an_example_that_was_changed(store, name, value, said):
    path = first_examples(store)
    write_table(path, column(read_table(path), name, lambda v: v.__setitem__(5, value(v[5]))))
    assert mismatches(store)[0] == f"{where(store)}: {said}"


def test_every_mismatch_is_told_with_its_place(store):
    """Of two images, of both columns of predictions, and the rest is still checked."""
    path = first_examples(store)
    names = read_table(path).column("sample_id").to_pylist()

    def flipped(images: list[bytes]) -> None:
        for k in (3, 7):
            images[k] = images[k][:500] + bytes([images[k][500] ^ 1]) + images[k][501:]

    write_table(path, column(read_table(path), "difference", flipped))
    found = verify_run(store, Work())
    assert found.mismatches[:2] == [
        f"{where(store)}: the image of {names[k]} was changed after it was written" for k in (3, 7)
    ]
    assert f"{where(store)}: stored l2 norms are not those of the images" in found.mismatches
    assert (found.cells, found.rows, found.borderline) == (4, 80, 0)


def test_cells_that_cannot_be_read_do_not_count(store):
    path = first_examples(store)
    path.write_bytes(path.read_bytes()[:-1])
    found = verify_run(store, Work())
    assert (found.cells, found.rows) == (3, 60)


def test_bases_that_were_claimed(store):
    rewritten(store, bases=["0" * 64])
    assert mismatches(store) == [f"{where(store)}: its surrogates were not built from the models it names"]


def test_norms_are_compared_to_rounding(store):
    path = first_examples(store)
    write_table(path, column(read_table(path), "l2", lambda v: v.__setitem__(5, v[5] + 1e-12)))
    assert not [line for line in mismatches(store) if "norms" in line]


def grouped(store: RunStore) -> dict[tuple[str, str], pa.Table]:
    """All rows of a run put into one file; gives them as they were, by cell and key of the target."""
    found = {pair: read_table(store.samples_path(*pair)) for pair in store.evaluated()}
    for pair in found:
        store.samples_path(*pair).unlink()
    store.write_samples(found)
    return found


def group_of(store: RunStore) -> str:
    return next(name for name in store.listing(index=False).files if name.startswith("group-"))


def test_rows_of_several_pairs_in_one_file(advens, store, caught):
    grouped(store)
    assert [path.name for path in store.samples.iterdir()] == [group_of(store)]
    said = advens("verify", store.directory, "--recraft", 1).done()
    assert "4 cells and 80 predictions checked" in said.out
    path = store.samples / group_of(store)
    last = read_table(path).column("adv_pred").to_pylist()[-1]
    write_table(path, column(read_table(path), "adv_pred", lambda v: v.__setitem__(-1, (last + 1) % 10)))
    caught("1 stored adv_pred of toys:centroid?seed=")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda pairs: pairs.reverse(), "the weights of"),  # each with the rows of another
        (lambda pairs: pairs.pop(), "it does not say whose rows it holds"),
        (lambda pairs: pairs[0].__setitem__(0, "../../cell"), "rows of a cell whose examples are missing"),
        (lambda pairs: pairs[0].__setitem__(1, pairs[0][1] + "0"), "does not ask for"),
        (lambda pairs: (pairs[0].__setitem__(2, 15), pairs[1].__setitem__(2, 5)), "15 rows in"),
    ],
    ids=["reversed", "fewer", "elsewhere", "key", "counts"],
)
def test_a_file_of_several_pairs_that_says_something_else(caught, store, change, words):
    grouped(store)
    path = store.samples / group_of(store)
    table = read_table(path)
    pairs = json.loads(table.schema.metadata[schema.PAIRS])
    change(pairs)
    write_table(path, schema.with_metadata(table, pairs=pairs))
    caught(words)


def test_a_second_file_with_the_rows_of_a_pair(advens, caught, store):
    """Boards take the rows of the first file; those of the others are checked as well."""
    pairs = sorted(store.evaluated())[:2]
    rows = {pair: read_table(store.samples_path(*pair)) for pair in pairs}
    store.write_samples(rows)
    assert "4 cells and 100 predictions checked" in advens("verify", store.directory).done().out
    store.write_samples(rows | {pairs[1]: column(rows[pairs[1]], "success", lambda v: v.reverse())})
    caught("column 'success'")


def test_a_targeted_run(advens, suite, tmp_path):
    advens("run", suite(threat__targeted=True), "--out", tmp_path / "out").done()
    store = RunStore(tmp_path / "out")
    assert mismatches(store) == []
    path = first_examples(store)
    write_table(path, column(read_table(path), "target_label",
                             lambda v: v.__setitem__(5, (v[5] + 1) % 10)))  # fmt: skip
    assert any("wanted classes are not those of the data and seed" in line for line in mismatches(store))


def test_a_run_towards_the_classes_that_the_data_want(advens, suite, tmp_path):
    from PIL import Image

    data = load_data("digits:test?limit=4")
    (tmp_path / "images").mkdir()
    lines = ["filename,label,targeted_label"]
    for k, label in enumerate(data.labels.tolist()):
        Image.fromarray(data.pixels(k).transpose(1, 2, 0)).save(tmp_path / "images" / f"{k}.png")
        lines.append(f"{k}.png,{label},{(label + 1) % 10}")
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    advens("run", suite(data=f"csv:{tmp_path}", threat__targeted=True), "--out", tmp_path / "out").done()
    store = RunStore(tmp_path / "out")
    assert mismatches(store) == []
    wanted = read_table(first_examples(store)).column("target_label").to_pylist()
    assert wanted == [(label + 1) % 10 for label in data.labels.tolist()]


def test_a_task_is_of_one_shard(store, monkeypatch):
    """So that the clean images of a shard are seen once by every target."""
    shards = {name: read_cell(store.examples_path(name))["shard"] for name in store.cells()}
    assert [*shards.values()] != sorted(shards.values()), "else this shows nothing"
    tasks = []
    do = Check.do
    monkeypatch.setattr(Check, "do", lambda task, device: tasks.append(task) or do(task, device))
    assert mismatches(store) == []
    assert [[shards[name] for name, _ in task.cells] for task in tasks] == [[[0, 10]] * 2, [[10, 20]] * 2]
    monkeypatch.setattr("advens.benchmarks.verify.FORWARDS", 20)
    tasks.clear()
    assert mismatches(store) == []
    assert [len(task.cells) for task in tasks] == [1, 1, 1, 1]


@pytest.fixture
def attacked(advens, tmp_path) -> RunStore:
    """A model attacked white-box, by one attack after the other."""
    advens(
        "robustness", "--models", "toys:centroid?seed=1", "--data", "digits:test?limit=20", "--shard", 10,
        "--attack", "pgd-ce+cw", "--eps", "0.06", "--steps", 4, "--out", tmp_path / "out",
    ).done()  # fmt: skip
    return RunStore(tmp_path / "out")


@pytest.mark.parametrize(
    ("spent", "possible"), [(0.0, True), (4.0, True), (4.1, False), (-0.1, False), (None, False)]
)
def test_passes_of_a_robustness_run_are_at_most_the_formula(attacked, spent, possible):
    """Samples leave early: fewer are honest, more are not."""
    assert mismatches(attacked) == []
    rewritten(attacked, backwards_per_sample=spent)
    found = mismatches(attacked)
    assert any("the passes it claims are not those of the attack" in line for line in found) != possible


def test_passes_of_a_randomized_ensemble_are_those_of_its_members(advens, tmp_path):
    members = [load_model(f"toys:centroid?seed={seed}") for seed in (4, 9)]
    RandomizedEnsemble(members, [0.25, 0.75]).save(tmp_path / "ensemble")
    advens(
        "robustness", "--models", f"defense:{tmp_path}/ensemble", "--data", "digits:test?limit=10",
        "--attack", "arc", "--set", "steps=3", "--eps", "0.01", "--out", tmp_path / "out",
    ).done()  # fmt: skip
    store = RunStore(tmp_path / "out")
    spent = read_cell(first_examples(store))["backwards_per_sample"]
    one, two = (create_attack("arc", steps=3).passes(k).backward for k in (1, 2))
    assert one < spent <= two, "else this shows nothing"
    assert mismatches(store) == []
    rewritten(store, backwards_per_sample=two + 1.0)
    assert any("the passes it claims" in line for line in mismatches(store))
