"""SGM: gradients that prefer the skip connections; and where the residual branches of a network are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from advens.attacks.attack import ComposedAttack
from advens.attacks.hooks import called as called
from advens.attacks.hooks import on_gradient
from advens.attacks.interfaces import ChangeContext, Handle
from advens.attacks.parts import part
from advens.attacks.registry import recipe
from advens.attacks.updates import MI
from advens.errors import InputError
from advens.fields import Share
from advens.threat import Threat

PAPER = "Wu et al., ICLR 2020 (SGM)"

NO_SKIP = ("has_skip", "use_res_connect")
"""Flags of blocks that are residual only sometimes."""

PROJECTIONS = ("shortcut", "downsample", "identity")
"""Names of a module that stands in the skip connection."""


@dataclass(frozen=True)
class Block:
    """A chain of sums ``z <- z + f(z)`` in a network, one for every residual branch f.

    Args:
        module: the block.
        exits: the modules whose outputs are the branches' values, in order; one may serve twice.
        projection: the module through which z goes to the first sum, when there is one.
        scaled: the exit's value is multiplied by something before it is added.
        sums: False where values are concatenated (DenseNet).
    """

    module: nn.Module
    exits: tuple[nn.Module, ...]
    projection: nn.Module | None = None
    scaled: bool = False
    sums: bool = True

    def at_exits(
        self, act: Callable[[Tensor, Tensor, int], Tensor | None], first: bool = False
    ) -> list[Handle]:
        """Hooks that call ``act(z, value, i)`` where branch i ends; what it returns is added instead.

        z is what the first of the block's children to run after the last sum is given. With
        ``first`` the value is the branch's own, before other changes.
        """
        seen: list[Tensor] = []
        ended = 0

        def begin(module: nn.Module, args: tuple[Any, ...]) -> None:
            nonlocal ended
            ended = 0
            seen.clear()

        def enter(module: nn.Module, args: tuple[Any, ...]) -> None:
            if not seen and args and isinstance(args[0], Tensor):
                seen.append(args[0])

        def leave(module: nn.Module, args: tuple[Any, ...], value: Tensor) -> Tensor | None:
            nonlocal ended
            out = act(seen[0], value, ended) if seen else None
            ended += 1
            seen.clear()
            return out

        children = dict.fromkeys((*self.module.children(), *self.exits))
        handles: list[Handle] = [self.module.register_forward_pre_hook(begin)]
        handles += [child.register_forward_pre_hook(enter) for child in children]
        for exit in dict.fromkeys(self.exits):
            handles.append(exit.register_forward_hook(leave, prepend=first))
        return handles


def residual_blocks(model: nn.Module) -> list[Block]:
    """The residual blocks of a network, recognised by how timm and torchvision name their parts.

    A branch ends in its stochastic depth (``drop_path``, ``stochastic_depth``: ViT, Swin, ConvNeXt,
    EfficientNet, ByobNet, NFNet, mixers and most else), in the last norm or attention of a ResNet's
    block, in ``fn`` of ConvMixer's ``Residual``, and so on. Inner functions that are not modules and
    blocks that name things otherwise are not seen.
    """
    return [block for module in model.modules() for block in _block(module)]


def _block(module: nn.Module) -> Iterator[Block]:
    projections = [getattr(module, name) for name in PROJECTIONS if hasattr(module, name)]
    if any(getattr(module, flag, True) is False for flag in NO_SKIP):
        return
    if projections == [None] and not hasattr(module, "downsample"):
        return  # no skip connection where the shape changes
    if type(module).__name__ == "ResBottleneckBlock":
        projections = [module.proj]
    projection = next((each for each in projections if isinstance(each, nn.Module)), None)
    if type(module).__name__.endswith("DenseLayer"):
        yield Block(module, (module,), sums=False)
    elif exits := _exits(module):
        yield Block(module, exits, projection, scaled=hasattr(module, "skipinit_gain"))


def _exits(module: nn.Module) -> tuple[nn.Module, ...]:
    def has(*names: str) -> bool:
        return all(isinstance(getattr(module, name, None), nn.Module) for name in names)

    def pick(*names: str) -> tuple[nn.Module, ...]:
        return tuple(getattr(module, name) for name in names)

    for name in ("layer_scale", "drop_path"):
        if has(f"{name}1", f"{name}2"):
            return pick(f"{name}1", f"{name}2")
    for name in ("drop_path", "stochastic_depth"):
        if has(name):
            return pick(name)
    if hasattr(module, "downsample") and (has("bn2") or has("bn3")):  # ResNet
        return pick(next(name for name in ("se", "bn3", "bn2") if has(name)))
    if has("self_attention", "dropout", "mlp"):  # torchvision's ViT
        return pick("dropout", "mlp")
    if hasattr(module, "use_res_connect"):  # torchvision's MobileNets
        return pick(next(name for name in ("conv", "block") if has(name)))
    inner = {"Residual": "fn", "ResBottleneckBlock": "f"}.get(type(module).__name__, "")
    return pick(inner) if has(inner) else ()  # ConvMixer, torchvision's RegNet


@part("change", "sgm", paper=PAPER, year=2020)
class SGM:
    """Skip gradient method: what flows back through every residual branch is multiplied by gamma.

    For blocks z_{i+1} = z_i + f_i(z_i) the gradient becomes, as in the paper,
    ``dL/dz_L * prod (gamma * df_i/dz_i + 1) * dz_0/dx``: the value of every branch gets a tensor hook
    that multiplies its gradient by gamma, so all of f_i' is decayed once and the skip connection is
    not. Logits keep their values. The features a DenseNet's layer adds are its branch.

    Published code decays at the ReLUs inside the branches, by gamma to the power of one over their number,
    not in the first block of a stage; it also divides the gradient by its standard deviation over
    the whole batch between blocks. The first is the same thing where it is done; the second would
    let images change each other's gradients, and a sign forgets it.

    Args:
        gamma: the decay, above 0; 1 changes nothing. The paper takes 0.2 for ResNet and 0.5 for DenseNet
            in iterative attacks; 0.5 is the default of its code.
    """

    gamma: Share = 0.5

    def attach(self, model: nn.Module, context: ChangeContext) -> Sequence[Handle]:
        exits = dict.fromkeys(exit for block in residual_blocks(model) for exit in block.exits)
        if not exits:
            raise InputError(f"'sgm' finds no residual branch in {called(model)}")
        return [exit.register_forward_hook(self._decay, prepend=True) for exit in exits]

    def _decay(self, module: nn.Module, args: tuple[Any, ...], value: Tensor) -> None:
        on_gradient(value, lambda g: g * self.gamma)


@recipe("sgm", symbol="SGM", family="surrogate", paper=PAPER, year=2020)
def SkipGradient() -> ComposedAttack:
    """Momentum on gradients that prefer skip connections; eps 16/255, 10 steps."""
    return ComposedAttack(threat=Threat("linf", "16/255"), update=MI(), changes=(SGM(),))
