"""A network with its preprocessing: it maps images in [0, 1] to logits, is frozen, and has a digest."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from advens.digest import value_digest, weights_digest
from advens.errors import InputError, InputWarning, first_line

FAMILIES = ("cnn", "vit", "mlp", "hybrid")
ROUNDING = 1e-4
"""The error that single precision may leave in a row of outputs."""
PRECISIONS = ("float32", "tf32", "bf16")
"""What a network computes in; see `Classifier`."""
AS_THEY_ARE = {"mean": [0.0] * 3, "std": [1.0] * 3, "resized": None, "transform_input": False}
"""The preprocessing of a network that takes images in [0, 1] at any size."""


class Classifier(nn.Module):
    """A network with its preprocessing inside.

    ``forward`` takes images (N, 3, H, W) in [0, 1] of any size, resizes them to the network's input
    size when it has one (antialiased, and clamped to [0, 1], which bicubic interpolation may leave),
    normalises, and returns logits (N, num_classes).

    Args:
        net: the bare network.
        name: the source name it was loaded by, as ``"digits:resnet"``.
        num_classes: width of the logits.
        family: ``cnn``, ``vit``, ``mlp`` or ``hybrid``.
        mean, std: per channel, of the network's training.
        input_size: (H, W) the network must see, or None for any.
        interpolation: how to resize, ``bicubic`` or ``bilinear``.

    Attributes:
        bases: digests of the models whose weights it was made from. An attacker who holds this model is
            taken to hold those models too.
        members: the models of an ensemble; empty for a single network.
        probabilities: with which a randomized ensemble draws each of its members, (members,) float64; None
            for a model that draws nothing.
        log_probabilities: whether the outputs are logarithms of probabilities that were taken from logits
            without rounding, as those of an ensemble that averages probabilities are.
        precision: what the network computes in: ``float32``; ``tf32``, in which a GPU rounds the factors of
            products in forward passes to 10 bits; or ``bf16``, autocast to bfloat16.
    """

    bases: tuple[str, ...] = ()
    log_probabilities: bool = False
    precision: str = "float32"
    probabilities: Tensor | None

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
        self.register_buffer("probabilities", None)
        self._weights: tuple[tuple[tuple[int, ...], ...], str] | None = None
        self.eval().requires_grad_(False)

    mean: Tensor
    std: Tensor

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 4 or x.shape[1] != 3:  # one channel would be spread over three by the mean
            raise InputError(f"model '{self.name}' takes images (N, 3, H, W); it was given {tuple(x.shape)}")
        if self.input_size is not None and tuple(x.shape[-2:]) != self.input_size:
            x = F.interpolate(
                x, self.input_size, mode=self.interpolation, align_corners=False, antialias=True
            )
            # a clamp with the gradient of the identity: white that is rounded to 1 + 1e-7 keeps its own
            x = x + (x.clamp(0, 1) - x).detach()
        try:
            with computing(self.precision, x.device):
                out: Tensor = self.net((x - self.mean) / self.std)
        except AssertionError as error:  # how vision transformers refuse images of another size
            height, width = x.shape[-2:]
            raise InputError(
                f"model '{self.name}' takes no {height}x{width} images: {first_line(error)}"
            ) from error
        except RuntimeError as error:
            check_channels(f"model '{self.name}'", x, error)
            raise
        return out if self.precision == "float32" else out.to(x.dtype)

    @property
    def members(self) -> Sequence[nn.Module] | nn.ModuleList:
        """The models of an ensemble; empty for a single network."""
        return ()

    @property
    def weights(self) -> str:
        """Hex sha256 of the weights alone, however images are prepared for them.

        It is kept as long as no tensor is replaced or changed in place.
        """
        stamp = tuple(map(_stamp, self.net.state_dict().values()))
        if self._weights is None or self._weights[0] != stamp:
            self._weights = (stamp, weights_digest(self.net))
        return self._weights[1]

    @property
    def digest(self) -> str:
        """Hex sha256 of the weights, of the preprocessing, and of the precision where that is reduced.

        The same network under two names has the same digest. Without preprocessing it equals `weights`.
        """
        if self.precision != "float32":
            return reduced_digest(self.prepared_digest(), self.precision)
        return self.prepared_digest()

    def prepared_digest(self) -> str:
        """The same, whatever the precision."""
        prepared = {
            "mean": self.mean.flatten().tolist(),
            "std": self.std.flatten().tolist(),
            "resized": None if self.input_size is None else [*self.input_size, self.interpolation],
            "transform_input": bool(getattr(self.net, "transform_input", False)),  # torchvision's
        }
        if prepared == AS_THEY_ARE:
            return self.weights
        return value_digest({"weights": self.weights} | prepared)

    def extra_repr(self) -> str:
        return f"name={self.name!r}, family={self.family!r}, num_classes={self.num_classes}"


def reduced_digest(digest: str, precision: str) -> str:
    """The digest of a model of this digest that computes in a reduced precision."""
    return value_digest({"model": digest, "precision": precision})


def computing(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """What a network runs in, so that it computes in one of `PRECISIONS`."""
    if precision == "bf16":
        return torch.autocast(device.type, torch.bfloat16)
    return nullcontext() if precision == "float32" else tensor_float(True)


@contextmanager
def tensor_float(allowed: bool) -> Iterator[None]:
    """Whether GPUs may round the factors of float32 products to 10 bits inside the block."""
    backends: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [each.allow_tf32 for each in backends]
    try:
        for each in backends:
            each.allow_tf32 = allowed
        yield
    finally:
        for each, was in zip(backends, before, strict=True):
            each.allow_tf32 = was


def is_randomized(model: object) -> bool:
    """Whether a model draws one of its ``members``, by its ``probabilities``, at every call.

    Any module with these two attributes counts, see `Classifier`.
    """
    return bool(getattr(model, "members", ())) and getattr(model, "probabilities", None) is not None


@torch.no_grad()
def correctness(model: Any, x: Tensor, y: Tensor) -> Tensor:
    """The probability (N,), float64, that a model classifies each image correctly.

    It is 0 or 1, but for a randomized model, where it is the sum of the probabilities of the members that are
    right. Nothing is drawn.

    Args:
        model: any module, used in the mode it is in.
        x: images (N, 3, H, W) in [0, 1].
        y: labels (N,).
    """
    if not is_randomized(model):
        logits: Tensor = model(x)
        return (logits.argmax(1) == y).double()
    right = torch.stack([member(x) for member in model.members]).argmax(-1) == y
    probabilities: Tensor = model.probabilities
    return (probabilities.to(right.device).double()[:, None] * right).sum(0)


def accuracy(model: Any, x: Tensor, y: Tensor) -> float:
    """The share of images that a model classifies correctly; its expectation, where a model is randomized."""
    return correctness(model, x, y).mean().item()


@contextmanager
def borrowed(models: Sequence[nn.Module], *, train_mode: bool = False) -> Iterator[None]:
    """Models frozen and in eval mode (or train mode) inside the block; afterwards exactly as they were.

    Training mode is restored per sub-module, ``requires_grad`` per parameter. Devices, hooks, buffers and
    ``.grad`` are not touched.
    """
    modes = [(module, module.training) for model in models for module in model.modules()]
    grads = [(p, p.requires_grad) for model in models for p in model.parameters()]
    try:
        for model in models:
            for module in model.modules():
                module.training = train_mode
        for parameter, _ in grads:
            parameter.requires_grad_(False)
        yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, requires_grad in grads:
            parameter.requires_grad_(requires_grad)


def check_channels(who: str, x: Tensor, error: Exception) -> None:
    """Raise InputError when a model failed on images ``x`` because of how many channels they have."""
    if x.dim() == 4 and (x.shape[1] != 3 or "channels, but got" in str(error)):
        raise InputError(f"{who} refuses images {tuple(x.shape)}: {first_line(error)}") from error


def looks_like_probabilities(out: Tensor) -> bool:
    """Whether every row (N, classes) lies in [0, 1] and sums to 1, up to rounding in single precision."""
    out = out.detach().double()
    inside = bool((out >= -ROUNDING).all()) and bool((out <= 1 + ROUNDING).all())
    return len(out) > 0 and out.shape[1] > 1 and inside and bool(((out.sum(1) - 1).abs() <= ROUNDING).all())


def warn_of_probabilities(who: str, out: Tensor) -> None:
    """Warn when a model's outputs (N, classes) look like probabilities."""
    if looks_like_probabilities(out):
        warnings.warn(
            f"the outputs of {who} look like probabilities, not logits: losses take the softmax themselves, "
            "and a second one hides most of the gradient; leave the softmax out of the model",
            InputWarning,
            stacklevel=2,
        )


def device_of(model: nn.Module) -> torch.device | None:
    """Where a model's first parameter or buffer lives; None for one that has neither."""
    first = next(chain(model.parameters(), model.buffers()), None)
    return None if first is None else first.device


def _stamp(tensor: Tensor) -> tuple[int, ...]:
    """Numbers that change whenever a tensor does: its address, torch's count of writes, and a checksum.

    The checksum detects what torch does not count: writes to ``.data`` and under inference mode.
    """
    raw = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    whole = raw.numel() % 4 == raw.storage_offset() % 4 == 0
    words = raw.view(torch.int32) if whole else raw
    return tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version, int(words.sum())
