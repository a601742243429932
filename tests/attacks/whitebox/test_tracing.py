"""Traces of white-box attacks: looking changes nothing, and what is noted is what can be computed by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from advens.attacks import create_attack
from advens.attacks.whitebox.cascade import Cascade
from advens.attacks.whitebox.engine import search
from advens.attacks.whitebox.oracle import RowOracle
from advens.attacks.whitebox.tracing import RECORDED, RowTrace
from advens.threat import Threat

BALL = Threat("linf", 0.1)
EVERY = {
    "pgd-ce": {"broken", "loss", "margin"}, "apgd-ce": {"broken", "best", "margin", "step_size"},
    "square": {"broken", "loss", "margin"}, "fab": {"broken", "distance"}, "arc": {"broken"},
    "pma-members": {"broken", "loss", "margin"},
}  # fmt: skip


def network() -> nn.Module:
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 5)).double()
    generator = torch.Generator().manual_seed(0)
    for parameter in net.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator).double() / 5
    return net


def batch(net: nn.Module, n: int = 8) -> tuple[Tensor, Tensor]:
    x = torch.rand((n, 3, 8, 8), generator=torch.Generator().manual_seed(1)).double()
    return x, net(x).argmax(1)


def attacked(
    name: str, batch_size: int, trace: RowTrace | None = None, **options: object
) -> RowOracle:
    net = network()
    x, y = batch(net)
    attack = create_attack(name, eps=BALL.eps, **options)
    oracle = RowOracle([net], BALL, x, y)
    search(attack, oracle, torch.arange(1, len(x)), batch=batch_size, trace=trace)  # type: ignore[arg-type]
    return oracle


@pytest.mark.parametrize("name", EVERY)
def test_looking_changes_nothing(name: str) -> None:
    trace = RowTrace(8)
    plain, traced = attacked(name, 3), attacked(name, 3, trace)
    assert torch.equal(plain.x_adv, traced.x_adv)
    assert torch.equal(plain.forwards, traced.forwards)
    found = trace.filled()
    assert set(found) == EVERY[name]
    assert all(values[:, 0].isnan().all() for values in found.values())  # it was not attacked
    assert torch.equal(found["broken"][-1, 1:], 1 - traced.correct[1:])
    assert (found["broken"].diff(dim=0)[:, 1:] >= 0).all()


@pytest.mark.parametrize("name", ["pgd-ce", "apgd-ce", "square", "fab"])
def test_a_trace_does_not_depend_on_the_batch(name: str) -> None:
    one, other = RowTrace(8), RowTrace(8)
    attacked(name, 2, one)
    attacked(name, 8, other)
    assert one.at == other.at
    for what, values in one.filled().items():
        assert torch.allclose(values, other.filled()[what], rtol=0, atol=1e-9, equal_nan=True), what


def test_losses_and_margins_are_those_of_the_points() -> None:
    net = network()
    x, y = batch(net)
    attack = create_attack("pgd-ce", eps=0.02, steps=3, start="clean")
    found = attack.run(net, x, y, trace=True).trace
    assert found is not None
    logits = net(x).detach()
    assert torch.allclose(
        found["loss"][0], nn.functional.cross_entropy(logits, y, reduction="none")
    )
    others = logits.scatter(1, y[:, None], -torch.inf).amax(1)
    assert torch.allclose(found["margin"][0], others - logits.gather(1, y[:, None]).squeeze(1))
    assert (found["loss"].diff(dim=0) > 0).all()


def test_at_most_so_many_iterations_are_recorded() -> None:
    net = network()
    x, y = batch(net)
    run = create_attack("apgd-ce", eps=0.05, steps=120).run(net, x, y, trace=True)
    assert run.trace is not None
    assert (run.recorded[0], run.recorded[-1], len(run.recorded)) == (0, 119, RECORDED)
    assert all(values.shape == (RECORDED, 8) for values in run.trace.values())
    assert run.trace["step_size"][0].eq(2).all()
    assert run.trace["step_size"][-1].le(1).all()
    short = create_attack("apgd-ce", eps=0.05, steps=3).run(net, x, y, trace=True)
    assert short.recorded == (0, 1, 2)


def test_what_a_sample_keeps_when_it_leaves() -> None:
    trace = RowTrace(2)
    trace.begin(4)
    seen: list[tuple[int, list[int], list[float], list[float]]] = [
        (0, [0, 1], [-3, -2], [2, 2]), (1, [0, 1], [-1, -4], [2, 1]), (2, [1], [-1.5], [0.5]),
    ]  # fmt: skip
    for t, place, margin, step in seen:
        places = torch.tensor(place)
        trace.note(torch.full_like(places, t), places,
                   {"margin": torch.tensor(margin), "step_size": torch.tensor(step)})  # fmt: skip
    found = trace.filled()
    assert found["margin"].tolist() == [[-3, -2], [-1, -2], [-1, -1.5], [-1, -1.5]]
    assert found["step_size"][:2].tolist() == [[2, 2], [2, 1]]
    assert found["step_size"][2].isnan().tolist() == [True, False]
    assert found["step_size"][3].isnan().all()


def test_a_sequence_called_on_its_own_has_no_trace() -> None:
    net = network()
    x, y = batch(net)
    attack = Cascade(BALL, (create_attack("pgd-ce", steps=2), create_attack("mifgsm", steps=2)))
    assert attack.run(net, x, y, trace=True).trace is None
