"""Builders without training: how many copies, their names and digests, what they share, and refusals."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from advens.attacks import create_attack
from advens.attacks.parts import from_spec, to_spec
from advens.attacks.surrogates.builders.copies import GhostNetworks, ViTAugment
from advens.attacks.surrogates.changes.ghost import Ghost
from advens.attacks.surrogates.changes.source import ChangedModel
from advens.attacks.surrogates.changes.vit import HeadDrop, ScoreScale, TokenMix
from advens.classifier import Classifier
from advens.datasets import Dataset
from advens.errors import InputError
from advens.models import describe, load_model, origins
from advens.seeding import Draws

NAMES = ["digits:vit", "digits:vit-b"]
BUILDERS: dict[str, Any] = {
    "ghost": GhostNetworks(copies=3, keep=0.9),
    "vit-augment": ViTAugment(),
    "vit-augment-twice": ViTAugment(copies=2, plain=False, p=0.3, s=0.5, m=0.2),
    "vit-augment-one": ViTAugment(strategies=("token-mix",), copies=3),
}
COUNTS = {"ghost": 3, "vit-augment": 4, "vit-augment-twice": 6, "vit-augment-one": 4}
every = pytest.mark.parametrize("which", BUILDERS)


@pytest.fixture(scope="module")
def vits() -> list[Classifier]:
    return [load_model(name) for name in NAMES]


def at_step(models: list[Classifier], draws: Draws) -> None:
    for model in models:
        if isinstance(model, ChangedModel):
            model.at_step(draws)


@every
def test_spec_round_trip(which: str) -> None:
    builder = BUILDERS[which]
    assert from_spec("builder", json.loads(json.dumps(to_spec(builder)))) == builder


@every
def test_counts_and_progress(
    which: str, vits: list[Classifier], data: Dataset, tmp_path: Path, passes: Callable[[], int]
) -> None:
    """As many as it says, model by model; nothing is run and nothing kept."""
    builder, told = BUILDERS[which], list[tuple[int, int]]()
    for k in (1, 2):
        told.clear()
        made = builder.build(vits[:k], data, cache=tmp_path, progress=lambda *n: told.append(n))
        count = k * COUNTS[which]
        assert builder.members(k) == len(made) == count
        assert told == [(done, count) for done in range(1, count + 1)]
    half = len(made) // 2
    for base, copies in zip(vits, (made[:half], made[half:]), strict=True):
        assert all(base.digest in (m.digest, *m.bases) for m in copies)
    assert passes() == 0
    assert not list(tmp_path.iterdir())


@every
def test_names_find_the_copies(which: str, vits: list[Classifier], data: Dataset, x: Tensor) -> None:
    """Each loads by its name: the same digest, bases and logits; cards know them without weights."""
    made = BUILDERS[which].build(vits, data)
    draws = Draws(2, len(x)).at(3)
    loaded: list[Any] = [load_model(m.name) for m in made]
    at_step(made, draws)
    at_step(loaded, draws)
    for mine, other in zip(made, loaded, strict=True):
        card = describe(mine.name)
        assert (card.name, card.digest, card.bases) == (mine.name, mine.digest, mine.bases)
        assert (other.name, other.digest, other.bases) == (mine.name, mine.digest, mine.bases)
        assert torch.equal(mine(x), other(x))
    assert len({m.name for m in made}) == len({m.digest for m in made}) == len(made)


@every
def test_the_same_again(which: str, vits: list[Classifier], data: Dataset) -> None:
    """Neither seed, nor data, nor a second call makes another set: what is drawn belongs to the attack."""
    first = [m.digest for m in BUILDERS[which].build(vits, data)]
    assert [m.digest for m in BUILDERS[which].build(vits, data, seed=7)] == first
    assert [m.digest for m in BUILDERS[which].build(vits[::-1], data)] == [
        *first[len(first) // 2 :], *first[: len(first) // 2],
    ]  # fmt: skip


@every
def test_members_differ(which: str, vits: list[Classifier], data: Dataset, x: Tensor) -> None:
    """Every member answers otherwise, at every step."""
    made = BUILDERS[which].build(vits[:1], data)
    answers = []
    for step in range(2):
        at_step(made, Draws(2, len(x)).at(step))
        answers.append([m(x) for m in made])
    for i in range(len(made)):
        assert torch.equal(answers[0][i], answers[1][i]) == (made[i] is vits[0])
        assert not any(torch.equal(answers[0][i], other) for other in answers[0][:i])


def test_what_is_done_to_each(vits: list[Classifier], data: Dataset) -> None:
    def of(builder: Any) -> list[tuple[Any, ...]]:
        made = builder.build(vits[:1], data)
        return [m.changes if isinstance(m, ChangedModel) else () for m in made]

    assert of(BUILDERS["ghost"]) == [(Ghost(keep=0.9),)] * 3
    assert of(ViTAugment()) == [(), (HeadDrop(0.1),), (ScoreScale(0.2),), (TokenMix(0.1),)]
    twice = of(BUILDERS["vit-augment-twice"])
    assert Counter(twice) == {(HeadDrop(0.3),): 2, (ScoreScale(0.5),): 2, (TokenMix(0.2),): 2}
    assert of(BUILDERS["vit-augment-one"]) == [(), *[(TokenMix(0.1),)] * 3]


@every
def test_caller_finds_all_as_it_was(which: str, data: Dataset, x: Tensor) -> None:
    """Modes, what learns, hooks, attributes and generators; the network is shared, not copied."""
    model = load_model(NAMES[0])
    model.train()
    model.net.get_submodule("blocks.0").eval()
    list(model.parameters())[2].requires_grad_(True)

    def state() -> list[Any]:
        return [
            *((m.training, sorted(vars(m)), len(m._forward_hooks), len(m._forward_pre_hooks))
              for m in model.modules()),
            *(p.requires_grad for p in model.parameters()),
        ]  # fmt: skip

    before, generator, digest = state(), torch.get_rng_state(), model.digest
    made = BUILDERS[which].build([model], data)
    assert state() == before
    assert torch.equal(torch.get_rng_state(), generator)
    shared = {p.data_ptr() for p in model.parameters()}
    assert all(p.data_ptr() in shared for m in made for p in m.parameters())
    attack: Any = create_attack("mifgsm", steps=1)
    attack(made, x, torch.arange(len(x)) % 10)
    assert state() == before
    assert model.digest == digest


def test_ghosts_of_any_network(make: Any, data: Dataset, x: Tensor) -> None:
    """A CNN has activations: it has ghosts."""
    model = make()
    made = GhostNetworks(copies=2, keep=0.5).build([model], data)
    at_step(made, Draws(0, len(x)))
    assert not torch.equal(made[0](x), made[1](x))
    assert [m.bases for m in made] == [(model.digest, *origins(model))] * 2
    bare = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(768, 10)), name="mine:linear", num_classes=10)
    with pytest.raises(InputError, match=r"'ghost' finds neither .* in 'mine:linear'"):
        GhostNetworks().build([model, bare], data)


@pytest.mark.parametrize("strategy", ["head-drop", "score-scale", "token-mix"])
@pytest.mark.parametrize("strength", [0.0, 0.3])
def test_cnns_are_refused_by_name(
    strategy: str, strength: float, vits: list[Classifier], data: Dataset
) -> None:
    """By the strategy's and the model's name, and the ViT before it is left as it was."""
    builder = ViTAugment(strategies=(strategy,), p=strength, s=strength, m=strength)
    resnet = load_model("digits:resnet")
    with pytest.raises(InputError) as caught:
        builder.build([vits[0], resnet], data)
    said = str(caught.value)
    assert said.startswith(f"'{strategy}': 'digits:resnet' has no attention blocks that can be changed: ")
    assert "\n" not in said
    for model in (vits[0], resnet):
        assert not any("forward" in vars(m) for m in model.modules())
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"name": "ghost", "copies": 0}, "copies = 0"),
        ({"name": "ghost", "keep": 0.0}, "keep"),
        ({"name": "ghost", "copy": 2}, "no option 'copy'.*'copies'"),
        ({"name": "vit-augment", "copies": 1.5}, "copies = 1.5"),
        ({"name": "vit-augment", "p": 0.6}, "p = 0.6"),
        ({"name": "vit-augment", "s": -0.1}, "s = -0.1"),
        ({"name": "vit-augment", "m": float("nan")}, "m = nan"),
        ({"name": "vit-augment", "strategies": ()}, "different strategies, at least one"),
        ({"name": "vit-augment", "strategies": ("token-mix", "token-mix")}, "different strategies"),
        ({"name": "vit-augment", "strategies": ("token-mixing",)}, "'token-mixing' is none of head-drop"),
    ],
)
def test_bad_options_are_one_line(spec: Any, said: str, vits: list[Classifier], data: Dataset) -> None:
    with pytest.raises(InputError, match=said) as caught:
        from_spec("builder", spec).build(vits, data)
    assert "\n" not in str(caught.value)


@every
def test_an_attack_on_copies(which: str, vits: list[Classifier], data: Dataset, x: Tensor) -> None:
    """Micro-batches and repetitions give the same images."""
    made = BUILDERS[which].build([load_model(NAMES[1]).double()], data)
    y = torch.arange(4)
    attack: Any = create_attack("mifgsm", steps=2)
    found = attack.run(made, x[:4].double(), y, seed=1)
    assert found.passes == attack.passes(len(made))
    small = attack.run(made, x[:4].double(), y, seed=1, micro_batch=3)
    torch.testing.assert_close(small.x_adv, found.x_adv, rtol=0, atol=1e-9)
    assert torch.equal(attack(made, x[:4].double(), y, seed=1), found.x_adv)
