"""Several answers from one forward pass, where an estimate is one gradient."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from advens.attacks.interfaces import Gradient, Oracle, queries_at


def shared(oracle: Oracle, x: Tensor) -> SharedForward | RepeatedForward:
    """Raw gradients of several fusions of the surrogates at one point."""
    return SharedForward(oracle, x) if _single(oracle) else RepeatedForward(oracle, x)


class SharedForward:
    """All surrogates run once at a point; gradients of any fusion of them from that one graph.

    The point is where the estimator asks. One that asks elsewhere for another fusion has the
    surrogates run again.
    """

    def __init__(self, oracle: Oracle, x: Tensor) -> None:
        self.oracle, self.x = oracle, x
        self._at: Tensor | None = None

    def gradient(
        self, members: Sequence[int], weights: Tensor | None = None, *, last: bool = False
    ) -> Tensor:
        """Gradient of the loss of the (weighted) mean logits of ``members``; ``last`` frees the graph."""

        def once(at: Tensor) -> Tensor:
            self._run(at)
            loss = self.oracle.fused([self._logits[k] for k in members], weights, "logits")
            return self.oracle.backward(loss, self._leaf, len(members), keep=not last)

        return _estimate(self.oracle, once, self.x, members)

    def _run(self, at: Tensor) -> None:
        if self._at is not None and (at is self._at or torch.equal(at, self._at)):
            return
        self._at, self._leaf = at, at.detach().requires_grad_()
        view = self.oracle.view(self._leaf)
        self._logits = [self.oracle.forward(view, k) for k in range(self.oracle.k)]


class Alone:
    """One surrogate at a point: its gradient under a scale, then its plain logits.

    Where one estimate is one gradient, the gradient's own forward pass gives the logits too.
    """

    def __init__(self, oracle: Oracle, x: Tensor, k: int) -> None:
        self.oracle, self.x, self.k = oracle, x, k
        self._out: Tensor | None = None

    @property
    def logits(self) -> Tensor:
        """(N, classes), detached; where and under the transform the gradient's pass gave them."""
        return self.oracle.logits(self.x, self.k) if self._out is None else self._out

    def gradient(self, scale: Tensor) -> Tensor:
        """Gradient of the loss of ``scale * z_k``; scale (N, 1)."""
        if not _single(self.oracle):
            return self.oracle.gradient(self.x, [self.k], weights=scale)

        def once(at: Tensor) -> Tensor:
            leaf = at.detach().requires_grad_()
            out = self.oracle.forward(self.oracle.view(leaf), self.k)
            self._out = out.detach()
            return self.oracle.backward(self.oracle.fused([out], scale, "logits"), leaf, 1)

        return self.oracle.filtered(_estimate(self.oracle, once, self.x, [self.k]))


class RepeatedForward:
    """The same answers by a fresh estimate each, where an estimate takes several gradients."""

    def __init__(self, oracle: Oracle, x: Tensor) -> None:
        self.oracle, self.x = oracle, x

    def gradient(
        self, members: Sequence[int], weights: Tensor | None = None, *, last: bool = False
    ) -> Tensor:
        """Gradient of the loss of the (weighted) mean logits of ``members``."""
        return self.oracle.gradient(self.x, members, weights=weights, raw=True)


def _single(oracle: Oracle) -> bool:
    return oracle.copies * queries_at(oracle.estimator, oracle.context.draws.step) == 1


def _estimate(oracle: Oracle, once: Gradient, x: Tensor, members: Sequence[int]) -> Tensor:
    """As the oracle does it: an estimator of one gradient need not be the plain one."""
    memory = oracle.memory.setdefault(("logits", *members), {})
    return oracle.estimator.estimate(once, x, memory, oracle.context)
