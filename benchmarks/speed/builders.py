"""What surrogate builders cost: collecting weights, holding them, changes inside ViTs, stacked snapshots.

    python -m advens.benchmarks.speed.builders [--rounds 5] [--only vit] [--out FILE.json]

* lgv: a whole build, saved and read back, beside a plain SGD loop over the same batches.
* memory: of 40 snapshots used in turn, beside one model and 40 deep copies; a process each (Linux).
* vit: a pass under each change, beside the same model with attention fused and written out (``fused_attn``).
* stack: 8 snapshots as one batched model, beside one after the other.

Those who are compared take turns. Seconds are the fastest round's, ratios medians over the rounds: of CPU
time, which others on the machine move little, and where a disk is waited for of wall time, too.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from copy import deepcopy
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import click
import torch
from torch import Tensor
from torch.nn import functional as F

from advens.attacks.parts import from_spec
from advens.attacks.surrogates.builders.build import Work
from advens.attacks.surrogates.builders.lgv import LGV
from advens.attacks.surrogates.builders.snapshot import Snapshot, bare
from advens.attacks.surrogates.builders.train import Images, shuffled
from advens.attacks.surrogates.changes import Changed
from advens.benchmarks.environment import commit, versions
from advens.benchmarks.speed.stacks import Stack, faster, looped
from advens.cache import Folder
from advens.classifier import Classifier, borrowed
from advens.datasets import load_data
from advens.models import load_model
from advens.seeding import Draws, derive

HELD, STACKED, BATCH = 40, 8, 64
CHANGES = ("head-drop", "score-scale", "token-mix", "pna", "tgr")
VITS = {"digits:vit": (32, 64), "timm:vit_tiny_patch16_224?pretrained=false": (224, 4)}
HOLDING = {"digits:resnet": (32, 64), "timm:resnet18?pretrained=false": (224, 4)}
"""Models with image size and batch."""
WATCHED = {"commit": Work, "write_member": Folder, "keep": Folder, "write": Folder, "member": Folder}
"""Where a build saves. A commit writes a member and keeps the state, both by ``write``; ``member`` reads."""

Clocks = tuple[float, float]  # CPU seconds and wall seconds
Taken = Mapping[str, Sequence[Clocks]]  # by contestant and round


def now() -> Clocks:
    """Of this process."""
    return time.process_time(), time.perf_counter()


def turns(contestants: Mapping[str, Callable[[], object]], rounds: int) -> Taken:
    """Seconds of everybody in every round; who goes first changes, and a first round is a warm-up."""
    taken: dict[str, list[Clocks]] = {who: [] for who in contestants}
    names = list(contestants)
    for turn in range(rounds + 1):
        for who in names[turn % len(names) :] + names[: turn % len(names)]:
            cpu, wall = now()
            contestants[who]()
            if turn:
                taken[who].append((now()[0] - cpu, now()[1] - wall))
    return taken


def beside(taken: Taken, who: str, *others: str, clock: int = 0) -> dict[str, float]:
    """The fastest round, and medians of the rounds' ratios to others."""
    mine = [each[clock] for each in taken[who]]
    return {"seconds": min(mine)} | {
        f"over_{other}": median(a / b[clock] for a, b in zip(mine, taken[other], strict=True))
        for other in others
    }


def images(size: int, batch: int, classes: int) -> tuple[Tensor, Tensor]:
    """Noise with labels."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand((batch, 3, size, size), generator=generator)
    return x, torch.randint(classes, (batch,), generator=generator)


def passes(model: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> None:
    """A forward and a backward pass, to the images alone; logits (N, classes) or (K, N, classes)."""
    leaf = x.detach().requires_grad_()
    logits = model(leaf).flatten(0, -2)
    torch.autograd.grad(F.cross_entropy(logits, y.repeat(len(logits) // len(y)), reduction="sum"), leaf)


def plain(start: Classifier, held: Images, how: LGV) -> Classifier:
    """The training that LGV's collection needs, and nothing else."""
    model = deepcopy(start).requires_grad_(True).train()
    optimizer = torch.optim.SGD(model.parameters(), how.lr, how.momentum, weight_decay=how.weight_decay)
    for epoch in range(how.epochs):
        parts = shuffled(len(held), how.batch_size, derive(0, "trajectory"), "order", epoch)
        for x, y in held.batches(parts):
            loss = F.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model


def timed(spent: dict[str, Clocks], owner: type, name: str) -> Any:
    """Add up the seconds inside a method while the context lasts."""
    method = getattr(owner, name)

    def call(*args: Any, **kwargs: Any) -> Any:
        (cpu, wall), before = now(), spent.get(name, (0.0, 0.0))
        done = method(*args, **kwargs)
        spent[name] = before[0] + now()[0] - cpu, before[1] + now()[1] - wall
        return done

    return patch.object(owner, name, call)


def lgv(rounds: int) -> dict[str, Any]:
    """LGV's build beside plain training; both end at the same weights, bit for bit."""
    model, data, how = load_model("digits:resnet"), load_data("digits:train"), LGV(batch_size=BATCH)
    ends: dict[str, Classifier] = {}
    inside: list[dict[str, Clocks]] = []

    def build() -> None:
        inside.append({})
        with tempfile.TemporaryDirectory() as cache, ExitStack() as until:
            for name, owner in WATCHED.items():
                until.enter_context(timed(inside[-1], owner, name))
            ends["ours"] = how.build([model], data, cache=cache)[-1]

    train = partial(plain, model, Images(data), how)
    taken = turns({"plain": lambda: ends.update(plain=train()), "ours": build}, rounds)
    trained, ours = (ends[who].net.state_dict() for who in ("plain", "ours"))
    same = all(torch.equal(t, ours[name]) for name, t in trained.items())
    return {"images": len(data), "batch": BATCH, "members": how.members(1), "same_weights": same} | {
        clock: {
            "plain": beside(taken, "plain", clock=k), "ours": beside(taken, "ours", "plain", clock=k),
            "inside ours": {name: min(each[name][k] for each in inside[1:]) for name in WATCHED},
        } for k, clock in enumerate(("cpu", "wall"))
    }  # fmt: skip


def hold(source: str, how: str) -> float:
    """MiB at the peak of this process, which holds some models and runs a pass through each in turn."""
    base, models = load_model(source), list[Classifier]()
    shared = bare(base.net)
    for _ in range(1 if how == "one" else HELD):
        weights = {name: t.clone() for name, t in base.net.state_dict().items()}
        if how == "snapshots":
            models.append(Snapshot(shared, base, weights, name="snapshot"))
        else:
            models.append(deepcopy(base) if how == "copies" else base)
            models[-1].net.load_state_dict(weights)
    x, y = images(*HOLDING[source], base.num_classes)
    for model in models:
        passes(model, x, y)
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024


def memory(source: str) -> dict[str, float]:
    """MiB; every way of holding in a process of its own."""
    line = {"weights of one": sum(t.nbytes for t in load_model(source).state_dict().values()) / 2**20}
    for how in ("one", "snapshots", "copies"):
        code = f"import advens.benchmarks.speed.builders as here; print(here.hold({source!r}, {how!r}))"
        line[how] = float(subprocess.check_output([sys.executable, "-c", code]))
    return line


def vit(source: str, rounds: int) -> dict[str, Any]:
    """A pass under every change, which draws anew in each; the changed model's own attention is fused."""
    fused, unfused = load_model(source), load_model(source)
    for module in unfused.modules():
        if hasattr(module, "fused_attn"):
            vars(module)["fused_attn"] = False
    x, y = images(*VITS[source], fused.num_classes)
    steps = iter(range(1 << 30))

    def under(changed: Changed) -> None:
        changed.at_step(Draws(0, len(x)).at(next(steps)))
        passes(changed, x, y)

    contestants = {"fused": partial(passes, fused, x, y), "unfused": partial(passes, unfused, x, y)}
    for name in CHANGES:
        contestants[name] = partial(under, Changed(fused, [from_spec("change", {"name": name})]))
    with borrowed([fused, unfused]):
        taken = turns(contestants, rounds)
    return {"images": len(x)} | {who: beside(taken, who, "unfused", "fused") for who in contestants}


def stack(rounds: int) -> dict[str, Any]:
    """Snapshots stacked and looped, forward alone and with a backward pass; without the stacking itself."""
    base = load_model("digits:resnet")
    shared, state = bare(base.net), base.net.state_dict()
    states = [{k: t * (1 + i / 100) if t.dim() > 1 else t for k, t in state.items()} for i in range(STACKED)]
    snapshots = [Snapshot(shared, base, each, name="snapshot") for each in states]
    x, y = images(32, BATCH, base.num_classes)
    ways: dict[str, Callable[..., Tensor]] = {"stack": Stack(snapshots), "loop": partial(looped, snapshots)}
    with torch.no_grad():
        forward = turns({way: partial(logits, x) for way, logits in ways.items()}, rounds)
        apart = float((ways["stack"](x) - ways["loop"](x)).abs().max())
    both = turns({way: partial(passes, logits, x, y) for way, logits in ways.items()}, rounds)
    chosen = faster(snapshots, x).way
    return {"snapshots": STACKED, "images": BATCH, "logits apart": apart, "chosen": chosen} | {
        what: {"loop": beside(taken, "loop"), "stack": beside(taken, "stack", "loop")}
        for what, taken in (("forward", forward), ("forward and backward", both))
    }


def show(name: str, found: Mapping[str, Any], depth: int = 0) -> None:
    """A line for every table of numbers."""
    told = {k: f"{v:.4g}" if isinstance(v, float) else v for k, v in found.items() if not isinstance(v, dict)}
    click.echo("  " * depth + f"{name}: " + ", ".join(f"{key} {value}" for key, value in told.items()))
    for inner in (key for key in found if key not in told):
        show(inner, found[inner], depth + 1)


@click.command()
@click.option("--rounds", default=5, show_default=True, help="More for short work.")
@click.option("--only", type=click.Choice(["lgv", "memory", "vit", "stack"]), help="One part.")
@click.option("--out", type=click.Path(path_type=Path))
def main(rounds: int, only: str | None, out: Path | None) -> None:
    """Measure builders."""
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "lgv": partial(lgv, rounds),
        "memory": lambda: {source: memory(source) for source in HOLDING},
        "vit": lambda: {source: vit(source, rounds * (6 if "digits" in source else 2)) for source in VITS},
        "stack": partial(stack, rounds * 6),
    }
    found: dict[str, Any] = {}
    for name in [only] if only else parts:
        found[name] = parts[name]()
        show(name, found[name])
    if out is not None:
        about = {"threads": torch.get_num_threads(), "commit": commit(), "packages": versions()}
        out.write_text(json.dumps({"device": "cpu"} | about | found, indent=1) + "\n")


if __name__ == "__main__":
    main()
