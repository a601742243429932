"""Every change on every family of vision transformers, tiny and with random weights; the rest is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from advens.attacks.surrogates.changes import Changed, blocks
from advens.attacks.surrogates.changes.blocks import AttentionEdits, attentions, mlp_ends, within
from advens.attacks.surrogates.changes.pna import PNA
from advens.attacks.surrogates.changes.tgr import TGR
from advens.attacks.surrogates.changes.vit import HeadDrop, ScoreScale, TokenMix
from advens.classifier import Classifier
from advens.errors import InputError
from advens.seeding import Draws
from tests.attacks.surrogates.changes.conftest import gradient

CHANGES: dict[str, Any] = {
    "pna": PNA(), "tgr": TGR(), "head-drop": HeadDrop(0.4), "score-scale": ScoreScale(0.8),
    "token-mix": TokenMix(0.4),
}  # fmt: skip
VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
SWIN = {
    "img_size": 32, "patch_size": 4, "window_size": 4, "embed_dim": 8, "depths": (2, 1), "num_heads": (2, 2),
}  # fmt: skip
PIT = {"patch_size": 8, "stride": 4, "base_dims": (8, 8, 8), "depth": (1, 1, 1), "heads": (1, 2, 2)}
PVT = {"depths": (1, 1, 1, 1), "embed_dims": (8, 8, 16, 16), "num_heads": (1, 1, 2, 2)}
TNT = {
    "img_size": 32, "patch_size": 8, "embed_dim": 16, "inner_dim": 8, "depth": 2, "num_heads_inner": 2,
    "num_heads_outer": 2,
}  # fmt: skip
VISFORMER = {"img_size": 32, "init_channels": 4, "embed_dim": 16, "depth": (0, 1, 1), "num_heads": 2}
FAMILIES: dict[str, tuple[str, dict[str, Any], int]] = {
    # family: architecture, options, attentions
    "vit": ("vit_tiny_patch16_224", VIT, 2),
    "vit-pooled": ("vit_tiny_patch16_224", VIT | {"global_pool": "map", "class_token": False}, 2),
    "vit-relpos": ("vit_relpos_small_patch16_224", VIT, 2),
    "deit-distilled": ("deit_tiny_distilled_patch16_224", VIT, 2),
    "deit3": ("deit3_small_patch16_224", VIT, 2),
    "beit": ("beit_base_patch16_224", VIT, 2),
    "eva02": ("eva02_tiny_patch14_224", VIT, 2),
    "dinov3": ("vit_small_plus_patch16_dinov3", VIT, 2),
    "cait": ("cait_xxs24_224", VIT, 4),
    "pit": ("pit_ti_224", {"img_size": 32} | PIT, 3),
    "pit-distilled": ("pit_ti_distilled_224", {"img_size": 32} | PIT, 3),
    "swin": ("swin_tiny_patch4_window7_224", SWIN, 3),
    "swinv2": ("swinv2_tiny_window8_256", SWIN, 3),
    "swinv2-cr": ("swinv2_cr_tiny_ns_224", SWIN, 3),
    "pvt": ("pvt_v2_b0", PVT, 4),
    "convit": ("convit_tiny", VIT | {"local_up_to_layer": 1}, 2),
    "visformer": ("visformer_tiny", VISFORMER, 2),
    "tnt": ("tnt_s_legacy_patch16_224", TNT, 4),
}
LIBRARY = [*FAMILIES, "torchvision"]
"""Everything that can be changed."""

NONE = "no module has heads and an attention map"
OTHERS: dict[str, tuple[str, dict[str, Any], str]] = {
    # family: architecture, options, why not
    "resnet": ("test_resnet", {}, NONE),
    "convnext": ("test_convnext", {}, NONE),
    "mambaout": ("test_mambaout", {}, NONE),
    "levit": ("levit_128s", {}, NONE),
    "xcit": (
        "xcit_nano_12_p8_224", {"img_size": 32, "embed_dim": 16, "depth": 1, "num_heads": 2},
        "'XCA' attends over channels, not tokens",
    ),
    "davit": ("davit_tiny", PVT, "'ChannelAttention' attends over channels, not tokens"),
    "twins": ("twins_svt_small", {"img_size": 32} | PVT, "'LocallyGroupedAttn' has queries of 5 dimensions"),
    "coat": (
        "coat_tiny",
        {"img_size": 32, "embed_dims": (8, 8, 8, 8), "serial_depths": (1, 1, 1, 1), "parallel_depth": 0},
        "'FactorAttnConvRelPosEnc' is not one product, softmax and product",
    ),
}  # fmt: skip


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    """A frozen network in float64, with weights and biases of its own."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        net = make().double().eval()
        for tensor in net.parameters():
            tensor.requires_grad_(False).add_(torch.rand_like(tensor) * 0.2 - 0.1)
    return net


def tiny(family: str) -> nn.Module:
    if family == "torchvision":
        return seeded(lambda: torchvision.models.VisionTransformer(32, 8, 2, 2, 16, 24, num_classes=5))
    arch, options, _ = (FAMILIES | OTHERS)[family]
    return seeded(lambda: timm.create_model(arch, num_classes=5, **options))


def pixels(family: str = "") -> Tensor:
    """Two images; PVT sees one key for every query when they are small."""
    side, generator = 64 if family == "pvt" else 32, torch.Generator().manual_seed(0)
    return torch.rand(2, 3, side, side, generator=generator, dtype=torch.float64)


def traces(net: nn.Module) -> list[Any]:
    """What a change could leave behind."""
    return [
        (
            {key: id(value) for key, value in vars(m).items()}, m.forward, list(m._forward_hooks),
            list(m._forward_pre_hooks), list(m._backward_hooks), list(m._backward_pre_hooks),
        )
        for m in net.modules()
    ]  # fmt: skip


def under(net: nn.Module, change: Any, draws: Draws) -> Changed:
    changed = Changed(net, [change])
    changed.at_step(draws)
    return changed


@pytest.mark.parametrize("family", LIBRARY)
def test_walk(family: str) -> None:
    """Other gradients, finite; logits that stay or not; a row alone as in a batch; all put back."""
    net, x = tiny(family), pixels(family)
    before, (logits, plain) = traces(net), gradient(net, x)
    for name, change in CHANGES.items():
        changed = under(net, change, Draws(3, 2).at(0))
        found, g = gradient(changed, x)
        assert g.isfinite().all(), name
        assert (g - plain).abs().max() > 1e-4 * plain.abs().max(), name
        stays = name in ("pna", "tgr")
        assert torch.allclose(found, logits, rtol=0, atol=1e-12) == stays, name
        alone = gradient(under(net, change, Draws(3, 2, slice(1, 2)).at(0)), x[1:])
        torch.testing.assert_close(alone[0], found[1:], rtol=1e-8, atol=1e-10, msg=name)
        near = 1e-9 * float(g.abs().max())
        torch.testing.assert_close(alone[1], g[1:], rtol=1e-6, atol=near, msg=name)
        with torch.no_grad():
            torch.testing.assert_close(changed(x), found, rtol=0, atol=1e-12)
        assert traces(net) == before, name
    assert all(map(torch.equal, gradient(net, x), (logits, plain)))


@pytest.mark.parametrize("family", LIBRARY)
def test_all_at_once(family: str) -> None:
    net, x = tiny(family), pixels(family)
    before = traces(net)
    changed = Changed(net, list(CHANGES.values()))
    changed.at_step(Draws(3, 2).at(0))
    assert gradient(changed, x)[1].isfinite().all()
    assert traces(net) == before


@pytest.mark.parametrize("family", FAMILIES)
def test_fused_or_not(family: str) -> None:
    """The same answers and gradients, to rounding."""
    net, x = tiny(family), pixels(family)
    switches = [m for m in net.modules() if hasattr(m, "fused_attn")]
    for change in CHANGES.values():
        found = []
        for fused in (True, False):
            for module in switches:
                module.fused_attn = fused  # type: ignore[assignment]
            found.append(gradient(under(net, change, Draws(3, 2).at(0)), x))
        near = 1e-9 * float(found[0][1].abs().max())
        for i in range(2):
            torch.testing.assert_close(found[0][i], found[1][i], rtol=1e-6, atol=near)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_found(family: str) -> None:
    net, count = tiny(family), FAMILIES[family][2]
    assert len(attentions(net, "pna")) == count
    assert len(set(mlp_ends(net, "tgr"))) == count
    assert not any("Pool" in type(m).__name__ for m in attentions(net, "pna"))


# what cannot be changed


@pytest.mark.parametrize("family", OTHERS)
@pytest.mark.parametrize("name", CHANGES)
def test_refusals(name: str, family: str) -> None:
    """One line with the change's and the model's name, and nothing left behind.

    Tokens can be mixed wherever an MLP stands beside an attention, of whatever kind that is.
    """
    model = Classifier(tiny(family), name="mine:other", num_classes=5)
    before, x, why = traces(model), pixels(), OTHERS[family][2]
    if name == "token-mix" and why != NONE:
        assert gradient(Changed(model, [CHANGES[name]]), x)[1].isfinite().all()
        return
    why = "no MLP stands beside an attention" if name == "token-mix" else why
    with pytest.raises(InputError) as caught:
        Changed(model, [CHANGES[name]])(x)
    said = str(caught.value)
    assert said.startswith(f"'{name}': 'mine:other' has no attention blocks that can be changed: {why}")
    assert "\n" not in said
    assert traces(model) == before


class Odd(nn.Module):
    """Attention of other forms, by name."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form, self.num_heads, self.attn_drop = form, 2, nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        q = x.unflatten(2, (2, 4)).transpose(1, 2)
        a = (q @ q.transpose(2, 3)).softmax(-1)
        if self.form == "twice":
            out = F.scaled_dot_product_attention(q, q, a @ q)
        elif self.form == "part of the map":
            out = a[..., :3] @ q[..., :3, :]
        elif self.form == "no values":
            out = q * a.amax(-1, keepdim=True)
        else:
            out = a @ q
        return out.transpose(1, 2).flatten(2)


def tokens() -> Tensor:
    return torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize(
    ("form", "said"),
    [("twice", "is not one product"), ("part of the map", "by its map"), ("no values", "is not one product")],
)
def test_other_forms_are_refused_when_they_run(form: str, said: str) -> None:
    net = Odd(form)
    with pytest.raises(InputError, match=rf"'pna': 'Odd' has no attention .*: 'Odd' .*{said}"):
        Changed(net, [PNA()])(tokens())
    assert "forward" not in vars(net)


def test_edits() -> None:
    """Each place is reached once, in its order, and two watches of one attention both see it."""
    net, seen = Odd(""), list[str]()

    def noted(name: str, factor: float) -> Callable[[Tensor], Tensor]:
        def change(value: Tensor) -> Tensor:
            seen.append(f"{name} {tuple(value.shape)}")
            return value * factor

        return change

    def scores(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        seen.append(f"scores {tuple(q.shape)} {tuple(k.shape)}")
        return q * 2, k

    edits = AttentionEdits(scores, noted("attention", 3), noted("values", 5), noted("heads", 7))
    heads, maps = "(3, 2, 5, 4)", "(3, 2, 5, 5)"
    once = [f"scores {heads} {heads}", f"attention {maps}", f"values {heads}", f"heads {heads}"]
    q = tokens().unflatten(2, (2, 4)).transpose(1, 2)
    for times in (1, 2):
        seen.clear()
        handles = [within(net, net, "test", edits) for _ in range(times)]
        out = net(tokens())
        for handle in reversed(handles):
            handle.remove()
        wanted = 105**times * (2**times * q @ q.transpose(2, 3)).softmax(-1) @ q
        torch.testing.assert_close(out, wanted.transpose(1, 2).flatten(2))
        assert sorted(seen) == sorted(once * times)
        assert times == 2 or seen == once
    assert "forward" not in vars(net)


@pytest.mark.parametrize("how", [{"need_weights": True}, {"need_weights": False, "is_causal": True}])
def test_multi_head_attention_of_another_use(how: dict[str, Any]) -> None:
    class Uses(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True).double()

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.attention(x, x, x, **how)[0]
            return out

    net = Uses()
    for change, said in ((PNA(), "with a mask or for its weights"), (TGR(), "no MLP stands beside")):
        with pytest.raises(InputError, match=said):
            Changed(net, [change])(tokens())
        assert "forward" not in vars(net.attention)


@pytest.mark.parametrize("mask", [None, "hidden", "added"])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_attention_written_out_is_that_of_torch(mask: str | None, scale: float | None) -> None:
    """Also for a token that may look at none: it gets nothing."""
    draw = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 2, 4, 5, 6, generator=draw, dtype=torch.float64)
    added = torch.randn(2, 1, 5, 5, generator=draw, dtype=torch.float64)
    masks = {"hidden": (added > 0) & (torch.arange(5) != 3)[:, None], "added": added}
    given = masks.get(mask or "")
    wanted = F.scaled_dot_product_attention(q, k, v, attn_mask=given, scale=scale)
    found = blocks._attention(q, k, attn_mask=given, scale=scale) @ v
    torch.testing.assert_close(found, wanted)
    assert (found[:, :, 3].abs().sum() == 0) == (mask == "hidden")
