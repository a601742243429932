"""Traces: what they say equals what can be computed by hand, and looking changes nothing."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from advens.attacks import create_attack
from advens.seeding import Draws


def models(k: int) -> list[nn.Module]:
    nets: list[nn.Module] = []
    for seed in range(k):
        net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 5)).double()
        generator = torch.Generator().manual_seed(seed)
        for parameter in net.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator).double() / 5
        nets.append(net)
    return nets


def batch(n: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.rand((n, 3, 8, 8), generator=generator).double()
    return x, torch.randint(5, (n,), generator=generator)


def test_looking_changes_neither_images_nor_counts() -> None:
    x, y = batch()
    for name in ("adaea", "di-mi-ens-logits", "cwa"):
        attack = create_attack(name, eps=0.1, steps=3)
        plain = attack.run(models(3), x, y)
        traced = attack.run(models(3), x, y, trace=True, micro_batch=4)
        assert torch.equal(plain.x_adv, traced.x_adv)
        assert plain.passes == traced.passes == attack.passes(3)
        assert plain.trace is None
        assert traced.trace is not None
        assert traced.trace["loss"].shape == (3, 6, 3)


def test_losses_and_cosines_are_those_of_the_iterates() -> None:
    x, y = batch()
    nets = models(2)
    trace = create_attack("ifgsm", eps=0.1, steps=2).run(nets, x, y, trace=True).trace
    assert trace is not None
    losses = torch.stack([F.cross_entropy(net(x), y, reduction="none") for net in nets], 1)
    assert torch.allclose(trace["loss"][0], losses.detach(), rtol=0, atol=1e-12)
    assert (trace["loss"][1].mean(1) > trace["loss"][0].mean(1)).all()
    leaf = x.clone().requires_grad_()
    a, b = (
        torch.autograd.grad(F.cross_entropy(net(leaf), y, reduction="sum"), leaf)[0].flatten(1)
        for net in nets
    )
    assert torch.allclose(trace["cosine"][0], F.cosine_similarity(a, b), rtol=0, atol=1e-9)


def test_adaea_notes_its_weights_and_filter() -> None:
    x, y = batch()
    trace = create_attack("adaea", eps=0.1, steps=3, eta=2.0).run(models(3), x, y, trace=True).trace
    assert trace is not None
    assert torch.allclose(trace["weights"].sum(-1), torch.ones(3, 6).double())
    assert (trace["filtered"] == 1).all(), "no cosine reaches 2"
    open_ = create_attack("adaea", eps=0.1, steps=3, eta=-1.1).run(models(3), x, y, trace=True).trace
    assert open_ is not None
    assert (open_["filtered"] == 0).all()


def test_a_surrogates_own_optimum_is_close_and_a_linear_loss_is_flat() -> None:
    x, y = batch()
    nets = models(2)
    attack = create_attack("ifgsm", eps=0.1, steps=20, loss="logit")
    trace = attack.run(nets[:1], x, y, trace=True).trace
    assert trace is not None
    assert trace["closeness"].max() < 1e-6, "a linear surrogate's optimum is the corner reached"
    noise = trace["flatness"].abs().mean()
    assert noise < 0.05, "a linear loss rises nowhere on average"
    both = attack.run(nets, x, y, trace=True).trace
    assert both is not None
    assert both["closeness"].min() > 0.1, "two surrogates pull apart"


def test_flatness_and_closeness_by_hand() -> None:
    """Of the result of a run: ten random points of a tenth of the ball, and ten steps of each surrogate."""
    x, y = batch()
    nets = [nn.Sequential(net, nn.Tanh(), nn.Linear(5, 5, bias=False).double()) for net in models(2)]
    for seed, net in enumerate(nets):
        weight = torch.randn(5, 5, generator=torch.Generator().manual_seed(seed))
        net[2].weight.data = 3 * weight.double()
    for norm, eps in (("linf", 0.1), ("l2", 0.7)):
        attack = create_attack("ifgsm", norm=norm, eps=eps, steps=2)
        result = attack.run(nets, x, y, seed=4, trace=True)
        assert result.trace is not None
        assert set(result.trace) == {"loss", "cosine", "flatness", "closeness"}
        at, draws, threat = result.x_adv, Draws(4, len(x)).fork("flatness"), attack.threat
        for k, net in enumerate(nets):
            here = F.cross_entropy(net(at), y, reduction="none")
            rises = [
                F.cross_entropy(net((at + threat.noise(at, 0.1, draws, i)).clamp(0, 1)), y, reduction="none")
                for i in range(10)
            ]
            rise = (torch.stack(rises).mean(0) - here).detach()
            torch.testing.assert_close(result.trace["flatness"][0, :, k], rise, rtol=0, atol=1e-12)
            assert float(rise.abs().max()) > 1e-4
            moved = at
            for _ in range(10):
                leaf = moved.clone().requires_grad_()
                (g,) = torch.autograd.grad(F.cross_entropy(net(leaf), y, reduction="sum"), leaf)
                unit = g.sign() if norm == "linf" else g / g.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
                moved = threat.project(moved + eps / 10 * unit, x)
            far = (moved - at).flatten(1).norm(dim=1)
            torch.testing.assert_close(result.trace["closeness"][0, :, k], far, rtol=0, atol=1e-9)
            assert float(far.min()) > 0.01


def test_the_mean_cosine_is_over_all_pairs() -> None:
    x, y = batch()
    nets = models(3)
    trace = create_attack("fgsm", eps=0.1).run(nets, x, y, trace=True).trace
    assert trace is not None
    leaf = x.clone().requires_grad_()
    units = []
    for net in nets:
        (g,) = torch.autograd.grad(F.cross_entropy(net(leaf), y, reduction="sum"), leaf)
        units.append(g.flatten(1) / g.flatten(1).norm(dim=1, keepdim=True))
    pairs = [(units[i] * units[j]).sum(1) for i, j in ((0, 1), (0, 2), (1, 2))]
    torch.testing.assert_close(trace["cosine"][0], torch.stack(pairs).mean(0), rtol=0, atol=1e-9)
    alone = create_attack("fgsm", eps=0.1).run(nets[:1], x, y, trace=True).trace
    assert alone is not None
    assert alone["cosine"][0].tolist() == [1.0] * len(x)
