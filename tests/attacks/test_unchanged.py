"""What an attack crafts stays the same from version to version, as runs are verified by crafting again.

``crafted.json`` holds, for each attack, some pixels of what it crafted when it was recorded, in 8-bit levels
from the clean image. An attack that is changed on purpose is recorded again:

    python -m tests.attacks.test_unchanged NAME...
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import advens
from advens.attacks import attack_info
from advens.attacks.parts import PARTS
from tests.attacks.conftest import CLASSES, bytes_like, net_of, small_attack

RECORDED = Path(__file__).with_name("crafted.json")
EPS = {"linf": "32/255", "l2": 1.5}
EVERY = 16
"""One pixel in so many is recorded."""
FIELDS = {"estimator": "estimator", "update": "update", "loss": "loss", "start": "start",
          "transform": "transforms", "filter": "transforms", "change": "changes"}  # fmt: skip
"""The option of an attack that a kind of parts is given as."""


def cases() -> list[tuple[str, str]]:
    """Every attack in every norm, and every part of a composed attack in one that is otherwise plain."""
    attacks = [(name, norm) for name in advens.list_attacks() for norm in attack_info(name).norms]
    parts = [(f"{kind}={part}", "linf") for kind in FIELDS for part in PARTS[kind]
             if PARTS[kind].info(part).family != "white-box"]  # asks the model; a white-box attack has it
    return attacks + parts


def attack_of(name: str, norm: str) -> Any:
    kind, _, part = name.rpartition("=")
    if not kind:
        return small_attack(name, norm=norm, eps=EPS[norm])
    value: Any = [part] if FIELDS[kind] in ("transforms", "changes") else part
    return small_attack("ens-probs", norm=norm, eps=EPS[norm], **{FIELDS[kind]: value})


def crafted(name: str, norm: str) -> list[int]:
    """8-bit levels from the clean image."""
    attack, x = attack_of(name, norm), bytes_like(0)
    models = [net_of(attack)(seed) for seed in range(2)]
    with torch.no_grad():
        y = torch.stack([model(x) for model in models]).mean(0).argmax(1)
    y[-1] = (y[-1] + 1) % CLASSES  # wrong from the start
    result = attack.run(models, x, y, seed=3)
    stored = attack.threat.quantise(result.x_adv, x)
    levels: list[int] = (stored.int() - (255 * x).round().int()).flatten()[::EVERY].tolist()
    return levels


def recorded() -> dict[str, list[int]]:
    found: dict[str, list[int]] = json.loads(RECORDED.read_text()) if RECORDED.is_file() else {}
    return found


@pytest.mark.parametrize("case", recorded())
def test_the_same_images_as_when_they_were_recorded(case: str) -> None:
    """Of a few pixels the gradient is next to zero, where another machine may round to another sign."""
    name, norm = case.split(" ")
    then, now = recorded()[case], crafted(name, norm)
    assert len(now) == len(then)
    assert sum(abs(a - b) <= 1 for a, b in zip(now, then, strict=True)) >= 0.95 * len(then)


if __name__ == "__main__":
    named = sys.argv[1:]
    made = recorded() | {f"{name} {norm}": crafted(name, norm) for name, norm in cases()
                         if not named or name in named}  # fmt: skip
    lines = [f"{json.dumps(key)}: {json.dumps(value, separators=(',', ':'))}" for key, value in made.items()]
    RECORDED.write_text("{\n" + ",\n".join(lines) + "\n}\n")
