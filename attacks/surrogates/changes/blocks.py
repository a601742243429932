"""Attention and MLP blocks of vision transformers, and the places inside them where a change acts.

Timm writes attention in two ways: as one call of ``scaled_dot_product_attention``, or written out as a
product, a softmax and another product, with biases, masks or talking heads between. Both are intercepted
while they run (by a ``TorchFunctionMode``, within one attention only), so a change says what is done
to q, k, the map, v or the heads, and holds for ViT, DeiT, BEiT, EVA, Swin, CaiT, PiT and more;
``fused_attn`` stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from advens.attacks.hooks import Swap
from advens.attacks.interfaces import Handle
from advens.attacks.surrogates.changes.sgm import called
from advens.errors import InputError

PRODUCTS = {"matmul", "__matmul__", "bmm"}
OVER_CHANNELS = {"XCA", "CrossCovarianceAttn", "ChannelAttention", "ChannelAttentionV2"}
"""Classes whose attention map is over channels instead of tokens."""


@dataclass(frozen=True)
class AttentionEdits:
    """What is done inside ``softmax(q k^T + bias) v``; None leaves that tensor unchanged.

    Args:
        scores: (q, k), each (rows, heads, tokens, d), to what is multiplied instead. Biases and masks
            are added later.
        attention: the map (rows, heads, tokens, tokens). One call of fused attention is written out for it.
        values: v (rows, heads, tokens, d).
        heads: what the heads give (rows, heads, tokens, d), before the projection.
    """

    scores: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None
    attention: Callable[[Tensor], Tensor] | None = None
    values: Callable[[Tensor], Tensor] | None = None
    heads: Callable[[Tensor], Tensor] | None = None


def attentions(model: nn.Module, change: str) -> list[nn.Module]:
    """The attention modules of a network's blocks, in order; attention pooling is left out.

    Raises:
        InputError: there are none, or some whose map is over channels.
    """
    found = [module for module in model.modules() if _is_attention(module)]
    over_channels = next((m for m in model.modules() if type(m).__name__ in OVER_CHANNELS), None)
    if over_channels is not None:
        raise _refusal(model, change, f"'{type(over_channels).__name__}' attends over channels, not tokens")
    if not found:
        raise _refusal(model, change, "no module has heads and an attention map")
    return found


def mlp_ends(model: nn.Module, change: str) -> list[nn.Module]:
    """The last linear map of every MLP that stands beside an attention in a block, in order.

    Raises:
        InputError: there are none.
    """
    ends = [linear[-1] for _, mlp in _mlps(model) if (linear := [m for m in mlp.modules() if _is_linear(m)])]
    if not ends:
        raise _refusal(model, change, "no MLP stands beside an attention")
    return ends


def mlp_entries(model: nn.Module, change: str) -> list[nn.Module]:
    """Where the residual stream enters those MLPs: the norm in front of each, or the MLP where none is there.

    A block that norms what its branches give has one norm before its MLP, that of the attention.

    Raises:
        InputError: there are none.
    """
    mlp_ends(model, change)
    return [_entry(block, mlp) for block, mlp in _mlps(model)]


def blocks(model: nn.Module, change: str) -> list[nn.Module]:
    """The blocks of those MLPs, in order.

    Raises:
        InputError: there are none.
    """
    mlp_ends(model, change)
    return [block for block, _ in _mlps(model)]


def _mlps(model: nn.Module) -> Iterator[tuple[nn.Module, nn.Module]]:
    """Blocks with an MLP beside an attention, and the MLP."""
    for block in model.modules():
        if any(_is_attention(child) for child in block.children()):
            for name, mlp in block.named_children():
                if name.startswith("mlp") and any(_is_linear(m) for m in mlp.modules()):
                    yield block, mlp


def _entry(block: nn.Module, mlp: nn.Module) -> nn.Module:
    """The second of the norms that were registered before the MLP, or the MLP."""
    children = list(block.named_children())
    norms = [child for name, child in children[: [child for _, child in children].index(mlp)]
             if name.startswith(("norm", "ln"))]  # fmt: skip
    return norms[-1] if len(norms) > 1 else mlp


def _is_attention(module: nn.Module) -> bool:
    if isinstance(module, nn.MultiheadAttention):
        return bool(module.batch_first and module._qkv_same_embed_dim)
    has_map = hasattr(module, "fused_attn") or hasattr(module, "attn_drop")
    return has_map and hasattr(module, "num_heads") and "Pool" not in type(module).__name__


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or (
        isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.groups == 1
    )


def _refusal(model: nn.Module, change: str, why: str) -> InputError:
    return InputError(f"'{change}': {called(model)} has no attention blocks that can be changed: {why}")


def within(model: nn.Module, attention: nn.Module, change: str, edits: AttentionEdits) -> Handle:
    """Apply ``edits`` in one attention module of ``model`` whenever it runs.

    An attention of another form than those above is refused when it runs.
    """
    forward = attention.forward
    if isinstance(attention, nn.MultiheadAttention) and "forward" not in vars(attention):
        forward = partial(_self_attention, attention)

    def run(*args: Any, **kwargs: Any) -> Any:
        intercept = _Intercept(edits)
        try:
            with intercept:
                out = forward(*args, **kwargs)
        except _UnknownForm as error:
            raise _refusal(model, change, f"'{type(attention).__name__}' {error}") from None
        if intercept.done != 1:
            form = f"'{type(attention).__name__}' is not one product, softmax and product"
            raise _refusal(model, change, form)
        return out

    return Swap(attention, "forward", run)


class _UnknownForm(Exception):
    """An attention module whose computation is not recognised."""


class _Intercept(TorchFunctionMode):
    """Intercepts the functions of torch that one attention module calls.

    Modes may be nested: the calls of an inner one pass through the outer one.
    """

    def __init__(self, edits: AttentionEdits) -> None:
        super().__init__()
        self.edits = edits
        self.scored = False
        self.map: torch.Size | None = None
        self.done = 0

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "scaled_dot_product_attention":
            return self._fused(func, *args, **kwargs)
        if name in PRODUCTS and not self.scored:
            self.scored = True
            return self._scores(func, *args)
        if name in PRODUCTS and self.map is not None:
            return self._values(func, *args)
        out = func(*args, **kwargs)
        if name == "softmax" and self.scored:
            self.map = out.shape
        return out

    def _fused(
        self, attend: Any, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
    ) -> Tensor:
        edits = self.edits
        _check(query)
        self.done += 1
        if edits.scores is not None:
            query, key = edits.scores(query, key)
        value = value if edits.values is None else edits.values(value)
        if edits.attention is None:
            out: Tensor = attend(query, key, value, *args, **kwargs)
        else:
            out = edits.attention(_attention(query, key, *args, **kwargs)) @ value
        return out if edits.heads is None else edits.heads(out)

    def _scores(self, product: Any, q: Tensor, k: Tensor) -> Any:
        _check(q)
        if self.edits.scores is not None:
            q, k = self.edits.scores(q, k.transpose(-2, -1))
            k = k.transpose(-2, -1)
        return product(q, k)

    def _values(self, product: Any, attention: Tensor, value: Tensor) -> Tensor:
        edits = self.edits
        if attention.shape != self.map:
            raise _UnknownForm("does not multiply values by its map")
        self.scored, self.map, self.done = False, None, self.done + 1
        attention = attention if edits.attention is None else edits.attention(attention)
        out: Tensor = product(attention, value if edits.values is None else edits.values(value))
        return out if edits.heads is None else edits.heads(out)


def _attention(
    q: Tensor, k: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0, is_causal: bool = False,
    scale: float | None = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """The map of fused attention: a product and a softmax, which an outer mode intercepts, too."""
    if is_causal or enable_gqa:
        raise _UnknownForm("is causal, or has queries that share keys")
    scores = (q * (q.shape[-1] ** -0.5 if scale is None else scale)) @ k.transpose(-2, -1)
    hidden = ~attn_mask if attn_mask is not None and attn_mask.dtype == torch.bool else None
    if hidden is not None:
        scores = scores.masked_fill(hidden, torch.finfo(scores.dtype).min)
    elif attn_mask is not None:
        scores = scores + attn_mask
    attention = scores.softmax(-1)
    if hidden is not None:
        attention = attention.masked_fill(hidden, 0)  # a row may be hidden altogether
    return nn.functional.dropout(attention, dropout_p)


def _check(q: Tensor) -> None:
    if q.dim() != 4:
        raise _UnknownForm(f"has queries of {q.dim()} dimensions, not (rows, heads, tokens, d)")


def _self_attention(
    module: nn.MultiheadAttention, query: Tensor, key: Tensor, value: Tensor, **options: Any
) -> tuple[Tensor, None]:
    """torch's multi-head self-attention of tokens (N, T, C), written out: there it is one call.

    Without masks and with no weights in the answer, as torchvision's ViT calls it.
    """
    if query is not key or key is not value or options != {"need_weights": False}:
        raise _UnknownForm("is called with other keys, with a mask or for its weights")
    qkv = nn.functional.linear(query, module.in_proj_weight, module.in_proj_bias)
    q, k, v = qkv.unflatten(-1, (3, module.num_heads, module.head_dim)).permute(2, 0, 3, 1, 4)
    out = nn.functional.scaled_dot_product_attention(q, k, v)
    return module.out_proj(out.transpose(1, 2).flatten(2)), None
