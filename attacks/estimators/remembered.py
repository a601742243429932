"""What an estimator remembers from step to step, where a fusion asks several times within one."""

from __future__ import annotations

from typing import Any

from advens.attacks.interfaces import Context


def remembered(memory: dict[str, Any], context: Context) -> dict[str, Any]:
    """What ``memory`` held when the step at hand began: that is what every estimate of the step sees.

    Values are replaced in ``memory`` and never changed in place.
    """
    step = context.draws.step
    if memory.get("step") != step:
        memory["begun"] = {name: value for name, value in memory.items() if name != "begun"}
        memory["step"] = step
    begun: dict[str, Any] = memory["begun"]
    return begun
