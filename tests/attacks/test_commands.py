"""`advens attacks` and `advens builders`, line by line, with the catalogue of what is registered."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from click.testing import CliRunner

from advens.attacks.commands import builders
from advens.attacks.registry import list_attacks, registered
from advens.benchmarks.cli.attacks import attacks
from advens.errors import InputError

Say = Callable[..., list[str]]


@pytest.fixture
def say(monkeypatch: pytest.MonkeyPatch) -> Say:
    """``say(command, *arguments)``: the lines that a command prints."""
    monkeypatch.setattr("advens.attacks.names.catalogue", registered)
    monkeypatch.setenv("COLUMNS", "400")

    def run(command: object, *arguments: str) -> list[str]:
        done = CliRunner().invoke(command, arguments)  # type: ignore[arg-type]
        if done.exception is not None:
            raise done.exception
        return [line.rstrip() for line in done.output.splitlines()]

    return run


def test_an_attack_with_its_parameters(say: Say) -> None:
    assert say(attacks, "mifgsm") == [
        "mifgsm: Iterated FGSM with momentum",
        "family    gradient",
        "paper     Dong et al., CVPR 2018",
        "targeted  yes;  norms linf, l2",
        "passes    10 F, 10 B per image on one surrogate",
        "parameters",
        "  norm          linf",
        "  eps           8/255",
        "  steps         10",
        "  loss          ce",
        "  transforms    -",
        "  estimator     plain",
        "  fusion        ens-logits",
        "  filters       -",
        "  update        mi(mu=1.0)",
        "  step_size     step-size(alpha='eps/T', anneal='none')",
        "  start         clean",
        "  changes       -",
        "  warm_up       0",
        "  warm_up_scale 10.0",
        "  feature       -",
    ]


def test_a_composition_and_an_attack_of_attacks(say: Say) -> None:
    shown = say(attacks, "di-ti-mi-svre")
    assert shown[1:4] == [
        "family    fusion",
        "paper     Xiong et al., CVPR 2022 (SVRE); Xie et al., CVPR 2019 (DI2-FGSM); "
        "Dong et al., CVPR 2019 (TI-FGSM); Dong et al., CVPR 2018 (MI-FGSM)",
        "targeted  yes;  norms linf, l2",
    ]
    assert "  transforms    di(p=0.5, rate=1.1)" in shown
    assert "  filters       ti(size=7, sigma=None)" in shown
    shown = say(attacks, "autoattack")
    assert "targeted  no;  norms linf, l2, l1" in shown
    (line,) = [line for line in shown if line.startswith("  attacks ")]
    assert line.startswith("  attacks       apgd(loss=CrossEntropy(), steps=100, ")
    assert line.count("eot=1), ") == 3
    assert "threat" not in line


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("admix", "couples   takes other images of the same shard"),
        ("smer", "couples   an option couples the batch"),
        ("lgv", "builder   made for surrogates of 'lgv'; 'advens craft' builds them first"),
    ],
)
def test_what_not_every_attack_has(name: str, line: str, say: Say) -> None:
    assert line in say(attacks, name)
    assert not any(each.startswith(line[:8]) for each in say(attacks, "mifgsm"))


def test_parts_of_one_name(say: Say) -> None:
    """A part is found without ``--parts`` where no attack has its name; all kinds of one name are shown."""
    di = [
        "di: With probability ``p``: enlarge to a random size, pad with zeros to the largest, resize back",
        "kind      transform",
        "paper     Xie et al., CVPR 2019 (DI2-FGSM)",
        "in names  di-NAME, as di-mifgsm",
        "parameters",
        "  p             0.5",
        "  rate          1.1",
    ]
    assert say(attacks, "di") == say(attacks, "--parts", "di") == di
    assert say(attacks, "plain") == [
        "plain: The gradient at the point", "kind      estimator", "in names  plain-NAME, as plain-mifgsm",
        "no parameters",
    ]  # fmt: skip
    assert say(attacks, "--parts", "ghost") == [
        "ghost: Random factors on skip connections, and dropout after every non-linearity "
        "where there are none",
        "kind      change",
        "paper     Li et al., AAAI 2020 (Ghost Networks)",
        "in names  ghost-NAME, as ghost-mifgsm",
        "parameters",
        "  keep          published",
        "  scale         published",
        "",
        "ghost: Ghost networks side by side: copies with scaled skip connections, or with dropout",
        "kind      builder",
        "paper     Li et al., AAAI 2020 (Ghost Networks)",
        "parameters",
        "  copies        4",
        "  keep          published",
        "  scale         published",
    ]
    assert say(attacks, "ghost")[0] != di[0].replace("di", "ghost")
    assert say(attacks, "ghost")[1] == "family    surrogate", "an attack of the same name comes first"


def test_lists(say: Say) -> None:
    """Of parts by kind, sorted; a wildcard lists those that match."""
    assert say(attacks, "--parts", "*-mix") == [
        "kind    part       what it is, and its source",
        "change  token-mix  In every MLP ``h <- (1 - m) h + m h[perm]``, perm over all the tokens of the "
        "same image. Cao et al., ICCV 2025 (ViT-EnsembleAttack)",
        "'advens attacks --parts NAME' shows one.",
    ]
    listed = [tuple(line.split()[:2]) for line in say(attacks, "--parts")[1:-1]]
    assert listed == [(kind, name) for kind, each in registered().parts.items() for name in sorted(each)]
    sources = {tuple(line.split()[:2]): line for line in say(attacks, "--parts", "?i")[1:-1]}
    assert set(sources) == {(kind, name) for kind, name in listed if len(name) == 2 and name.endswith("i")}
    without_a_paper = say(attacks, "--parts", "plai*")[1]
    assert without_a_paper.split(maxsplit=2) == ["estimator", "plain", "The gradient at the point"]
    shown = say(attacks)
    assert shown[0].split()[:4] == ["attack", "family", "year", "F/B"]
    assert [line.split()[0] for line in shown[1:-1]] == list_attacks()
    cells = [line.split(maxsplit=4) for line in shown]
    what = "Iterated FGSM with momentum. Dong et al., CVPR 2018"
    assert ["mifgsm", "gradient", "2018", "10/10", what] in cells
    assert shown[-1].endswith("shows one, 'advens attacks --parts' lists the parts.")
    assert [line.split()[0] for line in say(attacks, "*fgsm")[1:-1]] == list_attacks("*fgsm")


def test_builders_are_listed_and_shown(say: Say) -> None:
    shown = say(builders)
    assert shown[0].split() == ["builder", "year", "what", "it", "is"]
    assert [line.split()[0] for line in shown[1:-1]] == sorted(registered().parts["builder"])
    assert shown[-1] == "'advens builders NAME' shows one."
    shown = say(builders, "mba")
    assert shown[:4] == [
        "mba: Samples of a Gaussian with the mean and the variances of collected weights",
        "kind      builder", "paper     Li et al., ICLR 2023 (MBA)", "parameters",
    ]  # fmt: skip
    assert shown[4].startswith("  of            lgv(epochs=10, per_epoch=30, lr=0.05")
    assert shown[5:] == [
        "  samples       20", "  scale         1.5", "  redraw        True", "  bn_data       1.0",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("command", "arguments", "said"),
    [
        (attacks, ["mifgms"], "unknown attack 'mifgms'; did you mean 'mifgsm'?"),
        (attacks, ["zz*"], "unknown attack 'zz*': no name matches this pattern"),
        (attacks, ["--parts", "dii"], "unknown part 'dii'; did you mean 'di'?"),
        (attacks, ["--parts", "zz*"], "unknown part 'zz*': no name matches this pattern"),
        (builders, ["mbaa"], "unknown builder 'mbaa'; did you mean 'mba'?"),
    ],
)
def test_what_is_unknown(command: object, arguments: list[str], said: str, say: Say) -> None:
    with pytest.raises(InputError) as error:
        say(command, *arguments)
    assert str(error.value) == said
