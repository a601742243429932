"""LGV against a plain transcription of its loop, and what is made of its weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.functional import resized_crop

from advens.attacks.surrogates.builders import train as training
from advens.attacks.surrogates.builders.lgv import LGV, LGVSWA, LGVGaussian
from advens.attacks.surrogates.builders.sharpness import sharpen
from advens.attacks.surrogates.builders.snapshot import Snapshot
from advens.augment import augmented, jitter
from advens.classifier import Classifier
from advens.datasets import Dataset
from advens.errors import InputError, RunError
from advens.models import load_model
from advens.seeding import derive

State = dict[str, Tensor]
SHORT = LGV(epochs=2, batch_size=25, lr=0.01)


def transcription(
    model: Classifier, data: Dataset, how: LGV, seed: int, at: list[int]
) -> list[State]:
    """SGD with momentum and weight decay, by hand; copies of the weights after some updates."""
    batch = next(data.batches([slice(0, len(data))]))
    images, labels = batch.pixels.float() / 255, batch.labels
    net = copy.deepcopy(model).train().requires_grad_(True)
    velocity: list[Tensor | None] = [None for _ in net.parameters()]
    named, found, done = derive(seed, "trajectory"), list[State](), 0
    with torch.random.fork_rng(devices=[]):
        for epoch in range(how.epochs):
            order = torch.Generator().manual_seed(derive(named, "order", epoch))
            for rows in torch.randperm(len(images), generator=order).split(how.batch_size):
                torch.default_generator.manual_seed(derive(named, "update", done))
                x = images[rows]
                if how.augment == "imagenet":
                    x = crops_and_flips(x, derive(named, "augment", done))
                    torch.default_generator.manual_seed(derive(named, "update", done))
                elif how.augment:
                    draw = torch.Generator().manual_seed(derive(named, "augment", done))
                    x = jitter(x, draw, float(how.augment))
                loss = F.cross_entropy(net(x), labels[rows])
                gradients = torch.autograd.grad(loss, list(net.parameters()))
                if how.sharpness:
                    torch.default_generator.manual_seed(derive(named, "update", done))
                    gradients = sharpened(net, gradients, x, labels[rows], how.sharpness)
                with torch.no_grad():
                    for k, (p, g) in enumerate(zip(net.parameters(), gradients, strict=True)):
                        g = g.add(p, alpha=how.weight_decay)
                        before = velocity[k]
                        v = g.clone() if before is None else before.mul(how.momentum).add(g)
                        velocity[k] = v
                        p.add_(v, alpha=-how.lr)
                done += 1
                if done in at:
                    found.append({k: t.clone() for k, t in net.net.state_dict().items()})
    return found


def sharpened(net: Classifier, g: Any, x: Tensor, y: Tensor, gamma: float) -> Any:
    """``g + (g_add - g) / gamma``, with g_add at ``w + gamma g / |g|`` and one norm over all weights."""
    parameters = list(net.parameters())
    norm = torch.cat([each.flatten() for each in g]).norm()
    before = [w.detach().clone() for w in parameters]
    with torch.no_grad():
        for w, each in zip(parameters, g, strict=True):
            w += gamma * each / norm
    added = torch.autograd.grad(F.cross_entropy(net(x), y), parameters)
    with torch.no_grad():
        for w, old in zip(parameters, before, strict=True):
            w.copy_(old)
    return [a + (b - a) / gamma for a, b in zip(g, added, strict=True)]


def same(state: Any, other: Any) -> bool:
    return state.keys() == other.keys() and all(torch.equal(state[k], other[k]) for k in state)


@pytest.mark.parametrize("augmented", [0.0, 1.0])
def test_lgv_is_the_plain_loop(model: Classifier, data: Dataset, cache: Path, augmented: float) -> None:
    how = LGV(epochs=2, batch_size=25, lr=0.01, augment=augmented)
    made = how.build([model], data, seed=3, cache=cache)
    wanted = transcription(model, data, how, 3, [2, 4, 6, 8, 10, 12, 14, 16])
    assert len(made) == len(wanted) == how.members(1) == 8
    for snapshot, state in zip(made, wanted, strict=True):
        assert same(snapshot.net.state_dict(), state)
    assert len({snapshot.digest for snapshot in made} | {model.digest}) == 9


def test_sharpness_takes_two_gradients_an_update(
    model: Classifier, data: Dataset, cache: Path, passes: Callable[[], int]
) -> None:
    model.double()
    how = LGV(epochs=1, batch_size=50, lr=0.01, sharpness=0.1)
    made = how.build([model], data, cache=cache)
    assert passes() == 2 * 4
    wanted = transcription(model, data, how, 0, [1, 2, 3, 4])
    for snapshot, state in zip(made, wanted, strict=True):
        for name, tensor in snapshot.net.state_dict().items():
            torch.testing.assert_close(tensor, state[name], rtol=1e-9, atol=1e-12)
    assert made[-1].net.state_dict()["1.num_batches_tracked"] == 8  # batch-norm moves in both passes


def test_sharpen_is_the_gradient_of_the_gradients_norm() -> None:
    """On a quadratic the finite difference is exact: ``g + H g / |g|``, one norm over all weights."""
    h = torch.tensor([[3.0, 1.0], [1.0, 2.0]], dtype=torch.float64)
    one, two, idle = (
        torch.nn.Parameter(torch.tensor([v], dtype=torch.float64)) for v in (1.0, -2.0, 0.0)
    )
    start = torch.cat([one, two]).detach()

    def backward() -> None:
        one.grad = two.grad = None
        w = torch.cat([one, two])
        (w @ h @ w / 2).backward()

    backward()
    g = h @ start
    sharpen([one, two, idle], backward, 0.1)
    assert one.grad is not None
    assert two.grad is not None
    torch.testing.assert_close(torch.cat([one.grad, two.grad]), g + h @ g / g.norm(), rtol=1e-12, atol=0)
    assert torch.equal(torch.cat([one, two]).detach(), start)


def test_sharpness_finds_where_the_gradient_is_small(model: Classifier, data: Dataset, cache: Path) -> None:
    def slope(sharpness: float) -> float:
        how = LGV(epochs=3, per_epoch=1, batch_size=50, lr=0.02, sharpness=sharpness)
        found = how.build([model], data, cache=cache)[-1]
        net = copy.deepcopy(model)
        net.net.load_state_dict(found.net.state_dict())
        net.requires_grad_(True)
        batch = next(data.batches([slice(0, 200)]))
        loss = F.cross_entropy(net(batch.pixels.float() / 255), batch.labels)
        g = torch.autograd.grad(loss, list(net.parameters()))
        return float(torch.cat([each.flatten() for each in g]).norm())

    assert slope(0.1) < 0.7 * slope(0.0)


def test_imagenet_augmentation_is_drawn_by_update(model: Classifier, data: Dataset, tmp_path: Path) -> None:
    how = LGV(epochs=1, batch_size=50, lr=0.01, augment="imagenet")
    once, again = (how.build([model], data, cache=tmp_path / name) for name in "ab")
    assert [m.digest for m in once] == [m.digest for m in again]
    wanted = transcription(model, data, how, 0, [1, 2, 3, 4])
    assert all(same(m.net.state_dict(), state) for m, state in zip(once, wanted, strict=True))


def crops_and_flips(images: Tensor, seed: int) -> Tensor:
    """One image after the other by torchvision's functions."""
    torch.default_generator.manual_seed(seed)
    found = []
    for image in images:
        where = RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3])
        crop = resized_crop(image, *where, list(image.shape[-2:]), antialias=True)
        found.append(crop.flip(-1) if torch.rand(1) < 0.5 else crop)
    return torch.stack(found)


def test_imagenet_augmentation_moves_every_image_its_own_way(x: Tensor) -> None:
    seen: list[int] = []
    with torch.random.fork_rng(devices=[]):
        twice = augmented(x[:1].expand(6, -1, -1, -1), "imagenet", 5, lambda seed: seen.append(seed))
    assert seen == [5]
    assert twice.shape == (6, 3, *x.shape[2:])
    assert len({each.numpy().tobytes() for each in twice}) == 6
    assert torch.equal(augmented(x, 0.0, 5, seen.append), x)


def test_lgv_of_an_embedded_model(data: Dataset, cache: Path) -> None:
    base = load_model("digits:mambaout")
    how = LGV(epochs=1, batch_size=50, lr=0.01)
    made = how.build([base], data, cache=cache)
    for snapshot, state in zip(made, transcription(base, data, how, 0, [1, 2, 3, 4]), strict=True):
        assert same(snapshot.net.state_dict(), state)


def test_quarters_are_of_one_pass(data: Dataset) -> None:
    parts = training.shuffled(200, 30, 5)
    assert torch.equal(torch.cat(parts).sort().values, torch.arange(200))
    assert [len(rows) for rows in parts] == [30] * 6 + [20]
    assert not torch.equal(torch.cat(parts), torch.cat(training.shuffled(200, 30, 6)))
    assert len(training.shuffled(31, 30, 5)) == training.updates(31, 30) == 1  # batch-norm needs two


def test_batch_norm_moves_and_all_else_learns(model: Classifier, data: Dataset, cache: Path) -> None:
    last, before = SHORT.build([model], data, cache=cache)[-1].net.state_dict(), model.net.state_dict()
    assert last["1.num_batches_tracked"] == 16
    assert all(not torch.equal(last[name], before[name]) for name in before)


def test_streamed_images_are_the_held_ones(
    model: Classifier, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = SHORT.build([model], data, cache=tmp_path / "a")
    monkeypatch.setattr(training, "HELD", 0)
    streamed = SHORT.build([model], data, cache=tmp_path / "b")
    assert [m.digest for m in streamed] == [m.digest for m in held]


def test_too_few_images_for_a_quarter(model: Classifier, data: Dataset, cache: Path) -> None:
    with pytest.raises(InputError, match="200 images, 1 batches of 256"):
        LGV().build([model], data, cache=cache)


def test_weights_that_explode_are_told(model: Classifier, data: Dataset, cache: Path) -> None:
    with pytest.raises(RunError, match="lower lr"):
        LGV(epochs=1, lr=1e30, batch_size=25).build([model], data, cache=cache)


def plain_refresh(model: Classifier, images: Tensor) -> State:
    """Batch-norm of a small model by hand, in one batch: its mean, and its unbiased variance."""
    x = F.interpolate(images, (16, 16), mode="bicubic", antialias=True).clamp(0, 1)
    z = model.net.get_submodule("0")((x - model.mean) / model.std)
    return {"1.running_mean": z.mean((0, 2, 3)), "1.running_var": z.var((0, 2, 3), unbiased=True)}


def plain_model(model: Classifier, state: State) -> Classifier:
    other = copy.deepcopy(model)
    other.net.load_state_dict(state)
    return other


def test_swa_is_the_mean_with_fresh_batch_norm(
    model: Classifier, data: Dataset, cache: Path, passes: Callable[[], int]
) -> None:
    collected = [m.net.state_dict() for m in SHORT.build([model], data, cache=cache)]
    (swa,) = LGVSWA(of=SHORT).build([model], data, cache=cache)
    assert passes() == 16 + 1  # the weights came from the cache; one pass over the images
    state = swa.net.state_dict()
    for name in state:
        if not name.startswith("1.r") and state[name].is_floating_point():
            mean = sum(each[name].double() for each in collected) / len(collected)
            torch.testing.assert_close(state[name], mean.float(), rtol=1e-6, atol=1e-9)  # type: ignore[union-attr]
    images = next(data.batches([slice(0, 200)])).pixels.float() / 255
    wanted = plain_refresh(plain_model(model, dict(state)), images)
    for name, statistic in wanted.items():
        torch.testing.assert_close(state[name], statistic, rtol=1e-4, atol=1e-6)
        assert (state[name] - collected[-1][name]).abs().max() > 1e-4


def test_refresh_weighs_batches_by_their_size(
    model: Classifier, data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "CHUNK", 120)
    images, rows = training.Images(data), torch.randperm(200, generator=torch.Generator().manual_seed(1))
    pixels = next(data.batches([slice(0, 200)])).pixels.float() / 255
    both = [plain_refresh(model, pixels[part]) for part in rows.split(120)]
    before = {name: t.clone() for name, t in model.net.state_dict().items()}
    training.refresh(model, images, rows)
    after = model.net.state_dict()
    for name in ("1.running_mean", "1.running_var"):
        wanted = (both[0][name] * 120 + both[1][name] * 80) / 200
        torch.testing.assert_close(after[name], wanted, rtol=1e-4, atol=1e-6)
    assert all(torch.equal(after[k], before[k]) for k in before if k.startswith(("0", "4", "7")))
    norm: Any = model.net.get_submodule("1")
    assert (norm.training, norm.momentum) == (False, 0.1)
    with pytest.raises(InputError, match="at least 2 images"):
        training.refresh(model, images, rows[:1])


@pytest.mark.parametrize(("held", "reads"), [(1 << 30, 1), (200 * 3 * 32 * 32, 1), (0, 3)])
def test_images_that_fit_are_decoded_once(
    held: int, reads: int, data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that do not are decoded again in every pass; what comes out is the same."""
    whole, read, batches = next(data.batches([slice(0, 200)])), [], Dataset.batches

    def counted(self: Dataset, *args: Any, **options: Any) -> Any:
        read.append(1)
        return batches(self, *args, **options | {"workers": 0} if "workers" in options else options)

    monkeypatch.setattr(training, "HELD", held)
    monkeypatch.setattr(Dataset, "batches", counted)
    images = training.Images(data)
    parts = [torch.tensor([5, 190]), torch.tensor([0, 7, 199])]
    for _ in range(3):
        for (x, y), rows in zip(images.batches(parts), parts, strict=True):
            assert torch.equal(x, whole.pixels[rows].float() / 255)
            assert torch.equal(y, whole.labels[rows])
    assert len(read) == reads
    assert list(images.batches([])) == []
    assert len(images) == 200


PARAMETERS = ("0.weight", "0.bias", "1.bias", "4.weight", "4.bias", "7.weight", "7.bias")
"""Of the small network, those of its batch-norm's scale aside."""


def test_subspace_samples(model: Classifier, data: Dataset, cache: Path) -> None:
    collected = [m.net.state_dict() for m in SHORT.build([model], data, seed=1, cache=cache)]
    builder = LGVGaussian(of=SHORT, samples=3, scale=0.5, bn_data=1.0)
    made = builder.build([model], data, seed=1, cache=cache)
    images = next(data.batches([slice(0, 200)])).pixels.float() / 255
    for index, sample in enumerate(made):
        draw = torch.Generator().manual_seed(derive(1, "sample", index))
        z, state = torch.randn(8, generator=draw, dtype=torch.float64), sample.net.state_dict()
        for name in ("0.weight", "1.bias", "7.weight"):
            w = [each[name].double() for each in collected]
            mean = sum(w) / 8
            wanted = mean + 0.5 / math.sqrt(7) * sum(float(z[k]) * (w[k] - mean) for k in range(8))
            torch.testing.assert_close(state[name], wanted.float(), rtol=1e-5, atol=1e-8)  # type: ignore[union-attr]
        for name, statistic in plain_refresh(plain_model(model, dict(state)), images).items():
            torch.testing.assert_close(state[name], statistic, rtol=1e-4, atol=1e-6)
    assert isinstance(made[0], Snapshot)
    assert len({m.digest for m in made}) == 3


def test_subspace_samples_with_the_statistics_of_the_mean(
    model: Classifier, data: Dataset, cache: Path
) -> None:
    """Parameters are sampled, buffers are not: they are estimated once, for the mean weights."""
    builder = LGVGaussian(of=SHORT, samples=2, batch_norm="mean", bn_data=1.0)
    first, second = (m.net.state_dict() for m in builder.build([model], data, seed=1, cache=cache))
    collected = [m.net.state_dict() for m in SHORT.build([model], data, seed=1, cache=cache)]
    centre = {name: sum(each[name] for each in collected) / 8 for name in ("1.weight", *PARAMETERS)}
    images = next(data.batches([slice(0, 200)])).pixels.float() / 255
    for name, statistic in plain_refresh(plain_model(model, first | centre), images).items():
        torch.testing.assert_close(first[name], statistic, rtol=1e-4, atol=1e-5)
        assert torch.equal(first[name], second[name])
    assert not any(torch.equal(first[name], second[name]) for name in PARAMETERS)


def test_a_subspace_needs_two_sets(model: Classifier, data: Dataset, cache: Path) -> None:
    one = LGV(epochs=1, per_epoch=1, batch_size=50)
    with pytest.raises(InputError, match="at least 2 sets"):
        LGVGaussian(of=one).build([model], data, cache=cache)
