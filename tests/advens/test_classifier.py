"""Classifiers, and models that are borrowed and given back."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from advens.classifier import (
    Classifier,
    accuracy,
    borrowed,
    device_of,
    is_randomized,
    looks_like_probabilities,
)
from advens.digest import weights_digest
from advens.errors import InputError


class Seen(nn.Module):
    """Remembers its input, answers with channel means."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.input = torch.empty(0)

    def forward(self, x: Tensor) -> Tensor:
        self.input = x
        return x.mean((2, 3)) * self.weight


def test_preprocessing_is_inside() -> None:
    net = Seen()
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 2.0)
    model = Classifier(net, name="m", num_classes=3, mean=mean, std=std)
    x = torch.rand(2, 3, 5, 7, generator=torch.Generator().manual_seed(0))
    out = model(x)
    for c in range(3):
        torch.testing.assert_close(net.input[:, c], (x[:, c] - mean[c]) / std[c])
    torch.testing.assert_close(out, net.input.mean((2, 3)))


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_resizing_is_antialiased_and_only_when_needed(interpolation: str) -> None:
    net = Seen()
    model = Classifier(net, name="m", num_classes=3, input_size=(8, 6), interpolation=interpolation)
    x = torch.rand(2, 3, 17, 12, generator=torch.Generator().manual_seed(0))
    model(x)
    wanted = F.interpolate(x, (8, 6), mode=interpolation, align_corners=False, antialias=True)
    torch.testing.assert_close(net.input, wanted.clamp(0, 1))
    fits = x[..., :8, :6]
    model(fits)
    assert torch.equal(net.input, fits)


def test_resizing_stays_in_the_cube_and_keeps_the_gradient() -> None:
    """Bicubic resizing overshoots at edges; white areas, which rounding takes beyond 1, still learn."""
    net = Seen()
    model = Classifier(net, name="m", num_classes=3, input_size=(8, 8))
    x = torch.zeros(1, 3, 20, 20)
    x[..., 9:] = 1
    x.requires_grad_(True)
    loose = F.interpolate(x, (8, 8), mode="bicubic", align_corners=False, antialias=True)
    assert float(loose.detach().max()) > 1.01
    assert float(loose.detach().min()) < -0.01
    out = model(x).sum()
    assert float(net.input.detach().min()) == 0
    assert float(net.input.detach().max()) == 1
    (gradient,) = torch.autograd.grad(out, x)
    (wanted,) = torch.autograd.grad(loose.mean((2, 3)).sum(), x)
    torch.testing.assert_close(gradient, wanted)


class OneSize(Seen):
    """Asserts the size of its images, as vision transformers do."""

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[-1] == 8, f"Input width ({x.shape[-1]}) doesn't match model (8)."
        return super().forward(x)


def test_images_of_another_size_are_one_line() -> None:
    model = Classifier(OneSize(), name="mine", num_classes=3)
    assert model(torch.zeros(1, 3, 8, 8)).shape == (1, 3)
    with pytest.raises(InputError) as caught:
        model(torch.zeros(1, 3, 9, 10))
    assert str(caught.value) == "model 'mine' takes no 9x10 images: Input width (10) doesn't match model (8)."


def test_frozen_evaluating_and_described() -> None:
    net = nn.Sequential(Seen(), nn.Dropout())
    model = Classifier(net, name="pkg:m", num_classes=3, family="mlp")
    assert not any(p.requires_grad for p in model.parameters())
    assert not any(module.training for module in model.modules())
    assert (model.name, model.family, model.num_classes) == ("pkg:m", "mlp", 3)
    assert "pkg:m" in repr(model)
    x = torch.rand(1, 3, 4, 4, requires_grad=True)
    model(x).sum().backward()
    assert x.grad is not None


def test_digest_is_of_weights_and_preprocessing() -> None:
    """Not of the name; one weight, or how images are prepared, makes another model."""
    one = Classifier(nn.Linear(3, 2), name="a", num_classes=2)
    same = nn.Linear(3, 2)
    same.load_state_dict(one.net.state_dict())
    other = copy.deepcopy(same)
    with torch.no_grad():
        other.weight[1, 2] += 1e-6
    two = Classifier(same, name="b", num_classes=2, family="vit", interpolation="bilinear")
    assert one.digest == two.digest == one.weights == weights_digest(one.net)
    assert len(one.digest) == 64
    assert Classifier(other, name="a", num_classes=2).digest != one.digest


@pytest.mark.parametrize(
    "prepared",
    [{"mean": (0.5, 0.5, 0.5)}, {"std": (1, 1, 0.9)}, {"input_size": (8, 8)},
     {"input_size": (8, 9)}, {"input_size": (8, 8), "interpolation": "bilinear"}],
)  # fmt: skip
def test_digest_covers_how_images_are_prepared(prepared: dict[str, Any]) -> None:
    net = nn.Linear(3, 2)
    plain, model = (Classifier(net, name="a", num_classes=2, **each) for each in ({}, prepared))
    again = Classifier(copy.deepcopy(net), name="b", num_classes=2, **prepared)
    size = Classifier(net, name="a", num_classes=2, input_size=(8, 8))
    assert model.weights == plain.weights
    assert model.digest == again.digest != plain.digest
    assert (model.digest == size.digest) == (prepared == {"input_size": (8, 8)})
    net.transform_input = True  # torchvision's googlenet and inception_v3
    assert model.digest != again.digest


def in_place(net: nn.Linear) -> None:
    with torch.no_grad():
        net.weight[1, 2] += 1


def by_turning_round(net: nn.Linear) -> None:
    """No sum over the weights changes."""
    with torch.no_grad():
        net.weight.copy_(net.weight.flip(1))


def through_data(net: nn.Linear) -> None:
    net.weight.data[1, 2] += 1


def by_loading(net: nn.Linear) -> None:
    net.load_state_dict({"weight": net.weight + 1, "bias": net.bias})


def by_stepping(net: nn.Linear) -> None:
    net.requires_grad_(True)
    net(torch.ones(1, 3)).sum().backward()
    torch.optim.SGD(net.parameters(), lr=0.1).step()


def by_replacing(net: nn.Linear) -> None:
    net.weight = nn.Parameter(net.weight.detach() + 1)


@pytest.mark.parametrize(
    "change", [in_place, by_turning_round, through_data, by_loading, by_stepping, by_replacing]
)
def test_digest_follows_weights_that_are_changed(change: Callable[[nn.Linear], None]) -> None:
    """What was told before is not told again."""
    net = nn.Linear(3, 2)
    model = Classifier(net, name="a", num_classes=2)
    before = model.digest
    assert model.digest == before
    change(net)
    assert model.digest == weights_digest(net) != before


def test_digest_follows_statistics_that_move() -> None:
    """Batch-norm writes its buffers in train mode."""
    net = nn.BatchNorm2d(3)
    model = Classifier(net, name="a", num_classes=3)
    before = model.digest
    model.train()(torch.rand(2, 3, 2, 2))
    assert model.digest == weights_digest(net) != before


def test_digest_follows_weights_under_inference_mode() -> None:
    with torch.inference_mode():
        net = nn.Linear(3, 2)
        model = Classifier(net, name="a", num_classes=2)
        before = model.digest
        net.weight[0, 0] += 1
        assert model.digest == weights_digest(net) != before


def test_digest_of_a_changed_copy() -> None:
    """A snapshot trained on from a copy is another surrogate."""
    model = Classifier(nn.Linear(3, 2), name="a", num_classes=2)
    before = model.digest
    snapshot = copy.deepcopy(model)
    with torch.no_grad():
        snapshot.net.weight.add_(1)  # type: ignore[operator, union-attr]
    assert snapshot.digest != before


def test_digest_under_inference_mode() -> None:
    with torch.inference_mode():
        made = Classifier(nn.Linear(3, 2), name="a", num_classes=2)
        assert len(made.digest) == 64
        assert made.digest == made.digest


def test_a_classifier_can_be_saved() -> None:
    """As workers of an executor receive it."""
    model, file = Classifier(nn.Linear(3, 2), name="a", num_classes=2), io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    assert again.digest == model.digest


def some_models() -> list[nn.Module]:
    first = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout())
    second = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))
    first.train()
    first[2].eval()
    second.eval()
    second[1][1].train()  # type: ignore[index]
    for i, parameter in enumerate([*first.parameters(), *second.parameters()]):
        parameter.requires_grad_(i % 2 == 0)
    return [first, second]


def state(models: Sequence[nn.Module]) -> list[object]:
    return [
        ([m.training for m in model.modules()], [p.requires_grad for p in model.parameters()])
        for model in models
    ]


def test_borrowed_models_come_back() -> None:
    models = some_models()
    before = state(models)
    assert any(m.training for model in models for m in model.modules())
    with borrowed(models):
        assert not any(m.training for model in models for m in model.modules())
        assert not any(p.requires_grad for model in models for p in model.parameters())
    assert state(models) == before


def test_models_may_be_borrowed_in_train_mode() -> None:
    models = some_models()
    before = state(models)
    with borrowed(models, train_mode=True):
        assert all(m.training for model in models for m in model.modules())
        assert not any(p.requires_grad for model in models for p in model.parameters())
    assert state(models) == before


def test_borrowed_models_come_back_after_an_error() -> None:
    models = some_models()
    before = state(models)
    with pytest.raises(KeyboardInterrupt), borrowed(models):
        raise KeyboardInterrupt
    assert state(models) == before


def test_borrowing_twice_and_sharing_parts() -> None:
    """The same model twice, a part in two models, and an attack within an attack."""
    models = some_models()
    before = state(models)
    shared = nn.Sequential(models[0][0], nn.ReLU())  # type: ignore[index]
    shared[1].train()
    with borrowed([*models, models[0], shared]):
        with borrowed(models):
            pass
        assert not any(m.training for m in models[0].modules())
        assert not any(p.requires_grad for p in models[0].parameters())
    assert state(models) == before
    assert shared[1].training


class Stubborn(nn.Linear):
    """Keeps its mode whatever it is told, as frozen batch norms do."""

    def train(self, mode: bool = True) -> Stubborn:
        return self


def test_a_model_that_ignores_train_is_borrowed_too() -> None:
    model = nn.Sequential(Stubborn(2, 2), nn.Dropout())
    model[1].eval()
    before = state([model])
    assert model[0].training
    with borrowed([model]):
        assert not model[0].training
    assert state([model]) == before


def test_borrowing_leaves_buffers_gradients_and_hooks() -> None:
    models = some_models()
    first = models[0]
    handle = first.register_forward_hook(lambda *args: None)
    for parameter in first.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = {k: v.clone() for k, v in first.state_dict().items()}
    with borrowed(models):
        first(torch.rand(2, 3, 8, 8))
    assert all(torch.equal(v, before[k]) for k, v in first.state_dict().items())
    assert all(bool((p.grad == 1).all()) for p in first.parameters() if p.grad is not None)
    assert list(first._forward_hooks) == [handle.id]


def test_device_of() -> None:
    assert device_of(nn.Linear(2, 2)) == torch.device("cpu")
    assert device_of(nn.BatchNorm2d(2, affine=False)) == torch.device("cpu")
    assert device_of(nn.ReLU()) is None
    assert device_of(nn.Linear(2, 2, device="meta")) == torch.device("meta")


def test_images_have_three_channels():
    """One channel would be spread over three by the mean."""
    model = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(12, 10)), name="flat", num_classes=10)
    assert model(torch.zeros(5, 3, 2, 2)).shape == (5, 10)
    with pytest.raises(InputError, match=r"model 'flat' takes images \(N, 3, H, W\); .* \(5, 1, 2, 2\)"):
        model(torch.zeros(5, 1, 2, 2))
    grey = Classifier(nn.Sequential(nn.Conv2d(1, 10, 1), nn.Flatten()), name="grey", num_classes=10)
    with pytest.raises(InputError, match=r"'grey' refuses images \(5, 3, 1, 1\): .* 1 channels"):
        grey(torch.zeros(5, 3, 1, 1))


@pytest.mark.parametrize(
    ("rows", "are"),
    [([[0.5, 0.5], [1, 0]], True), ([[0.5, 0.6]], False), ([[-0.5, 1.5]], False), ([[1.0]], False)],
)
def test_what_looks_like_probabilities(rows, are):
    assert looks_like_probabilities(torch.tensor(rows).reshape(len(rows), -1)) is are


def test_an_ordinary_model_has_no_members_and_draws_nothing() -> None:
    model = Classifier(Seen(), name="m", num_classes=3)
    assert len(model.members) == 0
    assert model.probabilities is None
    assert not is_randomized(model)
    assert not is_randomized(Seen())
    assert set(model.state_dict()) == {"net.weight"}


def test_a_model_that_draws_its_members_is_judged_by_its_expectation() -> None:
    """Any module with the two attributes counts, a third party's too."""

    class First(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.one_hot(torch.zeros(len(x), dtype=torch.long), 2).float()

    class Second(First):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).flip(1)

    ensemble = nn.Module()
    ensemble.members = nn.ModuleList([First(), Second()])
    assert not is_randomized(ensemble), "a mean of members draws nothing"
    ensemble.probabilities = torch.tensor([0.75, 0.25], dtype=torch.float64)
    assert is_randomized(ensemble)
    x, y = torch.zeros(4, 3, 2, 2), torch.tensor([0, 0, 0, 1])
    assert accuracy(ensemble, x, y) == 0.75 * 0.75 + 0.25 * 0.25
    assert accuracy(First(), x, y) == 0.75
