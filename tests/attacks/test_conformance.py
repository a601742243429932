"""What every registered attack promises, whatever it does inside.

The walk is over the registry: a new attack is tested here without a line being added.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import advens
from advens.attacks import attack_from_spec, attack_info, create_attack
from advens.attacks.attack import Attack
from advens.attacks.oracle import Passes
from advens.attacks.parts import PARTS, name_of
from advens.attacks.registry import RECIPES
from advens.errors import InputError
from advens.threat import Threat
from tests.attacks.conftest import among

Net = Callable[..., nn.Module]
Images = Callable[..., Tensor]
Small = Callable[..., Attack]
Labelled = Callable[..., tuple[Tensor, Tensor]]

EPS: dict[str, Any] = {"linf": "32/255", "l2": 1.5, "l1": 9.0}
TOLERANCE = 1e-6


def takes_parts(name: str) -> bool:
    """Whether an attack is composed, so that parts may stand before its name."""
    return hasattr(advens.create_attack(name), "transforms")


def goals(name: str) -> list[bool]:
    """Whether an attack is untargeted (False) or targeted: what it is defined for."""
    info = attack_info(name)
    return [targeted for targeted in (False, True) if (info.targeted if targeted else info.untargeted)]


COMPOSED = [
    *(f"di-ti-mi-{name}" for name in RECIPES
      if attack_info(name).family == "fusion" and takes_parts(name)),
    "vmi-ens-probs", "pgn-ens-loss", "si-ni-ens-loss", "admix-vmi-ens-logits", "ssa-bsr-ens-probs",
]  # fmt: skip
NAMES = [*advens.list_attacks(), *COMPOSED]
CASES = [
    pytest.param(name, norm, targeted, id=f"{name}-{norm}-{'targeted' if targeted else 'away'}")
    for name in NAMES
    for norm in attack_info(name).norms
    for targeted in goals(name)
]
cases = pytest.mark.parametrize(("name", "norm", "targeted"), CASES)
names = pytest.mark.parametrize("name", NAMES)


class Scene:
    """Two surrogates, a shard of images, labels they agree with, and targets when wanted."""

    def __init__(
        self, net: Net, images: Images, labelled: Labelled, targeted: bool, surrogates: int = 2,
        shown: bool = False,
    ) -> None:
        self.models = [net(seed) for seed in range(surrogates)]
        self.x = images(0)
        self.y, target = labelled(self.models, self.x)
        if shown:
            self.y, target = among(self.y)
        self.target = target if targeted else None

    def run(self, attack: Attack, **options: Any) -> Tensor:
        return attack.run(self.models, self.x, self.y, self.target, **options).x_adv

    def probability(self, x: Tensor) -> Tensor:
        """Of the target, or of the label, by the mean logits."""
        with torch.no_grad():
            logits = torch.stack([model(x) for model in self.models]).mean(0)
        wanted = self.y if self.target is None else self.target
        return logits.softmax(1).gather(1, wanted[:, None]).squeeze(1)

    def fooled(self, x: Tensor) -> float:
        with torch.no_grad():
            logits = torch.stack([model(x) for model in self.models]).mean(0)
        return (logits.argmax(1) != self.y).double().mean().item()


@pytest.fixture
def net(net_for: Callable[[str], Net], request: Any) -> Net:
    """The models that the attack at hand can be tried on."""
    params = request.node.callspec.params
    return net_for("se" if params.get("part") == "se" else params.get("name", params.get("fusion")))


@pytest.fixture
def scene(net: Net, images: Images, labelled: Labelled, request: Any) -> Callable[..., Scene]:
    params = request.node.callspec.params
    name = params.get("name", params.get("fusion"))
    shown = "aa" in (name, params.get("part"))  # it needs an image of every target class

    def make(targeted: bool | None = None, surrogates: int = 2) -> Scene:
        goal = goals(name)[0] if targeted is None else targeted
        return Scene(net, images, labelled, goal, surrogates, shown)

    return make


def distance(a: Tensor, b: Tensor, norm: str) -> Tensor:
    delta = (a.double() - b.double()).flatten(1)
    return delta.norm(p={"linf": torch.inf, "l2": 2, "l1": 1}[norm], dim=1)


@cases
def test_result_is_in_the_ball(
    name: str, norm: str, targeted: bool, scene: Callable[..., Scene], small: Small
) -> None:
    """In single precision, as users run it."""
    at, eps = scene(targeted), EPS[norm]
    at.models = [model.float() for model in at.models]
    x = at.x.float()
    before = x.clone()
    attack = small(name, norm=norm, eps=eps)
    x_adv = attack(at.models, x, at.y, at.target)
    assert attack.threat == Threat(norm, eps)
    assert (x_adv.shape, x_adv.dtype, x_adv.device) == (x.shape, x.dtype, x.device)
    assert not x_adv.requires_grad
    assert x_adv.grad_fn is None
    assert torch.equal(x, before), "the caller's images were written to"
    assert x_adv.data_ptr() != x.data_ptr()
    radius = Threat(norm, eps).radius
    assert distance(x_adv, x, norm).max() <= radius + TOLERANCE * max(1, radius)
    logits = torch.stack([model(x_adv) for model in at.models]).mean(0).argmax(1)
    done = logits != at.y if at.target is None else logits == at.target  # the nearest will do
    assert bool((done | (distance(x_adv, x, norm) >= radius / 10)).all()), "the attack hardly moved"
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    stored = attack.threat.quantise(x_adv, x)
    assert stored.dtype == torch.uint8
    assert attack.threat.excess(stored, (x * 255).round().to(torch.uint8)).max() <= 1e-9


@cases
def test_loss_rises(
    name: str, norm: str, targeted: bool, scene: Callable[..., Scene], small: Small
) -> None:
    at = scene(targeted)
    x_adv = at.run(small(name, norm=norm, eps=EPS[norm]))
    assert at.fooled(at.x) == 0
    before, after = at.probability(at.x), at.probability(x_adv)
    if targeted:
        assert after.mean() > before.mean()
        assert (after > before).double().mean() >= 0.75
    else:
        assert after.mean() < before.mean()
        # a 7 x 7 gaussian leaves little of a gradient of 8 x 8
        assert at.fooled(x_adv) >= (0.25 if "ti" in name.split("-") else 0.5)


@cases
def test_same_seed_same_result_and_no_global_randomness(
    name: str, norm: str, targeted: bool, scene: Callable[..., Scene], small: Small
) -> None:
    at, attack = scene(targeted), small(name, norm=norm, eps=EPS[norm])

    def states() -> tuple[Any, ...]:
        return torch.get_rng_state().tolist(), random.getstate(), repr(np.random.get_state())

    before = states()
    first = at.run(attack, seed=3)
    assert states() == before
    torch.rand(7)
    random.random()
    np.random.rand(7)
    assert torch.equal(at.run(attack, seed=3), first)


@cases
def test_micro_batch_changes_nothing(
    name: str, norm: str, targeted: bool, scene: Callable[..., Scene], small: Small
) -> None:
    at, attack = scene(targeted), small(name, norm=norm, eps=EPS[norm])
    whole = attack.run(at.models, at.x, at.y, at.target)
    assert whole.micro_batch == len(at.x)
    for size in (1, 3):
        part = attack.run(at.models, at.x, at.y, at.target, micro_batch=size)
        assert part.micro_batch == size
        assert part.passes == whole.passes
        torch.testing.assert_close(part.x_adv, whole.x_adv, rtol=0, atol=1e-12)


@cases
def test_neighbours_do_not_matter(
    name: str,
    norm: str,
    targeted: bool,
    scene: Callable[..., Scene],
    small: Small,
    images: Images,
    labelled: Labelled,
) -> None:
    if attack_info(name).couples == "shard":
        pytest.skip(f"{name} takes other images of the shard by design (couples='shard')")
    at, attack = scene(targeted), small(name, norm=norm, eps=EPS[norm])
    among = at.run(attack)
    kept = 1
    x, y, target = at.x, at.y, at.target
    at.x = images(9)
    at.x[kept] = x[kept]
    at.y, others = labelled(at.models, at.x)
    if target is not None:
        others[kept] = target[kept]
        at.target = others
    elsewhere = at.run(attack)
    assert not torch.equal(elsewhere[0], among[0])
    assert at.y[kept] == y[kept]
    torch.testing.assert_close(elsewhere[kept], among[kept], rtol=0, atol=1e-12)


@pytest.mark.parametrize("surrogates", [1, 2, 3])
@names
def test_passes_are_what_the_formula_says(
    name: str, surrogates: int, scene: Callable[..., Scene], small: Small, count: Any
) -> None:
    at, attack = scene(surrogates=surrogates), small(name)
    formula = attack.passes(surrogates)
    for size in (None, 3):
        with count(at.models) as seen:
            result = attack.run(at.models, at.x, at.y, at.target, micro_batch=size)
        assert isinstance(result.passes, Passes)
        assert result.passes == formula
        assert (seen.forward, seen.backward) == tuple(len(at.x) * n for n in formula)


@names
def test_attack_is_a_value(name: str, small: Small) -> None:
    attack = advens.create_attack(name, eps="6/255")
    assert attack == advens.create_attack(name, eps="6/255")
    assert hash(attack) == hash(advens.create_attack(name, eps="6/255"))
    assert attack != advens.create_attack(name, eps="5/255")
    assert len({attack, advens.create_attack(name), advens.create_attack(name, eps="6/255")}) == 2
    for each in (attack, small(name, norm=attack_info(name).norms[-1], eps=0.3)):
        again = attack_from_spec(json.loads(json.dumps(each.spec)))
        assert again == each
        assert hash(again) == hash(each)
        assert again.spec == each.spec
    assert attack.spec["threat"]["eps"] == "6/255", "eps is kept as written"
    with pytest.raises(AttributeError):
        attack.threat = Threat()  # type: ignore[misc]


@names
def test_rebuilt_attack_does_the_same(
    name: str, scene: Callable[..., Scene], small: Small
) -> None:
    at, attack = scene(), small(name)
    again = attack_from_spec(json.loads(json.dumps(attack.spec)))
    assert torch.equal(at.run(again, seed=1), at.run(attack, seed=1))


@names
def test_registry_says_what_it_is(name: str) -> None:
    info = attack_info(name)
    families = ("fusion", "surrogate", "loss", "gradient", "input", "feature", "targeted", "white-box")
    assert info.family in families
    assert info.paper
    assert info.paper == "a baseline of this project" or 2013 <= (info.year or 0) <= 2030
    assert info.couples in ("no", "option", "shard")
    assert set(info.norms) <= {"linf", "l2", "l1"}
    assert info.norms
    assert info.summary
    assert "\n" not in info.summary


def state_of(models: list[nn.Module]) -> list[Any]:
    return [
        (
            [(name, module.training) for name, module in model.named_modules()],
            [(name, id(p), p.requires_grad, id(p.grad)) for name, p in model.named_parameters()],
            [(name, id(b)) for name, b in model.named_buffers()],
            [(id(m), list(m._forward_hooks), list(m._backward_hooks), list(m._forward_pre_hooks))
             for m in model.modules()],
        )
        for model in models
    ]  # fmt: skip


class Boom(Exception):
    """Raised by a surrogate in the middle of an attack."""


@pytest.mark.parametrize("fails", [False, True], ids=["ends", "raises"])
@names
def test_models_come_back_as_they_were(
    name: str, fails: bool, scene: Callable[..., Scene], small: Small, net: Net
) -> None:
    at, attack = scene(), small(name)
    plain, normed = net(5), net(6, batch_norm=True)
    normed.train()
    first, second = list(normed.children())[:2]
    first.eval()
    for i, parameter in enumerate([*plain.parameters(), *normed.parameters()]):
        parameter.requires_grad_(i % 3 != 0)
        parameter.grad = torch.full_like(parameter, 0.5) if i % 2 else None
    calls: list[str] = []
    modes: set[bool] = set()

    def hook(module: nn.Module, args: Any, out: Any) -> None:
        calls.append("seen")
        modes.add(module.training)
        if fails and len(calls) == 2:
            raise Boom

    second.register_forward_hook(hook)
    next(plain.children()).register_full_backward_hook(lambda *args: None)
    models = [plain, normed]
    tensors = [t for model in models for t in model.state_dict().values()]
    before, values = state_of(models), [t.clone() for t in tensors]
    try:
        attack(models, at.x, at.y, at.target)
    except Boom:
        assert fails
    else:
        assert not fails or len(calls) < 2
    assert calls, "the user's hook did not fire"
    assert modes == {False}, "batch norm ran in training mode"
    assert state_of(models) == before
    assert all(torch.equal(a, b) for a, b in zip(tensors, values, strict=True))
    grads = [p.grad for model in models for p in model.parameters()]
    assert all(g is None or bool((g == 0.5).all()) for g in grads)


RANDOM = ["pgd", "vmifgsm", "pgn", "difgsm", "admix", "ssa", "bsr"]
FIXED = ["fgsm", "ifgsm", "mifgsm", "nifgsm", "tifgsm", "sifgsm", "ens-logits", "ens-probs"]


@pytest.mark.parametrize("name", [*RANDOM, *FIXED])
def test_seed_matters_where_something_is_drawn(
    name: str, scene: Callable[..., Scene], small: Small
) -> None:
    at, attack = scene(), small(name)
    results = [at.run(attack, seed=seed) for seed in range(4)]
    same = all(torch.equal(results[0], other) for other in results[1:])
    assert same == (name in FIXED)


def products() -> list[Any]:
    """Every fusion with every part of another kind, alone; parts of white-box attacks apart."""
    fields = {"transform": "transforms", "filter": "transforms", "estimator": "estimator",
              "update": "update", "loss": "loss", "start": "start", "feature": "feature"}  # fmt: skip
    return [
        pytest.param(fusion, field, [part] if field == "transforms" else part, id=f"{fusion}-{part}")
        for fusion in advens.list_attacks()
        if attack_info(fusion).family == "fusion" and takes_parts(fusion)
        for kind, field in fields.items()
        for part in PARTS[kind]
        if PARTS[kind].info(part).family != "white-box"  # asks the model; its own tests hold it
    ]  # fmt: skip


@pytest.mark.parametrize(("fusion", "field", "part"), products())
def test_any_part_goes_with_any_fusion(
    fusion: str, field: str, part: Any, scene: Callable[..., Scene], small: Small, count: Any
) -> None:
    """Or is refused by name, with a reason."""
    its: Any = create_attack(fusion).fusion  # type: ignore[attr-defined]
    refused = hasattr(its, "layers") or (field == "feature" and hasattr(PARTS["feature"].get(part), "loss"))
    if field == "feature" and refused and (reason := getattr(its, "OF_LOGITS", "")):
        with pytest.raises(InputError, match=f"'{part}' does not go with the fusion '.*', which {reason}"):
            small(fusion, feature=part)
        return
    only_targets = field in ("loss", "feature") and not PARTS[field].info(part).untargeted
    at, attack = scene(only_targets), small(fusion, **{field: part}, eps="32/255")
    assert (part if isinstance(part, str) else part[0]) in str(attack.spec)
    with count(at.models) as seen:
        result = attack.run(at.models, at.x, at.y, at.target)
    assert (seen.forward, seen.backward) == tuple(len(at.x) * n for n in attack.passes(2))
    assert distance(result.x_adv, at.x, "linf").max() <= 32 / 255 + TOLERANCE
    before, after = at.probability(at.x).mean(), at.probability(result.x_adv).mean()
    assert after > before if only_targets else after < before


def test_parts_have_names() -> None:
    """What the specs are built from."""
    for kind, registry in PARTS.items():
        for name in registry:
            assert name_of(registry.get(name)()) == name, kind
