"""How far a number can be trusted, when two of them differ, and how both are shown.

Question (a) is "these targets, new images", question (b) "new models and new images". Every random
draw is seeded by the caller from the content it is about, so that the same samples give the same
digits everywhere.
"""

from advens.results.statistics.groups import letters
from advens.results.statistics.images import (
    Array,
    Estimate,
    bootstrap_mean,
    bootstrap_means,
    content_seed,
    nanmean,
    wilson,
)
from advens.results.statistics.models import (
    LEAST_TARGETS,
    rank_intervals,
    two_way,
    two_way_difference,
    two_way_test,
    two_way_tests,
)
from advens.results.statistics.pairs import holm, paired_tests
from advens.results.statistics.trainings import (
    LEAST_TRAININGS,
    over_trainings,
    trainings_difference,
    trainings_test,
)

__all__ = [
    "LEAST_TARGETS",
    "LEAST_TRAININGS",
    "Array",
    "Estimate",
    "bootstrap_mean",
    "bootstrap_means",
    "content_seed",
    "holm",
    "letters",
    "nanmean",
    "over_trainings",
    "paired_tests",
    "rank_intervals",
    "trainings_difference",
    "trainings_test",
    "two_way",
    "two_way_difference",
    "two_way_test",
    "two_way_tests",
    "wilson",
]
