"""A model as the harness knows it: images in [0, 1] in, logits out; frozen, eval, fingerprinted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from advens.digest import weights_digest

FAMILIES = ("cnn", "vit", "mlp", "hybrid")


class Classifier(nn.Module):
    """A network with its preprocessing inside.

    ``forward`` takes images (N, 3, H, W) in [0, 1] of any size, resizes them to the network's input
    size when it has one (antialiased), normalises, and returns logits (N, num_classes).

    Args:
        net: the bare network.
        name: how it was asked for, e.g. ``"digits:resnet"``.
        num_classes: width of the logits.
        family: ``cnn``, ``vit``, ``mlp`` or ``hybrid``.
        mean, std: per channel, of the network's training.
        input_size: (H, W) the network must see, or None for any.
        interpolation: how to resize, ``bicubic`` or ``bilinear``.

    Attributes:
        bases: digests of the models whose weights it was made from; who has it has them.
    """

    bases: tuple[str, ...] = ()

    def __init__(
        self,
        net: nn.Module,
        *,
        name: str,
        num_classes: int,
        family: str = "cnn",
        mean: Sequence[float] = (0.0, 0.0, 0.0),
        std: Sequence[float] = (1.0, 1.0, 1.0),
        input_size: tuple[int, int] | None = None,
        interpolation: str = "bicubic",
    ) -> None:
        super().__init__()
        self.net = net
        self.name = name
        self.num_classes = num_classes
        self.family = family
        self.input_size = input_size
        self.interpolation = interpolation
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        self._digest: tuple[tuple[tuple[int, int], ...], str] | None = None
        self.eval().requires_grad_(False)

    mean: Tensor
    std: Tensor

    def forward(self, x: Tensor) -> Tensor:
        if self.input_size is not None and tuple(x.shape[-2:]) != self.input_size:
            x = F.interpolate(
                x, self.input_size, mode=self.interpolation, align_corners=False, antialias=True
            )
        out: Tensor = self.net((x - self.mean) / self.std)
        return out

    @property
    def digest(self) -> str:
        """Hex sha256 of the weights: the same network under two names has the same digest.

        Kept as long as no tensor is replaced or changed in place.
        """
        stamp = tuple(
            (t.data_ptr(), 0 if t.is_inference() else t._version)
            for t in self.net.state_dict().values()
        )
        if self._digest is None or self._digest[0] != stamp:
            self._digest = (stamp, weights_digest(self.net))
        return self._digest[1]

    def extra_repr(self) -> str:
        return f"name={self.name!r}, family={self.family!r}, num_classes={self.num_classes}"


@contextmanager
def borrowed(models: Sequence[nn.Module]) -> Iterator[None]:
    """Models in eval mode and frozen for a while; afterwards exactly as they were.

    Training mode is kept per sub-module, ``requires_grad`` per parameter. Devices, hooks, buffers and
    ``.grad`` are not touched.
    """
    modes = [(module, module.training) for model in models for module in model.modules()]
    grads = [(p, p.requires_grad) for model in models for p in model.parameters()]
    try:
        for model in models:
            for module in model.modules():
                module.training = False
        for parameter, _ in grads:
            parameter.requires_grad_(False)
        yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, requires_grad in grads:
            parameter.requires_grad_(requires_grad)


def device_of(model: nn.Module) -> torch.device | None:
    """Where a model's first parameter or buffer lives; None for one that has neither."""
    first = next(chain(model.parameters(), model.buffers()), None)
    return None if first is None else first.device
