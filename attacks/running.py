"""What surrounds every attack: checks, borrowed models, micro-batches that shrink, the result."""

from __future__ import annotations

import gc
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from advens.attacks.expectation import expectations
from advens.attacks.hooks import attacked
from advens.attacks.interfaces import Attack, Job, Models, Passes, Trace
from advens.attacks.interfaces import AttackResult as AttackResult
from advens.attacks.parts import to_spec
from advens.attacks.tracing import joined
from advens.classifier import borrowed
from advens.errors import InputError, RunError
from advens.seeding import Draws
from advens.threat import Threat

TOLERANCE = 1e-6


@torch.inference_mode(False)
@torch.enable_grad()
def run(
    attack: Attack,
    models: Models,
    x: Tensor,
    y: Tensor,
    target: Tensor | None,
    *,
    seed: int,
    micro_batch: int | None,
    trace: bool = False,
    copies_at_once: int = 1,
) -> AttackResult:
    """Attack a shard ``x``, in micro-batches that halve when memory runs out.

    Draws are made for the shard and sliced, so the micro-batch changes no sample's result. Randomized
    ensembles are attacked in expectation, as one surrogate: nothing depends on a member drawn. The
    caller may be under ``no_grad`` or ``inference_mode``: gradients are on in here.
    """
    if isinstance(models, nn.Module) and not isinstance(models, nn.ModuleList):
        models = [models]
    surrogates = _listed(models)
    x, y, target = _checked(attack, surrogates, x, y, target)
    size = max(1, min(micro_batch or len(x), len(x)))
    if copies_at_once < 1:
        raise InputError(f"copies_at_once = {copies_at_once}: at least 1")
    parts: list[Tensor] = []
    traces: list[dict[str, Tensor]] = []
    silent: list[Tensor] = []
    recorded: tuple[int, ...] = ()
    passes, carried = Passes(0, 0), dict[str, Tensor]()
    start = 0
    asked = expectations(surrogates)
    with borrowed(surrogates), attacked(surrogates):
        while start < len(x):
            rows = slice(start, start + size)
            job = Job(
                asked, x[rows], y[rows], None if target is None else target[rows],
                Draws(seed, len(x), rows), x, Trace() if trace else None, carried,
                copies_at_once=copies_at_once, pool_y=y,
            )  # fmt: skip
            try:
                x_adv, passes = attack.craft(job)
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                if len(job.x) == 1:
                    raise RunError("out of memory with a single image") from error
                size = (len(job.x) + 1) // 2
            else:
                parts.append(x_adv.detach())
                start += len(x_adv)
                silent += job.silent
                if job.trace is not None:
                    traces.append(job.trace.stacked())
                    recorded = job.trace.recorded
                continue
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
    result = torch.cat(parts) if parts else x.clone()
    if not torch.isfinite(result).all():
        raise RunError("the attack produced images that are NaN or infinite")
    return AttackResult(
        result, passes, size, joined(traces) if any(traces) else None,
        torch.cat(silent) if silent else None, recorded,
    )  # fmt: skip


class Runnable(ABC):
    """The public surface of an attack, for parts that have `craft` and `passes`."""

    threat: Threat

    @abstractmethod
    def craft(self, job: Job) -> tuple[Tensor, Passes]:
        """The attack on some rows of a shard."""

    @abstractmethod
    def passes(self, surrogates: int) -> Passes:
        """Forward and backward passes per sample on ``surrogates`` models."""

    def __call__(
        self, models: Models, x: Tensor, y: Tensor, target: Tensor | None = None, *, seed: int = 0
    ) -> Tensor:
        """Adversarial images for ``x``.

        Args:
            models: one surrogate or a sequence of them; images in [0, 1] to logits. They come back
                as they were.
            x: (N, C, H, W) in [0, 1].
            y: labels (N,).
            target: wanted labels (N,); untargeted when None.
            seed: what all randomness is derived from; the global generators are not touched.

        Raises:
            InputError: shapes, ranges or label spaces that do not fit.
        """
        return self.run(models, x, y, target, seed=seed).x_adv

    def run(
        self, models: Models, x: Tensor, y: Tensor, target: Tensor | None = None, *,
        seed: int = 0, micro_batch: int | None = None, trace: bool = False, copies_at_once: int = 1,
    ) -> AttackResult:  # fmt: skip
        """The images with the passes spent, at most ``micro_batch`` images at once.

        With ``copies_at_once`` surrogates see so many views (of a transform) or neighbours (of an estimator)
        of all these images in one pass, where these do not depend on each other. It takes as many times the
        memory, and is faster where few small images leave a device idle. Sums are taken in the same order, so
        results are the same but for the rounding of surrogates in float32, which a batch's size may change.

        With ``trace`` also what happened, where the attack notes it; see `advens.attacks.interfaces.Trace`.
        """
        return run(
            self, models, x, y, target, seed=seed, micro_batch=micro_batch, trace=trace,
            copies_at_once=copies_at_once,
        )  # fmt: skip

    @property
    def spec(self) -> dict[str, Any]:
        """JSON-able description; `attack_from_spec` builds the same value from it."""
        described: dict[str, Any] = to_spec(self)
        return described


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU or on the host."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(
        text in str(error) for text in ("can't allocate memory", "not enough memory")
    )


def _listed(models: object) -> list[nn.Module]:
    try:
        return list(models)  # type: ignore[call-overload, no-any-return]
    except TypeError:
        raise InputError(
            f"models is a torch.nn.Module or a sequence of them; got {type(models).__name__}"
        ) from None


def _checked(
    attack: Attack, models: list[nn.Module], x: Tensor, y: Tensor, target: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    if not models:
        raise InputError("an attack needs at least one surrogate")
    for model in models:
        if not isinstance(model, nn.Module):
            raise InputError(
                f"surrogates are torch.nn.Modules; got {type(model).__name__} (wrap a function in a Module)"
            )
    tensors: dict[str, object] = {"x": x, "y": y, "target": target}
    for name, value in tensors.items():
        if value is not None and not isinstance(value, Tensor):
            raise InputError(
                f"{name} must be a torch tensor; got {type(value).__name__} (torch.as_tensor makes one)"
            )
    if not x.is_floating_point() or x.dim() != 4:
        raise InputError(f"x must be float (N, C, H, W); got {x.dtype} {tuple(x.shape)}")
    if x.shape[3] in (1, 3) and x.shape[1] not in (1, 3):
        raise InputError(
            f"x {tuple(x.shape)} has its channels last; give (N, C, H, W): x.permute(0, 3, 1, 2)"
        )
    if x.numel() and not (x.min() >= -TOLERANCE and x.max() <= 1 + TOLERANCE):
        raise InputError(f"x must lie in [0, 1]; it spans [{x.min():.4g}, {x.max():.4g}]")
    x = x.detach().clamp(0, 1)
    y = _labels("y", y, x)
    if target is not None:
        target = _labels("target", target, x)
        if bool((target == y).any()):
            raise InputError("target equals the label of some samples; a target is another class")
    return x, y, target


def _labels(what: str, labels: Tensor, x: Tensor) -> Tensor:
    if labels.is_floating_point() or labels.shape != x.shape[:1]:
        raise InputError(
            f"{what} must be integers ({len(x)},); got {labels.dtype} {tuple(labels.shape)}"
        )
    if len(labels) and int(labels.min()) < 0:
        raise InputError(f"{what} holds {int(labels.min())}; labels start at 0")
    return labels.detach().to(x.device, torch.int64, copy=True)
