"""Snapshots: one network, weights of their own."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from advens.attacks import create_attack
from advens.attacks.surrogates.builders.snapshot import Snapshot, bare
from advens.classifier import Classifier, device_of
from advens.digest import weights_digest
from advens.errors import InputError
from advens.models import load_model
from tests.attacks.surrogates.builders.conftest import variants


@pytest.mark.parametrize("name", ["small", "digits:resnet", "digits:swin", "digits:vit-relpos"])
def test_snapshot_is_the_plain_model(model: Classifier, x: Tensor, name: str) -> None:
    snapshots, plain = variants(model if name == "small" else load_model(name), 2)
    for snapshot, other in zip(snapshots, plain, strict=True):
        assert torch.equal(snapshot(x), other(x))
        assert snapshot.digest == other.weights == weights_digest(other.net)
        assert (snapshot.family, snapshot.num_classes) == (other.family, other.num_classes)
        assert (snapshot.input_size, snapshot.interpolation) == (other.input_size, other.interpolation)
        assert torch.equal(snapshot.mean, other.mean)
        assert torch.equal(snapshot.std, other.std)
        assert not any(p.requires_grad for p in snapshot.parameters())
        assert not any(m.training for m in snapshot.modules())
        assert snapshot.net.state_dict().keys() == other.net.state_dict().keys()
    assert snapshots[0].digest != snapshots[1].digest
    assert not torch.equal(snapshots[0](x), snapshots[1](x))


def test_gradients_of_several_at_once(model: Classifier, x: Tensor) -> None:
    snapshots, plain = variants(model, 3)
    leaf, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    got, want = (
        torch.autograd.grad(sum(m(at).logsumexp(1).sum() * k for k, m in enumerate(models, 1)), at)[0]  # type: ignore[arg-type]
        for models, at in ((snapshots, leaf), (plain, other))
    )
    assert torch.equal(got, want)


def test_forty_share_one_network_and_hold_weights_only(model: Classifier) -> None:
    snapshots, _ = variants(model, 40)
    assert len({id(s.shared) for s in snapshots}) == 1
    assert len({id(m) for s in snapshots for m in s.shared.modules()}) == len(list(model.net.modules()))
    assert not list(snapshots[0].shared.parameters())
    assert not list(snapshots[0].shared.buffers())
    storages = {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
        for s in snapshots for t in [*s.net.parameters(), *s.net.buffers()]
    }  # fmt: skip
    one = sum(t.numel() * t.element_size() for t in model.net.state_dict().values())
    assert len(storages) == 40 * len(model.net.state_dict())
    assert sum(storages.values()) == 40 * one


def test_hooks_on_the_shared_network_run_for_all(model: Classifier, x: Tensor) -> None:
    snapshots, _ = variants(model, 3)
    seen: list[object] = []
    convolution = next(m for m in snapshots[2].modules() if isinstance(m, nn.Conv2d))
    handle = convolution.register_forward_hook(lambda *_: seen.append(1))
    for snapshot in snapshots:
        snapshot(x)
    assert len(seen) == 3
    handle.remove()
    snapshots[0](x)
    assert len(seen) == 3


def test_a_failed_pass_leaves_no_weights_behind(model: Classifier, x: Tensor) -> None:
    (snapshot, other), (plain, _) = variants(model, 2)
    with pytest.raises(RuntimeError):
        snapshot.net(x[:, :1])
    assert not list(snapshot.shared.parameters())
    assert torch.equal(snapshot(x), plain(x))
    with pytest.raises((TypeError, RuntimeError)):
        other.shared(x)  # nobody's weights: loud, not wrong


def test_copies_and_pickles(model: Classifier, x: Tensor) -> None:
    (snapshot, _), _ = variants(model, 2)
    for again in (copy.deepcopy(snapshot), pickle.loads(pickle.dumps(snapshot))):
        assert again.shared is not snapshot.shared
        assert torch.equal(again(x), snapshot(x))
        assert again.digest == snapshot.digest
        before = snapshot(x)
        with torch.no_grad():
            next(again.parameters()).add_(1)
        assert not torch.equal(again(x), before)
        assert torch.equal(snapshot(x), before)


def test_moves_alone(model: Classifier, x: Tensor) -> None:
    (snapshot, other), (plain, _) = variants(model, 2)
    snapshot.double()
    torch.testing.assert_close(snapshot(x.double()), plain.double()(x.double()))
    assert other(x).dtype == torch.float32
    assert device_of(snapshot.to("meta")) == torch.device("meta")
    assert device_of(other) == torch.device("cpu")


def test_tied_weights_stay_tied(x: Tensor) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.out = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 4)
            self.b.weight = self.a.weight

        def forward(self, z: Tensor) -> Tensor:
            return self.out(self.b(self.a(z.mean((2, 3)))))  # type: ignore[no-any-return]

    base = Classifier(Tied(), name="tied", num_classes=4)
    state = {name: t.clone() for name, t in base.net.state_dict().items()}
    snapshot = Snapshot(bare(base.net), base, state, name="s")
    assert snapshot.digest == base.digest
    assert torch.equal(snapshot(x), base(x))
    assert len(list(snapshot.parameters())) == len(list(base.parameters()))


def test_weights_of_another_architecture_are_refused(model: Classifier, make: Any) -> None:
    other = make(width=5).net.state_dict()
    with pytest.raises(InputError, match=r"'?0\.weight.*\(6, 3, 3, 3\).*\(5, 3, 3, 3\)"):
        Snapshot(bare(model.net), model, other, name="s")
    less = {k: t for k, t in model.net.state_dict().items() if k != "1.bias"}
    with pytest.raises(InputError, match=r"1\.bias.*none"):
        Snapshot(bare(model.net), model, less, name="s")


def test_load_state_dict_is_strict(model: Classifier, x: Tensor) -> None:
    (snapshot, other), _ = variants(model, 2)
    snapshot.net.load_state_dict(other.net.state_dict())
    assert torch.equal(snapshot(x), other(x))
    with pytest.raises(RuntimeError, match="more"):
        snapshot.net.load_state_dict({**other.net.state_dict(), "more": torch.zeros(1)})
    with pytest.raises(RuntimeError, match="missing"):
        snapshot.net.load_state_dict({})


def test_attacks_take_them_as_any_surrogate(model: Classifier, x: Tensor) -> None:
    snapshots, plain = variants(model, 3)
    y = torch.arange(len(x)) % 10
    for name in ("mifgsm", "lgv", "cwa"):
        attack = create_attack(name, steps=3)
        assert torch.equal(attack(snapshots, x, y, seed=1), attack(plain, x, y, seed=1))
