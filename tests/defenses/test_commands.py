"""`advens defenses`, line by line."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from advens.defenses import list_defenses
from advens.defenses.commands import defenses
from advens.errors import InputError


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")


def said(*arguments: str) -> list[str]:
    done = CliRunner().invoke(defenses, arguments)
    if done.exception is not None:
        raise done.exception
    return [line.rstrip() for line in done.output.splitlines()]


def test_a_defense_with_its_parameters() -> None:
    """Its own first, then those of training, under their own names."""
    shown = said("gal")
    assert shown[:4] == [
        "gal: Mean cross-entropy plus the log-sum-exp of the pairwise cosines of input gradients",
        "family    diversity", "paper     Kariyappa & Qureshi, 2019 (GAL)", "parameters",
    ]  # fmt: skip
    parameters = [tuple(line.split()) for line in shown[4:]]
    assert len(dict(parameters)) == len(parameters)
    assert ("noise", "0.045") in parameters
    assert ("noise_by", "image") in parameters
    assert ("lr", "0.001") in parameters
    assert ("optimizer", "adam") in parameters
    assert not {"defense", "training"} & set(dict(parameters))
    names = [name for name, _ in parameters]
    assert names.index("noise") < names.index("epochs") < names.index("batch_size")
    assert shown[4].startswith("  ")
    assert {line.index(line.split()[1], 24) for line in shown[4:] if len(line.split()[0]) < 22} == {25}


def test_lists() -> None:
    shown = said()
    assert shown[0].split() == ["defense", "family", "year", "what", "it", "is"]
    assert [line.split()[0] for line in shown[1:-1]] == list_defenses()
    assert [line.split(maxsplit=3) for line in shown if line.startswith("gal ")] == [
        ["gal", "diversity", "2019",
         "Mean cross-entropy plus the log-sum-exp of the pairwise cosines of input gradients"]
    ]  # fmt: skip
    assert shown[-1] == "'advens defenses NAME' shows one."
    assert [line.split()[0] for line in said("*barr?")[1:-1]] == ["barre"]
    assert [line.split()[0] for line in said("[ab]*")[1:-1]] == list_defenses("[ab]*")


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("gall", "unknown defense 'gall'; did you mean 'gal'?"),
        ("zz*", "unknown defense 'zz*': no name matches this pattern"),
    ],
)
def test_what_is_unknown(name: str, error: str) -> None:
    with pytest.raises(InputError) as raised:
        said(name)
    assert str(raised.value) == error
