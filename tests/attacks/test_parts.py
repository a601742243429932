"""Parts: frozen, validated, described and built again; fields that hold them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import FrozenInstanceError
from typing import Annotated, Any

import pytest

from advens.attacks.losses import CrossEntropy, Margin
from advens.attacks.parts import (
    PARTS,
    changed,
    from_spec,
    is_part,
    make,
    name_of,
    one,
    options,
    part,
    several,
    to_spec,
)
from advens.attacks.transforms.di import DI
from advens.attacks.transforms.si import SI
from advens.errors import InputError
from advens.threat import Threat


@pytest.fixture
def holder() -> Iterator[Any]:
    """A part that holds parts."""

    @part("update", "holder", paper="Us, 2030", year=2030, targeted=False)
    class Holder:
        """Holds. Others do not."""

        loss: Annotated[Any, one("loss")] = CrossEntropy()
        transforms: Annotated[Any, several("transform")] = ()
        threat: Threat = Threat()
        n: int = 2

    try:
        yield Holder
    finally:
        del PARTS["update"].entries["holder"]


def test_what_the_decorator_makes(holder: Any) -> None:
    info = PARTS["update"].info("holder")
    assert (info.name, info.paper, info.year, info.targeted) == ("holder", "Us, 2030", 2030, False)
    assert info.summary == "Holds. Others do not"
    assert (holder.part_kind, holder.part_name) == ("update", "holder")
    made = holder()
    assert is_part(made)
    assert not is_part(3)
    assert name_of(made) == "holder"
    assert hash(made) == hash(holder())
    with pytest.raises(FrozenInstanceError):
        made.n = 3


def test_fields_are_given_as_names_tables_or_parts(holder: Any) -> None:
    made = make(holder, {"loss": "margin", "transforms": ["si", {"name": "di", "p": 0.25}, DI()]})
    assert made.loss == Margin()
    assert made.transforms == (SI(), DI(p=0.25), DI())
    assert isinstance(made.transforms, tuple)
    assert holder(loss=Margin()).loss == Margin()
    assert options(made) == {"loss": Margin(), "transforms": made.transforms, "threat": Threat(), "n": 2}


def test_descriptions_are_built_again(holder: Any) -> None:
    made = holder(loss="margin", transforms=[SI(), DI(p=0.25)], threat=Threat("l2", "1/2"), n=5)
    spec = to_spec(made)
    assert spec == {
        "name": "holder", "loss": to_spec(Margin()), "transforms": [to_spec(SI()), to_spec(DI(p=0.25))],
        "threat": {"norm": "l2", "eps": "1/2"}, "n": 5,
    }  # fmt: skip
    assert spec["transforms"][1]["name"] == "di"
    assert spec["transforms"][1]["p"] == 0.25
    assert from_spec("update", spec) == made
    assert from_spec("update", made) is made
    assert from_spec("update", "holder") == holder()
    assert changed(made, n=6) == holder(**options(made) | {"n": 6})
    assert made.n == 5


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"nn": 3}, "'holder' has no option 'nn'; did you mean 'n'?"),
        ({"n": "many"}, "'holder': n = 'many': "),
        ({"loss": "di"}, "unknown loss 'di'"),
        ({"loss": DI()}, "loss: DI("),
        ({"loss": 3}, "loss: 3 is neither a name nor a table with a name"),
        ({"loss": {"p": 3}}, "loss: {'p': 3} is neither a name nor a table with a name"),
        ({"transforms": "di"}, "'holder': transforms = 'di': a list of transforms is wanted"),
        ({"transforms": ["margin"]}, "unknown transform 'margin'"),
    ],
)
def test_what_does_not_fit(given: dict[str, Any], said: str, holder: Any) -> None:
    with pytest.raises(InputError) as error:
        make(holder, given)
    assert said in str(error.value)


def test_what_a_description_may_not_hold(holder: Any) -> None:
    for spec, said in (
        ({"name": "holder", "threat": {"epss": 1}}, "threat has no option 'epss'; did you mean 'eps'"),
        ("holdr", "unknown update 'holdr'; did you mean 'holder'"),
        (DI(), "is a part of another kind"),
        (7, "update: 7 is neither a name nor a table with a name"),
    ):
        with pytest.raises(InputError) as error:
            from_spec("update", spec)
        assert said in str(error.value)
