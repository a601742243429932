"""Gradient estimators: an oracle's gradient at a point, from gradients around it. One file each."""

from advens.attacks.estimators.plain import Plain
from advens.attacks.interfaces import GradientEstimator

__all__ = ["GradientEstimator", "Plain"]
