"""Executors: who does the tasks. Results do not depend on it."""

from advens.benchmarks.executors.local import *  # noqa
