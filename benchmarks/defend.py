"""``advens defend``: all that a defense should be asked, in one command and one folder of runs.

Transfer from separately trained surrogates at every budget, attacks in the open at the largest, and what
is measured of ensembles: diversity, transfer between members, cost. Every part is a run of its own that
can be continued, verified and looked at with the other commands.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from advens.attacks.expectation import is_randomized
from advens.benchmarks.executors import execute
from advens.benchmarks.plan import outline
from advens.benchmarks.progress import Progress
from advens.benchmarks.runner import Report, run_suite
from advens.benchmarks.suites import Suite, from_table
from advens.classifier import Classifier
from advens.datasets import Dataset, find_data
from advens.defenses.measures import cost, diversity, transfer_between
from advens.digest import value_digest
from advens.errors import InputError, RunError
from advens.files import write_bytes
from advens.models import expand, find_model
from advens.results.boards import to_table
from advens.results.boards.outcomes import expected
from advens.results.boards.summary import load
from advens.results.statistics import wilson
from advens.results.store import write_table
from advens.threat import Threat, parse_eps

SURROGATES = ("digits:convnext", "digits:resnet-b", "digits:vit-b")
"""Attackers of defenses of the digits, when nobody says."""
TRANSFER = ("mifgsm", "di-mi-ens-logits", "mi-smer")
OPEN: dict[str, dict[str, Any]] = {
    "pgd": {"name": "pgd-ce", "steps": 50, "restarts": 5}, "pma-plus": {"name": "pma-plus"},
}  # fmt: skip
"""Attacks on any model, by label, when nobody says; others go by their own names."""
ADAPTIVE: dict[str, dict[str, Any]] = {"adaptive-pgd": {"name": "adaptive-pgd"}, "arc": {"name": "arc"}}
"""Those on randomized ensembles, beside."""


@dataclass(frozen=True)
class Trial:
    """What defenses are put through.

    Args:
        defenses: models.
        data: images that are attacked.
        surrogates: models that transfer comes from, trained separately.
        transfer: attacks on these.
        budgets: l_inf radii of transfer, ascending; attacks in the open have the last.
        open: attacks on the defenses themselves; randomized ones are put to theirs beside.
        limit: only so many images.
        open_limit: the first so many of these for attacks in the open, which cost the most.
        seed: of everything.
        measured: images that diversity and transfer between members are measured on.
        batch_size: images at once.
    """

    defenses: tuple[str, ...]
    data: str
    surrogates: tuple[str, ...]
    transfer: tuple[str, ...]
    budgets: tuple[str, ...]
    open: tuple[str, ...]
    limit: int | None = None
    open_limit: int | None = None
    seed: int = 0
    measured: int = 200
    batch_size: int | None = None

    def suites(self, randomized: Sequence[str]) -> dict[str, Suite]:
        """The runs by the names of their folders."""
        common: dict[str, Any] = {
            "data": self.data, "limit": self.limit, "seeds": [self.seed], "targets": list(self.defenses),
            "batch_size": self.batch_size,
        }  # fmt: skip
        found: dict[str, Suite] = {}
        for eps in self.budgets:
            name = f"transfer-{eps.replace('/', '-')}"
            found[name] = from_table(
                common | {
                    "name": name.replace(".", "-"), "threat": {"norm": "linf", "eps": eps},
                    "surrogates": {"surrogates": list(self.surrogates)},
                    "attacks": [{"name": attack} for attack in self.transfer],
                }, name,
            )  # fmt: skip
        attacks: list[dict[str, Any]] = [
            {**OPEN.get(label, {"name": label}), "label": label} for label in self.open
        ]
        attacks += [
            {**entry, "label": label, "surrogates": list(randomized)}
            for label, entry in ADAPTIVE.items() if randomized and label not in self.open
        ]  # fmt: skip
        found["open"] = from_table(
            common | {
                "name": "open", "goal": "robustness", "crossed": False,
                "limit": min((n for n in (self.open_limit, self.limit) if n), default=None),
                "threat": {"norm": "linf", "eps": self.budgets[-1]},
                "surrogates": {name: [name] for name in self.defenses}, "attacks": attacks,
            }, "open",
        )  # fmt: skip
        return found


def defend(
    trial: Trial,
    directory: Path,
    *,
    device: str = "cpu",
    executor: str = "local",
    workers: int = 1,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Do what is missing; one row for every defense, also in ``defenses.parquet``.

    ``images.parquet`` has what the accuracies are means of: the share of draws that are right on an image.

    Raises:
        InputError: a name that cannot be, or a folder that holds another trial.
        RunError: some cells failed; finished ones are kept.
    """
    progress = progress or Progress()
    models = {name: find_model(name) for name in trial.defenses}
    suites = trial.suites([name for name, model in models.items() if is_randomized(model)])
    rows: dict[str, dict[str, Any]] = {name: about(model) for name, model in models.items()}
    images: list[pd.DataFrame] = []
    _ = [outline(suite, held_out=False) for suite in suites.values()]  # mistakes first
    for number, (folder, suite) in enumerate(suites.items(), 1):
        report = run_suite(
            suite, directory / folder, device=device, executor=executor, workers=workers,
            progress=progress.of(f"{folder} ({number} of {len(suites) + 1} parts)"),
        )  # fmt: skip
        _whole(report)
        samples, _ = load([directory / folder])
        for name in trial.defenses:
            own = expected(samples[samples["target"] == name])
            n = own["sample_id"].nunique()
            if folder == "open":
                left = in_the_open(own, [*trial.open, *ADAPTIVE])
                rows[name] |= {"n open": n}
            else:
                left = transferred(own, str(suite.threat.eps))
                rows[name] |= {"clean": float(own["clean"].mean()), "n": n} | interval(left)
            rows[name] |= {measure: float(values.mean()) for measure, values in left.items()}
            images += [
                values.rename("left").reset_index().assign(defense=name, measure=measure)
                for measure, values in left.items() if len(values)
            ]
    data = find_data(suites["open"].source)
    paths = {name: _measures(directory, model, data, trial) for name, model in models.items()}
    tasks = [Measure(name, trial, suites["open"].source, str(path)) for name, path in paths.items()]
    outcomes = execute(tasks, executor, workers, device)
    last = progress.of(f"members ({len(suites) + 1} of {len(suites) + 1} parts)")
    with last.task("measuring", len(tasks)) as advance, closing(outcomes):
        for task, outcome in outcomes:
            if isinstance(outcome, RunError):
                raise RunError(f"{task.title}: {outcome}")
            advance(task.title)
    for name, path in paths.items():
        kept: Mapping[str, Any] = json.loads(path.read_text())
        rows[name] |= {measure: kept.get(measure) for measure in ("diversity", "shared")}
        rows[name] |= {"mflops": kept["flops"] / 1e6}
    table: pd.DataFrame = pd.DataFrame(rows.values())
    found: pd.DataFrame = pd.concat(images, ignore_index=True)
    table["missed"] = table["defense"].map(missed(found, f"transfer {trial.budgets[-1]}"))
    write_table(directory / "images.parquet", to_table("images", found))
    write_table(directory / "defenses.parquet", to_table("defenses", table))
    return table


def about(model: Classifier) -> dict[str, Any]:
    """What a defense is."""
    members = list(getattr(model, "members", ()))
    kind = "randomized" if is_randomized(model) else "mean" if members else "single"
    return {"defense": model.name, "kind": kind, "members": max(1, len(members))}


def transferred(own: pd.DataFrame, eps: str) -> dict[str, pd.Series]:
    """Accuracy on the worst of each image's transferred ones."""
    return {f"transfer {eps}": own.groupby("sample_id", observed=True)["left"].min()}


def in_the_open(own: pd.DataFrame, attacks: Sequence[str]) -> dict[str, pd.Series]:
    """Accuracy on each image after each attack on the model itself, and after the worst of them."""
    left = {
        f"open {attack}": own[own["attack"] == attack].set_index("sample_id")["left"]
        for attack in attacks
    }
    return left | {"open worst": own.groupby("sample_id", observed=True)["left"].min()}


def missed(images: pd.DataFrame, transfer: str) -> dict[Any, float]:
    """Accuracy that transfer takes where attacks in the open left it, by defense: masked gradients."""
    left = images[images["measure"].isin([transfer, "open worst"])]
    both = left.pivot_table("left", ["defense", "sample_id"], "measure", observed=True).dropna()
    gap = (both["open worst"] - both[transfer]).clip(lower=0).groupby("defense", observed=True).mean()
    return {name: float(value) for name, value in gap.items()}


def interval(left: Mapping[str, pd.Series]) -> dict[str, float]:
    """Wilson's, over images."""
    ends = {name: wilson(values.sum(), len(values)) for name, values in left.items()}
    return {
        f"{name} {end}": value for name, both in ends.items()
        for end, value in zip(("low", "high"), both, strict=True)
    }  # fmt: skip


def _measures(directory: Path, model: Classifier, data: Dataset, trial: Trial) -> Path:
    """Where the measures of a model are kept, by what they are of."""
    about = [model.digest, data.digest, trial.measured, parse_eps(trial.budgets[-1]), trial.seed]
    return directory / "members" / f"{value_digest(about, 20)}.json"


@dataclass(frozen=True)
class Measure:
    """The task of a worker: a model's cost, and of ensembles diversity and transfer between members."""

    name: str
    trial: Trial
    source: str
    path: str

    @property
    def title(self) -> str:
        return self.name

    def do(self, device: str) -> int:
        """Measures, unless it was done. Returns how many models."""
        path = Path(self.path)
        if path.is_file():
            return 1
        model, data = find_model(self.name).to(device), find_data(self.source)
        members = list(getattr(model, "members", ()))
        found = {"defense": model.name, "flops": cost(model, model.input_size or data.size)}
        if len(members) > 1:
            try:
                found |= _between(members, data, self.trial, parse_eps(self.trial.budgets[-1]))
            except InputError as error:  # members that are hardly ever all right
                found |= {"why": str(error)}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, (json.dumps(found, indent=1) + "\n").encode())
        return 1


def _between(members: Sequence[Classifier], data: Dataset, trial: Trial, eps: float) -> dict[str, Any]:
    batch = next(data.batches([slice(0, min(len(data), trial.measured))]))
    device = members[0].mean.device
    x, y = (batch.pixels.float() / 255).to(device), batch.labels.to(device)
    apart = diversity(members, x, y, eps=eps, seed=trial.seed)
    pairs = transfer_between(members, x, y, Threat("linf", eps), restarts=1, seed=trial.seed)
    rates, k = pairs.rates, len(members)
    return {
        "diversity": apart.value, "pairs": apart.pairs.tolist(), "rates": rates.tolist(),
        "counted": pairs.counted.tolist(), "eps": eps,
        "shared": float((rates.sum() - rates.diagonal().sum()) / (k * (k - 1))),
    }  # fmt: skip


def _whole(report: Report) -> None:
    if report.failures:
        raise RunError(
            f"{len(report.failures)} cells failed; see 'advens status {report.directory}' "
            f"({report.failures[0][1]})"
        )


def trial_of(
    defenses: Sequence[str],
    data: str,
    surrogates: Sequence[str],
    attacks: Sequence[str],
    budgets: Sequence[str],
    open: Sequence[str] = (),
    **more: Any,
) -> Trial:
    """A trial from names with wildcards; what is not said is taken from the embedded models for digits."""
    digits = data.startswith("digits:")
    if not surrogates and not digits:
        raise InputError("name separately trained attackers: --surrogates A,B")
    chosen = budgets or (("0.05", "0.1", "0.15", "0.2") if digits else ("2/255", "4/255", "8/255"))
    names = tuple(dict.fromkeys(name for pattern in defenses for name in expand(_model(pattern))))
    others = tuple(dict.fromkeys(n for pattern in surrogates or SURROGATES for n in expand(pattern)))
    if set(names) & set(others):
        both = ", ".join(sorted(set(names) & set(others)))
        raise InputError(f"{both}: transfer is measured from models that are not attacked themselves")
    return Trial(
        names, data, others, tuple(attacks) or TRANSFER, tuple(sorted(chosen, key=parse_eps)),
        tuple(dict.fromkeys(open)) or tuple(OPEN), **more,
    )  # fmt: skip


def _model(text: str) -> str:
    """A folder is a saved ensemble."""
    return f"defense:{text}" if ":" not in text and (Path(text) / "ensemble.json").is_file() else text
