"""Models in reduced precision: models of their own, which answer nearly the same."""

from __future__ import annotations

import pytest
import torch

from advens.classifier import tensor_float
from advens.errors import InputError
from advens.models import describe, find_model, known_card, names_ensemble, origins
from advens.models.computed import computed, plain


@pytest.fixture(scope="module")
def images():
    return torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_names():
    name = "timm:resnet50?checkpoint=/a/b.pth&num_classes=5"
    assert computed(name, "float32") == name
    assert computed(name, "bf16").startswith("computed:bf16?of=timm:resnet50%3Fcheckpoint%3D/a/b.pth%26num")
    assert plain(computed(name, "bf16")) == name == plain(name)


def test_bf16_is_close_and_another(images):
    name = "digits:resnet"
    exact, reduced = find_model(name), find_model(computed(name, "bf16"))
    seen = []
    reduced.net.register_forward_hook(lambda module, given, out: seen.append(out.dtype))
    one, two = exact(images), reduced(images)
    assert seen == [torch.bfloat16]
    assert two.dtype == one.dtype == torch.float32
    assert not torch.equal(one, two)
    torch.testing.assert_close(one, two, atol=0.2, rtol=0.05)
    leaf = images.clone().requires_grad_()
    (g,) = torch.autograd.grad(reduced(leaf).sum(), leaf)
    assert g.dtype == torch.float32


@pytest.mark.parametrize("precision", ["bf16", "tf32"])
def test_what_is_known_of_one(precision):
    name = computed("digits:resnet", precision)
    model, base = find_model(name), find_model("digits:resnet")
    card = describe(name)
    assert known_card(name) == card
    assert (card.digest, card.bases) == (model.digest, model.bases)
    assert model.name == name
    assert model.digest != base.digest
    assert base.digest in origins(model)  # white-box to who holds the other
    assert model.weights == base.weights


def test_an_ensemble_computes_in_its_members(images):
    name = computed("digits:dverge3", "bf16")
    model, base = find_model(name), find_model("digits:dverge3")
    assert [member.precision for member in model.members] == ["bf16"] * 3
    assert model.digest != base.digest == model.bases[0]
    assert describe(name).digest == model.digest
    assert names_ensemble(name)
    torch.testing.assert_close(model(images), base(images), atol=0.3, rtol=0.05)


def test_a_change_inside_keeps_the_precision(images):
    from urllib.parse import quote

    of = quote(computed("digits:vit", "bf16"), safe=":/")
    changed = find_model(f"changed:head-drop?head-drop.p=0.2&of={of}")
    assert changed.precision == "bf16"
    other = find_model("changed:head-drop?head-drop.p=0.2&of=digits:vit")
    assert changed.digest != other.digest
    with pytest.raises(InputError, match="cannot be computed in another precision"):
        find_model(computed("changed:head-drop?of=digits:vit", "bf16"))


def test_tf32_is_allowed_inside_only():
    flags = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [each.allow_tf32 for each in flags]
    model, seen = find_model(computed("digits:resnet", "tf32")), []
    model.net.register_forward_hook(lambda *_: seen.extend(each.allow_tf32 for each in flags))
    with tensor_float(False):
        model(torch.zeros(1, 3, 32, 32))
        assert [each.allow_tf32 for each in flags] == [False, False]
    assert seen == [True, True]
    assert [each.allow_tf32 for each in flags] == before


@pytest.mark.parametrize(("name", "words"), [
    ("computed:fp8?of=digits:resnet", "unknown precision 'fp8'"),
    ("computed:bf16", r"write computed:bf16\?of=MODEL"),
    ("computed:bf16?of=digits:resnte", "unknown model 'digits:resnte'"),
    ("computed:bf16?off=digits:resnet", "unknown option 'off'"),
])  # fmt: skip
def test_names_that_cannot_be(name, words):
    with pytest.raises(InputError, match=words):
        find_model(name)
