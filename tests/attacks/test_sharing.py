"""One forward pass answers for several fusions where an estimate is one gradient, and only there."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from advens.attacks.sharing import RepeatedForward, SharedForward, shared


@pytest.mark.parametrize(
    ("copies", "queries", "kind"),
    [(1, 1, SharedForward), (2, 1, RepeatedForward), (1, 2, RepeatedForward), (2, 2, RepeatedForward),
     (5, 5, RepeatedForward), (4, 2, RepeatedForward)],
)  # fmt: skip
def test_when_a_pass_is_shared(copies: int, queries: int, kind: type) -> None:
    context = SimpleNamespace(draws=SimpleNamespace(step=0))
    estimator = SimpleNamespace(queries=queries)
    oracle: Any = SimpleNamespace(copies=copies, estimator=estimator, context=context)
    assert type(shared(oracle, torch.zeros(1, 3, 2, 2))) is kind
