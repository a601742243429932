"""The FLOPs of one inference of a model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from advens.classifier import borrowed, device_of
from advens.defenses.ensembles import Ensemble, RandomizedEnsemble
from advens.errors import InputError


def cost(model: nn.Module, input_size: tuple[int, int] | None = None) -> float:
    """FLOPs of one inference: one image (1, 3, H, W) forward in eval mode; a multiply-add counts two.

    Convolutions, matrix products and attention count, as `torch.utils.flop_counter` has them; biases,
    norms, activations, resizing and the mean over members do not. An `Ensemble` costs the sum of its
    members. A `RandomizedEnsemble` costs the expectation over its members; nothing is drawn.

    Args:
        input_size: (H, W) of the image; the model's own by default.

    Raises:
        InputError: no size is given and the model takes any.
    """
    if isinstance(model, (Ensemble, RandomizedEnsemble)):
        each = [cost(member, input_size or model.input_size) for member in model.members]
        if isinstance(model, Ensemble):
            return sum(each)
        return float(sum(p * flops for p, flops in zip(model.probabilities.tolist(), each, strict=True)))
    size = input_size or getattr(model, "input_size", None)
    if size is None:
        raise InputError("the model takes images of any size; give input_size = (H, W)")
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)
    image = torch.zeros(1, 3, *size, dtype=dtype, device=device_of(model))
    with borrowed([model]), torch.no_grad(), _plain_attention(), FlopCounterMode(display=False) as counter:
        model(image)
    return float(counter.get_total_flops())


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Attention as matrix products, which are counted; fused kernels are not, by some versions of torch."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
