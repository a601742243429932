"""Input transforms: what a surrogate sees instead of the image. One file each.

A transform with several copies is asked for each of them; the gradient is the mean over all. What it
draws is named by step and copy, so every gradient of one step sees the same draw.
"""

from advens.attacks.interfaces import InputTransform

__all__ = ["InputTransform"]
