"""Exceptions whose message is one line for people, and hints at the nearest valid choice."""

from __future__ import annotations

import difflib
import traceback
from collections.abc import Iterable
from pathlib import Path

from advens.printable import printable


class InputError(ValueError):
    """What the caller gave cannot be used. The message is one line: what was given, what is allowed.

    The command line ends with exit code 2.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(printable(message))


class RunError(RuntimeError):
    """The input was fine but the work failed or found failures: exit code 1 on the command line."""

    def __init__(self, message: object = "") -> None:
        super().__init__(printable(message))


def failure(error: Exception) -> RunError:
    """A failure of the work, a model or a plug-in in one line, without what cannot go between processes."""
    if isinstance(error, RunError):
        return RunError(str(error))
    at = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{Path(at.filename).name}:{at.lineno}"
    return RunError(f"{type(error).__name__}: {first_line(error)} ({place})")


class InputWarning(UserWarning):
    """What the caller gave can be used, but something had to be assumed: one line."""


SYNONYMS = {
    "epsilon": "eps", "decay": "mu", "decay_factor": "mu", "momentum": "mu", "alpha": "step_size",
    "eps_iter": "step_size", "nb_iter": "steps", "n_iter": "steps", "num_iter": "steps", "num_steps": "steps",
    "iterations": "steps", "iters": "steps", "num_scale": "copies", "num_neighbor": "copies",
    "diversity_prob": "p",
}  # fmt: skip
"""What other packages call an option, and its name here."""


def nearest(given: str, allowed: Iterable[str]) -> str:
    """A hint such as ``; did you mean 'resnet'?``, or the allowed values, or nothing."""
    choices = sorted(set(allowed))
    meant = SYNONYMS.get(given.lower())
    if meant in choices:
        return f"; did you mean '{meant}'?"
    lowered = {choice.lower(): choice for choice in choices}
    close = difflib.get_close_matches(given.lower(), lowered, n=1, cutoff=0.5)
    if close:
        return f"; did you mean '{lowered[close[0]]}'?"
    if 0 < len(choices) <= 12:
        return f"; one of: {', '.join(choices)}"
    return ""


def unknown(kind: str, given: str, allowed: Iterable[str]) -> InputError:
    """The error for a name that does not exist, with the nearest one that does."""
    if any(c in given for c in "*["):
        return InputError(f"unknown {kind} '{given}': no name matches this pattern")
    return InputError(f"unknown {kind} '{given}'{nearest(given, allowed)}")


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type when it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
