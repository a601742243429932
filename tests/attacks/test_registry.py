"""Names of attacks: recipes, compositions, overrides, specs, and what is said of a wrong one."""

from __future__ import annotations

import json
from typing import Any

import pytest

import advens
import advens.attacks
from advens.attacks import attack_from_spec, attack_info, create_attack, list_attacks
from advens.attacks.attack import Attack, ComposedAttack
from advens.attacks.estimators.vmi import VMI
from advens.attacks.filters import TI
from advens.attacks.fusions import EnsLogits, EnsProbs
from advens.attacks.losses import Margin
from advens.attacks.registry import RECIPES, recipe
from advens.attacks.starts import Gaussian, Uniform
from advens.attacks.steps import StepSize
from advens.attacks.transforms.di import DI
from advens.attacks.updates import MI, NI
from advens.cli import invoke
from advens.errors import InputError
from advens.threat import Threat

BASE = ["admix", "bsr", "difgsm", "ens-logits", "ens-loss", "ens-probs", "fgsm", "ifgsm", "mifgsm",
        "nifgsm", "pgd", "pgn", "sifgsm", "ssa", "tifgsm", "vmifgsm"]  # fmt: skip


def composed(name: str, **options: Any) -> ComposedAttack:
    attack = create_attack(name, **options)
    assert isinstance(attack, ComposedAttack)
    return attack


def test_names() -> None:
    assert set(BASE) <= set(list_attacks())
    assert list_attacks() == sorted(list_attacks())
    assert set(list_attacks("ens-*")) >= {"ens-logits", "ens-loss", "ens-probs"}
    assert "fgsm" in list_attacks("*fgsm")
    assert list_attacks("nothing*") == []
    assert advens.list_attacks("pgd") == ["pgd"]


def test_parts_with_dashes_compose() -> None:
    attack = composed("head-drop-di-token-mix-mifgsm")
    assert [part.part_name for part in attack.changes] == ["head-drop", "token-mix"]
    assert [part.part_name for part in attack.transforms] == ["di"]


def test_compositions() -> None:
    attack = composed("di-ti-mi-ens-logits")
    assert attack.transforms == (DI(),)
    assert attack.filters == (TI(),)
    assert attack.update == MI()
    assert attack.fusion == EnsLogits()
    assert composed("mi-ti-di-ens-logits") == attack, "the order of kinds does not matter"
    assert composed("ti-difgsm") == composed("di-tifgsm")
    assert [type(t).__name__ for t in composed("si-di-ifgsm").transforms] == ["SI", "DI"]
    assert composed("vmi-nifgsm") == composed("vmi-ni-ifgsm")
    assert composed("ni-mifgsm").update == NI(), "a part before a name replaces the recipe's"
    assert composed("vmi-ens-probs").estimator == VMI()


def test_info_of_a_composition() -> None:
    info = attack_info("admix-vmi-ens-probs")
    assert info.family == "fusion"
    assert info.couples == "shard"
    assert info.year == 2021
    assert info.norms == ("linf", "l2")
    assert [p.split(",")[0] for p in info.paper.split("; ")] == [
        "Liu et al.", "Wang et al.", "Wang & He"
    ]  # fmt: skip
    assert "vmi" in info.summary
    assert attack_info("di-mi-ens-probs").couples == "no"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mifgms", "unknown attack 'mifgms'; did you mean 'mifgsm'?"),
        ("ens-logit", "unknown attack 'ens-logit'; did you mean 'ens-logits'?"),
        ("di-", "unknown attack 'di-'"),
        ("di", "unknown attack 'di'"),
        ("", "unknown attack ''"),
        ("xx-ens-logits", "unknown attack 'xx-ens-logits'; did you mean 'ens-logits'?"),
        ("mi-ni-ens-logits", "attack 'mi-ni-ens-logits' names two updates"),
        ("vmi-pgn-ens-logits", "attack 'vmi-pgn-ens-logits' names two estimators"),
    ],
)
def test_unknown_names(name: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        create_attack(name)
    assert str(caught.value).startswith(message)


def test_overrides() -> None:
    attack = composed(
        "vmifgsm", eps="16/255", norm="l2", steps=3, copies=4, mu=0.5, loss="margin",
        start={"name": "gaussian", "std": 0.01}, fusion="ens-probs", step_size="2eps/T",
    )  # fmt: skip
    assert attack.threat == Threat("l2", "16/255")
    assert attack.steps == 3
    assert attack.estimator == VMI(copies=4)
    assert attack.update == MI(0.5)
    assert attack.loss == Margin()
    assert attack.start == Gaussian(0.01)
    assert attack.fusion == EnsProbs()
    assert attack.step_size == StepSize("2eps/T")
    assert composed("pgd").start == Uniform()
    assert composed("vmifgsm").estimator == VMI(), "the recipe is not changed by overriding"


def test_overriding_one_of_several_parts() -> None:
    with pytest.raises(InputError, match=r"'copies' belongs to several parts.*estimator\.copies"):
        create_attack("si-vmifgsm", copies=3)
    attack = composed("si-vmifgsm", **{"estimator.copies": 3})
    assert attack.estimator == VMI(copies=3)
    assert attack.transforms[0].copies == 5


def test_transforms_and_filters_in_one_list() -> None:
    wanted = composed("di-ti-mi-ens-logits")
    assert composed("ens-logits", transforms=["di", "ti"], update="mi") == wanted
    assert composed("ens-logits", transforms=[DI(), TI()], update=MI()) == wanted
    table = [{"name": "ti", "size": 5}, {"name": "di", "p": 1.0}]
    attack = composed("ens-logits", transforms=table)
    assert attack.filters == (TI(size=5),)
    assert attack.transforms == (DI(p=1.0),)
    assert composed("di-ti-ens-logits", transforms=[]).filters == ()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"step": 3}, "this attack has no option 'step'; did you mean 'steps'?"),
        ({"filters.size": 3}, "this attack has no option 'filters.size'; did you mean 'filters'?"),
        ({"epss": 0.1}, "this attack has no option 'epss'; did you mean 'eps'?"),
        ({"steps": 0}, "'mifgsm': steps = 0: an attack takes at least one step"),
        ({"steps": "many"}, "'mifgsm': steps = 'many': "),
        ({"steps": 2.5}, "'mifgsm': steps = 2.5: "),
        ({"eps": 0}, "eps = 0 is out of range"),
        ({"eps": "8/0"}, "eps = '8/0' is not a number"),
        ({"eps": 8}, 'eps = 8 is out of range; images lie in [0, 1], so an l_inf budget is at most'),
        ({"norm": "l3"}, "unknown norm 'l3'; did you mean"),
        ({"norm": "l1"}, "attack 'mifgsm' is not defined for l1; only linf, l2"),
        ({"loss": "cee"}, "unknown loss 'cee'; did you mean 'ce'?"),
        ({"update": "mii"}, "unknown update 'mii'; did you mean 'mi'?"),
        ({"transforms": ["dii"]}, "unknown transform 'dii'; did you mean"),
        ({"update": {"name": "mi", "nu": 1}}, "'mi' has no option 'nu'; did you mean 'mu'?"),
        ({"update": {"name": "mi", "mu": "x"}}, "'mi': mu = 'x': "),
        ({"transforms": [{"p": 1}]}, "transform: {'p': 1} is neither a name nor a table with a na"),
        ({"transforms": [3]}, "transform: 3 is neither a name nor a table"),
        ({"loss": 3}, "loss: 3 is neither a name nor a table"),
        ({"loss": Margin}, "loss: <class"),
        ({"loss": {"name": 3}}, "unknown loss '3'"),
        ({"update": ["mi"]}, "update = ['mi']: write one update"),
        ({"transforms": "di"}, "transforms = 'di': write a list of transforms"),
        ({"filters": "ti"}, "filters = 'ti': write a list of filters"),
        ({"fusion": Margin()}, "fusion: Margin() is a part of another kind"),
        ({"transforms": [MI()]}, "transform: MI(mu=1.0) is a part of another kind"),
        ({"threat": {"norm": "l2", "ep": 1}}, "'mifgsm': threat.ep = 1: "),
        ({"update.nu": 1}, "'mi' has no option 'nu'; did you mean 'mu'?"),
    ],
)  # fmt: skip
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        create_attack("mifgsm", **options)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_recipes_are_factories() -> None:
    from advens.attacks import MIFGSM, EnsLoss  # type: ignore[attr-defined]

    assert MIFGSM(eps=0.1, steps=3) == create_attack("mifgsm", eps=0.1, steps=3)
    assert EnsLoss() == create_attack("ens-loss")
    assert isinstance(MIFGSM(), Attack)
    assert MIFGSM.__doc__ == "Iterated FGSM with momentum."


def test_every_recipe_has_a_factory_of_its_own_name() -> None:
    found = {name: RECIPES.get(name).__name__ for name in RECIPES}  # type: ignore[attr-defined]
    assert len(set(found.values())) == len(found)
    for name, factory in found.items():
        assert getattr(advens.attacks, factory) is RECIPES.get(name)
    with pytest.raises(AttributeError, match="'NoSuchThing'"):
        _ = advens.attacks.NoSuchThing


def test_spec_is_plain_json_with_every_default() -> None:
    spec = create_attack("di-tifgsm", eps="16/255", step_size={"anneal": "cosine"}).spec
    assert json.loads(json.dumps(spec)) == spec
    assert spec == {
        "name": "composed",
        "threat": {"norm": "linf", "eps": "16/255"},
        "steps": 10,
        "loss": {"name": "ce"},
        "transforms": [{"name": "di", "p": 0.5, "rate": 1.1}],
        "estimator": {"name": "plain"},
        "fusion": {"name": "ens-logits"},
        "filters": [{"name": "ti", "size": 7, "sigma": spec["filters"][0]["sigma"]}],
        "update": {"name": "mi", "mu": 1.0},
        "step_size": {"name": "step-size", "alpha": "eps/T", "anneal": "cosine"},
        "start": {"name": "clean"},
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "composedd"}, "unknown attack 'composedd'; did you mean 'composed'?"),
        ({"stepz": 3}, "'composed' has no option 'stepz'; did you mean 'steps'?"),
        ({"loss": {"name": "lce"}}, "unknown loss 'lce'; did you mean 'ce'?"),
        ({"loss": {"title": "ce"}}, "loss: {'title': 'ce'} is neither a name nor a table"),
        ({"threat": {"norm": "l3", "eps": 0.1}}, "unknown norm 'l3'"),
        ({"threat": {"norm": "l2", "radius": 0.1}}, "threat has no option 'radius'"),
    ],
)
def test_wrong_specs(change: dict[str, Any], message: str) -> None:
    spec = create_attack("mifgsm").spec | change
    with pytest.raises(InputError) as caught:
        attack_from_spec(spec)
    assert str(caught.value).startswith(message)


def test_attacks_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["attacks"]) == 0
    listed = capsys.readouterr().out
    for name in list_attacks():
        assert name in listed
    assert invoke(["attacks", "di-ti-mi-ens-logits"]) == 0
    shown = capsys.readouterr().out
    for text in ("Dong et al., CVPR 2018", "ti(size=7", "mu=1.0", "8/255", "10 F, 10 B"):
        assert text in shown
    assert invoke(["attacks", "admix"]) == 0
    assert "takes other images of the same shard" in capsys.readouterr().out
    pattern = ": no name matches this pattern"
    for wrong, hint in (("mifgms", "; did you mean 'mifgsm'?"), ("mifgms*", pattern)):
        assert invoke(["attacks", wrong]) == 2
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err.startswith(f"advens: unknown attack '{wrong}'{hint}")
        assert said.err.count("\n") == 1


def test_published_methods_are_imported_by_their_names() -> None:
    """The contract's ``from advens.attacks import AdaEA``."""
    import advens.attacks

    symbols = {
        "AdaEA": "adaea", "CWA": "cwa", "SVRE": "svre", "SMER": "smer", "SAM": "sam", "CSE": "cse",
        "MIFGSM": "mifgsm", "DIFGSM": "difgsm", "SSA": "ssa", "EnsLogits": "ens-logits",
        "EnsGrads": "ens-grads",
    }  # fmt: skip
    for symbol, name in symbols.items():
        factory = getattr(advens.attacks, symbol)
        assert factory(steps=3) == create_attack(name, steps=3)
    names = [RECIPES.get(name).__name__ for name in RECIPES]
    assert len(set(names)) == len(names), "one symbol, one recipe"


def test_what_the_decorator_of_a_recipe_registers() -> None:
    """The function's own name is its symbol by default; its first line is what it is."""

    @recipe("half-fgsm", "HalfFGSM", family="gradient", paper="Us, 2030", year=2030, norms=("linf",))
    def half() -> Attack:
        """Half a step.

        Nothing else.
        """
        return create_attack("fgsm", eps=0.1)

    @recipe("third-fgsm")
    def ThirdFGSM() -> Attack:
        return create_attack("fgsm", eps=0.05)

    try:
        info = attack_info("half-fgsm")
        assert (info.name, info.family, info.paper, info.year) == ("half-fgsm", "gradient", "Us, 2030", 2030)
        assert (info.norms, info.summary) == (("linf",), "Half a step")
        assert RECIPES.get("half-fgsm") is half
        assert (half.name, half.__name__, ThirdFGSM.__name__) == ("half-fgsm", "HalfFGSM", "ThirdFGSM")
        assert str(half.__doc__).startswith("Half a step.")
        assert half(steps=3) == create_attack("half-fgsm", steps=3) == create_attack("fgsm", eps=0.1, steps=3)
        assert attack_info("third-fgsm").summary == ""
        with pytest.raises(InputError, match="no option 'stepss'; did you mean 'steps'"):
            half(stepss=3)
    finally:
        del RECIPES.entries["half-fgsm"], RECIPES.entries["third-fgsm"]
