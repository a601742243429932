"""The gradient as it is, and momentum: normalised, raw, and Nesterov's."""

from __future__ import annotations

import torch
from torch import Tensor

from advens.attacks.parts import part
from advens.threat import Threat


@part("update", "sign", paper="Kurakin et al., ICLR workshop 2017 (I-FGSM)", year=2017)
class Sign:
    """The gradient as it is: I-FGSM."""

    def look(
        self, x_adv: Tensor, memory: dict[str, Tensor], alpha: float, threat: Threat
    ) -> Tensor:
        return x_adv

    def direction(self, g: Tensor, memory: dict[str, Tensor]) -> Tensor:
        return g


@part("update", "mi", paper="Dong et al., CVPR 2018 (MI-FGSM)", year=2018)
class MI:
    """Momentum: ``m <- mu m + g / mean|g|``.

    Args:
        mu: decay.
    """

    mu: float = 1.0

    def look(
        self, x_adv: Tensor, memory: dict[str, Tensor], alpha: float, threat: Threat
    ) -> Tensor:
        return x_adv

    def direction(self, g: Tensor, memory: dict[str, Tensor]) -> Tensor:
        return accumulate(g, memory, self.mu)


@part("update", "sum", paper="Fang et al., CVPR 2024 (ANDA)", year=2024)
class Sum:
    """Momentum of gradients as they are: ``m <- mu m + g``; the larger a gradient, the more it counts.

    Args:
        mu: decay.
    """

    mu: float = 1.0

    def look(
        self, x_adv: Tensor, memory: dict[str, Tensor], alpha: float, threat: Threat
    ) -> Tensor:
        return x_adv

    def direction(self, g: Tensor, memory: dict[str, Tensor]) -> Tensor:
        memory["m"] = g + self.mu * memory["m"] if "m" in memory else g
        return memory["m"]


@part("update", "batch-mi", paper="Chen et al., ICLR 2024 (CWA)", year=2024, couples="batch")
class BatchMI(MI):
    """Momentum with the mean of |g| over the whole batch, as CWA's published code has it.

    One step has MI's signs; from the second on samples with larger gradients count for more.
    """

    def direction(self, g: Tensor, memory: dict[str, Tensor]) -> Tensor:
        unit = g / g.abs().mean().clamp_min(torch.finfo(g.dtype).tiny)
        memory["m"] = unit + self.mu * memory["m"] if "m" in memory else unit
        return memory["m"]


@part("update", "ni", paper="Lin et al., ICLR 2020 (NI-FGSM)", year=2020)
class NI:
    """Nesterov momentum: the gradient is taken at ``x' + alpha mu m``.

    The paper defines it for l_inf. In l_2 the look-ahead is ``alpha mu m / ||m||_2``, where a step along
    the momentum, mu times as long, would lead: ``m / mean|g|`` is the longer the fewer pixels a gradient has.

    Args:
        mu: decay.
    """

    mu: float = 1.0

    def look(
        self, x_adv: Tensor, memory: dict[str, Tensor], alpha: float, threat: Threat
    ) -> Tensor:
        if "m" not in memory:
            return x_adv
        ahead = memory["m"] if threat.norm == "linf" else threat.steepest(memory["m"])
        return x_adv + (alpha * self.mu) * ahead

    def direction(self, g: Tensor, memory: dict[str, Tensor]) -> Tensor:
        return accumulate(g, memory, self.mu)


def accumulate(g: Tensor, memory: dict[str, Tensor], mu: float) -> Tensor:
    """``m <- mu m + g / mean|g|``, per sample; a zero gradient adds nothing."""
    if "m" not in memory:
        memory["m"] = unit_mean(g)
        return memory["m"]
    return memory["m"].mul_(mu).addcdiv_(g, mean_size(g))  # in place: no tensor a step


def unit_mean(g: Tensor) -> Tensor:
    """``g / mean|g|`` over C, H, W, per sample; zero stays zero."""
    return g / mean_size(g)


def mean_size(g: Tensor) -> Tensor:
    """``mean|g|`` over C, H, W, (N, 1, 1, 1); never 0, so that one can divide by it."""
    total: Tensor = torch.linalg.vector_norm(g, 1, dim=tuple(range(1, g.dim())), keepdim=True)
    return (total / g[0].numel()).clamp_min(torch.finfo(g.dtype).tiny)
