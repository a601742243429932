"""The oracle's fused gradients against formulas, its counters, and what it says of bad surrogates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from advens.attacks import create_attack
from advens.attacks.estimators import Plain
from advens.attacks.losses import DLR, CrossEntropy, Margin
from advens.attacks.oracle import GradientOracle, Job, Passes, Softmin
from advens.attacks.sharing import shared
from advens.errors import InputError
from advens.seeding import Draws
from advens.threat import Threat

Net = Callable[..., nn.Module]


@pytest.fixture
def oracle(net: Net, images: Any) -> Callable[..., GradientOracle]:
    """``oracle(k, targeted=False, loss=...)``: K tiny surrogates, four images."""

    def make(k: int, targeted: bool = False, loss: Any = CrossEntropy()) -> GradientOracle:  # noqa: B008
        x, y = images(0), torch.tensor([0, 5, 2, 3])
        target = (y + 1) % 6 if targeted else None
        job = Job([net(seed) for seed in range(k)], x, y, target, Draws(0, len(x)), x)
        return GradientOracle(job, Threat(), loss, Plain())

    return make


def transcribed(
    oracle: GradientOracle, over: str, members: list[int], weights: Tensor | None = None
) -> Tensor:
    """One image at a time: the fused cross-entropy as Liu et al. and Dong et al. write it."""
    job, rows = oracle.job, []
    for n in range(len(job.x)):
        x = job.x[n].clone().requires_grad_()
        w = torch.full((len(members),), 1 / len(members), dtype=torch.float64)
        w = w if weights is None else weights[n]
        own = int(job.y[n]) if job.target is None else int(job.target[n])
        total = x.new_zeros(())
        if over == "logits":
            z = sum(w[i] * job.models[k](x[None])[0] for i, k in enumerate(members))
            total = -torch.log(torch.exp(z)[own] / torch.exp(z).sum())  # type: ignore[arg-type, index]
        for i, k in enumerate(members):
            z = job.models[k](x[None])[0]
            p = torch.exp(z)[own] / torch.exp(z).sum()
            if over == "probs":
                total = total + w[i] * p
            elif over == "loss":
                total = total - w[i] * torch.log(p)
        if over == "probs":
            total = -torch.log(total)
        (g,) = torch.autograd.grad(total if job.target is None else -total, x)
        rows.append(g)
    return torch.stack(rows)


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("over", ["logits", "probs", "loss"])
@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("targeted", [False, True])
def test_uniform_fusion(oracle: Any, over: str, k: int, targeted: bool) -> None:
    asked = oracle(k, targeted)
    g = asked.gradient(asked.job.x, over=over)
    assert g.abs().max() > 1e-3
    close(g, transcribed(asked, over, list(range(k))))
    assert asked.passes == Passes(k, k)


@pytest.mark.parametrize("over", ["logits", "probs", "loss"])
@pytest.mark.parametrize("members", [[0], [2], [0, 2], [2, 1]])
def test_some_of_the_surrogates(oracle: Any, over: str, members: list[int]) -> None:
    """The mean is over those asked for, not over all."""
    asked = oracle(3)
    g = asked.gradient(asked.job.x, members, over=over)
    close(g, transcribed(asked, over, members))
    assert asked.passes == Passes(len(members), len(members))


@pytest.mark.parametrize("over", ["logits", "probs", "loss"])
@pytest.mark.parametrize("members", [None, [0, 2]])
def test_weights_per_sample(oracle: Any, over: str, members: list[int] | None) -> None:
    asked = oracle(3)
    everyone = members or [0, 1, 2]
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(4, len(everyone), generator=generator, dtype=torch.float64)
    weights /= weights.sum(1, keepdim=True)
    weights[0] = torch.eye(len(everyone), dtype=torch.float64)[0]  # all but one count nothing
    g = asked.gradient(asked.job.x, members, over=over, weights=weights)
    close(g, transcribed(asked, over, everyone, weights))


@pytest.mark.parametrize("over", ["logits", "probs", "loss"])
def test_weights_may_be_those_of_the_mean(oracle: Any, over: str) -> None:
    asked = oracle(3)
    even = torch.full((4, 3), 1 / 3, dtype=torch.float64)
    x = asked.job.x
    close(asked.gradient(x, over=over, weights=even), asked.gradient(x, over=over))


@pytest.mark.parametrize("loss", [Margin(), DLR()])
def test_margins_of_mean_probabilities(oracle: Any, loss: Any) -> None:
    """Other losses see the log of the mean probabilities in the place of logits."""
    asked = oracle(2, loss=loss)
    x = asked.job.x.clone().requires_grad_()
    mean = torch.stack([model(x).softmax(1) for model in asked.job.models]).mean(0).log()
    (wanted,) = torch.autograd.grad(loss(mean, asked.job.y, None).sum(), x)
    close(asked.gradient(asked.job.x, over="probs"), wanted)


def ascended(loss: Any, z: Tensor, own: int, targeted: bool) -> Tensor:
    """What one image's logits (classes,) give: log-probability or margin, by the formula."""
    others = torch.cat([z[:own], z[own + 1 :]])
    towards = z[own] - (torch.exp(z).sum().log() if isinstance(loss, CrossEntropy) else others.max())
    return towards if targeted else -towards


@pytest.mark.parametrize("loss", [CrossEntropy(), Margin()])
@pytest.mark.parametrize("targeted", [False, True])
def test_weighted_mean_of_probabilities(oracle: Any, loss: Any, targeted: bool) -> None:
    """log sum_k w_k p_k, one image at a time, in the place of logits."""
    asked = oracle(3, targeted, loss)
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(4, 3, generator=generator, dtype=torch.float64)
    weights /= weights.sum(1, keepdim=True)
    g = asked.gradient(asked.job.x, over="probs", weights=weights)
    for n, x in enumerate(asked.job.x):
        leaf = x.clone().requires_grad_()
        p = [torch.exp(z) / torch.exp(z).sum() for z in (m(leaf[None])[0] for m in asked.job.models)]
        mean = torch.log(sum(w * each for w, each in zip(weights[n], p, strict=True)))  # type: ignore[arg-type]
        own = int((asked.job.target if targeted else asked.job.y)[n])
        (wanted,) = torch.autograd.grad(ascended(loss, mean, own, targeted), leaf)
        close(g[n], wanted)


@pytest.mark.parametrize("loss", [CrossEntropy(), Margin()])
@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("temperature", [0.2, 1.0, 30.0])
def test_softmin(oracle: Any, loss: Any, targeted: bool, temperature: float) -> None:
    """``-T log sum_k exp(-J_k / T)`` of what is ascended: its value and its gradient."""
    asked = oracle(3, targeted, loss)
    x = asked.job.x
    g = asked.gradient(x, over=Softmin(temperature))
    value = asked.fused([m(x) for m in asked.job.models], None, Softmin(temperature)).value
    for n in range(4):
        leaf = x[n].clone().requires_grad_()
        own = int((asked.job.target if targeted else asked.job.y)[n])
        j = torch.stack([ascended(loss, m(leaf[None])[0], own, targeted) for m in asked.job.models])
        softest = -temperature * torch.log(torch.exp(-j / temperature).sum())
        (wanted,) = torch.autograd.grad(softest, leaf)
        close(g[n], wanted)
        close(value[n], softest.detach())


def test_fusions_differ_and_attacks_use_their_own(oracle: Any) -> None:
    asked = oracle(2)
    x = asked.job.x
    for name, over in {"ens-logits": "logits", "ens-probs": "probs", "ens-loss": "loss"}.items():
        found = create_attack(name).fusion.direction(asked, x)  # type: ignore[attr-defined]
        close(found, asked.gradient(x, over=over))
    three = [asked.gradient(x, over=over) for over in ("logits", "probs", "loss")]
    assert (three[0] - three[1]).abs().max() > 1e-3
    assert (three[1] - three[2]).abs().max() > 1e-3


def test_fusion_of_one_is_the_surrogates_own_gradient(oracle: Any) -> None:
    asked = oracle(1)
    x = asked.job.x
    three = [asked.gradient(x, over=over) for over in ("logits", "probs", "loss")]
    close(three[0], three[1])
    close(three[0], three[2])


def test_logits_have_no_graph_and_count(oracle: Any) -> None:
    asked = oracle(2)
    z = asked.logits(asked.job.x, 1)
    assert not z.requires_grad
    assert torch.equal(z, asked.job.models[1](asked.job.x).detach())
    assert asked.passes == Passes(1, 0)


def test_a_sample_is_not_averaged_with_others(oracle: Any) -> None:
    """Losses are summed: a gradient has the same length alone and among many."""
    asked = oracle(2)
    whole = asked.gradient(asked.job.x)
    asked.job.y = asked.job.y[:1]
    alone = asked.gradient(asked.job.x[:1])
    close(alone[0], whole[0])


class Odd(nn.Module):
    """Answers with whatever it was given."""

    def __init__(self, answer: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x: Tensor) -> Any:
        return self.answer(x)


def linear(classes: int) -> Callable[[Tensor], Tensor]:
    return lambda x: x.flatten(1)[:, :classes] * 1.0


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ([Odd(linear(6)), Odd(linear(5))], "surrogate 1 has 5 classes and the first has 6; surr"),
        ([Odd(lambda x: x)], r"surrogate 0 must return logits \(N, classes\); it returned \(4, 3"),
        ([Odd(lambda x: x.flatten(1)[:2])], r"surrogate 0 must return logits .* returned \(2, 192"),
        ([Odd(lambda x: (x, x))], "surrogate 0 must return logits .* returned tuple"),
        ([Odd(linear(3))], "label 5 is out of range; surrogate 0 has 3 classes"),
        ([Odd(linear(6)), Odd(lambda x: linear(6)(x) / 0)], "surrogate 1 returned logits that are"),
    ],
)
@pytest.mark.parametrize("name", ["ens-logits", "ens-loss", "mifgsm"])
def test_bad_surrogates(models: list[nn.Module], message: str, name: str, images: Any) -> None:
    x, y = images(0) / 2 + 0.25, torch.tensor([0, 5, 2, 3])
    with pytest.raises(InputError, match=message):
        create_attack(name)(models, x, y)


def test_target_out_of_range(images: Any) -> None:
    y = torch.tensor([0, 1, 2, 3])
    with pytest.raises(InputError, match="target 8 is out of range; surrogate 0 has 6 classes"):
        create_attack("ifgsm")(Odd(linear(6)), images(0), y, target=y + 5)


class Sure(nn.Module):
    """A net whose label is ahead of the other classes by so much, in log-odds, at the images given."""

    def __init__(self, inner: nn.Module, x: Tensor, y: Tensor, by: float, factor: float) -> None:
        super().__init__()
        self.inner, self.factor = inner, factor
        with torch.no_grad():
            z = inner(x) * factor
            lift = by - odds_of(z, y)
            self.register_buffer("lift", lift[:, None] * nn.functional.one_hot(y, z.shape[1]))

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.inner(x) * self.factor + self.lift
        return z


def odds_of(z: Tensor, y: Tensor) -> Tensor:
    """Log-odds of the label, one image at a time."""
    rows = [
        row[label] - torch.logsumexp(torch.cat([row[:label], row[label + 1 :]]), 0)
        for row, label in zip(z, y.tolist(), strict=True)
    ]
    return torch.stack(rows)


def confident(net: Net, images: Any, by: list[float], targeted: bool) -> GradientOracle:
    """Float32 surrogates as sure as ``by`` says where cross-entropy saturates: of the label, or of a
    target that is reached."""
    x, y = images(0), torch.tensor([0, 5, 2, 3])
    wanted = (y + 1) % 6 if targeted else y
    models = [Sure(net(k), x, wanted, b, 1.0 + k) for k, b in enumerate(by)]
    models = [model.float() for model in models]
    job = Job(models, x.float(), y, wanted if targeted else None, Draws(0, len(x)), x.float())
    return GradientOracle(job, Threat(), CrossEntropy(), Plain())


def sound(asked: GradientOracle, over: str) -> Tensor:
    """Cross-entropy's direction in float64, its factors multiplied as logarithms, one image at a time."""
    job, rows = asked.job, []
    wanted, sign = (job.y, -1) if job.target is None else (job.target, 1)
    models = [model.double() for model in job.models]
    leaf = job.x.double().requires_grad_()
    z = [model(leaf) for model in models]
    k = len(models)
    if over == "logits":
        odds = odds_of(sum(z) / k, wanted)  # type: ignore[arg-type]
        rows = [torch.autograd.grad(sign * odds.sum(), leaf)[0]]
        logs = [torch.zeros(len(job.x)).double()]
    else:
        each = [sign * odds_of(one, wanted) for one in z]  # m_k: grows as the attack wants
        rows = [torch.autograd.grad(m.sum(), leaf, retain_graph=True)[0] for m in each]
        m = torch.stack(each).detach()
        logs = list(m if sign < 0 else -m)  # log sigmoid(+-m), and of p_k's, to 1e-8 from 20 on
    top = torch.stack(list(logs)).amax(0)
    for model in models:
        model.float()
    total = sum(g * (log - top).exp()[:, None, None, None] for g, log in zip(rows, logs, strict=True))
    assert isinstance(total, Tensor)
    return total


def angle(a: Tensor, b: Tensor) -> Tensor:
    """1 - cosine, (N,), float64."""
    u, v = (t.double().flatten(1) for t in (a, b))
    u, v = (t / t.abs().amax(1, keepdim=True) for t in (u, v))
    return 1 - nn.functional.cosine_similarity(u, v)


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize(
    "by", [[20.0], [50.0, 50.0], [120.0, 120.0], [300.0], [120.0, 25.0], [150.0, 148.0], [30.0, 90.0, 31.0]]
)
@pytest.mark.parametrize("over", ["logits", "probs", "loss"])
def test_confident_surrogates_are_not_silent(
    net: Net, images: Any, over: str, by: list[float], targeted: bool
) -> None:
    """The direction of exact cross-entropy, where float32 has lost the label or everything."""
    asked = confident(net, images, by, targeted)
    asked.begin(0, 0.1)
    g = asked.gradient(asked.job.x, over=over)
    wanted = sound(asked, over)
    assert angle(g, wanted).max() < 1e-6
    assert (g.sign() != wanted.sign()).float().mean() < 0.005
    assert g.abs().flatten(1).amax(1).min() > 1e-30
    assert asked.silent.tolist() == [0] * 4


@pytest.mark.parametrize("targeted", [False, True])
def test_a_shared_pass_of_confident_surrogates_is_not_silent(
    net: Net, images: Any, targeted: bool
) -> None:
    """Fusions that take several gradients from one forward pass have the same direction."""
    asked = confident(net, images, [120.0, 120.0], targeted)
    g = shared(asked, asked.job.x).gradient([0, 1], last=True)
    assert angle(g, sound(asked, "logits")).max() < 1e-6
    assert g.abs().flatten(1).amax(1).min() > 1e-30


def test_one_confident_surrogate_silences_nobody(net: Net, images: Any) -> None:
    """Beside one that is not sure, it has no say where losses are summed, and some in the mean logits."""
    asked = confident(net, images, [200.0, 1.0], False)
    other = asked.gradient(asked.job.x, [1])
    for over in ("loss", "probs", Softmin(0.5)):
        assert angle(asked.gradient(asked.job.x, over=over), other).max() < 1e-6
    assert angle(asked.gradient(asked.job.x, over="logits"), sound(asked, "logits")).max() < 1e-6


def test_softmin_weighs_slopes_and_losses(net: Net, images: Any) -> None:
    """sum_k softmax(-J / T)_k sigmoid(m_k) grad m_k, the factors multiplied as logarithms."""
    asked = confident(net, images, [150.0, 149.0], False)
    g = asked.gradient(asked.job.x, over=Softmin(1.0))
    assert angle(g, sound(asked, "loss")).max() < 1e-6, "both losses are nothing: even weights"


def test_unsure_surrogates_are_answered_as_before(oracle: Any) -> None:
    """Gradients have cross-entropy's length too, as far as a float reaches."""
    asked = oracle(2)
    for model in asked.job.models:
        with torch.no_grad():
            for parameter in list(model.parameters())[-2:]:
                parameter.mul_(30)
    x = asked.job.x
    leaf = x.clone().requires_grad_()
    each = [-asked.job.models[k](leaf).log_softmax(1)[range(4), asked.job.y] for k in range(2)]
    (wanted,) = torch.autograd.grad(sum(each).sum() / 2, leaf)
    torch.testing.assert_close(asked.gradient(x, over="loss"), wanted, rtol=1e-7, atol=1e-9)


class Deaf(nn.Module):
    """Does not see some images: those whose first pixel is black."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        sees = (x[:, 0, 0, 0] > 0).to(x.dtype)[:, None]
        z: Tensor = self.inner(x) * sees
        return z


def test_silent_steps_are_counted(net: Net, images: Any) -> None:
    """A step counts for a sample when no gradient at all was given."""
    x, y = images(0).clone(), torch.tensor([0, 5, 2, 3])
    x[:, 0, 0, 0] = torch.tensor([0.5, 0.0, 0.5, 0.0])
    job = Job([Deaf(net(0)), net(1)], x, y, None, Draws(0, len(x)), x)
    asked = GradientOracle(job, Threat(), CrossEntropy(), Plain())
    assert asked.silent.tolist() == [0, 0, 0, 0], "before the first step"
    for step, members in enumerate([[0], [1], [0]]):
        asked.begin(step, 0.1)
        asked.gradient(x, members)
    assert asked.silent.tolist() == [0, 2, 0, 2]
    for step, order in enumerate([(0, 1), (1, 0)], 3):
        asked.begin(step, 0.1)
        for k in order:
            asked.gradient(x, [k])
        assert asked.silent.tolist() == [0, 2, 0, 2], "one surrogate spoke"


@pytest.mark.parametrize("micro_batch", [None, 1, 3])
def test_result_carries_the_silent_steps(net: Net, images: Any, micro_batch: int | None) -> None:
    x, y = images(0).clone(), torch.tensor([0, 5, 2, 3])
    x[:, 0, 0, 0] = torch.tensor([0.5, 0.0, 0.5, 0.0])
    attack = create_attack("mifgsm", steps=3)
    found = attack.run(Deaf(net(0)), x, y, micro_batch=micro_batch).silent
    assert found is not None
    assert found.tolist() == [0, 3, 0, 3]
