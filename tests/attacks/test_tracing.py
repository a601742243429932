"""Traces: what they say equals what can be computed by hand, and looking changes nothing."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from advens.attacks import create_attack


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
