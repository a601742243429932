"""Digests: of weights, values and files."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from advens.digest import file_digest, value_digest, weights_digest


def net() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))


def test_equal_weights_have_equal_digests() -> None:
    one, two = net(), net()
    two.train()
    two.requires_grad_(False)
    assert weights_digest(one) == weights_digest(two) == weights_digest(one.state_dict())
    backwards = dict(reversed(one.state_dict().items()))
    assert weights_digest(backwards) == weights_digest(one), "order does not matter"


def test_memory_layout_does_not_matter() -> None:
    one, two = net(), net()
    two[0].to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    state = {"w": torch.arange(6.0).view(2, 3)}
    assert weights_digest(one) == weights_digest(two)
    assert weights_digest(state) == weights_digest({"w": state["w"].T.contiguous().T})


@pytest.mark.parametrize("name", list(net().state_dict()))
def test_every_weight_and_buffer_counts(name: str) -> None:
    changed = net()
    with torch.no_grad():
        tensor: Tensor = changed.state_dict()[name]
        tensor.view(-1)[-1] += 1 if not tensor.is_floating_point() else 1e-6
    assert weights_digest(changed) != weights_digest(net())


def test_names_types_and_shapes_count() -> None:
    w = torch.zeros(2, 3)
    states = [
        {"a": w}, {"b": w}, {"a": w, "b": w}, {"a": w.half()}, {"a": w.double()}, {"a": w.int()},
        {"a": w.view(3, 2)}, {"a": w.view(-1)}, {"a": w[:1]}, {"a": torch.zeros(())}, {},
    ]  # fmt: skip
    assert len({weights_digest(state) for state in states}) == len(states)


def test_any_kind_of_tensor() -> None:
    for tensor in (
        torch.tensor(True), torch.zeros(0, 3), torch.tensor(3), torch.zeros(2).bfloat16(),
        torch.tensor([float("nan"), float("inf")]), torch.zeros(2, requires_grad=True),
        torch.zeros(2, dtype=torch.complex64),
    ):  # fmt: skip
        assert len(weights_digest({"t": tensor})) == 64


def test_digest_is_pinned() -> None:
    """What is stored in runs must be found again by the next release."""
    state = {"w": torch.tensor([[1.0, 2.0]]), "n": torch.tensor(3)}
    wanted = hashlib.sha256(
        b"n|torch.int64|()|" + (3).to_bytes(8, "little")
        + b"w|torch.float32|(1, 2)|" + bytes.fromhex("0000803f00000040")
    ).hexdigest()  # fmt: skip
    assert weights_digest(state) == wanted


def test_value_digest() -> None:
    a, b = {"x": 1, "y": [0.1, "é"]}, {"y": [0.1, "é"], "x": 1}
    assert value_digest(a) == value_digest(b)
    assert value_digest(a) != value_digest({**a, "x": 2})
    assert value_digest([1, 2]) != value_digest([2, 1])
    assert value_digest(a, 12) == value_digest(a)[:12]
    assert value_digest({"a": 1}) == hashlib.sha256(b'{"a":1}').hexdigest()


def test_file_digest(tmp_path: Path) -> None:
    file = tmp_path / "f"
    content = bytes(range(256)) * 10000  # more than one block
    file.write_bytes(content)
    assert file_digest(file) == hashlib.sha256(content).hexdigest()
    file.write_bytes(b"")
    assert file_digest(file) == hashlib.sha256().hexdigest()
