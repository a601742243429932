"""Changes inside a surrogate: what its blocks compute, or what flows back through them. One file each.

A change belongs to an attack (its field ``changes``) and is applied to every surrogate, or to one copy of a
model that a builder made. It is there while the model runs, and gone between calls.
"""

from advens.attacks.hooks import Changed, Swap, attached, begin_step, on_gradient
from advens.attacks.interfaces import ChangeContext, Handle, ModelChange

__all__ = [
    "ChangeContext", "Changed", "Handle", "ModelChange", "Swap", "attached", "begin_step",
    "on_gradient",
]  # fmt: skip
