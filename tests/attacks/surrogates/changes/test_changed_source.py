"""``changed:CHANGE+CHANGE?of=MODEL``: copies of models under changes, by name."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import pytest
import torch
from torch import Tensor, nn

from advens.attacks import create_attack
from advens.attacks.surrogates.changes import Changed, source
from advens.attacks.surrogates.changes.ghost import Ghost
from advens.attacks.surrogates.changes.pna import PNA
from advens.attacks.surrogates.changes.sgm import SGM
from advens.attacks.surrogates.changes.source import ChangedModel
from advens.attacks.surrogates.changes.tgr import TGR
from advens.attacks.surrogates.changes.vit import HeadDrop, ScoreScale, TokenMix
from advens.classifier import Classifier
from advens.errors import InputError
from advens.models import check_name, describe, load_model
from advens.seeding import Draws
from tests.attacks.surrogates.changes.conftest import gradient

VIT = "digits:vit-b"
LISTS: dict[str, list[Any]] = {
    "one": [HeadDrop(0.2)],
    "several": [TGR(qkv=0.5), PNA(), Ghost(keep=0.9)],
    "augmented": [ScoreScale(0.5), TokenMix(0.3)],
}
lists = pytest.mark.parametrize("changes", LISTS.values(), ids=LISTS.keys())


def pixels(n: int = 3) -> Tensor:
    return torch.rand(n, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def vit() -> Classifier:
    return load_model(VIT)


@lists
@pytest.mark.parametrize("member", [0, 3])
def test_round_trip(vit: Classifier, changes: list[Any], member: int) -> None:
    """The name a copy has loads it: the same changes, member, digest, logits and gradients."""
    made = ChangedModel(vit, changes, member)
    check_name(made.name)
    loaded: Any = load_model(made.name)
    assert isinstance(loaded, ChangedModel)
    assert (loaded.name, loaded.digest, loaded.bases) == (made.name, made.digest, (vit.digest,))
    assert (loaded.changes, loaded.member) == (tuple(changes), member)
    draws = Draws(4, 3).at(1)
    for model in (made, loaded):
        model.at_step(draws)
    first = gradient(made, pixels())
    assert all(map(torch.equal, gradient(loaded, pixels()), first))
    inner = Changed(vit, changes, member)
    inner.at_step(draws)
    assert all(map(torch.equal, gradient(inner, pixels()), first))


def test_names_are_plain(vit: Classifier) -> None:
    """Short to write by hand; defaults stand for what is not said."""
    assert ChangedModel(vit, [HeadDrop(0.2), PNA()], 1).name == (
        f"changed:head-drop+pna?head-drop.p=0.2&member=1&of={VIT}"
    )
    short: Any = load_model(f"changed:head-drop?of={VIT}")
    assert short.name == f"changed:head-drop?of={VIT}"
    assert (short.changes, short.member) == ((HeadDrop(),), 0)
    assert short.digest == ChangedModel(vit, [HeadDrop()]).digest


def test_copy_of_a_model_with_options() -> None:
    """Of a timm model, of an image size: the name within is percent-encoded."""
    base = "timm:vit_tiny_patch16_224?pretrained=false&img_size=32&depth=1&embed_dim=48&seed=3&num_classes=10"
    made = ChangedModel(load_model(base), [ScoreScale(0.5)], 2)
    assert quote(base, safe=":/") in made.name
    loaded = load_model(made.name)
    assert (loaded.name, loaded.digest) == (made.name, made.digest)
    assert loaded.input_size == (32, 32)
    assert torch.equal(loaded.mean, made.mean)
    assert float(loaded.mean.sum()) == 1.5
    assert torch.equal(loaded(pixels()), made(pixels()))


def test_copy_of_a_copy(vit: Classifier) -> None:
    """Bases are all that it was made from; both draw, as members of their own."""
    inner = ChangedModel(vit, [HeadDrop(0.5)], 1)
    outer = ChangedModel(inner, [TokenMix(0.5)], 2)
    loaded: Any = load_model(outer.name)
    assert loaded.digest == outer.digest
    assert loaded.bases == outer.bases == (inner.digest, vit.digest)
    assert describe(outer.name).bases == outer.bases
    answers = []
    for step in (0, 0, 1):
        for model in (loaded, outer):
            model.at_step(Draws(1, 3).at(step))
        answers.append(loaded(pixels()))
        assert torch.equal(answers[-1], outer(pixels()))
    assert torch.equal(answers[0], answers[1])
    assert not torch.equal(answers[0], answers[2])


def test_digests(vit: Classifier) -> None:
    """By weights, changes, their order and options, and member; not by the name."""
    other = load_model("digits:vit")
    made = [
        vit, ChangedModel(vit, [PNA()]), ChangedModel(vit, [PNA()], 1), ChangedModel(other, [PNA()]),
        ChangedModel(vit, [PNA(), SGM()]), ChangedModel(vit, [SGM(), PNA()]), ChangedModel(vit, [SGM(0.4)]),
        ChangedModel(vit, [SGM()]),
    ]  # fmt: skip
    assert len({model.digest for model in made}) == len(made)
    again = Classifier(vit.net, name="another", num_classes=10, mean=(0.3,) * 3)
    assert ChangedModel(again, [PNA()]).weights == made[1].weights == made[1].digest
    assert ChangedModel(again, [PNA()]).digest != made[1].digest, "images are prepared otherwise"
    assert vit.digest in ChangedModel(again, [PNA()]).bases, "the weights count as known"


@lists
def test_card(changes: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """What the model says of itself, without weights."""
    name = source.name(VIT, changes, 2)
    model: Any = load_model(name)

    def never(*_: object) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(source, "find_model", never)
    monkeypatch.setattr("advens.models.embedded.load", never)
    card = describe(name)
    assert (card.name, card.family, card.digest) == (name, "vit", model.digest)
    assert (card.num_classes, card.input_size, card.bases) == (10, (32, 32), model.bases)
    check_name(name)


BAD = [
    ("changed:pna", r"write changed:pna\?of=MODEL"),
    ("changed:?of=digits:vit", "has no source"),
    ("changed:pan?of=digits:vit", "'pan'.*'pna'"),
    ("changed:pna+?of=digits:vit", "unknown change ''"),
    ("changed:pna?of=digits:vti", "'digits:vti'.*'digits:vit'"),
    ("changed:pna?of=vit", "'vit' has no source"),
    ("changed:pna?of=", "'' has no source"),
    ("changed:pna?of=changed:pna", "write changed:pna"),
    ("changed:head-drop?p=0.2&of=digits:vit", r"unknown option 'p'; write head-drop\.OPTION"),
    ("changed:head-drop?tgr.mlp=0.2&of=digits:vit", r"unknown option 'tgr\.mlp'"),
    ("changed:head-drop?head-drop.q=0.2&of=digits:vit", "'head-drop' has no option 'q'"),
    ("changed:head-drop?head-drop.p=0.7&of=digits:vit", "p = 0.7: from 0 to 0.5"),
    ("changed:head-drop?head-drop.p=much&of=digits:vit", "p = 'much'"),
    ("changed:head-drop?member=one&of=digits:vit", "member = 'one' is not a whole number"),
    ("changed:pna?of=digits:vit&of=digits:vit", "'of' is given twice"),
]


@pytest.mark.parametrize(("name", "said"), BAD, ids=[name for name, _ in BAD])
def test_bad_names_are_one_line(name: str, said: str) -> None:
    """Whoever asks: for the model, its card or whether the name can be."""
    for ask in (load_model, describe, check_name):
        with pytest.raises(InputError, match=said) as caught:
            ask(name)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("change", ["pna", "tgr", "head-drop", "score-scale", "token-mix"])
def test_what_cannot_be_changed_is_refused_by_name(change: str) -> None:
    with pytest.raises(InputError, match=f"'{change}': 'digits:resnet' has no attention blocks"):
        load_model(f"changed:{change}?of=digits:resnet")


# as surrogates


def test_the_network_is_shared_and_left_as_it_was(vit: Classifier) -> None:
    hooks = [(sorted(vars(m)), len(m._forward_hooks), len(m._forward_pre_hooks)) for m in vit.modules()]
    plain = vit(pixels())
    made = ChangedModel(vit, [HeadDrop(0.5), TGR(), PNA()])
    assert not torch.equal(made(pixels()), plain)
    changed: Any = made.net
    assert changed.model is vit.net
    assert torch.equal(vit(pixels()), plain)
    found = [(sorted(vars(m)), len(m._forward_hooks), len(m._forward_pre_hooks)) for m in vit.modules()]
    assert found == hooks
    assert made.mean is not vit.mean


def test_a_model_in_training_stays_so() -> None:
    """A user's model comes back with its modes and what it learns."""
    model = load_model(VIT)
    model.train()
    next(model.parameters()).requires_grad_(True)
    modes = [m.training for m in model.modules()]
    learn = [p.requires_grad for p in model.parameters()]
    ChangedModel(model, [PNA()])
    assert [m.training for m in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == learn


def test_attack(vit: Classifier) -> None:
    """Members beside each other draw for themselves; micro-batches and repetitions give the same."""
    members: list[nn.Module] = [load_model(source.name(VIT, [HeadDrop(0.5)], k)) for k in range(2)]
    x, y = pixels(4).double(), torch.arange(4)
    for model in members:
        model.double()
    attack: Any = create_attack("mifgsm", steps=3)
    found = attack.run(members, x, y, seed=1)
    assert torch.equal(attack(members, x, y, seed=1), found.x_adv)
    small = attack.run(members, x, y, seed=1, micro_batch=3)
    torch.testing.assert_close(small.x_adv, found.x_adv, rtol=0, atol=1e-9)
    assert not torch.equal(attack(members[:1], x, y, seed=1), attack(members[1:], x, y, seed=1))
    assert not torch.equal(attack(members, x, y, seed=2), found.x_adv)
    assert found.passes == attack.passes(2)
