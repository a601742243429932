"""The command line from the outside: lazy, helpful, one line for every mistake."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click
import pytest

import advens
from advens.benchmarks.suites import tomllib  # tomli before Python 3.11
from advens.cli import COMMANDS, EXAMPLES, cli
from tests.command_line import caller, only_line


@dataclass(frozen=True)
class Said:
    code: int
    out: str
    err: str

    def done(self) -> str:
        assert self.code == 0, self
        assert self.err == ""
        return self.out

    def refused(self, *words: str) -> None:
        assert self.code == 2, self
        only_line(self.err.splitlines(), *words)
        assert self.out == ""


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Said]:
    monkeypatch.setenv("COLUMNS", "120")
    return caller(Said, capsys)


HEAVY = {"torch", "timm", "torchvision", "pandas", "pyarrow", "numpy", "scipy", "sklearn", "pydantic"}


def test_waiting_threads_sleep_soon_unless_the_user_decides(say, monkeypatch):
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    say("--version")
    assert os.environ["GOMP_SPINCOUNT"] == "10000"
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    say("--version")
    assert os.environ["GOMP_SPINCOUNT"] == "7"


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], [], ["nonsense"]], ids=str)
def test_help_is_instant(arguments):
    code = (
        "import sys; from advens.cli import invoke; code = invoke(sys.argv[1:]); "
        f"print('loaded', sorted({HEAVY!r} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "loaded []"


@pytest.mark.parametrize("command", [c for c in COMMANDS if c not in ("zoo", "doctor")])
def test_help_of_a_command_needs_no_torch(command):
    """All in one interpreter would hide which one loads it."""
    code = f"import sys; from advens.cli import invoke; invoke([{command!r}, '--help']); " \
           "print('torch' in sys.modules)"  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


def test_the_group_lists_its_commands(say):
    text = say("--help").done()
    for name, (_, line) in COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(line[:30])}", text, re.MULTILINE)
    assert say("-h").done() == text
    assert "Commands" in say().out
    assert say("--version").done() == f"advens {advens.__version__}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(say, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "80")
    text = say(command, "--help").done()
    assert text.startswith(f"Usage: advens {command}")
    before, examples = text.split("Examples:\n")
    assert max(map(len, text.splitlines())) <= 80
    assert len(before.splitlines()) > 4
    assert len(examples.splitlines()) >= (1 if command == "doctor" else 2)


@pytest.mark.parametrize("line", [line for lines in EXAMPLES.values() for line in lines])
def test_examples_can_be_typed(line):
    """They are parsed as they stand, by the command that they name."""
    name, *arguments = shlex.split(line)
    command = cli.get_command(click.Context(cli), name)
    with command.make_context(name, arguments) as context:
        assert context.command is command


@pytest.mark.parametrize("command", ["attacks", "builders", "defenses", "suites"])
def test_lists_fit_the_terminal(say, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "80")
    lines = say(command).done().splitlines()
    assert len(lines) > 5
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["rnu"], ["unknown command 'rnu'", "did you mean 'run'"]),
        (["leaderbord", "x"], ["did you mean 'leaderboard'"]),
        (["xyzzy"], ["unknown command 'xyzzy'"]),
        (["--colour"], ["--colour"]),
        (["run"], ["SUITE"]),
        (["run", "quickstart", "--ouut", "x"], ["--ouut", "--out"]),
        (["run", "quickstart", "--workers", "0"], ["--workers"]),
        (["run", "quickstart", "--limit", "many"], ["--limit"]),
        (["run", "quickstart", "more"], ["more"]),
        (["run", "quickstrat"], ["unknown suite 'quickstrat'", "'quickstart'"]),
        (["run", "nowhere.toml"], ["no suite file at nowhere.toml"]),
        (["run", "quickstart", "--dry-run", "--attacks", "mifgms"], ["unknown attack", "'mifgsm'"]),
        (["run", "quickstart", "--dry-run", "--attacks", ","], ["--attacks names nothing"]),
        (["run", "quickstart", "--dry-run", "--set", "threat.epss=1"], ["'threat.epss'", "'eps'"]),
        (["run", "quickstart", "--dry-run", "--set", "threat.eps=7"], ["eps = 7", "at most 1"]),
        (["run", "quickstart", "--device", "cudda", "--out", "/nowhere/x"], ["device 'cudda'"]),
        (["matrix", "x", "--format", "tabel"], ["--format", "tabel"]),
        (["leaderboard", "nowhere"], ["nowhere does not exist"]),
        (["leaderboard"], ["DIR"]),
        (["status", "nowhere"], ["nowhere does not exist"]),
        (["evaluate", "nowhere"], ["--targets"]),
        (["attacks", "mifgms"], ["unknown attack 'mifgms'", "'mifgsm'"]),
        (["attacks", "zz*"], ["unknown attack 'zz*'"]),
        (["models", "digits:resnett"], ["'digits:resnett'", "'digits:resnet'"]),
        (["models", "digits:zz*"], ["unknown model 'digits:zz*'"]),
        (["models", "digit:resnet"], ["unknown model source 'digit'", "'digits'"]),
        (["data", "digits:tset"], ["'tset'", "'test'"]),
        (["data", "folder:/nowhere/at/all"], ["/nowhere/at/all", "does not exist"]),
        (["suites", "quickstrat"], ["unknown suite 'quickstrat'", "'quickstart'"]),
        (["zoo", "build", "--out", "x", "--only", "resnett"], ["'resnett'", "'resnet'"]),
        (["zoo", "biuld"], ["biuld"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_mistakes_are_one_line(say, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    say(*arguments).refused(*words)
    assert not list(tmp_path.iterdir())


def test_attacks(say):
    text = say("attacks").done()
    for name in advens.list_attacks():
        assert re.search(rf"^{re.escape(name)} ", text, re.MULTILINE), name
    assert set(re.findall(r"^(ens-\w+)", say("attacks", "ens-*").done(), re.MULTILINE)) == set(
        advens.list_attacks("ens-*")
    )
    one = say("attacks", "mifgsm").done()
    for word in ("Dong et al., CVPR 2018", "8/255", "mu=1.0", "10 F, 10 B", "targeted  yes"):
        assert word in one
    assert "di(" in say("attacks", "di-ti-mi-ens-logits").done()


def test_every_attack_shows(say):
    for name in advens.list_attacks():
        assert "parameters" in say("attacks", name).done()


def test_models(say):
    text = say("models").done()
    for name in advens.list_models():
        assert re.search(rf"^{re.escape(name)} .*% ", text, re.MULTILINE), name
    assert "timm:NAME" in text
    one = say("models", "digits:mambaout").done()
    assert "10 classes, input 32x32" in one
    assert re.search(r"^weights [0-9a-f]{64}$", one, re.MULTILINE)
    found = say("models", "digits:resnet*").done().split()
    assert {"digits:resnet", "digits:resnet-at"} < set(found)
    assert "timm:vit_base_patch16_224" in say("models", "timm:vit_base*").done()


def test_data(say):
    text = say("data").done()
    assert {line.split()[0] for line in text.splitlines()} >= {
        "digits", "folder", "csv", "parquet", "torchvision", "synthetic",
    }  # fmt: skip
    one = say("data", "digits:test?limit=20").done()
    assert "20 images, 10 classes" in one
    assert "(3, 32, 32)" in one


def test_suites(say, tmp_path):
    text = say("suites").done()
    assert {"quickstart", "digits-square", "imagenet-transfer"} <= set(text.split())
    shown = say("suites", "quickstart").done()
    assert tomllib.loads(shown)["name"] == "quickstart"
    (tmp_path / "mine.toml").write_text(shown.replace('"quickstart"', '"mine"'))
    assert tomllib.loads(say("suites", tmp_path / "mine.toml").done())["name"] == "mine"


@pytest.mark.parametrize("name", ["quickstart", "digits-square", "imagenet-transfer", "imagenet-catalogue"])
def test_dry_runs_touch_nothing(say, tmp_path, monkeypatch, name):
    import advens.datasets
    import advens.models

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a dry run loads nothing")

    import socket

    import timm
    import torch

    for place, what in (
        (advens.datasets, "load_data"), (advens.models, "load_model"), (advens.models, "describe"),
        (socket.socket, "connect"),
    ):  # fmt: skip
        monkeypatch.setattr(place, what, refuse)
    built = timm.create_model
    # networks whose weights are counted take no memory
    monkeypatch.setattr(
        timm, "create_model", lambda *a, **k: built(*a, **k) if torch.empty(0).is_meta else refuse()
    )
    monkeypatch.setenv("ADVENS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    here = ["--set", "data=digits:test?limit=120"] if name.startswith("imagenet") else []
    text = say("run", name, "--dry-run", *here).done()
    assert f"suite      {name}: linf" in text
    assert re.search(r"^attack     \S+ on \S+: \d+ F, \d+ B per image$", text, re.MULTILINE)
    cells = r"^\d+ cells: \d+ images in \d+ shards of \d+, \d seeds; \d+ evaluations of \d+ targets$"
    assert re.search(cells, text, re.MULTILINE)
    passes = r"^passes     [\d,]+ F, [\d,]+ B to craft [\d,]+ images, [\d,]+ F to evaluate, [\d,]+ F to "
    assert re.search(passes, text, re.MULTILINE)
    assert "time       not known: 'advens calibrate SUITE' measures " in text
    assert ("download   nothing" in text) != name.startswith("imagenet")
    assert not list(tmp_path.iterdir())


def test_what_a_dry_run_says(say, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    text = say("run", "imagenet-transfer", "--dry-run", "--attacks", "mifgsm,mi-ens-loss",
               "--set", "data=digits:test?limit=120").done()  # fmt: skip
    assert "target     timm:resnet50.tv_in1k  (white-box for cnns, resnet50)" in text
    assert "target     timm:vit_base_patch16_224.augreg_in21k_ft_in1k\n" in text
    assert "mifgsm on resnet50: 10 F, 10 B" in text
    assert "mi-ens-loss on cnns: 40 F, 40 B" in text
    assert "8 cells: 120 images in 2 shards of 100, 1 seeds; 80 evaluations of 10 targets" in text

    assert re.search(r"^passes     [\d,]+ F, [\d,]+ B to craft 480 images, 6,000 F to evaluate, ", text, re.M)
    assert "download   https://huggingface.co/timm/resnet50.tv_in1k (about 102.4 MB)" in text
    assert "download   10 files, about 1,890.8 MB where the size is known" in text
    assert "difgsm" not in text
    changed = say("run", "quickstart", "--dry-run", "--set", "threat.steps=3", "--seed", 4,
                  "--limit", 7).done()  # fmt: skip
    assert "data digits:test?limit=7" in changed
    assert "mifgsm on digits:vit: 3 F, 3 B" in changed


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("data=digit:test", ["unknown data source 'digit'", "'digits'"]),
        ("data=digits:test?limt=3", ["unknown option 'limt'", "'limit'"]),
        ("data=folder:/nowhere/x", ["'/nowhere/x' does not exist"]),
        ("data=synthetic:shapes?n=20&label=3", ["unknown option 'label'"]),
    ],
)
def test_dry_runs_check_the_data(say, key, words):
    said = say("run", "quickstart", "--dry-run", "--set", key)
    assert said.code == 2
    assert all(word in said.err for word in words), said.err
    assert len(said.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("suite", "threat", "models"), [("linf", "linf 8/255", 5), ("l2", "l2 0.5", 4)]
)
def test_the_protocol_of_robustbench(say, tmp_path, monkeypatch, suite, threat, models):
    """What AutoAttack's standard version spends; no weights and no data are there, and none are fetched."""
    import socket

    monkeypatch.setattr("advens.models.robustbench.find_spec", lambda _: True)
    monkeypatch.setattr(socket.socket, "connect", None)
    monkeypatch.chdir(tmp_path)
    name = f"robustbench-cifar10-{suite}"
    asked = ["run", name, "--dry-run", "--set", "data=digits:test?limit=120"]
    text = say(*asked, "--trust", "robustbench:*").done()
    assert f"suite      {name}: {threat}, data digits:test" in text
    assert text.count("download   RobustBench's ") == models
    assert text.count(f"/cifar10/{suite.capitalize()}/") == models
    spent = [("apgd-ce", 100), ("apgd-ce+apgd-t", 900), ("apgd-ce+apgd-t+fab-t", 900), ("autoattack", 0)]
    for attack, backwards in spent:
        lines = re.findall(rf"^attack     {re.escape(attack)} on .*: at most \d+ F, (\d+) B", text, re.M)
        assert lines == [str(backwards)] * models
    assert f"{4 * models} cells: 120 images in 1 shards of 500" in text
    assert not list(tmp_path.iterdir())
    assert "root 'data' does not exist" in say("run", name, "--dry-run", "--trust", "robustbench:*").err
    assert "unpickle" in say(*asked).err


def test_dry_runs_name_what_robustbench_downloads(say, tmp_path, monkeypatch):
    monkeypatch.setattr("advens.models.robustbench.find_spec", lambda _: True)
    monkeypatch.chdir(tmp_path)
    target = "robustbench:Wong2020Fast"
    asked = ["run", "quickstart", "--dry-run", "--set", f'targets=["{target}"]']
    text = say(*asked, "--trust", target).done()
    assert "download   RobustBench's Wong2020Fast to models/cifar10/Linf/Wong2020Fast.pt" in text
    assert "would let RobustBench unpickle" in say(*asked).err


def test_dry_runs_say_that_a_budget_sets_the_steps(say):
    text = say("run", "quickstart", "--dry-run", "--set", "budget=40", "--set", "threat.steps=4").done()
    assert "note       mifgsm: its budget sets the steps; steps of [threat] do not count" in text
    assert "note " not in say("run", "quickstart", "--dry-run", "--set", "threat.steps=4").done()


def test_a_run_from_the_outside(say, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = say("run", "quickstart", "--limit", 6, "--set", "threat.steps=1", "--attacks", "mifgsm",
               "--set", "surrogates={'each': ['digits:mambaout']}",
               "--set", "attacks.1.surrogates=['each']", "--set", "attacks.2.surrogates=['each']",
               "--set", "targets=['digits:mambaout', 'digits:byobnet']", "--device", "cpu")  # fmt: skip
    assert said.code == 0, said
    assert "crafting: 1/1" in said.err
    assert "1 cells crafted, 2 evaluations" in said.out
    run = Path("runs/quickstart")
    assert {"suite.toml", "environment.json", "matrix.parquet", "leaderboard.parquet"} <= {
        path.name for path in run.iterdir()
    }
    assert "1 of 1 crafted, 0 left" in say("status", run).done()
    assert "digits:byobnet" in say("matrix", run, "--format", "csv").done()
    assert "mi" in say("leaderboard", run).done()
    checked = say("verify", run)
    assert checked.code == 0
    assert "every image is in its ball" in checked.out


def test_doctor(say, monkeypatch):
    import advens.commands as module
    import advens.models

    monkeypatch.setattr(module, "_hub", lambda: "not asked")
    monkeypatch.setattr(advens.models, "list_models", lambda: ["digits:mambaout"])
    text = say("doctor").done()
    assert text.splitlines()[-1] == "all is well"
    for word in ("torch", "timm", "cores", "1 embedded models", "GiB free", "not asked"):
        assert word in text


def test_doctor_finds_what_is_broken(say, monkeypatch):
    import advens.commands as module
    import advens.models
    from advens.errors import InputError

    def load(name: str) -> None:
        raise InputError(f"{name}: the weights are missing")

    monkeypatch.setattr(module, "_hub", lambda: "not asked")
    monkeypatch.setattr(advens.models, "load_model", load)
    monkeypatch.setattr(advens.models, "list_models", lambda: ["digits:mambaout"])
    said = say("doctor")
    assert said.code == 1
    assert said.err == "advens: broken: digits:mambaout\n"
    assert "the weights are missing" in said.out


def test_no_hub_is_no_harm(monkeypatch):
    import huggingface_hub

    from advens.commands import _hub

    def refuse(*_: object, **__: object) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", refuse)
    assert _hub().startswith("not reachable (ConnectionError): pretrained timm weights need")


def test_the_zoo_keeps_its_promises(say, monkeypatch):
    """Three models of it: all would take ten seconds."""
    import advens.models

    names = ["digits:mambaout", "digits:convmixer", "digits:resnet-at"]
    monkeypatch.setattr(advens.models, "list_models", lambda: names)
    assert re.findall(r"^(\S+) +clean \d+\.\d%, promised", say("zoo", "check").done(),
                      re.MULTILINE) == names  # fmt: skip


def test_the_zoo_says_when_it_does_not(say, monkeypatch):
    import advens.models
    from advens.models.embedded import index

    promised = {name: dict(entry) for name, entry in index().items()}
    promised["digits:mambaout"]["clean_accuracy"] = 0.5
    monkeypatch.setattr("advens.models.embedded.index", lambda: promised)
    monkeypatch.setattr(advens.models, "list_models", lambda: ["digits:mambaout"])
    said = say("zoo", "check")
    assert said.code == 1
    assert said.err == "advens: not as promised: digits:mambaout\n"


def test_a_reader_that_stops_early():
    """``advens attacks | head -1``: no traceback."""
    child = subprocess.Popen(
        [sys.executable, "-c", "from advens.cli import main; main()", "models", "timm:*"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert child.stdout is not None
    assert child.stdout.readline().startswith("timm:")
    child.stdout.close()
    assert child.stderr is not None
    assert child.stderr.read() == ""
    assert child.wait(60) in (0, 1)
    child.stderr.close()


def test_the_console_script_is_installed():
    script = Path(sys.executable).with_name("advens")
    if not script.is_file():
        pytest.skip("not installed with its scripts")
    done = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"advens {advens.__version__}\n"
