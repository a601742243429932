"""FGSRA against its formulas, with scipy's cosine transform."""

from __future__ import annotations

from typing import Any

import torch
from scipy.fft import dctn, idctn
from torch import Tensor

EPS = 16 / 255


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum() / torch.sqrt((a**2).sum() * (b**2).sum())


def masked(x: Tensor, mask: Tensor) -> Tensor:
    spectrum = dctn(x.numpy(), axes=(1, 2), norm="ortho") * mask.numpy()
    return torch.from_numpy(idctn(spectrum, axes=(1, 2), norm="ortho"))


def test_fgsra(at: Any, mi: Any) -> None:
    """The gradient by x' of a linear map is the map's transpose of the gradient: here from its matrix."""
    alpha, eta, rho = EPS / 3, 0.94, 0.5

    def step(t: int, i: int, x: Tensor, memory: dict[str, Any]) -> Tensor:
        g, near = at.g(i, x), torch.zeros_like(x)
        for c in range(3):
            mask = at.draws(t).uniform(at.x, 1 - rho, 1 + rho, "fgsra-mask", c)[i]
            v = masked(x + at.uniform(t, i, 2 * EPS, "fgsra", c), mask)
            basis = torch.eye(x.numel(), dtype=x.dtype).view(-1, *x.shape)
            matrix = torch.stack([masked(e, mask).flatten() for e in basis], 1)
            pulled = (matrix.T @ at.g(i, v).flatten()).view_as(x)
            near += cosine(x, v) * pulled
        s = cosine(g, near)
        mixed = s * g + (1 - s) * near
        m = mi(mixed, memory)
        decay = memory.get("D", torch.full_like(x, 1 / eta))
        memory["D"] = torch.where(m.sign() == mixed.sign(), decay, decay * eta)
        return alpha * memory["D"] * m.sign()

    at.same(step, "fgsra", 3, copies=3, rho=rho)
