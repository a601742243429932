"""Fusions: how K surrogates agree on one direction. One file a method.

Uniform fusion, the default of the attack loop, is in `advens.attacks.uniform`, below the loop.
"""

from advens.attacks.interfaces import Fusion
from advens.attacks.uniform import EnsLogits, EnsLoss, EnsProbs

__all__ = ["EnsLogits", "EnsLoss", "EnsProbs", "Fusion"]
