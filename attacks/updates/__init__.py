"""Updates: how the directions of successive steps become the step that is taken. One file for each method.

An update looks ahead before the gradient is asked for, and mixes the gradient with those before it.
The step is the threat model's unit step along the result (the sign in l_inf, the normalised direction in
l_2), unless the update has a step of its own.
"""

from __future__ import annotations

from torch import Tensor

from advens.attacks.interfaces import Context, OwnStep
from advens.attacks.interfaces import Update as Update
from advens.attacks.updates.momentum import MI as MI
from advens.attacks.updates.momentum import NI as NI
from advens.attacks.updates.momentum import BatchMI as BatchMI
from advens.attacks.updates.momentum import Sign as Sign
from advens.attacks.updates.momentum import Sum as Sum
from advens.attacks.updates.momentum import accumulate as accumulate
from advens.attacks.updates.momentum import mean_size as mean_size
from advens.attacks.updates.momentum import unit_mean as unit_mean


def stepped(
    update: Update, x_adv: Tensor, g: Tensor, memory: dict[str, Tensor], context: Context
) -> Tensor:
    """The next iterate: ``x_adv`` moved by the update's step for the gradient ``g``, and projected."""
    ahead = update.direction(g, memory)
    if isinstance(update, OwnStep):
        return context.move(x_adv, context.step_size, update.displacement(ahead, memory, context))
    return context.step(x_adv, context.step_size, ahead)
