"""What a worker keeps on a GPU, with a CPU in its place."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from advens.attacks import create_attack
from advens.benchmarks.executors.base import resolve_device
from advens.benchmarks.worker_cache import WorkerCache, default_batch, largest
from advens.errors import InputError
from advens.models.pool import ModelPool, weights_budget

IMAGES = torch.randint(256, (6, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def room(most):
    """A run for which memory is out above so many images, and the sizes it was tried with."""
    tried = []

    def run(size):
        tried.append(size)
        if size > most:
            raise torch.OutOfMemoryError("CUDA out of memory")

    return run, tried


@pytest.mark.parametrize(("most", "found", "last"), [(37, 32, 64), (1, 1, 2), (9**9, 64, 64)])
def test_the_largest_power_of_two(most, found, last):
    run, tried = room(most)
    assert largest(run, 100) == found
    assert tried == [2**k for k in range(1, 7) if 2**k <= last]


def test_another_failure_is_no_lack_of_memory():
    def run(size):
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        largest(run, 8)


def as_gpu(monkeypatch, most):
    """A worker's cache that takes its CPU for a GPU with memory for so many images."""
    cache = WorkerCache("cpu")
    cache.gpu = True
    model = cache.models.get(["digits:resnet"])[0]
    seen = []

    def watch(module, given):
        seen.append(len(given[0]))
        if len(given[0]) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")

    model.register_forward_pre_hook(watch)
    return cache, model, seen


def test_a_probe_is_made_once(monkeypatch):
    cache, model, seen = as_gpu(monkeypatch, 20)
    assert cache.batch([model], IMAGES) == 16
    assert cache.batch([model], IMAGES, gradient=True) == 8
    assert seen == [2, 4, 8, 16, 32] * 2
    assert cache.batch([model], IMAGES[:1]) == 16
    assert len(seen) == 10
    plain = WorkerCache("cpu")
    assert plain.batch(plain.models.get(["digits:resnet"]), IMAGES) == default_batch(IMAGES)


def test_weights_that_are_kept_follow_from_the_device(monkeypatch):
    assert weights_budget(torch.device("cpu")) == 2 << 30
    found = {"total_memory": 80 << 30}
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda device: SimpleNamespace(**found))
    assert weights_budget(torch.device("cuda:1")) == 20 << 30
    found["total_memory"] = 4 << 30
    assert ModelPool(torch.device("cuda")).budget == 2 << 30


def test_surrogates_on_several_devices(monkeypatch):
    """Each is on a device of its own; a model that is shown alone is on the first."""
    names = ["digits:resnet", "digits:vit", "digits:convmixer"]
    cache = WorkerCache("cpu,meta")
    assert resolve_device("cpu,meta") == "cpu,meta"
    where = [str(model.mean.device) for model in cache.models.get(names, spread=True)]
    assert where == ["cpu", "meta", "cpu"]
    with pytest.raises(InputError, match="is not available"):
        resolve_device("cpu,nowhere:0")


def test_gradients_of_several_devices_are_those_of_one(monkeypatch):
    """The oracle brings images to every surrogate and logits back; the images do not depend on it."""
    cache = WorkerCache("cpu")
    models = cache.models.get(["digits:resnet", "digits:convmixer"])
    moved = []
    real = torch.Tensor.to
    monkeypatch.setattr(
        "advens.attacks.oracle.device_of", lambda model: torch.device("cpu", models.index(model))
    )
    monkeypatch.setattr(torch.Tensor, "to", lambda self, *a, **k: moved.append(a) or real(self, *a, **k))
    x, y = IMAGES.float() / 255, torch.arange(6)
    attack = create_attack("mifgsm", eps=0.2, steps=2)
    one = attack(models, x, y)
    assert {a[0].index for a in moved if a and isinstance(a[0], torch.device)} >= {0, 1}
    monkeypatch.undo()
    assert torch.equal(one, attack(models, x, y))
