"""The ``advens`` command: a lazy group. Every folder owns its commands; help imports no torch."""

from __future__ import annotations

import ctypes
import os
import sys
import textwrap
import warnings
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from importlib import import_module
from typing import Any, NoReturn

import click

from advens import __version__
from advens.errors import InputError, InputWarning, RunError, nearest
from advens.printable import say

COMMANDS = {
    "run": ("advens.benchmarks.cli.run:run", "Run a suite and print its transferability matrix."),
    "lock": ("advens.benchmarks.cli.lock:lock", "Pin the models and data of a suite."),
    "calibrate": ("advens.benchmarks.cli.calibrate:calibrate", "Time passes on this device, for estimates."),
    "status": ("advens.benchmarks.cli.status:status", "Cells done, left and failed of a run."),
    "matrix": ("advens.results.commands:matrix", "The transferability matrix of a run."),
    "leaderboard": ("advens.results.commands:leaderboard", "Attacks ranked, with significance."),
    "report": ("advens.results.commands:report", "A run as one self-contained page."),
    "plot": ("advens.results.commands:plot", "A figure of a run for a paper."),
    "site": ("advens.benchmarks.cli.site:site", "Many runs and entries as static pages."),
    "evaluate": ("advens.benchmarks.cli.evaluate:evaluate", "Evaluate new targets on stored examples."),
    "verify": ("advens.benchmarks.cli.verify:verify", "Audit and re-evaluate what a run stored."),
    "submit": ("advens.benchmarks.cli.submit:submit", "Pack a run as an entry that others verify."),
    "robustness": (
        "advens.benchmarks.cli.robustness:robustness", "White-box attacks on models: the accuracy they leave."
    ),
    "craft": ("advens.benchmarks.cli.craft:craft", "Adversarial images, no suite needed."),
    "select": ("advens.benchmarks.cli.select:select", "Pick surrogates out of many models."),
    "train": ("advens.benchmarks.cli.train:train", "Train an ensemble defense."),
    "sample": ("advens.benchmarks.cli.sample:sample", "Best probabilities of an ensemble's members."),
    "attacks": ("advens.benchmarks.cli.attacks:attacks", "List attacks, or show one."),
    "builders": ("advens.attacks.commands:builders", "List surrogate builders, or show one."),
    "defend": ("advens.benchmarks.cli.defend:defend", "Evaluate defenses: transfer, white-box, cost."),
    "defenses": ("advens.defenses.commands:defenses", "List defenses, or show one."),
    "models": ("advens.commands:models", "List models, or show one."),
    "data": ("advens.commands:data", "List data sources, or show one."),
    "suites": ("advens.benchmarks.cli.suites:suites", "List bundled suites, or show one."),
    "zoo": ("advens.commands:zoo", "The embedded models: check or retrain them."),
    "doctor": ("advens.commands:doctor", "Versions, devices, weights and disk."),
}

EXAMPLES = {
    "run": ("run quickstart", "run my-suite.toml --set threat.eps=0.1 --workers 2"),
    "lock": ("lock my-suite.toml", "lock quickstart --out quickstart.lock"),
    "calibrate": ("calibrate", "calibrate my-suite.toml --device cuda"),
    "status": ("status runs/quickstart", "status runs/digits-defenses"),
    "matrix": ("matrix runs/quickstart --targets '*vit*'", "matrix runs/quickstart --format markdown"),
    "leaderboard": (
        "leaderboard runs/quickstart --where \"target_family == 'vit'\"",
        "leaderboard runs/a runs/b --compare svre adaea",
    ),
    "report": (
        "report runs/quickstart", "report runs/digits-defenses --out defenses.html --no-images",
    ),
    "plot": (
        "plot matrix runs/quickstart --out matrix.pdf",
        "plot board runs/quickstart --out board.svg --width 85mm --question targets",
    ),
    "site": ("site runs", "site runs/one runs/two results/entries --out public --no-images"),
    "evaluate": (
        "evaluate runs/quickstart --targets digits:swin,digits:nfnet",
        "evaluate runs/mine --targets timm:resnet50?checkpoint=mine.safetensors",
    ),
    "verify": ("verify runs/quickstart", "verify entry.tar"),
    "submit": (
        "submit runs/quickstart --suite quickstart --out entry.tar --about submission.toml",
        "submit runs/mine --suite quickstart --out entry.tar --authors 'A. One' --paper none --code none "
        "--attempts 3 --conflicts none",
    ),
    "robustness": (
        "robustness --models digits:resnet-at --data digits:test --attack pma --eps 0.2",
        "robustness --models defense:dverge3 --data digits:test --attack autoattack",
    ),
    "craft": (
        "craft di-mi-adaea --surrogates digits:resnet,digits:vit --data digits:test --out made",
        "craft lgv --surrogates digits:resnet --data digits:test --set build.lr=0.2 --out lgv",
    ),
    "select": (
        "select --from 'digits:*' --data digits:train -k 4",
        "select --from timm:resnet18,timm:vgg16 --data folder:images?size=224 -k 1",
    ),
    "train": (
        "train dverge --arch digits:mambaout --data digits:train --out dverge3",
        "train at --arch resnet18 --data folder:images?size=32 --set eps=8/255 --out at",
    ),
    "sample": (
        "sample digits:barre3 --data digits:test?limit=300 --eps 0.2 --out barre3-sampled",
        "sample runs/ensemble --data folder:held-out?size=32 --out drawn --device cuda",
    ),
    "attacks": (
        "attacks '*cwa*'", "attacks di-ti-mi-adaea", "attacks --front --budget 100 --run runs/quickstart",
    ),
    "builders": ("builders", "builders lgv"),
    "defend": (
        "defend dverge3 digits:barre3 --data digits:test --limit 100",
        "defend dverge3 --data digits:test --eps 0.1,0.2 --white-box pgd,pma-plus --white-box-limit 50",
    ),
    "defenses": ("defenses", "defenses dverge"),
    "models": ("models 'timm:*resnet*'", "models digits:resnet-at"),
    "data": ("data", "data folder:images?size=224"),
    "suites": ("suites", "suites quickstart"),
    "zoo": ("zoo check", "zoo build --only resnet --out weights"),
    "doctor": ("doctor",),
}
"""What people type, shown below the help of every command."""


def _wrapped(example: str) -> list[str]:
    """A command on lines of 70 characters that a shell reads as one."""
    lines = textwrap.wrap(example, 70, break_long_words=False, break_on_hyphens=False)
    first, *rest = [f"{line} \\" for line in lines[:-1]] + lines[-1:]
    return [f"  {first}", *(f"      {line}" for line in rest)]


class LazyGroup(click.Group):
    """Knows its commands by name and imports one when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, name = COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(import_module(module), name)
        lines = [shown for example in EXAMPLES[cmd_name] for shown in _wrapped(f"advens {example}")]
        command.epilog = "\n".join(["\b", "Examples:", *lines])
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS:
            raise InputError(f"unknown command '{args[0]}'{nearest(args[0], COMMANDS)}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


@click.group(
    cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "show_default": True}
)
@click.version_option(__version__, message="advens %(version)s")
def cli() -> None:
    """Transferable adversarial attacks on ensembles, measured honestly."""


def main() -> None:
    """Run the command line: exit code 0 done, 1 ran and found failures, 2 bad input."""
    sys.exit(invoke(sys.argv[1:]))


def invoke(args: list[str]) -> int:
    """The exit code of a command line; errors are one line on stderr."""
    _set_up()
    return copy_context().run(_invoke, cli, args, "advens")  # what a command trusts ends with it


def script(command: click.Command) -> NoReturn:
    """Run a command that is a module of its own (``python -m``) with this process's arguments, and exit."""
    sys.exit(_invoke(command, sys.argv[1:], None))


def _invoke(command: click.Command, args: list[str], name: str | None) -> int:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("default", InputWarning)
            warnings.showwarning = partial(_show, set(), warnings.showwarning)
            result = command.main(args, prog_name=name, standalone_mode=False)
        return result if isinstance(result, int) else 0
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        return 0
    except click.ClickException as error:
        return _fail(error.format_message().replace("\n", " "), 2)
    except InputError as error:
        return _fail(str(error), 2)
    except RunError as error:
        return _fail(str(error), 1)
    except (click.Abort, KeyboardInterrupt):
        return _fail("interrupted; finished cells are kept, the same command goes on", 130)
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    except OSError as error:  # a path that no file can have, as one that is too long
        return _fail(f"{str(error.filename or 'a file')[:200]}: {error.strerror or error}", 2)
    except RecursionError:
        return _fail("a file is nested too deeply", 2)


def _set_up() -> None:
    """Set how this process and its workers wait and hold memory, before torch is loaded.

    Variables that the user has set are left as they are.
    """
    # idle OpenMP threads give up their core after a short wait; by default they spin, and two commands on one
    # machine take several times as long as one after the other (benchmarks/speed/contention.py)
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    # batches of every size would fill the default cache of 1,024 kernels with some hundred MiB
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "256")
    # glibc would give freed tensors back to the system and fetch them again in every pass, a tenth of the
    # time of small models; what is left over is given back after every cell
    for name, parameter, size in (
        ("MALLOC_TRIM_THRESHOLD_", -1, 1 << 30), ("MALLOC_MMAP_THRESHOLD_", -3, 32 << 20),
    ):  # fmt: skip
        if name not in os.environ:
            os.environ[name] = str(size)  # for workers
            with suppress(OSError, AttributeError):  # another C library
                ctypes.CDLL(None).mallopt(parameter, size)


def _show(
    said: set[str], others: Any, message: Warning | str, category: type[Warning], *where: Any, **how: Any
) -> None:
    """What had to be assumed is one line, said once; other warnings are shown as Python does."""
    if issubclass(category, InputWarning):
        if str(message) in said:
            return
        said.add(str(message))
        click.echo(f"warning: {message}", err=True)
    else:
        others(message, category, *where, **how)


def _fail(message: str, code: int) -> int:
    say(f"advens: {message}", err=True)
    return code
