"""Models for the tests: nearest-mean classifiers of the digits, and ones that misbehave.

Suites name them ``toys:centroid?seed=1``. They take microseconds and are right on nine digits of ten.
"""

from __future__ import annotations

import os
import time
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn

from advens.datasets import load_data
from advens.models import load_model


@lru_cache(maxsize=1)
def means() -> Tensor:
    """(10, 64): the mean grey levels of every digit, 8x8."""
    data = load_data("digits:train")
    batch = next(data.batches([slice(0, len(data))]))
    grey = grey_levels(batch.pixels.float() / 255)
    return torch.stack([grey[batch.labels == c].mean(0) for c in range(10)])


def grey_levels(x: Tensor) -> Tensor:
    return nn.functional.avg_pool2d(x.mean(1, keepdim=True), 4).flatten(1)


class Centroid(nn.Module):
    """Logits of the nearest class mean; the seed blurs the means."""

    def __init__(self, seed: int = 0, classes: int = 10) -> None:
        super().__init__()
        self.linear = nn.utils.skip_init(nn.Linear, 64, classes)  # draws nothing
        noise = torch.randn((10, 64), generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            self.linear.weight.zero_()
            self.linear.bias.fill_(-100.0)
            self.linear.weight[:10] = 3 * (means() + 0.1 * noise)
            self.linear.bias[:10] = -self.linear.weight[:10].square().sum(1) / 6

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear(grey_levels(x))
        return out


def centroid(seed: int = 0, classes: int = 10) -> nn.Module:
    return Centroid(seed, classes)


def alias(seed: int = 0) -> nn.Module:
    """The weights of `centroid` under another name."""
    return Centroid(seed)


def stored(path: str) -> nn.Module:
    """Seeded by what a file says, so that the weights of one name can change."""
    return Centroid(int(Path(path).read_text()))


class Greedy(Centroid):
    def __init__(self, seed: int, most: int) -> None:
        super().__init__(seed)
        self.most = most

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > self.most:
            raise torch.OutOfMemoryError(f"CUDA out of memory with {len(x)} images")
        return super().forward(x)


def greedy(seed: int = 0, most: int = 4) -> nn.Module:
    """Runs out of memory above ``most`` images; has the weights of `centroid`."""
    return Greedy(seed, most)


class Silent(Centroid):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * float("nan")


def silent(seed: int = 0) -> nn.Module:
    """Its logits are NaN."""
    return Silent(seed)


class Numb(Centroid):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.detach() + 0 * x)


def numb(seed: int = 0) -> nn.Module:
    """Its gradient is zero; has the weights of `centroid`."""
    return Numb(seed)


class _Broken(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):  # type: ignore[no-untyped-def]
        return x.clone()

    @staticmethod
    def backward(ctx, g):  # type: ignore[no-untyped-def]
        return g * float("nan")


class Fragile(Centroid):
    def __init__(self, seed: int, flag: str) -> None:
        super().__init__(seed)
        self.flag = Path(flag)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(_Broken.apply(x) if self.flag.exists() else x)


def fragile(flag: str, seed: int = 0) -> nn.Module:
    """Its gradient is NaN while a file is there."""
    return Fragile(seed, flag)


class Slow(Centroid):
    def __init__(self, seed: int, seconds: float, mark: str | None) -> None:
        super().__init__(seed)
        self.seconds, self.mark = seconds, mark

    def forward(self, x: Tensor) -> Tensor:
        if self.mark:
            Path(self.mark).touch()
        time.sleep(self.seconds)
        return super().forward(x)


def slow(seed: int = 0, seconds: float = 0.1, mark: str | None = None) -> nn.Module:
    """Takes its time, and leaves a file as a mark that it has begun."""
    return Slow(seed, seconds, mark)


class Stuck(Centroid):
    def __init__(self, seed: int, most: int, flag: str) -> None:
        super().__init__(seed)
        self.left, self.flag = most, Path(flag)

    def forward(self, x: Tensor) -> Tensor:
        self.left -= 1
        while self.left < 0 and self.flag.exists():
            time.sleep(0.02)
        return super().forward(x)


def stuck(flag: str, most: int, seed: int = 0) -> nn.Module:
    """Waits after so many forward passes of a process, as long as a file is there."""
    return Stuck(seed, most, flag)


class Picky(Centroid):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) @ torch.zeros(7, 7)


def picky(seed: int = 0) -> nn.Module:
    """Torch refuses its shapes."""
    return Picky(seed)


class Mortal(Centroid):
    def forward(self, x: Tensor) -> Tensor:
        os._exit(9)


def mortal(seed: int = 0) -> nn.Module:
    """Takes its process with it."""
    return Mortal(seed)


class Brittle(Centroid):
    def __init__(self, seed: int, flag: str) -> None:
        super().__init__(seed)
        self.flag = Path(flag)

    def forward(self, x: Tensor) -> Tensor:
        if self.flag.exists():
            os._exit(9)
        return super().forward(x)


def brittle(flag: str, seed: int = 0) -> nn.Module:
    """Takes its process with it while a file is there."""
    return Brittle(seed, flag)


class Comb(Centroid):
    """Narrow gaps, of which a start finds one by chance: what a run breaks, it breaks by where it starts."""

    def __init__(self, seed: int, gap: float) -> None:
        super().__init__(seed)
        self.gap = gap
        generator = torch.Generator().manual_seed(seed)
        self.register_buffer("teeth", torch.randn(3 * 32 * 32, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        inside = torch.cos(20 * x.flatten(1) @ self.teeth) > 1 - self.gap
        return torch.where(inside[:, None], -out, out)


def comb(seed: int = 0, gap: float = 0.1) -> nn.Module:
    """More restarts break more, without end in sight; its gradients lead nowhere."""
    return Comb(seed, gap)


class Sure(Centroid):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).softmax(1)


def sure(seed: int = 0) -> nn.Module:
    """Answers with probabilities."""
    return Sure(seed)


class Faint(Centroid):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 1e-5


def faint(seed: int = 0) -> nn.Module:
    """Its logits are small, so that all of them nearly tie in absolute terms."""
    return Faint(seed)


def wrapped(seed: int = 0) -> nn.Module:
    """`centroid` with its weights under other names."""
    return nn.Sequential(Centroid(seed))


def nudged(seed: int = 0) -> nn.Module:
    """`centroid` with one weight that differs by 1e-4."""
    net = Centroid(seed)
    with torch.no_grad():
        net.linear.weight[0, 0] += 1e-4
    return net


class Copied(nn.Module):
    def __init__(self, of: str, moved: float, scale: float, soft: bool) -> None:
        super().__init__()
        self.inner, self.scale, self.soft = load_model(of), scale, soft
        with torch.no_grad():
            next(self.inner.parameters()).view(-1)[0] += moved

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(x) * self.scale
        return out.softmax(1) if self.soft else out


def copied(
    of: str, moved: float = 0.0, scale: float = 1.0, soft: bool = False, name: str = ""
) -> nn.Module:
    """Another model in a wrapper: one weight moved, its logits scaled, or probabilities in their place."""
    return Copied(of, moved, scale, soft)


class Quantised(Centroid):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward((x * 8).round() / 8)


def quantised(seed: int = 0) -> nn.Module:
    """Its input is quantised, through which no gradient flows: a masked defense."""
    return Quantised(seed)


class Counted(Centroid):
    seen = 0
    """Images that all models of this kind were shown in this process."""

    def forward(self, x: Tensor) -> Tensor:
        Counted.seen += len(x)
        return super().forward(x)


def counted(seed: int = 0) -> nn.Module:
    """Counts the images that it is shown."""
    return Counted(seed)
