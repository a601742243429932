"""Side by side with torchattacks and foolbox on one model, where their arithmetic is the same.

What differs, and how it is set apart here:

* torchattacks' TI draws its gaussian on ``linspace(-3, 3, size)``: its "sigma 3" is (size // 2) / 3
  pixels (1 for a 7 x 7 kernel, 7/3 for 15 x 15), where ours is given in pixels.
* Its TIFGSM always has DI in it (shrinking, padded, not resized back): switched off by its probability.
* Its SINIFGSM is SI with Nesterov momentum: ours is the composition ``si-nifgsm``.
* VMI draws its neighbours from the global generator: both are given the same noise.
* Its VNIFGSM takes the neighbours around x', and the gradient at the look-ahead; our composition
  ``vmi-nifgsm`` takes both at the look-ahead, so that v is a variance there: not compared.
* In l_2 both peers project on the ball and clamp to [0, 1] afterwards; ours clamps first, so an
  image at the border may use more of its budget. Compared on images away from the border.
* torchattacks' PGDL2 draws the length of its start uniformly, ours is uniform in the ball: both begin at
  its start.
* foolbox's MI adds up gradients as they are, where the paper divides each by its l_1 norm: its optimiser
  is given divided gradients.
* foolbox takes the sum and torchattacks the mean of the losses over the batch; neither matters after
  the sign, the normalisation or mean|g|.
* torchattacks divides by mean|g| without a guard, so that a zero gradient gives NaN; not compared.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from advens.attacks import create_attack
from advens.threat import Threat

EPS, ALPHA, STEPS = 8 / 255, 2 / 255, 7


class Scene:
    def __init__(self, model: nn.Module, x: Tensor, y: Tensor, target: Tensor) -> None:
        self.model, self.x, self.y, self.target = model, x, y, target


@pytest.fixture
def at(net: Any, images: Any, labelled: Any) -> Scene:
    model, x = net(0), images(0)
    return Scene(model, x, *labelled([model], x))


def close(found: Tensor, wanted: Tensor, clean: Tensor) -> None:
    assert not torch.equal(wanted, clean), "the peer did nothing"
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-9)


@pytest.fixture
def torchattacks() -> Any:
    return pytest.importorskip("torchattacks")


def both(at: Scene, peer: Any, name: str, targeted: bool, **options: Any) -> None:
    target = None
    if targeted:
        target = at.target
        peer.set_mode_targeted_by_label(quiet=True)
    wanted = peer(at.x, at.y if target is None else target)
    options = {"steps": STEPS, "step_size": ALPHA, "eps": EPS} | options
    close(create_attack(name, **options)(at.model, at.x, at.y, target), wanted, at.x)


either = pytest.mark.parametrize("targeted", [False, True], ids=["away", "targeted"])


@either
def test_fgsm(at: Scene, torchattacks: Any, targeted: bool) -> None:
    peer = torchattacks.FGSM(at.model, eps=EPS)
    both(at, peer, "fgsm", targeted, steps=1, step_size="eps")


@either
def test_pgd(at: Scene, torchattacks: Any, targeted: bool) -> None:
    peer = torchattacks.PGD(at.model, eps=EPS, alpha=ALPHA, steps=STEPS, random_start=False)
    both(at, peer, "pgd", targeted, start="clean")


@either
def test_pgd_in_l2(at: Scene, torchattacks: Any, targeted: bool) -> None:
    at.x = 0.25 + at.x / 2
    peer = torchattacks.PGDL2(at.model, eps=0.2, alpha=0.05, steps=STEPS, random_start=False)
    both(at, peer, "ifgsm", targeted, norm="l2", eps=0.2, step_size=0.05)


@either
def test_pgd_in_l2_from_a_random_point(
    at: Scene, torchattacks: Any, targeted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    at.x = 0.25 + at.x / 2
    peer = torchattacks.PGDL2(at.model, eps=0.2, alpha=0.05, steps=STEPS, random_start=True)

    def start(self: Threat, x: Tensor, draws: Any) -> Tensor:
        """The global generator's normal direction, then its uniform length, as the peer asks for them."""
        torch.manual_seed(0)
        along = torch.randn_like(x)
        size = torch.rand_like(x[:, :1, :1, :1])
        return x + self.radius * size * along / along.flatten(1).norm(dim=1).view(-1, 1, 1, 1)

    monkeypatch.setattr(Threat, "random_start", start)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        both(at, peer, "pgd", targeted, norm="l2", eps=0.2, step_size=0.05)


@either
@pytest.mark.parametrize("decay", [1.0, 0.8])
def test_mifgsm(at: Scene, torchattacks: Any, targeted: bool, decay: float) -> None:
    peer = torchattacks.MIFGSM(at.model, eps=EPS, alpha=ALPHA, steps=STEPS, decay=decay)
    both(at, peer, "mifgsm", targeted, mu=decay)


@either
def test_nifgsm(at: Scene, torchattacks: Any, targeted: bool) -> None:
    peer = torchattacks.NIFGSM(at.model, eps=EPS, alpha=ALPHA, steps=STEPS, decay=1.0)
    both(at, peer, "nifgsm", targeted)


@either
def test_sinifgsm(at: Scene, torchattacks: Any, targeted: bool) -> None:
    peer = torchattacks.SINIFGSM(at.model, eps=EPS, alpha=ALPHA, steps=STEPS, decay=1.0, m=5)
    both(at, peer, "si-nifgsm", targeted)


@either
@pytest.mark.parametrize("size", [7, 15])
def test_tifgsm(at: Scene, torchattacks: Any, targeted: bool, size: int) -> None:
    peer = torchattacks.TIFGSM(
        at.model, eps=EPS, alpha=ALPHA, steps=STEPS, decay=1.0, diversity_prob=0.0,
        len_kernel=size, nsig=3,
    )  # fmt: skip
    kernel = torch.from_numpy(peer.gkern(size, 3))
    peer.stacked_kernel = kernel.expand(3, 1, size, size)
    both(at, peer, "tifgsm", targeted, size=size, sigma=size // 2 / 3)


@either
def test_vmifgsm(
    at: Scene, torchattacks: Any, targeted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both see the global generator's noise; ours must ask in the same order."""
    peer = torchattacks.VMIFGSM(
        at.model, eps=EPS, alpha=ALPHA, steps=STEPS, decay=1.0, N=5, beta=1.5
    )

    def noise(self: Threat, like: Tensor, radius: float, *named: Any) -> Tensor:
        return torch.randn_like(like).uniform_(-radius * self.radius, radius * self.radius)

    original: Callable[..., Tensor] = peer.forward

    def seeded(images: Tensor, labels: Tensor) -> Tensor:
        torch.manual_seed(0)
        found = original(images, labels)
        torch.manual_seed(0)
        return found

    monkeypatch.setattr(Threat, "noise", noise)
    monkeypatch.setattr(peer, "forward", seeded)
    with torch.random.fork_rng(devices=[]):
        both(at, peer, "vmifgsm", targeted, copies=5, beta=1.5)


@pytest.fixture
def foolbox() -> Any:
    pytest.importorskip("eagerpy")
    return pytest.importorskip("foolbox")


def through_foolbox(at: Scene, foolbox: Any, attack: Any, eps: float, targeted: bool) -> Tensor:
    model = foolbox.PyTorchModel(at.model, bounds=(0, 1), device="cpu")
    criterion = (
        foolbox.TargetedMisclassification(at.target) if targeted
        else foolbox.Misclassification(at.y)
    )  # fmt: skip
    _, clipped, _ = attack(model, at.x, criterion, epsilons=eps)
    found: Tensor = clipped
    return found


@either
def test_foolbox_linf_pgd(at: Scene, foolbox: Any, targeted: bool) -> None:
    attack = foolbox.attacks.LinfPGD(abs_stepsize=ALPHA, steps=STEPS, random_start=False)
    wanted = through_foolbox(at, foolbox, attack, EPS, targeted)
    ours = create_attack("ifgsm", eps=EPS, steps=STEPS, step_size=ALPHA)
    close(ours(at.model, at.x, at.y, at.target if targeted else None), wanted, at.x)


@either
def test_foolbox_l2_pgd(at: Scene, foolbox: Any, targeted: bool) -> None:
    at.x = 0.25 + at.x / 2
    attack = foolbox.attacks.L2PGD(abs_stepsize=0.05, steps=STEPS, random_start=False)
    wanted = through_foolbox(at, foolbox, attack, 0.2, targeted)
    ours = create_attack("ifgsm", norm="l2", eps=0.2, steps=STEPS, step_size=0.05)
    close(ours(at.model, at.x, at.y, at.target if targeted else None), wanted, at.x)


@either
@pytest.mark.parametrize("decay", [1.0, 0.8])
def test_foolbox_l2_mifgsm(
    at: Scene, foolbox: Any, targeted: bool, decay: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    at.x = 0.25 + at.x / 2
    optimiser = foolbox.attacks.mi_fgsm.GDMOptimizer
    add = optimiser.__call__

    def divided(self: Any, g: Any) -> Any:
        return add(self, g / g.abs().sum(axis=(1, 2, 3), keepdims=True))

    monkeypatch.setattr(optimiser, "__call__", divided)
    attack = foolbox.attacks.L2MomentumIterativeFastGradientMethod(
        momentum=decay, abs_stepsize=0.05, steps=STEPS
    )
    wanted = through_foolbox(at, foolbox, attack, 0.2, targeted)
    ours = create_attack("mifgsm", norm="l2", eps=0.2, steps=STEPS, step_size=0.05, mu=decay)
    close(ours(at.model, at.x, at.y, at.target if targeted else None), wanted, at.x)


def test_l2_at_the_border_uses_more_of_the_budget(at: Scene, foolbox: Any) -> None:
    """Where the peers' order of projections costs length, ours is longer and still inside."""
    attack = foolbox.attacks.L2PGD(abs_stepsize=0.2, steps=STEPS, random_start=False)
    peers = through_foolbox(at, foolbox, attack, 0.5, False)
    ours = create_attack("ifgsm", norm="l2", eps=0.5, steps=STEPS, step_size=0.2)
    found = ours(at.model, at.x, at.y)
    lengths = [(v - at.x).flatten(1).norm(dim=1) for v in (found, peers)]
    assert (lengths[0] <= 0.5 + 1e-12).all()
    assert (lengths[0] >= lengths[1] - 1e-12).all()
    assert lengths[0].sum() > lengths[1].sum() + 1e-3
