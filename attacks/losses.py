"""Losses: per sample, to be ascended, never averaged over the batch.

Every loss takes logits (N, classes), labels (N,) and target labels (N,) or None, and returns (N,).
With targets its ascent leads to the target class, without it away from the label.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from advens.attacks.interfaces import Loss as Loss
from advens.attacks.interfaces import OfOdds as OfOdds
from advens.attacks.parts import part
from advens.errors import InputError
from advens.fields import Positive


@part("loss", "ce", paper="Goodfellow et al., ICLR 2015 (FGSM)", year=2015)
class CrossEntropy:
    """Cross-entropy of the label; with targets, minus that of the target.

    With m, the log-odds of the other classes against the label, it is log(1 + exp m), and its gradient
    is sigmoid(m) times that of m. Computed at once in float32, the label's part of the gradient is lost
    below m = -17 and all of it below about -100. Transfer attacks ascend the two factors (`OfOdds`),
    white-box attacks the plain form, as published.
    """

    def __call__(self, logits: Tensor, y: Tensor, target: Tensor | None) -> Tensor:
        if target is None:
            return F.cross_entropy(logits, y, reduction="none")
        return -F.cross_entropy(logits, target, reduction="none")

    def odds(self, logits: Tensor, y: Tensor, target: Tensor | None) -> Tensor:
        """See `OfOdds`."""
        return -log_odds(logits, y) if target is None else log_odds(logits, target)

    def at(self, odds: Tensor, targeted: bool) -> tuple[Tensor, Tensor]:
        """See `OfOdds`."""
        if targeted:
            return F.logsigmoid(odds), F.logsigmoid(-odds)
        return -F.logsigmoid(-odds), F.logsigmoid(odds)


@part("loss", "prob", paper="Ma et al., ICCV 2023 (MIG)", year=2023)
class Probability:
    """Minus the label's probability; with targets, the target's.

    Its slope by the log-odds m is ``sigmoid(m) sigmoid(-m)``, which vanishes on either side: where a
    surrogate is sure of another class, too. The two factors are ascended as those of cross-entropy are.
    """

    def __call__(self, logits: Tensor, y: Tensor, target: Tensor | None) -> Tensor:
        p = logits.softmax(1)
        return -_pick(p, y) if target is None else _pick(p, target)

    def odds(self, logits: Tensor, y: Tensor, target: Tensor | None) -> Tensor:
        """See `OfOdds`."""
        return -log_odds(logits, y) if target is None else log_odds(logits, target)

    def at(self, odds: Tensor, targeted: bool) -> tuple[Tensor, Tensor]:
        """See `OfOdds`."""
        value = torch.sigmoid(odds) if targeted else -torch.sigmoid(-odds)
        return value, F.logsigmoid(odds) + F.logsigmoid(-odds)


@part("loss", "margin", paper="Carlini & Wagner, S&P 2017", year=2017)
class Margin:
    """Logit margin: the best other class minus the label (or the target minus the best other)."""

    def __call__(self, logits: Tensor, y: Tensor, target: Tensor | None) -> Tensor:
        if target is None:
            return _best_other(logits, y) - _pick(logits, y)
        return _pick(logits, target) - _best_other(logits, target)


@part("loss", "dlr", paper="Croce & Hein, ICML 2020 (AutoAttack)", year=2020)
class DLR:
    """Difference of logits ratio: the margin over the spread of the largest logits."""

    def __call__(self, logits: Tensor, y: Tensor, target: Tensor | None) -> Tensor:
        needed = 3 if target is None else 4
        if logits.shape[1] < needed:
            raise InputError(
                f"loss 'dlr' needs {needed} classes; these models have {logits.shape[1]}"
            )
        top = logits.topk(needed, dim=1).values
        if target is None:
            return (_best_other(logits, y) - _pick(logits, y)) / (top[:, 0] - top[:, 2] + 1e-12)
        spread = top[:, 0] - (top[:, 2] + top[:, 3]) / 2 + 1e-12
        return (_pick(logits, target) - _pick(logits, y)) / spread


@part("loss", "logit", paper="Zhao et al., NeurIPS 2021", year=2021)
class TargetLogit:
    """The target's logit (or minus the label's): does not saturate as cross-entropy does."""

    def __call__(self, logits: Tensor, y: Tensor, target: Tensor | None) -> Tensor:
        return -_pick(logits, y) if target is None else _pick(logits, target)


@part("loss", "logit-temperature", paper="Weng et al., TIFS 2023 (logit calibration)", year=2023)
class CalibratedByTemperature(CrossEntropy):
    """Cross-entropy of ``z / temperature``, which saturates later than that of z.

    Args:
        temperature: what logits are divided by.
    """

    temperature: Positive = 5.0

    def __call__(self, logits: Tensor, y: Tensor, target: Tensor | None) -> Tensor:
        return super().__call__(logits / self.temperature, y, target)

    def odds(self, logits: Tensor, y: Tensor, target: Tensor | None) -> Tensor:
        """See `OfOdds`."""
        return super().odds(logits / self.temperature, y, target)


@part("loss", "logit-margin", paper="Weng et al., TIFS 2023 (logit calibration)", year=2023)
class CalibratedByMargin(CrossEntropy):
    """Cross-entropy of ``z / m``, with m the margin between the two largest logits, held constant.

    The larger of two probabilities is e times the smaller one, whatever the logits, so that the gradient
    does not vanish. m is at least 1e-6: where the two are as good as equal, it says nothing.
    With `ens-logits` m is that of the mean logits, with `ens-loss` each surrogate's own, as in the paper.
    """

    def __call__(self, logits: Tensor, y: Tensor, target: Tensor | None) -> Tensor:
        return super().__call__(_by_margin(logits), y, target)

    def odds(self, logits: Tensor, y: Tensor, target: Tensor | None) -> Tensor:
        """See `OfOdds`."""
        return super().odds(_by_margin(logits), y, target)


@part("loss", "po-trip", untargeted=False, paper="Li et al., CVPR 2020 (Po+Trip)", year=2020)
class PoincareTriplet:
    """Poincaré distance of the logits to the target, and a triplet loss; both are descended.

    With ``a = z / ||z||_1`` and b the target's one-hot vector, 1e-5 shorter::

        D = arccosh(1 + 2 ||a - b||^2 / ((1 - ||a||^2) (1 - ||b||^2)))
        T = max(0, s(y) - s(target) + gamma),  s(k) = |z_k| / ||z||_2

    and ``D + weight T`` is descended. b is so close to the border of the unit ball that distances are near
    12, and the gradient grows as a comes near. The paper caps T at 2.1, which ``s <= 1`` never reaches.
    A port takes the mean of s over the batch before the hinge; here each sample has a hinge of its own.

    Args:
        weight: of the triplet loss.
        gamma: its margin.
    """

    weight: float = 0.01
    gamma: float = 0.007

    def __call__(self, logits: Tensor, y: Tensor, target: Tensor | None) -> Tensor:
        if target is None:
            raise InputError("loss 'po-trip' has no untargeted form: it needs targets")
        tiny, xi = torch.finfo(logits.dtype).eps, 1e-5
        a = logits / torch.linalg.vector_norm(logits, 1, dim=1, keepdim=True).clamp_min(tiny)
        b = F.one_hot(target, logits.shape[1]) * (1 - xi)
        left = (1 - (a * a).sum(1)).clamp_min(tiny) * (2 * xi - xi * xi)
        u = 2 * ((a - b) ** 2).sum(1) / left
        distance = torch.log1p(u + (u * (u + 2)).sqrt())  # arccosh(1 + u), for small u, too
        s = logits.abs() / torch.linalg.vector_norm(logits, dim=1, keepdim=True).clamp_min(tiny)
        triplet = F.relu(_pick(s, y) - _pick(s, target) + self.gamma)
        return -(distance + self.weight * triplet)


def log_odds(logits: Tensor, y: Tensor) -> Tensor:
    """Log-odds of class ``y`` against all others, (N,)."""
    if logits.shape[1] < 2:
        raise InputError("cross-entropy needs 2 classes; these models have 1")
    return _pick(logits, y) - _others(logits, y).logsumexp(1)


def mean_odds(odds: Tensor, log_weights: Tensor) -> Tensor:
    """Log-odds (N,) under the mean of probabilities whose log-odds are ``odds``, (K, N)."""
    wanted = F.logsigmoid(odds) + log_weights
    return wanted.logsumexp(0) - (F.logsigmoid(-odds) + log_weights).logsumexp(0)


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy (N,), for confident models, too: positive as long as a float can be."""
    return -F.logsigmoid(log_odds(logits, y))


def log_cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Logarithm of the cross-entropy, (N,): finite, and with a gradient, at any confidence."""
    m = -log_odds(logits, y)
    return torch.where(m < -30, m, F.softplus(m.clamp_min(-30)).log())  # log(1 + e^m) is e^m there


def _pick(logits: Tensor, y: Tensor) -> Tensor:
    return logits.gather(1, y[:, None]).squeeze(1)


def _best_other(logits: Tensor, y: Tensor) -> Tensor:
    return _others(logits, y).amax(1)


def _by_margin(logits: Tensor) -> Tensor:
    """Logits over the margin between the two largest, which has no gradient."""
    if logits.shape[1] < 2:
        raise InputError("loss 'logit-margin' needs 2 classes; these models have 1")
    top = logits.detach().topk(2, dim=1).values
    return logits / (top[:, :1] - top[:, 1:]).clamp_min(1e-6)


def _others(logits: Tensor, y: Tensor) -> Tensor:
    """The logits, that of ``y`` replaced by minus infinity, (N, classes)."""
    return logits.masked_fill(F.one_hot(y, logits.shape[1]).bool(), -torch.inf)
