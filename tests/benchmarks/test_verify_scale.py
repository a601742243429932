"""Verification of large runs: models loaded once, workers, samples, interruptions, and what goes wrong."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from advens import open_run
from advens.benchmarks import checks, verify
from advens.benchmarks.checks import Check, Work
from advens.benchmarks.evaluate import stored_cell
from advens.benchmarks.verify import verify_run
from advens.cli import invoke
from advens.models import pool
from advens.results.store import RunStore, read_table, write_table
from tests.benchmarks.conftest import tiny
from tests.benchmarks.test_forgeries import retold, with_column

DO = Check.do


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory, _surroundings: None) -> Path:
    """Four cells of two shards on three targets, one of which can end its process."""
    folder = tmp_path_factory.mktemp("scale")
    targets = ["toys:centroid?seed=1", "toys:centroid?seed=3", f"toys:brittle?flag={folder}/flag&seed=4"]
    (folder / "suite.toml").write_text(tomli_w.dumps(tiny(targets=targets)))
    assert invoke(["run", str(folder / "suite.toml"), "--out", str(folder / "run"), "--device", "cpu"]) == 0
    return folder / "run"


@pytest.fixture
def run(honest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the run, and a cache of its own."""
    monkeypatch.setenv("ADVENS_CACHE", str(tmp_path / "cache"))
    return Path(shutil.copytree(honest, tmp_path / "run"))


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The cells that are checked, in order, each in a task of its own."""
    names: list[str] = []

    def do(task: Check, device: str) -> Any:
        names.extend(name for name, _ in task.cells)
        return DO(task, device)

    monkeypatch.setattr(verify, "FORWARDS", 1)
    monkeypatch.setattr(Check, "do", do)
    return names


@pytest.fixture
def interrupted(run: Path, checked: list[str], advens: Any, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The cells that were checked before somebody pressed Ctrl-C."""
    with monkeypatch.context() as patch:
        before = Check.do

        def do(task: Check, device: str) -> Any:
            if len(checked) == 2:
                raise KeyboardInterrupt
            return before(task, device)

        patch.setattr(Check, "do", do)
        assert advens("verify", run).code == 130
    assert len(checked) == 2
    done = [*checked]
    checked.clear()
    return done


def journals(folder: Path) -> list[Path]:
    return sorted((folder / "cache" / "verify").glob("*.jsonl"))


def changed_row(run: Path, cell: str) -> None:
    """A prediction of a cell changed, sealed again."""
    path = sorted((run / "samples").glob(f"{cell}.*"))[0]
    with_column(path, "adv_pred", lambda values: values.__setitem__(0, (values[0] + 1) % 10))


# --- models ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("budget", "loads"), [(2 << 30, 4), (0, 2 + 3 + 2)])
def test_a_model_is_loaded_once_for_all_cells_of_a_shard(
    budget: int, loads: int, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two shards of two cells each, on two surrogates, and on three targets of which one is a surrogate.

    When no two models fit into memory, the surrogates are loaded once and the targets once for every shard;
    the last one of the first shard is the first one of the second.
    """
    loaded: Counter[str] = Counter()
    find, init = pool.find_model, pool.ModelPool.__init__
    monkeypatch.setattr(
        pool.ModelPool, "__init__", lambda self, device, **how: init(self, device, budget, **how)
    )
    monkeypatch.setattr(pool, "find_model", lambda name: loaded.update([name]) or find(name))
    during: Counter[str] = Counter()

    def do(task: Check, device: str) -> Any:
        before = Counter(loaded)
        found = DO(task, device)
        during.update(loaded - before)
        return found

    monkeypatch.setattr(Check, "do", do)
    assert verify_run(RunStore(run), Work()).mismatches == []
    assert len(during) == 4
    assert sum(during.values()) == loads


def test_images_are_checked_a_few_cells_at_a_time(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = verify_run(RunStore(run), Work())
    monkeypatch.setattr(checks, "IMAGES", 1)
    monkeypatch.setattr(checks, "ROWS", 1)
    changed_row(run, RunStore(run).cells()[0])
    found = verify_run(RunStore(run), Work())
    assert (found.cells, found.rows) == (whole.cells, whole.rows) == (4, 120)
    assert any("1 stored adv_pred" in line for line in found.mismatches)


# --- workers -----------------------------------------------------------------------------------------


def test_workers_change_nothing(run: Path, advens: Any) -> None:
    """Three forgeries in one run, cells crafted again: the same lines."""
    cells = [stored_cell(RunStore(run), name) for name in RunStore(run).cells()]
    changed_row(run, cells[0].key)
    retold(run, cells[1], forwards_per_sample=1.0)
    path = RunStore(run).examples_path(cells[2].key)
    path.write_bytes(path.read_bytes()[:-1])
    told = []
    for workers in (1, 2):
        how = ("--device", "cpu", "--workers", workers, "--recraft", 1, "--challenge", "x")
        said = advens("verify", run, *how)
        said.failed("mismatches")
        told.append((said.out, [line for line in said.err.splitlines() if line.startswith("MISMATCH  ")]))
    assert len(told[0][1]) >= 3
    assert told[0] == told[1]


def test_from_python(run: Path) -> None:
    assert open_run(run).verify(workers=1, sample="50%", seed=3) == []


def test_a_worker_that_dies_is_no_verdict(honest: Path, run: Path, advens: Any) -> None:
    """One line, exit code 1, and what was checked until then is kept."""
    (honest.parent / "flag").touch()
    try:
        said = advens("verify", run, "--device", "cpu", "--workers", 2)
    finally:
        (honest.parent / "flag").unlink()
    said.failed("tasks of 'verifying' failed", "its worker process died")
    assert "every image is in its ball" not in said.out
    advens("verify", run, "--device", "cpu").done()


# --- samples -----------------------------------------------------------------------------------------


def test_a_sample_says_what_it_is(run: Path, advens: Any) -> None:
    said = advens("verify", run, "--sample", "25%").done().out
    assert "only a sample was checked: 3 of 12 evaluations (--sample 25% --seed " in said
    assert "other images and predictions were not checked" in said
    assert "every image is in its ball" not in said
    assert len([line for line in said.splitlines() if " on toys:" in line and line.startswith("  ")]) == 3
    seed = said.split("--seed ")[1].split(")")[0]
    assert advens("verify", run, "--sample", "25%", "--seed", seed).done().out == said
    assert "30 predictions checked" in said


def test_a_sample_in_json(run: Path, advens: Any) -> None:
    said = advens("verify", run, "--sample", 4, "--seed", 5, "--format", "json").done()
    found = json.loads(said.out)
    assert found["sound"] is True
    assert found["sample"] == {"share": None, "number": 4, "seed": 5}
    (one,) = found["runs"]
    assert (one["predictions"], one["drawn"]["of"], one["drawn"]["seed"]) == (40, 12, 5)
    drawn = one["drawn"]["evaluations"]
    assert len(drawn) == 4
    assert len({each["target"] for each in drawn}) == 3
    assert {each["title"].partition(" ")[0] for each in drawn} == {"mifgsm", "difgsm"}
    assert advens("verify", run, "--sample", 4, "--seed", 5, "--format", "json").done().out == said.out


def test_a_whole_run_in_json(run: Path, advens: Any) -> None:
    found = json.loads(advens("verify", run, "--format", "json").done().out)
    assert (found["sound"], found["sample"], found["runs"][0]["drawn"]) == (True, None, None)
    assert (found["runs"][0]["cells"], found["runs"][0]["predictions"]) == (4, 120)
    changed_row(run, RunStore(run).cells()[0])
    said = advens("verify", run, "--format", "json")
    said.failed("mismatches")
    found = json.loads(said.out)
    assert found["sound"] is False
    assert any("1 stored adv_pred" in line for line in found["runs"][0]["mismatches"])


def test_a_sample_finds_what_is_in_it(run: Path, advens: Any) -> None:
    def size(seed: int) -> tuple[str | int, ...]:
        return ("--sample", 1, "--seed", seed, "--format", "json")

    drawn = {}
    for seed in range(100):
        if len(drawn) == 2:
            break
        (each,) = json.loads(advens("verify", run, *size(seed)).done().out)["runs"][0]["drawn"]["evaluations"]
        drawn.setdefault(each["cell"], seed)
    cell = min(drawn)
    other = next(name for name in drawn if name != cell)
    path = RunStore(run).examples_path(cell)
    with_column(path, "l2", lambda values: values.__setitem__(0, values[0] + 1e-7))
    advens("verify", run, *size(drawn[cell])).failed("mismatches")
    advens("verify", run, *size(drawn[other])).done()


def test_descriptions_are_checked_outside_of_a_sample(run: Path, advens: Any) -> None:
    cells = RunStore(run).cells()
    for name in cells[:2]:
        retold(run, stored_cell(RunStore(run), name), norm="l2")
    said = advens("verify", run, "--sample", 1, "--seed", 0)
    said.failed("mismatches")
    assert said.err.count("the ball it names is not the attack's") == 2


def test_options_that_do_not_go_together(run: Path, tmp_path: Path, advens: Any) -> None:
    advens("verify", run, "--seed", 1).refused("--sample SIZE")
    advens("verify", run, "--sample", "200%").refused("--sample 200%", "1% or 0.01")
    (tmp_path / "entry.tar").write_bytes(b"")
    advens("verify", tmp_path / "entry.tar", "--workers", 2).refused("one process in a sandbox")


# --- interruptions -----------------------------------------------------------------------------------


def test_an_interrupted_verify_goes_on(
    run: Path, tmp_path: Path, interrupted: list[str], checked: list[str], advens: Any
) -> None:
    assert len(journals(tmp_path)) == 1
    said = advens("verify", run).done()
    assert "2 of 4 cells were checked by an interrupted 'advens verify' of yours" in said.out
    assert "4 cells and 120 predictions checked" in said.out
    assert sorted([*interrupted, *checked]) == RunStore(run).cells()
    assert journals(tmp_path) == []
    checked.clear()
    assert "interrupted" not in advens("verify", run).done().out
    assert len(checked) == 4


def test_a_fresh_start(run: Path, interrupted: list[str], checked: list[str], advens: Any) -> None:
    assert "interrupted" not in advens("verify", run, "--fresh").done().out
    assert len(checked) == 4


def test_what_changed_after_it_was_checked_is_checked_again(
    run: Path, interrupted: list[str], checked: list[str], advens: Any
) -> None:
    changed_row(run, interrupted[0])
    said = advens("verify", run)
    said.failed("mismatches")
    assert "1 stored adv_pred" in said.err
    assert len(checked) == 3


def test_one_byte_that_changed_after_it_was_checked(
    run: Path, interrupted: list[str], checked: list[str], advens: Any
) -> None:
    """The seal in the file is still the one of the journal."""
    path = RunStore(run).examples_path(interrupted[1])
    content = bytearray(path.read_bytes())
    content[200] ^= 1
    path.write_bytes(content)
    advens("verify", run).failed("mismatches")
    assert len(checked) == 3


def test_mismatches_are_not_forgotten(run: Path, advens: Any, checked: list[str], tmp_path: Path) -> None:
    for name in RunStore(run).cells():
        changed_row(run, name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verify, "_plan", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert advens("verify", run).code == 130
    assert journals(tmp_path) == []
    advens("verify", run).failed("mismatches")


@pytest.mark.parametrize("how", ["in the run", "writable", "a link", "damaged", "other files"])
def test_a_forged_journal_makes_no_bad_run_good(
    how: str, run: Path, tmp_path: Path, interrupted: list[str], checked: list[str], advens: Any
) -> None:
    (journal,) = journals(tmp_path)
    text = journal.read_text()
    if how == "in the run":
        for folder in (run, run / "verify", run / "cache" / "verify"):
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(journal, folder / journal.name)
        journal.unlink()
    elif how == "writable":
        journal.chmod(0o666)
    elif how == "a link":
        journal.rename(run / "journal")
        journal.symlink_to(run / "journal")
    elif how == "damaged":
        journal.write_text('{"cell": 3}\n[]\n{"cell": "x", "pieces": [], "seals": {}}\n\x00' + text[:40])
    else:
        entries = [json.loads(line) for line in text.splitlines() if line]
        journal.write_text("\n".join(json.dumps(each | {"seals": {}}) for each in entries))
    changed_row(run, interrupted[0])
    said = advens("verify", run)
    said.failed("mismatches")
    assert "1 stored adv_pred" in said.err
    assert len(checked) == 4


def test_weights_that_changed_after_a_cell_was_checked(
    suite: Any, tmp_path: Path, checked: list[str], advens: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADVENS_CACHE", str(tmp_path / "cache"))
    weights = tmp_path / "weights"
    weights.write_text("5")
    advens("run", suite(targets=[f"toys:stored?path={weights}"]), "--out", tmp_path / "out").done()
    with monkeypatch.context() as patch:
        patch.setattr(verify, "_plan", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert advens("verify", tmp_path / "out").code == 130
    weights.write_text("6")
    advens("verify", tmp_path / "out").failed("mismatches")


def test_a_cache_that_cannot_be_written(run: Path, tmp_path: Path, advens: Any) -> None:
    (tmp_path / "cache").write_text("")
    advens("verify", run).done()


def test_an_entry_keeps_no_journal(run: Path, tmp_path: Path, advens: Any, monkeypatch: Any) -> None:
    from advens.benchmarks.submission import Entry

    said: list[bool] = []
    entry = Entry(run, None)  # type: ignore[arg-type]
    monkeypatch.setattr(Entry, "lines", lambda self: [])
    monkeypatch.setattr("advens.benchmarks.submission.opened", lambda folder, suite: entry)
    monkeypatch.setattr(
        verify, "verify_directory",
        lambda *_, journal, **__: said.append(journal) or iter([("", verify.Audit())]),
    )  # fmt: skip
    how = ("--sample", "10%", "--seed", 7, "--recraft", 1, "--challenge", "x")
    shown = advens("verify", run, *how).done().out
    assert said == [False]
    label = "label: only a sample of 10% was checked (seed 7), and is re-crafted (share 1, challenge 'x')\n"
    assert shown.endswith(label)


# --- what goes wrong ---------------------------------------------------------------------------------


def meanwhile(monkeypatch: pytest.MonkeyPatch, change: Callable[[], Any]) -> None:
    """Something happens to the run when its first cells were checked."""
    state = {"done": False}

    def do(task: Check, device: str) -> Any:
        found = DO(task, device)
        if not state["done"]:
            state["done"] = True
            change()
        return found

    monkeypatch.setattr(Check, "do", do)


@pytest.mark.parametrize("change", ["rewritten", "added", "removed"])
def test_a_run_that_changes_meanwhile(
    change: str, run: Path, advens: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = sorted((run / "samples").iterdir())[0]

    def happen() -> None:
        if change == "rewritten":
            write_table(path, read_table(path))
        elif change == "added":
            shutil.copy(path, path.with_name(f"{path.name.partition('.')[0]}.{'0' * 16}.parquet"))
        else:
            path.unlink()

    meanwhile(monkeypatch, happen)
    said = advens("verify", run)
    said.failed("mismatches")
    assert "1 files changed while they were verified (first: samples/" in said.err


def test_a_run_that_goes_away_meanwhile(run: Path, advens: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    meanwhile(monkeypatch, lambda: shutil.rmtree(run))
    advens("verify", run).failed()


def test_a_file_that_may_not_be_read(run: Path, advens: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    name = sorted((run / "samples").iterdir())[0].name
    read = Path.read_bytes

    def refuse(path: Path) -> bytes:
        if path.name == name:
            raise PermissionError(13, "Permission denied", str(path))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    said = advens("verify", run)
    said.failed("mismatches")
    lines = [line for line in said.err.splitlines() if line.startswith("MISMATCH") and name in line]
    assert lines
    assert all("Permission denied" in line for line in lines)


def test_a_device_that_is_not_there(run: Path, advens: Any) -> None:
    advens("verify", run, "--device", "cuda:9").refused("cuda:9")
