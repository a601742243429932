"""Stacked members give what looped ones give: answers, features, gradients, statistics, weights."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import advens
from advens.classifier import Classifier, borrowed
from advens.defenses import create_defense, stacked
from advens.defenses.layers import LOGITS, layers
from advens.defenses.members import fresh
from advens.defenses.phases import Batch, Team
from advens.defenses.stacked import Members, Stacked, differs, features, stackable, together
from advens.defenses.training import train
from advens.errors import InputError
from advens.seeding import Draws

torch.set_num_threads(1)

C, SIDE, N, K = 5, 6, 8, 3


def net(seed: int, act: nn.Module | None = None, dropout: float = 0.0) -> Classifier:
    """Convolutions, batch-norm before and after them, a preprocessing of its own."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        made = nn.Sequential(
            nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), act or nn.Tanh(),
            nn.Conv2d(4, 6, 3, stride=2), nn.BatchNorm2d(6, affine=False), nn.Tanh(), nn.Flatten(),
            nn.Dropout(dropout), nn.Linear(24, C),
        )  # fmt: skip
    mean, std = (0.3, 0.1 * seed, 0.2), (0.5, 0.6, 1 + 0.1 * seed)
    f = Classifier(made.double(), name=f"toy:{seed}", num_classes=C, mean=mean, std=std)
    return f.double().requires_grad_(True).train()


def members(k: int = K) -> list[Any]:
    return [net(seed) for seed in range(k)]


def images(n: int = N) -> Tensor:
    return torch.rand(n, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def batch() -> Batch:
    g = torch.Generator().manual_seed(1)
    x_t = torch.rand(N, 3, SIDE, SIDE, generator=g, dtype=torch.float64)
    y, y_t = (torch.randint(C, (N,), generator=g) for _ in range(2))
    return Batch(images(), y, lambda: (x_t, y_t), Draws(3, N), Draws(4, N), 0.5)


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def gradients(team: list[Any]) -> list[Tensor]:
    return [p.grad.clone() for f in team for p in f.parameters()]


def states(team: list[Any]) -> list[Tensor]:
    return [t for f in team for t in f.state_dict().values()]


@pytest.mark.parametrize("train_mode", [True, False])
def test_answers_features_and_gradients(train_mode: bool) -> None:
    one, two = members(), members()
    for f in [*one, *two]:
        f.train(train_mode)
    x, many = images(), images(K * N)
    assert layers(one[0], x) == [0, 1, LOGITS]
    for layer in (0, 1, LOGITS):
        with together(one, stacked=True) as stacked_ones:
            assert isinstance(stacked_ones, Stacked)
            for rows in (x.repeat(K, 1, 1, 1), many):  # shared, and of each member its own
                found, wanted = features(stacked_ones, rows, layer), features(Members(two), rows, layer)
                close(found, wanted)
                weights = torch.sin(torch.arange(found.numel()).double()).view_as(found)
                a, b = (
                    torch.autograd.grad(
                        (out * weights).sum(), [p for f in team for p in f.parameters()],
                        retain_graph=True, materialize_grads=True,
                    )
                    for out, team in ((found, one), (wanted, two))
                )  # fmt: skip
                for g, h in zip(a, b, strict=True):
                    close(g, h)
    for s, t in zip(states(one), states(two), strict=True):
        close(s, t)
    assert int(one[0].net[0].num_batches_tracked) == 2 * 3 * train_mode
    assert int(one[0].net[5].num_batches_tracked) == 2 * 2 * train_mode, "not run for the first layer"


def test_one_by_hand() -> None:
    """The rows of a member go through that member."""
    team, rows = [f.eval() for f in members()], images(K * N)
    for wrapped in (Members(team), Stacked(team)):
        out = wrapped(rows).unflatten(0, (K, N))
        for k, f in enumerate(team):
            close(out[k], f(rows[k * N : (k + 1) * N]))


def test_gradients_do_not_leak() -> None:
    team = members()
    with together(team, stacked=True) as f:
        f(images(K * N))[N : 2 * N].square().sum().backward()
    assert [any(bool(p.grad.any()) for p in f.parameters()) for f in team] == [False, True, False]


@pytest.mark.parametrize("at_once", [False, True])
def test_members_that_stand_still_leave_no_graph(at_once: bool) -> None:
    """Nothing is kept for weights that take no gradient; the image's is there."""
    team, x = members(), images(K * N)
    with together(team, stacked=at_once) as f:
        with borrowed([f]):
            assert not f(x).requires_grad
            assert f(x.requires_grad_()).requires_grad
        assert f(x.detach()).requires_grad


def test_members_stay_whole() -> None:
    """Parameters and buffers are the same objects, without hooks, and a copy can be made."""
    team = members()
    before = [id(t) for f in team for t in (*f.parameters(), *f.buffers())]
    create_defense("dverge", members=K, steps=1, stacked="always").loss(
        Team(team, torch.empty(0)), batch()
    ).backward()
    assert [id(t) for f in team for t in (*f.parameters(), *f.buffers())] == before
    assert all(p.is_leaf and p.requires_grad for f in team for p in f.parameters())
    assert all(module.training and not module._forward_hooks for f in team for module in f.modules())
    assert torch.isfinite(copy.deepcopy(team[0])(images())).all()


@pytest.mark.parametrize("train_mode", [True, False])
@pytest.mark.parametrize("adversarial", [0.0, 0.5])
def test_dverge(train_mode: bool, adversarial: float) -> None:
    """Loss, every gradient and every running statistic."""
    found = []
    for how in ("never", "always"):
        defense = create_defense(
            "dverge", members=K, steps=3, train_mode=train_mode, adversarial=adversarial, stacked=how
        )
        team = Team(members(), torch.empty(0))
        losses = [objective(team, batch()) for objective in (defense.alone, defense.loss)]
        torch.stack(losses).sum().backward()
        assert team.stacks == (how == "always")
        found.append([torch.stack(losses).detach(), *gradients(team.members), *states(team.members)])
    for a, b in zip(*found, strict=True):
        close(b, a)


def test_passes() -> None:
    """A member is run as often: once for the features of the target, steps times, and for each other."""
    for how in ("never", "always"):
        team, seen = Team(members(), torch.empty(0), stacks=how == "always"), []
        team.known = layers(team.members[0], images())
        team.members[0].register_forward_pre_hook(lambda _, args, seen=seen: seen.append(len(args[0])))
        create_defense("dverge", members=K, steps=3, stacked=how).loss(team, batch())
        assert len(seen) == 1 + 3 + K - 1


SMOOTH, NORMED = "digits:mambaout", "digits:resnet"
"""Without a kink in its activations, at which float32's rounding decides a gradient; and with batch-norm."""
QUICK: dict[str, Any] = {"epochs": 2, "batch_size": 16, "members": 2, "steps": 2, "lr": 0.01}


@pytest.fixture(scope="module")
def data() -> Any:
    return advens.load_data("digits:train?limit=32&seed=0")


class Killed(Exception):
    pass


def killed(row: dict[str, Any]) -> None:
    if (row["phase"], row["epoch"]) == ("diversify", 1):
        raise Killed


def test_the_same_weights(data: Any, tmp_path: Path) -> None:
    """After two epochs of each phase, in float32."""
    made = [
        states(list(train(defense, SMOOTH, data, tmp_path / defense.training.stacked).members))
        for defense in (create_defense("dverge", **QUICK, stacked=how) for how in ("never", "always"))
    ]
    start = states([fresh(SMOOTH, 10, (32, 32), 0, k) for k in range(2)])
    assert any(float((a - b).abs().max()) > 1e-3 for a, b in zip(start, made[0], strict=True))
    for a, b in zip(*made, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_goes_on_to_the_same_weights(data: Any, tmp_path: Path) -> None:
    """Stacked and interrupted, bit for bit."""
    defense = create_defense("dverge", **QUICK, stacked="always")
    whole = train(defense, NORMED, data, tmp_path / "whole")
    with pytest.raises(Killed):
        train(defense, NORMED, data, tmp_path / "cut", on_epoch=killed)
    again = train(defense, NORMED, data, tmp_path / "cut")
    weights = (states(list(e.members)) for e in (whole, again))
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


def test_how_is_not_what(data: Any, tmp_path: Path) -> None:
    """A training goes on where it was interrupted, also computed in another way."""
    out = tmp_path / "out"
    with pytest.raises(Killed):
        train(create_defense("dverge", **QUICK, stacked="never"), SMOOTH, data, out, on_epoch=killed)
    train(create_defense("dverge", **QUICK, stacked="always"), SMOOTH, data, out)
    assert "stacked" not in (out / "training.json").read_text()


class Forgetful(nn.Module):
    """Replaces a buffer, which `torch.func` does not see."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        self.calls = self.calls + 1
        return x


MIXED = {
    "another activation": lambda: [net(0), net(1, nn.Sigmoid())],
    "another width": lambda: [net(0), Classifier(nn.Linear(3, C), name="toy:w", num_classes=C)],
    "dropout": lambda: [net(0, dropout=0.5), net(1, dropout=0.5)],
    "a replaced buffer": lambda: [net(0, Forgetful()), net(1, Forgetful())],
    "another mode": lambda: [net(0), net(1).eval()],
}


@pytest.mark.parametrize("what", MIXED)
def test_falls_back_to_the_loop(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Members that cannot be stacked are looped, unless they always should be."""
    team = MIXED[what]()
    before = [t.clone() for t in states(team)]
    why = differs(team, images(2))
    assert why is not None
    assert (why == "they have different parameters") == (what == "another width"), why
    with pytest.raises(InputError, match="cannot be stacked") as caught:
        stackable(team, images(), "always")
    assert "\n" not in str(caught.value)
    monkeypatch.setattr(stacked, "faster", lambda x: True)
    assert not stackable(team, images(), "auto")
    assert stackable(members(), images(), "auto")
    assert all(torch.equal(a, b) for a, b in zip(before, states(team), strict=True)), "trying changes nothing"
    if what != "another width":
        defense = create_defense("dverge", members=2, steps=1)
        looped = Team(team, torch.empty(0))
        assert torch.isfinite(defense.loss(looped, batch()))
        assert looped.stacks is False


def test_auto_on_a_cpu() -> None:
    assert not stackable(members(), images(), "auto")
    assert stackable(members(), images(), "always")
    assert differs([f.eval() for f in MIXED["dropout"]()], images(2)) is None, "it drops nothing"
