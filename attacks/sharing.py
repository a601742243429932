"""Several answers from one forward pass, where an estimate is one plain gradient."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from advens.attacks.oracle import GradientOracle


def shared(oracle: GradientOracle, x: Tensor) -> SharedForward | RepeatedForward:
    """Gradients of several fusions of the surrogates at one point."""
    return SharedForward(oracle, x) if _plain(oracle) else RepeatedForward(oracle, x)


class SharedForward:
    """All surrogates run once at a point; gradients of any fusion of them from that one graph."""

    def __init__(self, oracle: GradientOracle, x: Tensor) -> None:
        self.oracle = oracle
        self.leaf = x.detach().requires_grad_()
        view = oracle.view(self.leaf)
        self.logits = [oracle.forward(view, k) for k in range(oracle.k)]

    def gradient(
        self, members: Sequence[int], weights: Tensor | None = None, *, last: bool = False
    ) -> Tensor:
        """Gradient of the loss of the (weighted) mean logits of ``members``; ``last`` frees the graph."""
        loss = self.oracle.fused([self.logits[k] for k in members], weights, "logits")
        return self.oracle.backward(loss, self.leaf, len(members), keep=not last)


class Alone:
    """One surrogate at a point: its gradient under a scale, and its plain logits.

    Where one estimate is one plain gradient, the gradient's own forward pass gives the logits too.
    """

    def __init__(self, oracle: GradientOracle, x: Tensor, k: int) -> None:
        self.oracle, self.x, self.k = oracle, x, k
        self.plain = _plain(oracle)
        self.leaf = x.detach().requires_grad_()
        self._out = oracle.forward(oracle.view(self.leaf), k) if self.plain else oracle.logits(x, k)

    @property
    def logits(self) -> Tensor:
        """(N, classes), detached; under the transform where the gradient's pass gave them."""
        return self._out.detach()

    def gradient(self, scale: Tensor) -> Tensor:
        """Gradient of the loss of ``scale * z_k``; scale (N, 1)."""
        if not self.plain:
            return self.oracle.gradient(self.x, [self.k], weights=scale)
        loss = self.oracle.fused([self._out], scale, "logits")
        return self.oracle.backward(loss, self.leaf, 1)


class RepeatedForward:
    """The same answers by a fresh estimate each, where an estimate takes several gradients."""

    def __init__(self, oracle: GradientOracle, x: Tensor) -> None:
        self.oracle, self.x = oracle, x

    def gradient(
        self, members: Sequence[int], weights: Tensor | None = None, *, last: bool = False
    ) -> Tensor:
        """Gradient of the loss of the (weighted) mean logits of ``members``."""
        return self.oracle.gradient(self.x, members, weights=weights)


def _plain(oracle: GradientOracle) -> bool:
    return oracle.copies * oracle.estimator.queries == 1
