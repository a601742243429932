"""Do a board's decisions about new models depend on how they are made? A mixed model beside the tests.

    python -m advens.benchmarks.studies.mixed runs/quickstart

The success of an attack on an image and a target is taken as binomial, with a logit that is a sum of the
attack's effect, which is fixed, and random effects of the target, of the image, and of attack and target
together. statsmodels fits it (``BinomialBayesMixedGLM`` by variational Bayes). Its standard errors take the
effects as independent of each other and are far too small for a difference; the covariance is therefore that
of all effects together, from the curvature of the posterior at the fitted means and standard deviations. Two
attacks are told apart when their effects differ (Holm, 5 %), as the two-way test of the board does it. The
model's tails are normal, where the test's are Student's over few targets, so that it tells more pairs apart.

It needs ``pip install advens[studies]``.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from advens.cli import script
from advens.errors import InputError
from advens.results.boards.leaderboard import LEVEL
from advens.results.boards.rows import Rows
from advens.results.statistics import LEAST_TARGETS, holm, two_way_test

Array = NDArray[np.float64]
_PRIOR = 3.0  # standard deviation of the prior of an attack's effect


class Effects(NamedTuple):
    """What was fitted, on the logit scale.

    Args:
        attack: effect of each attack (A,), and ``covariance`` (A, A) of these.
        target, image, together: standard deviations of the random effects.
    """

    attack: Array
    covariance: Array
    target: float
    image: float
    together: float

    def p(self, a: int, b: int) -> float:
        """Of no difference between two attacks, two-sided."""
        from scipy.special import ndtr

        variance = self.covariance[a, a] + self.covariance[b, b] - 2 * self.covariance[a, b]
        return float(2 * ndtr(-abs(self.attack[a] - self.attack[b]) / np.sqrt(variance)))


def fitted(blocks: Sequence[Array]) -> Effects:
    """The mixed model of some attacks.

    Args:
        blocks: success of each attack, (images, targets) over the same ones; nan where an image is not
            in the denominator. Means over seeds are rounded.

    Raises:
        InputError: statsmodels is not installed.
    """
    from scipy.sparse import csr_matrix, diags, hstack
    from scipy.special import expit

    try:
        from statsmodels.genmod.bayes_mixed_glm import BinomialBayesMixedGLM
    except ImportError:
        raise InputError("the mixed model needs statsmodels: pip install 'advens[studies]'") from None

    values = np.stack(blocks)
    attacks, images, targets = values.shape
    attack, image, target = np.nonzero(~np.isnan(values))
    success = np.round(values[attack, image, target])
    each = np.arange(len(success))
    effects = [(target, targets), (image, images), (attack * targets + target, attacks * targets)]
    random = [csr_matrix((np.ones(len(each)), (each, at)), (len(each), size)) for at, size in effects]
    design = hstack([csr_matrix(np.eye(attacks)[attack]), *random]).tocsr()
    group = np.repeat([0, 1, 2], [size for _, size in effects])
    found = BinomialBayesMixedGLM(
        success, design[:, :attacks].toarray(), design[:, attacks:], group, vcp_p=1, fe_p=_PRIOR
    ).fit_vb()
    deviations = np.exp(found.vcp_mean)
    rates = expit(design @ np.concatenate([found.fe_mean, found.vc_mean]))
    prior = np.concatenate([np.full(attacks, 1 / _PRIOR**2), 1 / deviations[group] ** 2])
    precision = (design.T @ diags(rates * (1 - rates)) @ design).toarray() + np.diag(prior)
    covariance = np.linalg.inv(precision)[:attacks, :attacks]
    return Effects(np.asarray(found.fe_mean), covariance, *map(float, deviations))


def decisions(blocks: Sequence[Array], effects: Effects) -> pd.DataFrame:
    """Every pair of attacks: p-values of the model and of the test, each adjusted, and whether they agree."""
    pairs = list(combinations(range(len(blocks)), 2))
    table: pd.DataFrame = pd.DataFrame(pairs, columns=["a", "b"])
    table["model"] = holm([effects.p(a, b) for a, b in pairs])
    table["test"] = holm([two_way_test(blocks[a] - blocks[b]) for a, b in pairs])
    table["agree"] = (table["model"] < LEVEL) == (table["test"] < LEVEL)
    return table


@click.command()
@click.argument("run", type=click.Path(exists=True, file_okay=False, path_type=Path))
def main(run: Path) -> None:
    """A mixed model of the finished RUN, and its decisions beside those of the leaderboard."""
    means = Rows(run).means
    if not means.common or len(means.names or []) < LEAST_TARGETS:
        raise click.ClickException(f"the attacks in {run} share fewer than {LEAST_TARGETS} held-out targets")
    able = [row for row, used in enumerate(means.used) if used.any()]
    able.sort(key=lambda row: -means.table["mean_asr"][row])
    blocks = [means.blocks[row] for row in able]
    names = [f"{means.parts.rows['attack'][row]} ({means.parts.rows['surrogates'][row]})" for row in able]
    try:
        effects = fitted(blocks)
    except InputError as error:
        raise click.ClickException(str(error)) from None
    click.echo("| attack | success rate, % | effect, logit | SE |\n| --- | --- | --- | --- |")
    for k, (name, row) in enumerate(zip(names, able, strict=True)):
        deviation = np.sqrt(effects.covariance[k, k])
        rate = 100 * means.table["mean_asr"][row]
        click.echo(f"| {name} | {rate:.1f} | {effects.attack[k]:.2f} | {deviation:.2f} |")
    click.echo(
        f"\nStandard deviations: targets {effects.target:.2f}, images {effects.image:.2f}, attack and "
        f"target together {effects.together:.2f}.\n"
    )
    table = decisions(blocks, effects)
    click.echo("| pair | p, mixed model | p, two-way test | agree |\n| --- | --- | --- | --- |")
    for pair in table.itertuples():
        said = "yes" if pair.agree else "no"
        click.echo(f"| {names[pair.a]} - {names[pair.b]} | {pair.model:.2g} | {pair.test:.2g} | {said} |")
    click.echo(f"\nThe decisions agree on {int(table['agree'].sum())} of {len(table)} pairs.")


if __name__ == "__main__":
    script(main)
