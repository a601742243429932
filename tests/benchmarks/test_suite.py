"""Suites: every mistake is one line that names the key, its line and the nearest valid choice."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from PIL import Image

from advens.attacks.registry import attack_info, create_attack
from advens.benchmarks.cells import target_labels
from advens.benchmarks.plan import make_plan, outline, with_budget
from advens.benchmarks.suites import (
    AttackEntry,
    Suite,
    bundled,
    departures,
    load,
    load_suite,
    parse,
    parse_settings,
    set_key,
    suite_identity,
)
from advens.datasets import load_data
from advens.errors import InputError
from advens.trust import trusting

TEXT = """\
name = "small"
data = "digits:test"
targets = ["digits:mambaout"]

[threat]
eps = "8/255"
steps = 4

[surrogates]
one = ["digits:resnet"]

[[attacks]]
name = "mifgsm"
"""


def complaint(text: str, **changes) -> str:
    """What is said of a suite; one line."""
    with pytest.raises(InputError) as caught:
        outline(parse(text, "small.toml", {k.replace("__", "."): v for k, v in changes.items()}))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_defaults_are_written_out_and_read_again():
    suite = parse(TEXT, "small.toml")
    assert suite.seeds == [0]
    assert "shard = 250" in suite.toml()
    assert 'norm = "linf"' in suite.toml()
    assert parse(suite.toml(), "again") == suite


@pytest.mark.parametrize(
    ("wrong", "key", "near", "line"),
    [
        ('targts = ["digits:vit"]\n' + TEXT, "targts", "targets", 1),
        (TEXT.replace("eps =", "epss ="), "threat.epss", "eps", 6),
        (TEXT.replace("data =", "dtaa ="), "dtaa", "data", 2),
        ('strategy = "x"\n' + TEXT, "strategy", "", 1),
        ('functions = "x"\n' + TEXT, "functions", "", 1),
    ],
)
def test_unknown_keys(wrong, key, near, line):
    said = complaint(wrong)
    assert f"unknown key '{key}'" in said
    assert f"(line {line})" in said
    assert not near or f"did you mean '{near}'?" in said


@pytest.mark.parametrize("key", ["name", "data", "targets", "surrogates", "attacks"])
def test_missing_keys(key):
    text = {
        "name": TEXT.replace('name = "small"\n', ""),
        "data": TEXT.replace('data = "digits:test"\n', ""),
        "targets": TEXT.replace('targets = ["digits:mambaout"]\n', ""),
        "surrogates": TEXT.replace('[surrogates]\none = ["digits:resnet"]\n', ""),
        "attacks": TEXT.replace('[[attacks]]\nname = "mifgsm"\n', ""),
    }[key]
    assert f"'{key}' is missing" in complaint(text)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("one = [", "one = []\nother = [", ["surrogate set 'one' is empty"]),
        ('one = ["digits:resnet"]', "", ["at least one surrogate set"]),
        ('eps = "8/255"', "eps = 8", ["small.toml", "eps = 8", "at most 1", "/255", "(line 6)"]),
        ('eps = "8/255"', "eps = -0.1", ["above 0", "(line 6)"]),
        ('eps = "8/255"', "eps = nan", ["not finite"]),
        ('eps = "8/255"', 'eps = "8/0"', ["not a number"]),
        ('eps = "8/255"', 'eps = "8 of 255"', ["not a number"]),
        ("steps = 4", "steps = 0", ["threat.steps = 0", "(line 7)"]),
        ("[threat]", '[threat]\nnorm = "linff"', ["unknown norm 'linff'", "linf"]),
        ('["digits:mambaout"]', "[]", ["targets"]),
        ('["digits:mambaout"]', '"digits:vit"', ["targets", "list", "(line 3)"]),
        ('name = "small"', 'name = "small one"', ["name", "small one", "(line 1)"]),
        ('name = "small"', 'name = "small"\nseeds = [1, 1]', ["seeds", "distinct"]),
        ('name = "small"', 'name = "small"\nseeds = [-1]', ["seeds", "not negative"]),
        ('name = "small"', 'name = "small"\nseeds = []', ["seeds"]),
        ('name = "small"', 'name = "small"\nlimit = 0', ["limit = 0"]),
        ('name = "mifgsm"', 'name = "mifgms"', ["unknown attack 'mifgms'", "'mifgsm'"]),
        ('name = "mifgsm"', 'name = "mifgsm"\nmomentun = 2', ["no option 'momentun'", "small.toml line 14:"]),
        ('name = "mifgsm"', 'name = "mifgsm"\nepsilon = 0.1', ["no option 'epsilon'; did you mean 'eps'?"]),
        ('name = "mifgsm"', 'name = "mifgsm"\ndecay = 0.9', ["no option 'decay'; did you mean 'mu'?"]),
        ('name = "mifgsm"', 'name = "mifgsm"\ntransforms = ["dii"]', ["'dii'", "small.toml line 14:"]),
        ('name = "mifgsm"', 'name = "mifgsm"\nname = "ifgsm"', ["a key is given twice", "line 14"]),
        ('name = "mifgsm"', 'name = "mifgsm"\nsteps = 0', ["attack 'mifgsm'", "steps = 0"]),
        ('name = "mifgsm"', 'name = "mifgsm"\nbudget = 0', ["budget = 0"]),
        ('name = "mifgsm"', 'name = "mifgsm"\neps = 0.5', ["mifgsm", "[threat]"]),
        ('name = "mifgsm"', 'name = "mifgsm"\nnorm = "l2"', ["mifgsm", "[threat]"]),
        (
            'name = "mifgsm"', 'name = "mifgsm"\nsurrogates = ["onne"]',
            ["unknown surrogate set 'onne'", "'one'"],
        ),
        ('"digits:resnet"', '"digits:resnett"', ["'digits:resnett'", "'digits:resnet'"]),
        ('"digits:resnet"', '"digits:zz*"', ["unknown model 'digits:zz*'"]),
        ('"digits:resnet"', '"resnet"', ["'resnet' has no source"]),
        ('"digits:resnet"', '"timm:resnet5"', ["unknown timm model 'resnet5'", "resnet"]),
        ('"digits:resnet"', '"digits:resnet?size=3"', ["unknown option 'size'"]),
        ('"digits:mambaout"', '"digits:mambaot"', ["did you mean 'digits:mambaout'?"]),
        (
            '"digits:mambaout"', '"digits:resnet"',
            ["surrogates 'one' leave no target held out"],
        ),
    ],
)  # fmt: skip
def test_mistakes(old, new, words):
    assert old in TEXT
    said = complaint(TEXT.replace(old, new, 1))
    for word in words:
        assert word in said


def test_two_attacks_of_one_label():
    assert "two attacks are called 'mifgsm'" in complaint(TEXT + '[[attacks]]\nname = "mifgsm"\n')
    label = '[[attacks]]\nname = "mifgsm"\nlabel = "again"\n'
    assert len(outline(parse(TEXT + label, "x")).stages) == 2


def test_not_toml():
    with pytest.raises(InputError, match=r"small\.toml is not TOML: .*line 1") as caught:
        parse("name = \n", "small.toml")
    assert "\n" not in str(caught.value)


def test_missing_files(tmp_path):
    with pytest.raises(InputError, match="no suite file at"):
        load_suite(str(tmp_path / "none.toml"))
    with pytest.raises(InputError, match="did you mean 'quickstart'"):
        load_suite("quickstrat")
    (tmp_path / "latin.toml").write_bytes(TEXT.encode() + b"# \xe9\n")
    with pytest.raises(InputError, match=r"latin\.toml"):
        load_suite(str(tmp_path / "latin.toml"))


def test_a_held_out_target_under_another_name(made):
    suite = made(targets=["toys:alias?seed=1"])
    outline(suite)  # names alone do not tell
    with pytest.raises(InputError, match="has the weights of a surrogate of 'pair'"):
        make_plan(suite, load_data(suite.source))


def test_an_unknown_source_of_models(made):
    suite = made(targets=["digit:vit"])
    with pytest.raises(InputError, match="unknown model source 'digit'; did you mean 'digits'"):
        make_plan(suite, load_data(suite.source))


def test_set_overrides_dotted_keys():
    changes = parse_settings(["threat.eps=0.1", "attacks.0.label=x", 'targets=["digits:vit"]'])
    suite = parse(TEXT, "x", changes)
    assert (suite.threat.eps, suite.attacks[0].title) == (0.1, "x")
    assert suite.targets == ["digits:vit"]
    assert parse(TEXT, "x", parse_settings(["threat.eps=8/255"])).threat.eps == "8/255"


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("threat.eps", "KEY=VALUE"),
        ("=3", "KEY=VALUE"),
        ("name.x=1", "'name' is a value"),
        ("attacks.1.label=x", "not one of the 1 entries"),
        ("attacks.label=x", "by number"),
        ("treat.eps=0.1", "did you mean 'threat'"),
        ("threat.epss=0.1", "did you mean 'eps'"),
        ("seeds=3", "seeds = 3"),
    ],
)
def test_bad_settings(setting, words):
    with pytest.raises(InputError) as caught:
        parse(TEXT, "x", parse_settings([setting]))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_set_key_makes_tables():
    table: dict = {}
    set_key(table, "threat.eps", 1)
    assert table == {"threat": {"eps": 1}}


def test_limit_joins_the_data_source():
    assert parse(TEXT, "x").source == "digits:test"
    assert len(load_data(parse(TEXT, "x", {"limit": 7}).source)) == 7
    own = parse(TEXT, "x", {"limit": 7, "data": "synthetic:shapes?n=30&seed=3"})
    assert load_data(own.source)[0].sample_id.startswith("shapes-3-")
    smaller = load_data(parse(TEXT, "x", {"limit": 3}).source)
    assert list(smaller.sample_ids) == list(load_data("digits:test?limit=7").sample_ids[:3])


def test_budget_becomes_steps(made):
    suite = made(attacks=[
        {"name": "mi-ens-loss", "budget": 9, "label": "nine"},
        {"name": "vmifgsm", "budget": 63, "label": "vmi"},
        {"name": "mifgsm"},
        {"name": "fgsm"},
    ])  # fmt: skip
    attacks = {label: stage.attack for (label, _), stage in outline(suite).stages.items()}
    assert attacks["mifgsm"].steps == 2
    assert attacks["fgsm"].steps == 1
    assert attacks["nine"].steps == 4  # two surrogates: two backward passes a step
    for label, budget in (("nine", 9), ("vmi", 63)):
        spent = attacks[label].passes(2).backward
        assert spent <= budget < spent + spent // attacks[label].steps
    with pytest.raises(InputError, match="budget of 1 is less than one step, 2 passes"):
        outline(made(attacks=[{"name": "mi-ens-loss", "budget": 1}]))


def test_a_budget_reckons_with_passes_that_vary():
    """Two surrogates: five steps of a warm start; or two cheap steps before those of four gradients."""
    rap = {"name": "rap", "late": 2, "inner": 3}
    cases = [("gifgsm", {}, 31, 10), ("gifgsm", {}, 12, 1), ("mi-ens-loss", {"estimator": rap}, 27, 4)]
    for name, options, budget, steps in cases:
        assert with_budget(create_attack(name, **options), budget, 2).steps == steps
    with pytest.raises(InputError, match="budget of 11 is less than one step, 12 passes"):
        with_budget(create_attack("gifgsm"), 11, 2)


def test_each_takes_every_model_alone():
    text = TEXT.replace("one = [", 'each = ["digits:resnet*", "digits:vit"]\none = [')
    seen = outline(parse(text, "x"))
    assert seen.sets["digits:vit"] == ("digits:vit",)
    assert {"digits:resnet", "digits:resnet-b", "digits:resnet-at", "one"} < set(seen.sets)
    assert "each" not in seen.sets
    assert len(seen.stages) == len(seen.sets)
    alone = text + 'surrogates = ["each"]\n'
    assert {name for _, name in outline(parse(alone, "x")).stages} == set(seen.sets) - {"one"}
    just = text + 'surrogates = ["one"]\n'
    assert {name for _, name in outline(parse(just, "x")).stages} == {"one"}


def test_attacks_that_cannot(made):
    from advens.attacks.registry import RECIPES, Recipe
    from advens.registry import Info

    limited = Info("limited", norms=("linf",), targeted=False)
    RECIPES.entries["limited"] = (Recipe("limited", RECIPES.get("fgsm").build), limited)
    try:
        with pytest.raises(InputError, match="'limited' is not defined for l2; only linf"):
            outline(made(attacks=[{"name": "limited"}], threat__norm="l2"))
        with pytest.raises(InputError, match="'limited' has no targeted form"):
            outline(made(attacks=[{"name": "limited"}], threat__targeted=True))
        outline(made(attacks=[{"name": "limited"}]))
    finally:
        del RECIPES.entries["limited"]


def test_drawn_labels_are_other_classes_and_seeded():
    labels = np.arange(500) % 10
    drawn = target_labels(labels, 0, 10, seed=3)
    assert ((drawn != labels) & (drawn >= 0) & (drawn < 10)).all()
    assert {int(shift) for shift in (drawn - labels) % 10} == set(range(1, 10))
    assert (drawn == target_labels(labels, 0, 10, seed=3)).all()
    assert (drawn != target_labels(labels, 0, 10, seed=4)).mean() > 0.8
    # a shard draws what the whole draws
    assert (target_labels(labels[200:300], 200, 10, seed=3) == drawn[200:300]).all()


@pytest.mark.parametrize("name", [name for name in bundled() if isinstance(load(name), Suite)])
def test_bundled_suites_parse_and_outline(name, monkeypatch):
    monkeypatch.setattr("advens.models.robustbench.find_spec", lambda _: True)
    suite = load_suite(name)
    assert suite.name == name
    with trusting("robustbench:*"):
        seen = outline(suite)
    assert seen.stages
    for (_, surrogates), stage in seen.stages.items():
        attack = stage.attack
        assert attack.threat == suite.threat.threat()
        assert attack.passes(len(seen.sets[surrogates])).forward > 0
    if suite.goal == "transfer":  # what a board calls an attack can be typed, up to a comma and its options
        for entry in suite.attacks:
            name = entry.title.partition(", ")[0]
            assert attack_info(name).name == name
            assert name == entry.title or entry.options


def test_targeted_labels_of_a_csv_are_used(tmp_path, advens, suite, rows):
    data = load_data("digits:test?limit=6")
    (tmp_path / "photos" / "images").mkdir(parents=True)
    with (tmp_path / "photos" / "labels.csv").open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["filename", "label", "targeted_label"])
        for i in range(6):
            Image.fromarray(data.pixels(i).transpose(1, 2, 0)).save(
                tmp_path / "photos" / "images" / f"{i}.png"
            )
            out.writerow([f"{i}.png", data.labels[i], (data.labels[i] + 1) % 10])
    path = suite(data=f"csv:{tmp_path}/photos", threat__targeted=True, attacks=[{"name": "fgsm"}])
    advens("run", path, "--out", tmp_path / "out").done()
    found = rows(tmp_path / "out")
    assert (found["target_label"] == (found["label"] + 1) % 10).all()
    assert (found["success"] == (found["adv_pred"] == found["target_label"])).all()
    advens("verify", tmp_path / "out").done()


def test_targeted_runs_draw_labels(tmp_path, advens, suite, rows):
    path = suite(threat__targeted=True, seeds=[0, 1], attacks=[{"name": "mifgsm"}])
    advens("run", path, "--out", tmp_path / "out").done()
    found = rows(tmp_path / "out")
    assert (found["target_label"] != found["label"]).all()
    wanted = found.pivot_table("target_label", "sample_id", "seed", aggfunc="first")
    assert (wanted[0] != wanted[1]).any()
    assert found.groupby(["sample_id", "seed"], observed=True)["target_label"].nunique().eq(1).all()
    advens("verify", tmp_path / "out").done()


def test_an_unknown_goal_is_told_with_all_goals(advens, suite):
    advens("run", suite(goal="defence"), "--dry-run").refused("unknown goal 'defence'", "'defense'", "line ")


def test_a_run_may_add_attacks_to_a_suite_and_change_nothing_else() -> None:
    wanted = load_suite("quickstart")
    assert departures(wanted, wanted) == ([], [])
    more = wanted.model_copy(update={"batch_size": 7, "attacks": [*wanted.attacks, AttackEntry(name="pgn")]})
    assert departures(more, wanted) == ([], ["pgn"])
    lines, own = departures(load_suite("quickstart", {"threat.eps": 0.1, "attacks.0.mu": 0.5}), wanted)
    assert own == []
    assert [line.partition(" ")[0] for line in lines] == ["threat", "attacks:"]
    assert "'mifgsm' has other options" in lines[1]
    fewer, _ = departures(wanted.restricted(["mifgsm"]), wanted)
    assert [line for line in fewer if "'ens-logits' is missing" in line]
    assert departures(load("digits-defenses"), wanted)[0] == ["goal is 'defense', not 'transfer'"]


def test_a_suite_is_identified_by_all_that_results_depend_on() -> None:
    one = suite_identity(load("quickstart"))
    assert one["name"] == "quickstart"
    assert one == suite_identity(load("quickstart", {"batch_size": 3}))
    assert one != suite_identity(load("quickstart", {"threat.steps": 11}))
