"""Classifiers, and models that are borrowed and given back."""

from __future__ import annotations

import copy
import io
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from advens.classifier import Classifier, borrowed, device_of


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
    torch.testing.assert_close(net.input, wanted)
    fits = x[..., :8, :6]
    model(fits)
    assert torch.equal(net.input, fits)


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


def test_digest_is_of_the_weights() -> None:
    """Not of the name or the preprocessing; one weight makes another model."""
    one = Classifier(nn.Linear(3, 2), name="a", num_classes=2)
    same = nn.Linear(3, 2)
    same.load_state_dict(one.net.state_dict())
    other = copy.deepcopy(same)
    with torch.no_grad():
        other.weight[1, 2] += 1e-6
    two = Classifier(same, name="b", num_classes=2, mean=(0.5, 0.5, 0.5), family="vit")
    assert one.digest == two.digest
    assert len(one.digest) == 64
    assert Classifier(other, name="a", num_classes=2).digest != one.digest


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
