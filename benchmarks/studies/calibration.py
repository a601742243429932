"""Do intervals cover, and do tests err, as often as they say? A study on made data.

    python -m advens.benchmarks.studies.calibration [--draws 200] [--out calibration.md]

Whether an attack breaks a target on an image is drawn with a probability whose logit is a sum: what the
attack is worth, and normal effects of the target, of the image, of attack and target together, and of
attack and image together. What is true of these targets, and of all targets of the population, is then
known. A share of the images is left out of each target's denominator, as images are that a target
classifies wrongly.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.special import expit
from scipy.stats import binom

from advens.cli import script
from advens.results.statistics import (
    LEAST_TRAININGS,
    bootstrap_mean,
    over_trainings,
    paired_tests,
    rank_intervals,
    trainings_test,
    two_way,
    two_way_difference,
    two_way_test,
    wilson,
)

Array = NDArray[np.float64]
Table = Iterator[Sequence[str]]
LEVEL = 0.05
RESAMPLES = 400
IMAGES = (50, 150, 500)
TARGETS = (5, 10, 20)
RATES = (0.02, 0.1, 0.5, 0.98)
_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(60)


@dataclass(frozen=True)
class Made:
    """A population of images and targets, and a sample of it.

    Args:
        rates: success rate of each attack over all images and targets of the population.
        images, targets: size of the sample.
        target, image, attack_target, attack_image: standard deviations of the effects (logit).
        missing: share of the images that a target does not count.
    """

    rates: tuple[float, ...] = (0.5, 0.5)
    images: int = 150
    targets: int = 10
    target: float = 0.5
    image: float = 1.0
    attack_target: float = 0.25
    attack_image: float = 0.5
    missing: float = 0.1

    def draw(self, rng: np.random.Generator) -> Draw:
        """One sample, and what is true of its targets."""
        attacks, n, t = len(self.rates), self.images, self.targets
        over_images = np.hypot(self.image, self.attack_image)
        spread = float(np.sqrt(self.target**2 + self.attack_target**2 + over_images**2))
        worth = np.array([_logit_of_mean(rate, spread) for rate in self.rates])
        of_target = worth[:, None] + self.target * rng.standard_normal(t)
        of_target = of_target + self.attack_target * rng.standard_normal((attacks, t))
        of_image = self.image * rng.standard_normal(n)
        of_image = of_image + self.attack_image * rng.standard_normal((attacks, n))
        probability = expit(of_target[:, None, :] + of_image[:, :, None])
        values = (rng.random(probability.shape) < probability).astype(float)
        values[:, rng.random((n, t)) < self.missing] = np.nan
        return Draw(values, _mean(of_target, over_images))


class Draw(NamedTuple):
    """Outcomes (attacks, images, targets), and the rates (attacks, targets) over all images."""

    values: Array
    rates: Array


def _mean(logit: ArrayLike, spread: float) -> Array:
    """Mean of expit(logit + spread Z) over a normal Z, by Gauss's quadrature."""
    mean: Array = expit(np.asarray(logit)[..., None] + spread * _NODES) @ _WEIGHTS / _WEIGHTS.sum()
    return mean


@cache
def _logit_of_mean(rate: float, spread: float) -> float:
    return float(brentq(lambda logit: float(_mean(logit, spread)) - rate, -40, 40))


MILD = Made()
STRONG = Made(target=1.0, image=1.5, attack_target=0.75, attack_image=0.75)


def covered(low: float, high: float, truth: float) -> bool:
    return bool(low <= truth <= high)


def intervals(made: Made, draws: int, seed: int = 0) -> dict[str, float]:
    """Coverage of the intervals of one attack: of a cell, of the mean by both questions."""
    rng = np.random.default_rng(seed)
    hits = dict.fromkeys(("cell", "these", "these as new", "new"), 0)
    for k in range(draws):
        values, rates = replace(made, rates=made.rates[:1]).draw(rng)
        cell = values[0, :, 0]
        hits["cell"] += covered(*wilson(np.nansum(cell), (~np.isnan(cell)).sum()), truth=rates[0, 0])
        _, low, high = bootstrap_mean(values[0], seed=k, resamples=RESAMPLES)
        hits["these"] += covered(low, high, float(rates[0].mean()))
        hits["these as new"] += covered(low, high, made.rates[0])
        hits["new"] += covered(*two_way(values[0])[1:], truth=made.rates[0])
    return {name: count / draws for name, count in hits.items()}


def levels(made: Made, draws: int, seed: int = 0) -> dict[str, float]:
    """How often tests tell two attacks apart that are the same: on these targets, or over new ones."""
    rng = np.random.default_rng(seed)
    made = replace(made, rates=made.rates[:1] * 2)
    hits = dict.fromkeys(("these", "these as new", "new", "difference"), 0.0)
    for k in range(draws):
        for name, own in (("these", replace(made, attack_target=0.0)), ("these as new", made)):
            values = own.draw(rng).values
            difference = values[0] - values[1]
            counts = (~np.isnan(difference)).sum(axis=0)
            by_image = np.nansum(difference / counts, axis=1)
            hits[name] += float(paired_tests(by_image[:, None], seed=k, flips=999)[0]) < LEVEL
        hits["new"] += two_way_test(difference) < LEVEL
        hits["difference"] += covered(*two_way_difference(difference)[1:], truth=0.0)
    return {name: count / draws for name, count in hits.items()}


def ranks(made: Made, draws: int, seed: int = 0) -> dict[str, float]:
    """Coverage of the rank's interval: of the row that it covers least often, and its mean width."""
    rng = np.random.default_rng(seed)
    rates = np.array(made.rates)
    first = 1 + (rates > rates[:, None]).sum(axis=1)
    last = (rates >= rates[:, None]).sum(axis=1)
    hits, width = np.zeros(len(rates)), 0.0
    for k in range(draws):
        low, high = rank_intervals(list(made.draw(rng).values), seed=k, resamples=RESAMPLES).T
        hits += (low <= last) & (high >= first)
        width += float((high - low + 1).mean())
    return {"least": float(hits.min()) / draws, "mean": float(hits.mean()) / draws, "width": width / draws}


def trainings(
    rate: float, points: float, images: int, count: int, draws: int, seed: int = 0
) -> dict[str, float]:
    """Two defenses that are the same, whose trainings differ by ``points`` of accuracy (SD)."""
    rng = np.random.default_rng(seed)
    ease, noise = 1.5, 0.75
    inner = float(np.hypot(ease, noise))
    slope = _slope(rate, inner)
    spread = points / 100 / slope
    centre = _logit_of_mean(rate, float(np.hypot(inner, spread)))
    hits = dict.fromkeys(("interval", "told apart"), 0.0)
    for _ in range(draws):
        easy = ease * rng.standard_normal((images, 1))
        both = []
        for _ in range(2):
            logits = centre + easy + spread * rng.standard_normal(count)
            logits = logits + noise * rng.standard_normal((images, count))
            both.append((rng.random(logits.shape) < expit(logits)).astype(float))
        hits["interval"] += covered(*over_trainings(both[0].mean(axis=0), images)[1:], truth=rate)
        hits["told apart"] += trainings_test(*both) < LEVEL
    return {name: count / draws for name, count in hits.items()}


def _slope(rate: float, spread: float) -> float:
    """Of the mean rate, by the logit, where the mean is ``rate``."""
    at = _logit_of_mean(rate, spread)
    return float(_mean(at + 0.01, spread) - _mean(at - 0.01, spread)) / 0.02


def binomial_bounds(share: float, draws: int, error: float = 0.001) -> tuple[float, float]:
    """Shares of the draws within which a true ``share`` is found, but for ``error`` on each side."""
    low, high = binom.ppf([error, 1 - error], draws, share) / draws
    return float(low), float(high)


CLOSE = (0.40, 0.41, 0.42, 0.43, 0.44, 0.45)
APART = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7)


def coverage(value: float, draws: int) -> str:
    """A share of draws as it is shown: bold where 95 % would hardly ever give so little."""
    return _shown(value, value < binomial_bounds(1 - LEVEL, draws)[0])


def level(value: float, draws: int) -> str:
    """A share of draws as it is shown: bold where 5 % would hardly ever give so much."""
    return _shown(value, value > binomial_bounds(LEVEL, draws)[1])


def _shown(value: float, fails: bool) -> str:
    return f"**{value:.3f}**" if fails else f"{value:.3f}"


def one_and_two(draws: int) -> Table:
    """Intervals of one attack, and tests of two that are the same, over the whole grid."""
    yield (
        "effects", "rate", "targets", "images", "Wilson, one target", "bootstrap, these targets",
        "bootstrap, new models", "two-way, new models", "sign flips, these targets",
        "sign flips, new models", "two-way test, new models", "two-way interval of the difference",
    )  # fmt: skip
    for name, effects in (("mild", MILD), ("strong", STRONG)):
        for seed, (rate, targets, images) in enumerate(product(RATES, TARGETS, IMAGES)):
            made = replace(effects, rates=(rate, rate), images=images, targets=targets)
            found, told = intervals(made, draws, seed), levels(made, draws, seed)
            yield (
                name, f"{rate:g}", str(targets), str(images),
                *(coverage(value, draws) for value in found.values()),
                *(level(told[key], draws) for key in ("these", "these as new", "new")),
                coverage(told["difference"], draws),
            )  # fmt: skip


def of_ranks(draws: int) -> Table:
    """Intervals of ranks, of six attacks that are apart and of six that are close."""
    yield "effects", "rates", "targets", "images", "row covered least often", "mean", "ranks in an interval"
    for name, effects in (("mild", MILD), ("strong", STRONG)):
        for rates, targets, images in product((APART, CLOSE), TARGETS, (50, 500)):
            found = ranks(replace(effects, rates=rates, images=images, targets=targets), draws)
            shown = [coverage(found[key], draws) for key in ("least", "mean")]
            what = f"{rates[0]:g} to {rates[-1]:g}"
            yield name, what, str(targets), str(images), *shown, f"{found['width']:.1f}"


def of_trainings(draws: int) -> Table:
    """Two defenses that are the same, by what their trainings differ by."""
    yield "accuracy", "SD of trainings, points", "images", "trainings", "interval", "test"
    for rate, points, images, count in product((0.5, 0.8, 0.95), (0, 3, 6), (100, 250), (3, 5, 10)):
        found = trainings(rate, points, images, count, draws)
        told = level(found["told apart"], draws) if count >= LEAST_TRAININGS else "-"
        yield f"{rate:g}", str(points), str(images), str(count), coverage(found["interval"], draws), told


PARTS = {
    "One attack, and two that are the same": one_and_two,
    "Ranks of six attacks, new models": of_ranks,
    "Two equal defenses, over trainings": of_trainings,
}


@click.command()
@click.option("--draws", default=200, show_default=True, help="Samples of every setting.")
@click.option("--out", type=click.Path(path_type=Path), help="File to write, instead of the terminal.")
def main(draws: int, out: Path | None) -> None:
    """Coverage of the intervals and level of the tests, on made data."""
    low, high = binomial_bounds(1 - LEVEL, draws)[0], binomial_bounds(LEVEL, draws)[1]
    lines = [
        f"Coverage of 95 % intervals and level of 5 % tests, {draws} draws of each setting. In bold: less "
        f"coverage than {low:.3f} or a level above {high:.3f}, which chance gives once in a thousand times."
    ]
    for title, part in PARTS.items():
        head, *rows = part(draws)
        lines += ["", f"**{title}**", ""]
        lines += [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]
    text = "\n".join(lines) + "\n"
    if out is None:
        click.echo(text, nl=False)
    else:
        out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    script(main)
