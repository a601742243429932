"""Training of the embedded zoo: seeded, short, and the same for all recipes.

Images are given as pixels, uint8 (N, 3, 32, 32), with labels (N,).
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from advens.ascent import ascend
from advens.augment import jitter
from advens.datasets import load_data
from advens.digest import file_digest, weights_digest
from advens.files import write_bytes
from advens.zoo.recipes import MEAN, STD, TESTS, TRAINING, ZooRecipe, build, recipe, scheme

Pixels = NDArray[np.uint8]
Labels = NDArray[np.int64]

WARMUP = 0.1  # fraction of the updates in which the learning rate grows
CLIP = 1.0  # highest norm of the weights' gradient
CHUNK = 125  # images in one forward pass of an evaluation


def train(
    recipe: ZooRecipe,
    pixels: Pixels,
    labels: Labels,
    *,
    on_epoch: Callable[[int, int, float], None] | None = None,
) -> nn.Module:
    """A network trained by its recipe, in eval mode.

    The same recipe, data, machine and number of threads give the same weights. Torch's global
    generator is neither read nor changed.

    Args:
        recipe: the network and its training.
        pixels: (N, 3, 32, 32), uint8.
        labels: (N,).
        on_epoch: called after each epoch with its number from 1, the number of epochs and the
            mean training loss.
    """
    images, targets = _tensors(pixels, labels)
    draw = torch.Generator().manual_seed(recipe.seed)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(recipe.seed)
        net = build(recipe, num_classes=int(targets.max()) + 1)
        optimizer = torch.optim.AdamW(_groups(net, recipe.weight_decay), fused=True)
        updates = math.ceil(len(images) / recipe.batch_size) * recipe.epochs
        done = 0
        for epoch in range(recipe.epochs):
            total = 0.0
            for batch in torch.randperm(len(images), generator=draw).split(recipe.batch_size):
                for group in optimizer.param_groups:
                    group["lr"] = recipe.lr * _schedule(done / updates)
                x, y = jitter(images[batch], draw, recipe.augmentation), targets[batch]
                loss = _loss(net, recipe, x, y, done / updates, draw)
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(net.parameters(), CLIP)
                optimizer.step()
                total += loss.item() * len(batch)
                done += 1
            if on_epoch is not None:
                on_epoch(epoch + 1, recipe.epochs, total / len(images))
    return net.eval()


def pgd(
    net: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    steps: int,
    step_size: float,
    draw: torch.Generator,
) -> Tensor:
    """PGD (Madry et al., 2018) on cross-entropy from a random start in the l_inf ball.

    Args:
        net: takes normalised images; used in the mode it is in.
        images: (N, 3, H, W) in [0, 1].
        labels: (N,).
        eps: radius on [0, 1] images.
        steps: number of steps.
        step_size: of one step, on [0, 1] images.
        draw: what the start is drawn from.
    """
    start = images + eps * (torch.rand(images.shape, generator=draw) * 2 - 1)
    return ascend(
        lambda x: F.cross_entropy(net(normalise(x)), labels, reduction="none"),
        images, start, eps=eps, steps=steps, step_size=step_size,
    )  # fmt: skip


def normalise(images: Tensor) -> Tensor:
    """Images (N, 3, H, W) in [0, 1], as the networks want them."""
    mean, std = (images.new_tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return (images - mean) / std


@torch.no_grad()
def accuracy(net: nn.Module, pixels: Pixels, labels: Labels) -> float:
    """Share of the images which the network, in eval mode, classifies rightly."""
    hits = 0
    for x, y in _chunks(net, pixels, labels):
        hits += int((net(normalise(x)).argmax(1) == y).sum())
    return hits / len(labels)


def pgd_accuracy(net: nn.Module, pixels: Pixels, labels: Labels, eps: float, steps: int) -> float:
    """Share still classified rightly after PGD of radius ``eps`` with steps of 2.5 eps / steps."""
    draw = torch.Generator().manual_seed(0)
    hits = 0
    for x, y in _chunks(net, pixels, labels):
        x = pgd(net, x, y, eps=eps, steps=steps, step_size=2.5 * eps / steps, draw=draw)
        with torch.no_grad():
            hits += int((net(normalise(x)).argmax(1) == y).sum())
    return hits / len(labels)


def build_zoo(
    names: Iterable[str],
    directory: Path,
    *,
    on_model: Callable[[str, dict[str, Any]], None] | None = None,
    on_epoch: Callable[[str, int, int, float], None] | None = None,
) -> dict[str, dict[str, Any]]:
    """Train networks on the embedded data; write `<name>.safetensors` and `index.json`.

    Entries of an existing index for other names stay.

    Args:
        names: of recipes.
        directory: where the files go; made when missing.
        on_model: called with the name and its index entry when a network is written.
        on_epoch: called with the name and what `train` reports after each epoch.

    Returns:
        The whole index: name to entry.

    Raises:
        InputError: a name without a recipe, before anything is trained.
    """
    recipes = [recipe(name) for name in names]
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "index.json"
    index: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.exists() else {}
    for each in recipes:
        name = each.name
        pixels, labels = _data(TRAINING[scheme(name)])

        def report(epoch: int, epochs: int, loss: float, name: str = name) -> None:
            if on_epoch is not None:
                on_epoch(name, epoch, epochs, loss)

        start = time.perf_counter()
        net = train(each, pixels, labels, on_epoch=report)
        seconds = time.perf_counter() - start
        index[name] = _save(net, each, directory) | {"seconds": round(seconds, 1)}
        write_bytes(path, (json.dumps(dict(sorted(index.items())), indent=2) + "\n").encode())
        if on_model is not None:
            on_model(name, index[name])
    return index


def _save(net: nn.Module, recipe: ZooRecipe, directory: Path) -> dict[str, Any]:
    """Write the weights and measure the network: its entry in the index."""
    from safetensors.torch import save

    path = directory / f"{recipe.name}.safetensors"
    state = {name: tensor.detach().contiguous() for name, tensor in net.state_dict().items()}
    metadata = {"recipe": json.dumps(asdict(recipe), sort_keys=True)}
    write_bytes(path, save(state, metadata=metadata))
    pixels, labels = _data(TESTS[scheme(recipe.name)])
    return {
        "arch": recipe.arch,
        "family": recipe.family,
        "adversarial": recipe.adversarial,
        "seed": recipe.seed,
        "epochs": recipe.epochs,
        "parameters": sum(parameter.numel() for parameter in net.parameters()),
        "sha256": file_digest(path),
        "digest": weights_digest(state),
        "clean_accuracy": accuracy(net, pixels, labels),
        "robust_accuracy": pgd_accuracy(net, pixels, labels, eps=recipe.eps, steps=20),
    }


def _data(name: str) -> tuple[Pixels, Labels]:
    """All images and labels of a source."""
    data = load_data(name)
    batch = next(data.batches([slice(0, len(data))]))
    return batch.pixels.numpy(), batch.labels.numpy()


def _loss(
    net: nn.Module, recipe: ZooRecipe, x: Tensor, y: Tensor, progress: float, draw: torch.Generator
) -> Tensor:
    """Cross-entropy on augmented images, mixed with that on PGD images in adversarial training."""
    share = (progress - recipe.eps_start) / recipe.eps_warmup
    if not recipe.adversarial or share <= 0:
        net.train()
        return F.cross_entropy(net(normalise(x)), y, label_smoothing=recipe.label_smoothing)
    eps = recipe.eps * min(1.0, share)
    x_adv = pgd(
        net.eval(),
        x,
        y,
        eps=eps,
        steps=recipe.attack_steps,
        step_size=recipe.attack_step_size * eps,
        draw=draw,
    )
    net.train()
    logits = net(normalise(torch.cat([x, x_adv])))
    clean, robust = (
        F.cross_entropy(part, y, label_smoothing=recipe.label_smoothing)
        for part in logits.split(len(x))
    )
    return recipe.clean_weight * clean + (1 - recipe.clean_weight) * robust


def _groups(net: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameters with weight decay (matrices, kernels) and without (biases, norms, scales)."""
    parameters = list(net.parameters())
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


def _schedule(progress: float) -> float:
    """The learning rate, as a fraction of the highest, after a share of all updates."""
    return min(1.0, progress / WARMUP + 0.01) * (1 + math.cos(math.pi * progress)) / 2


def _tensors(pixels: Pixels, labels: Labels) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(pixels).float() / 255, torch.from_numpy(labels)


def _chunks(net: nn.Module, pixels: Pixels, labels: Labels) -> Iterator[tuple[Tensor, Tensor]]:
    """Images in [0, 1] and labels, a few at a time, for a network set to eval mode."""
    net.eval()
    images, targets = _tensors(pixels, labels)
    yield from zip(images.split(CHUNK), targets.split(CHUNK), strict=True)
