"""DHF: a residual network written out, image by image, with what the step before said."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from timm.models.resnet import BasicBlock
from torch import Tensor, nn
from torch.nn import functional as F

from advens.attacks import create_attack
from advens.attacks.surrogates.changes import Changed
from advens.attacks.surrogates.changes.dhf import DHF
from advens.errors import InputError
from advens.models import load_model
from advens.seeding import Draws
from tests.attacks.fusions.conftest import SEED, agree, grad, make
from tests.attacks.surrogates.changes.conftest import check_passes

MIX, REPLACE = 0.6, 0.3


class Net(nn.Module):
    """A convolution and two residual blocks, of which the second has its norms changed at depth 1/2."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.stem = nn.Conv2d(3, 4, 3, stride=2, padding=1)
            self.first, self.second = BasicBlock(4, 4), BasicBlock(4, 4)
            self.head = nn.Linear(64, 5)
            for tensor in (*self.parameters(), *self.buffers()):
                if tensor.is_floating_point():
                    tensor.data.add_(torch.rand_like(tensor) * 0.6 - 0.3)
        self.double().eval().requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.second(self.first(F.softplus(self.stem(x)))).flatten(1))
        return out


def norms(net: Net, x: Tensor, change: Any = lambda i, f: f) -> tuple[list[Tensor], Tensor]:
    """What the second block's norms give for one image, changed, and the logits."""
    m, found = net.second, []
    z = net.first(F.softplus(net.stem(x[None])))
    f = change(0, m.bn1(m.conv1(z))[0])
    found.append(f)
    f = change(1, m.bn2(m.conv2(F.relu(f[None])))[0])
    found.append(f)
    return found, net.head(F.relu(f + z[0]).flatten())


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize(("n", "targeted"), [(1, False), (7, True)])
def test_attack(k: int, n: int, targeted: bool) -> None:
    models = [Net(seed) for seed in range(k)]
    at = make(k, n, "linf", targeted, models=models, steps=4, eps=0.5, alpha=0.2)
    mixed: list[bool] = []

    def direction(t: int, i: int, x: Tensor, state: dict[str, Any]) -> Tensor:
        def logits(member: int, leaf: Tensor) -> Tensor:
            clean, _ = norms(models[member], at.x[i])
            tag = "change", member, "dhf"

            def change(index: int, f: Tensor) -> Tensor:
                if not state.get(("wrong", member), False):
                    return f
                like, draws = torch.empty(n, *f.shape, dtype=f.dtype), Draws(SEED, n).at(t)
                eta = draws.uniform(like, 0, MIX, *tag, index)[i]
                f = (1 - eta) * f + eta * clean[index]
                u = draws.uniform(like, 0, 1, *tag, "replace", index)[i]
                return torch.where(u < REPLACE, f.sum() / f.numel(), f)

            return norms(models[member], leaf, change)[1]

        g = grad(lambda leaf: at.j(sum(logits(m, leaf) for m in range(k)) / k, i), x)
        said = {m: int(logits(m, x).argmax()) != int(at.y[i]) for m in range(k)}
        state.update({("wrong", m): wrong for m, wrong in said.items()})
        mixed.extend(said.values())
        return g

    change = {"name": "dhf", "mix": MIX, "replace": REPLACE, "depth": 0.5}
    agree(at.run("dhf", changes=[change]), at.alone(direction))
    assert any(mixed)
    assert n == 1 or not all(mixed)


def test_nothing_happens_while_all_is_well() -> None:
    """With labels that the surrogate gives whatever the image is."""
    net = Net(0)
    net.head.bias[2] = 1e3
    at = make(1, 3)
    y = torch.full((3,), 2)
    found = create_attack("dhf", eps=0.5, steps=3)(net, at.x, y)
    assert torch.equal(found, create_attack("mifgsm", eps=0.5, steps=3)(net, at.x, y))
    wrong = create_attack("dhf", eps=0.5, steps=3)(net, at.x, y - 1)
    assert not torch.equal(wrong, create_attack("mifgsm", eps=0.5, steps=3)(net, at.x, y - 1))


@pytest.mark.parametrize("arch", ["resnet18", "vit_tiny_patch16_224", "densenet121"])
def test_networks_and_micro_batches(arch: str) -> None:
    options: dict[str, Any] = {"num_classes": 5}
    if arch.startswith("vit"):
        options |= {"img_size": 32, "embed_dim": 16, "depth": 2, "num_heads": 2}
    with torch.random.fork_rng(devices=[]):
        net = timm.create_model(arch, **options).double().eval().requires_grad_(False)
    x, y = torch.rand(2, 3, 32, 32, dtype=torch.float64), torch.tensor([0, 1])
    attack = create_attack("dhf", steps=2)
    whole = attack.run(net, x, y, seed=1)
    apart = attack.run(net, x, y, seed=1, micro_batch=1)
    torch.testing.assert_close(apart.x_adv, whole.x_adv, rtol=0, atol=1e-9)


def test_passes_beside_other_parts() -> None:
    at = make(2, 3, models=[Net(seed) for seed in range(2)])
    for name in ("dhf", "sgm-dhf-svre", "si-dhf-ens-loss"):
        check_passes(at, name)
    assert create_attack("dhf").passes(1) == (11, 10)


def test_refusals() -> None:
    with pytest.raises(InputError, match="'dhf' finds no norm in a residual block of 'Flatten'"):
        Changed(nn.Flatten(), [DHF()])(torch.zeros(1, 3, 2, 2))
    with pytest.raises(InputError, match="'dhf' needs clean images: name it in front of an attack"):
        load_model("changed:dhf?of=digits:resnet")
    with pytest.raises(InputError, match="from 0 to 1"):
        create_attack("dhf", mix=2)
