"""Pages that are written from what the package declares: commands, methods, parts, suites, columns, names.

Sphinx calls `write` before it reads the sources. Nothing here is a list of names: a method, a part or a
column that is added to the package appears by itself.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

FOLDER = Path("reference") / "generated"
REFERENCE = Path(__file__).parents[2] / "results" / "reference"


# --- introductions --------------------------------------------------------------------------------

_ATTACKS = """# Attacks

Parts stand in front of a name to compose further attacks, as in `di-ti-mi-ens-logits`;
[Parts](../parts/index.md) lists them. F/B are forward and backward passes an image, on one surrogate
and on four.
"""
_PARTS = """# Parts of attacks

A part does one thing, and any part goes with any other.
"""
_BUILDERS = """# Surrogate builders

A builder takes surrogates and gives more surrogates: by further training, or by changing copies inside.
[What building surrogates buys](../../tables/builders.md) compares them.
"""
_DEFENSES = """# Defenses

A defense is an objective that trains an ensemble. All share one training loop; the result is a folder and
a model, `defense:PATH`.
"""
_COMMANDS = """# Command line

Exit code 0 means done, 1 that a command ran and found failures, and 2 that the input was wrong. Wrong input
is one line on standard error that names what was given and the nearest valid choice.
`advens COMMAND --help` shows what stands here.
"""
_SUITES = """# Suites

`advens suites NAME` prints a bundled suite and `advens run NAME` runs it. A copy with another `name` is the
beginning of your own.
"""
_COLUMNS = """# Parquet columns

Every file carries what this page says in its metadata, and pandas and pyarrow alone can read it. A `*`
in a name stands for what depends on the suite.
"""
_PYTHON = """# Python

`import advens` is instant; torch is imported by the first call that needs it.
"""
_SYMBOLS = """Every attack of [the list](attacks/index.md) is also a name here: `MIFGSM(eps=0.1)` is
`advens.create_attack("mifgsm", eps=0.1)`.
"""

# --- docstrings -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Doc:
    """A docstring taken apart: its first sentence, the rest of its text, and what it says of arguments."""

    summary: str = ""
    body: str = ""
    arguments: Mapping[str, str] = dataclasses.field(default_factory=dict)


def read_doc(value: object) -> Doc:
    """The docstring of a class or function."""
    text = inspect.cleandoc(getattr(value, "__doc__", None) or "")
    head, _, rest = text.partition("\n\n")
    summary = " ".join(head.split())
    sections = re.split(r"^(Args|Returns|Raises|Source):", f"\n{rest}", flags=re.MULTILINE)
    body = sections[0].strip("\n")
    named = dict(zip(sections[1::2], sections[2::2], strict=True))
    return Doc(summary, body, dict(_arguments(named.get("Args", ""))))


def _arguments(text: str) -> Iterator[tuple[str, str]]:
    """Names and meanings of an ``Args:`` section; ``a, b: meaning`` gives the meaning to both."""
    entries: list[list[str]] = []
    lines = inspect.cleandoc("\n" + text).splitlines()
    for line in lines:
        if line and not line.startswith(" "):
            entries.append([line])
        elif entries:
            entries[-1].append(line.strip())
    for entry in entries:
        names, _, meaning = " ".join(entry).partition(":")
        for name in names.split(","):
            yield name.strip(), " ".join(meaning.split())


# --- markdown -------------------------------------------------------------------------------------


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A markdown table; empty without rows."""
    lines = ["| " + " | ".join(_cell(value) for value in row) + " |" for row in rows]
    if not lines:
        return ""
    head = "| " + " | ".join(header) + " |"
    return "\n".join([head, "|" + " --- |" * len(header), *lines]) + "\n"


def _cell(value: object) -> str:
    return " ".join(str(value).split()).replace("|", "\\|")


def code(value: object) -> str:
    """Inline code."""
    return f"`{value}`"


def page(*blocks: str) -> str:
    """Blocks with a blank line between; empty ones are left out."""
    return "\n\n".join(block.strip("\n") for block in blocks if block.strip()) + "\n"


def toctree(entries: Iterable[str]) -> str:
    """A hidden table of contents."""
    return "```{toctree}\n:hidden:\n\n" + "\n".join(entries) + "\n```"


def _sentence(text: str) -> str:
    text = text.strip()
    return text if not text or text.endswith((".", ":", "!", "?")) else f"{text}."


# --- what the registry knows ----------------------------------------------------------------------


def _facts(info: Any, *more: tuple[str, str]) -> str:
    """The registry's entry as a list of fields."""
    couples = {
        "no": "the result of an image does not depend on the images beside it",
        "option": "an option that follows published code lets images beside each other change results",
        "shard": "takes other images of the same shard by design",
        "batch": "the result of an image depends on those beside it",
    }
    rows = [("family", info.family), ("paper", info.paper), ("year", info.year), *more]
    if info.couples != "no" or more:
        rows.append(("batch", couples.get(info.couples, info.couples)))
    return "\n".join(f":{name}: {value}" for name, value in rows if value)


def _ability(info: Any) -> list[tuple[str, str]]:
    norms = ", ".join(
        {"linf": "l_inf", "l2": "l_2", "l1": "l_1"}.get(norm, norm) for norm in info.norms
    )
    both = "yes" if info.untargeted else "yes, targeted only"
    return [("targeted", both if info.targeted else "no, untargeted only"), ("norms", norms)]


def _value(value: object) -> str:
    """A default as a user would write it."""
    if hasattr(value, "part_name"):
        return code(value.part_name)
    if isinstance(value, tuple):
        return ", ".join(_value(each) for each in value) if value else "none"
    if (
        isinstance(value, float)
        and len(repr(value)) > 8
        and abs(255 * value - round(255 * value)) < 1e-9
    ):
        return code(f"{round(255 * value)}/255")
    return code(value if isinstance(value, str) else repr(value))


def parameters_of(value: Any) -> Iterator[tuple[str, str, str]]:
    """Name, default and meaning of every parameter of an attack, a part, a builder or a defense."""
    meanings = read_doc(type(value)).arguments
    for field in fields(value):
        default = getattr(value, field.name)
        if type(default).__name__ == "Threat":
            yield "norm", code(default.norm), "norm of the ball: `linf`, `l2` or `l1`."
            yield "eps", code(default.eps), "radius of the ball, as a number or a fraction."
        elif is_dataclass(default) and not hasattr(default, "part_name"):
            yield from parameters_of(default)
        else:
            yield field.name, _value(default), meanings.get(field.name, "")


def parameters(value: Any) -> str:
    """The parameters of something as a table."""
    rows = [(code(name), default, meaning) for name, default, meaning in parameters_of(value)]
    return table(("parameter", "default", "meaning"), rows)


# --- attacks --------------------------------------------------------------------------------------


def attack_names() -> list[str]:
    """Every attack that `advens attacks` lists."""
    from advens.attacks.registry import list_attacks

    return list_attacks()


def attack_page(name: str) -> str:
    """The page of an attack: what it is, its parts, parameters, cost and reference results."""
    from advens.attacks.registry import RECIPES, attack_info, create_attack, split

    info, attack = attack_info(name), create_attack(name)
    recipe = RECIPES.get(name) if name in RECIPES else RECIPES.get(split(name)[1])
    doc, own = read_doc(recipe.build), read_doc(type(attack))
    composed = type(attack).__name__ == "ComposedAttack"
    symbol = getattr(recipe, "__name__", "")
    python = (
        f"from advens.attacks import {symbol}\n\nattack = {symbol}()"
        if name in RECIPES
        else (f"import advens\n\nattack = advens.create_attack({name!r})")
    )
    builder = f"[{info.builder}](../builders/{info.builder}.md)" if info.builder else ""
    facts = _facts(info, *_ability(info), ("surrogates made by", builder))

    parts = list(parts_of(attack))
    rows = [
        (
            kind,
            f"[{part.part_name}](../parts/{kind}-{part.part_name}.md)",
            _sentence(read_doc(type(part)).summary),
        )
        for _, kind, part in parts
    ]
    settings = [*parameters_of(attack)]
    for where, _, part in parts:
        settings += [
            (f"{where}.{name}", default, meaning) for name, default, meaning in parameters_of(part)
        ]
    bodies = [
        f"### {part.part_name} ({kind})\n\n{read_doc(type(part)).body}"
        for _, kind, part in parts
        if kind in _TELLING and read_doc(type(part)).body
    ]
    return page(
        f"# {name}",
        _sentence(info.summary if name not in RECIPES else doc.summary),
        doc.body if name in RECIPES else "",
        facts,
        f"```python\n{python}\n```\n\n{_shell(name, info)}",
        "## Algorithm",
        _LOOP if composed else f"{own.summary}\n\n{own.body}",
        table(("part", "here", "what it does"), rows),
        *bodies,
        "## Parameters",
        "Every parameter can be given by its name: in Python as a keyword, on the command line with `--set`, "
        "in a suite as a key of the attack. "
        "The short name of a part's parameter suffices where it is unique.",
        table(("parameter", "default", "meaning"), [(code(n), d, m) for n, d, m in settings]),
        "## Cost",
        _cost(attack),
        _results(name),
    )


def parts_of(attack: Any) -> Iterator[tuple[str, str, Any]]:
    """Field, kind and value of every part of an attack."""
    from advens.attacks.parts import FIELD_KINDS

    for where, kind in FIELD_KINDS.items():
        value = getattr(attack, where, ())
        for part in value if isinstance(value, tuple) else (value,):
            if hasattr(part, "part_name"):
                yield where, kind, part


_TELLING = ("fusion", "change", "transform", "filter", "estimator", "update", "feature")
"""Kinds of parts that make a method what it is; what they do is told on its page, too."""

_LOOP = """In every step the surrogates agree on a direction, the update turns it into a step, and the
image is projected on the ball:

```text
for each step:
    at        = update.look(x_adv)
    direction = fusion.direction(oracle, at)
    step      = steepest(update.direction(direction))
    x_adv     = project(x_adv + alpha * step)
```

The parts of this attack are:"""


def _shell(name: str, info: Any) -> str:
    first, second = f"craft {name} --surrogates digits:resnet,digits:vit", "--eps 0.2 --out made"
    if info.family == "white-box":
        first, second = "robustness --models digits:resnet-at", f"--attack {name} --eps 0.2"
    return f"```sh\nadvens {first} \\\n    --data digits:test {second}\n```"


def _cost(attack: Any) -> str:
    rows = []
    for surrogates in (1, 4):
        passes = attack.passes(surrogates)
        rows.append((surrogates, f"{passes.forward:,}", f"{passes.backward:,}"))
    return (
        "Passes through surrogates for one image with the defaults above, by the attack's formula:\n\n"
        + table(("surrogates", "forward passes", "backward passes"), rows)
    )


# --- parts, builders, defenses --------------------------------------------------------------------


def part_names() -> list[tuple[str, str]]:
    """Kind and name of every part that can stand inside an attack."""
    from advens.attacks.parts import PARTS

    return [
        (kind, name)
        for kind, registry in PARTS.items()
        if kind not in ("attack", "builder")
        for name in registry
    ]


def part_page(kind: str, name: str) -> str:
    """The page of a part of an attack."""
    from advens.attacks.parts import PARTS, from_spec

    cls, info = PARTS[kind].get(name), PARTS[kind].info(name)
    doc = read_doc(cls)
    return page(
        f"# {name} ({kind})",
        _sentence(doc.summary),
        _facts(info, *_ability(info)),
        f"## Algorithm\n\n{doc.body}" if doc.body else "",
        f"## Parameters\n\n{parameters(from_spec(kind, name))}"
        if fields(cls)
        else "It has no parameters.",
        f"## Where it is used\n\n{_users(kind, name)}",
    )


def _users(kind: str, name: str) -> str:
    users = [f"[{attack}](../attacks/{attack}.md)" for attack in _by_part().get((kind, name), ())]
    if len(users) > 20:
        return f"{len(users)} of the {len(attack_names())} listed attacks have it by default."
    return (
        f"Attacks that have it by default: {', '.join(users)}."
        if users
        else ("No listed attack has it by default.")
    )


@cache
def _by_part() -> dict[tuple[str, str], list[str]]:
    from advens.attacks.registry import create_attack

    found: dict[tuple[str, str], list[str]] = {}
    for name in attack_names():
        for _, kind, part in parts_of(create_attack(name)):
            found.setdefault((kind, part.part_name), []).append(name)
    return found


def builder_page(name: str) -> str:
    """The page of a surrogate builder."""
    from advens.attacks.parts import PARTS, from_spec

    cls, info = PARTS["builder"].get(name), PARTS["builder"].info(name)
    doc = read_doc(cls)
    return page(
        f"# {name}",
        _sentence(doc.summary),
        _facts(info),
        f'```toml\n[surrogates]\nbuilt = {{ build = "{name}", model = "digits:resnet" }}\n```',
        f"## Algorithm\n\n{doc.body}" if doc.body else "",
        f"## Parameters\n\n{parameters(from_spec('builder', name))}",
        _built_results(name),
    )


def defense_page(name: str) -> str:
    """The page of a defense."""
    from advens.defenses.registry import DEFENSES, create_defense

    cls, info = DEFENSES.get(name), DEFENSES.info(name)
    doc = read_doc(cls)
    return page(
        f"# {name}",
        _sentence(doc.summary),
        _facts(info),
        f"```sh\nadvens train {name} --arch digits:mambaout --data digits:train --out {name}\n```",
        f"## Algorithm\n\n{doc.body}" if doc.body else "",
        "## Parameters",
        "The parameters of the training loop are given by the same names.",
        parameters(create_defense(name)),
        _defended_results(name),
    )


# --- reference results ----------------------------------------------------------------------------


@cache
def _kept(name: str) -> Any:
    import pandas as pd

    path = REFERENCE / name
    return pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)


def _percent(row: Any, value: str, low: str, high: str) -> str:
    return f"{100 * row[value]:.1f} [{100 * row[low]:.1f}, {100 * row[high]:.1f}]"


def _passes(row: Any) -> str:
    return f"{row['forwards_per_sample']:.4g} / {row['backwards_per_sample']:.4g}"


def _results(name: str) -> str:
    """What the reference tables hold of an attack."""
    blocks = _place(name)
    fused = _kept("digits-ensembles.parquet")
    rows = [
        (row["suite"], row["attack"], row["surrogates"], _percent(row, "mean_asr", "asr_low", "asr_high"),
         row["group"], _passes(row))
        for _, row in fused[(fused["fusion"] == name) | (fused["attack"] == name)].iterrows()
    ]  # fmt: skip
    if rows:
        header = (
            "suite",
            "attack",
            "surrogates",
            "mean attack success rate, %",
            "group",
            "passes F / B",
        )
        blocks += [
            "On held-out targets ([all rows](../../tables/fusions.md)):",
            table(header, rows),
        ]
    alone = _kept("digits-whitebox.csv")
    rows = [
        (
            row["model"],
            _percent(row, "robust_accuracy", "low", "high"),
            row["group"],
            _passes(row),
            row["n"],
        )
        for _, row in alone[alone["attack"] == name].iterrows()
    ]
    if rows:
        header = ("model", "robust accuracy, %", "group", "passes F / B", "images")
        blocks += [
            "On the model itself ([all rows](../../tables/white-box.md)):",
            table(header, rows),
        ]
    return "## Reference results\n\n" + _BRACKETS + "\n\n" + "\n\n".join(blocks) if blocks else ""


def _place(name: str) -> list[str]:
    """The place of an attack in the catalogue, on every set of surrogates."""
    rows = [
        (row["surrogates"], row["attack"], f"{row['place']} of {row['of']}",
         _percent(row, "mean_asr", "models_low", "models_high"), _passes(row), "yes" if row["front"] else "")
        for _, row in _places().iterrows() if row["name"] == name
    ]  # fmt: skip
    header = ("surrogates", "attack", "place", "mean attack success rate, %", "passes F / B", "front")
    return [
        "Among all attacks at published cost, and at equal passes ([all rows](../../tables/catalogue.md)). "
        "Brackets hold the 95 % interval for new models. On the front no attack is as strong with fewer "
        "passes.",
        table(header, rows),
    ] if rows else []  # fmt: skip


@cache
def _places() -> Any:
    from advens.benchmarks.studies.catalogue import places
    from advens.results.boards.kept import CATALOGUE, read

    return places(*read(CATALOGUE))


_BRACKETS = (
    "Brackets hold the 95 % interval. Rows of one board that share a letter cannot be told apart."
)


def _built_results(name: str) -> str:
    from advens.benchmarks.studies.builders import parted

    kept = _kept("digits-builders.parquet")
    rows = []
    for _, row in kept[kept["table"] == "cnn"].iterrows():
        built = parted(row["attack"], row["surrogates"])[0]
        if built == name or built.startswith(f"{name},"):
            interval = _percent(row, "mean_asr", "asr_low", "asr_high")
            rows.append((row["surrogates"], row["attack"], interval, row["group"], _passes(row)))
    header = ("surrogates", "attack", "mean attack success rate, %", "group", "passes F / B")
    return page("## Reference results", _BRACKETS,
                "On held-out targets ([all rows](../../tables/builders.md)):",
                table(header, rows)) if rows else ""  # fmt: skip


@cache
def _defended() -> Any:
    from advens.results.boards.board import read_board
    from advens.results.boards.defenses import pooled

    folder = REFERENCE / "digits-defenses"
    return pooled(read_board(folder, "defenses"), read_board(folder, "images")).fillna(
        {"control": "-"}
    )


def _defended_results(name: str) -> str:
    """What the reference tables hold of a defense."""
    kept = _defended()
    measures = ("clean", "transfer 0.2", "open worst")
    rows = [
        (row["label"], row["members"], f"{row['train_forwards']:.0f}/{row['train_backwards']:.0f}",
         *(_percent(row, m, f"{m} low", f"{m} high") for m in measures), row["control"])
        for _, row in kept[kept["label"].str.split(",").str[0] == name].iterrows()
    ]  # fmt: skip
    header = ("label", "members", "passes F/B", "clean accuracy, %", "transfer, eps 0.2, %",
              "worst white-box attack, %", "control of equal compute")  # fmt: skip
    about = (
        "Accuracy, with the 95 % interval for new trainings and new images in brackets, and the forward and "
        "backward passes of a training for each training image. [All defenses](../../tables/defenses.md)."
    )
    return page("## Reference results", about, table(header, rows)) if rows else ""


# --- lists of pages -------------------------------------------------------------------------------


_FAMILIES = {
    "gradient": "Gradient: how a gradient becomes a step, or is estimated",
    "input": "Input: what a surrogate sees instead of the image",
    "targeted": "Targeted: attacks made to reach a class",
    "fusion": "Fusion: how several surrogates agree on one direction",
    "surrogate": "Surrogate: what is changed in surrogates, or made of them",
    "white-box": "White-box: attacks on the model itself",
}


def attacks_index() -> str:
    """All attacks, a table for every family."""
    from advens.attacks.registry import attack_info, create_attack

    infos = {name: attack_info(name) for name in attack_names()}
    families = [*_FAMILIES, *sorted({info.family for info in infos.values()} - {*_FAMILIES})]
    blocks = [_ATTACKS]
    for family in families:
        rows = []
        for name, info in infos.items():
            if info.family == family:
                one, four = (create_attack(name).passes(k) for k in (1, 4))
                rows.append((f"[{name}]({name}.md)", _sentence(info.summary), info.paper,
                             f"{one.forward}/{one.backward}", f"{four.forward}/{four.backward}"))  # fmt: skip
        header = ("attack", "what it is", "paper", "F/B on one", "F/B on four")
        if rows:
            blocks += [f"## {_FAMILIES.get(family, family or 'other')}", table(header, rows)]
    return page(*blocks, toctree(infos))


def parts_index() -> str:
    """All parts, a table for every kind."""
    from advens.attacks.parts import PARTS

    blocks = [_PARTS]
    names = part_names()
    for kind in dict.fromkeys(kind for kind, _ in names):
        infos = [(name, PARTS[kind].info(name)) for k, name in names if k == kind]
        rows = [
            (f"[{name}]({kind}-{name}.md)", _sentence(i.summary), i.paper, i.year or "")
            for name, i in infos
        ]
        blocks += [
            f"## {kind.capitalize()}",
            table(("part", "what it does", "paper", "year"), rows),
        ]
    return page(*blocks, toctree(f"{kind}-{name}" for kind, name in names))


def _simple_index(introduction: str, names: Iterable[str], info: Any) -> str:
    infos = {name: info(name) for name in names}
    rows = [
        (f"[{n}]({n}.md)", _sentence(i.summary), i.paper, i.year or "") for n, i in infos.items()
    ]
    return page(introduction, table(("name", "what it is", "paper", "year"), rows), toctree(infos))


# --- command line ---------------------------------------------------------------------------------


def commands() -> Iterator[tuple[str, Any]]:
    """Every command as it is typed, and what click knows of it; groups are followed by their commands."""
    import click

    from advens.cli import cli

    context = click.Context(cli, info_name="advens")
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        yield f"advens {name}", command
        if isinstance(command, click.Group):
            yield from (
                (f"advens {name} {inner}", command.commands[inner]) for inner in command.commands
            )


def commands_page() -> str:
    """Every command with its options and examples."""
    blocks = [_COMMANDS]
    for name, command in commands():
        blocks += [f"## {name}", _help(command), _usage(name, command), _options(command)]
        if command.epilog:
            lines = [line.removeprefix("  ") for line in command.epilog.splitlines()[2:]]
            blocks.append("```sh\n" + "\n".join(lines) + "\n```")
    return page(*blocks)


def _help(command: Any) -> str:
    return inspect.cleandoc(command.help or "").replace("*", "\\*")


def _usage(name: str, command: Any) -> str:
    import click

    pieces = command.collect_usage_pieces(click.Context(command))
    return f"```text\n{' '.join([name, *pieces])}\n```"


def _options(command: Any) -> str:
    import click

    rows = []
    for option in command.params:
        if isinstance(option, click.Option) and not option.hidden:
            names = ", ".join(code(each) for each in [*option.opts, *option.secondary_opts])
            takes = "" if option.is_flag else code(option.make_metavar(click.Context(command)))
            shown = option.default not in (None, False, ()) and not callable(option.default)
            default = (
                code(option.default)
                if shown and "Sentinel" not in type(option.default).__name__
                else ""
            )
            rows.append((names, takes, default, (option.help or "").replace("*", "\\*")))
    return table(("option", "takes", "default", "meaning"), rows)


# --- suites, columns, Python ----------------------------------------------------------------------


def suites_page() -> str:
    """The keys of a suite, and the suites in the package."""
    from advens.benchmarks.suites import bundled_by_group

    blocks = [_SUITES]
    for heading, model in suite_models().items():
        blocks += [f"## {heading}", _sentence(read_doc(model).summary), _keys(model)]
    blocks.append("## Bundled suites")
    for group, names in bundled_by_group().items():
        blocks.append(f"### Suites: {group}")
        for name in names:
            path = f"../../../benchmarks/suites/{name}.toml"
            blocks += [f"#### {name}", f"```{{literalinclude}} {path}\n:language: toml\n```"]
    return page(*blocks)


def suite_models() -> dict[str, Any]:
    """The tables that suites consist of, as the pydantic models that validate them, by a heading."""
    from pydantic import BaseModel

    from advens.benchmarks import suites

    found = {}
    for value in vars(suites).values():
        if inspect.isclass(value) and issubclass(value, BaseModel) and value is not BaseModel:
            found[re.sub(r"(?<=[a-z])(?=[A-Z])", " ", value.__name__).capitalize()] = value
    return dict(sorted(found.items(), key=lambda item: not item[0].lower().endswith("suite")))


def _keys(model: Any) -> str:
    meanings = read_doc(model).arguments
    rows = []
    for name, field in model.model_fields.items():
        default = (
            "required"
            if field.is_required()
            else _key_default(field.get_default(call_default_factory=True))
        )
        rows.append((code(name), meanings.get(name, ""), code(_annotation(field)), default))
    return table(("key", "meaning", "type", "default"), rows)


def _key_default(value: Any) -> str:
    if value is None or value in ({}, []):
        return ""
    return "" if hasattr(value, "model_fields") else _value(value)


def _annotation(field: Any) -> str:
    text = field.annotation.__name__ if isinstance(field.annotation, type) and not getattr(
        field.annotation, "__args__", None) else str(field.annotation)  # fmt: skip
    text = re.sub(r"typing\.|advens[\w.]*\.", "", text)
    text = re.sub(r"Annotated\[(\w+), [^\]]*\]", r"\1", text)
    text = re.sub(r"Optional\[(.*)\]", r"\1", text)
    text = re.sub(
        r"Literal\[(.*)\]", lambda found: found[1].replace("'", '"').replace(", ", " | "), text
    )
    return text.replace(" | None", "")


def layouts() -> dict[str, tuple[str, Sequence[Any]]]:
    """Kind of file -> what its rows are, and its declared columns."""
    from advens.results.boards import BOARDS
    from advens.results.store.schema import LAYOUTS

    rows = {
        "samples": "One row for each attack, surrogate set, seed, target and image.",
        "examples": "One row for each adversarial image.",
        "likeness": "One row for each target and surrogate set, and for each two targets.",
    }
    found = {kind: (rows.get(kind, ""), layout.columns) for kind, layout in LAYOUTS.items()}
    boards = {name: BOARDS.get(name) for name in BOARDS}
    return found | {
        name: (_sentence(board.summary), board.columns) for name, board in boards.items()
    }


def columns_page() -> str:
    """The columns of every kind of parquet file."""
    blocks = [_COLUMNS]
    for kind, (summary, columns) in layouts().items():
        rows = []
        for column in columns:
            notes = [
                "may be null" if column.nullable else "",
                "may be missing" if column.optional or column.pattern else "",
            ]
            rows.append(
                (
                    code(column.name),
                    column.meaning,
                    column.unit,
                    column.type,
                    ", ".join(filter(None, notes)),
                )
            )
        blocks += [f"## {kind}", summary, table(("column", "meaning", "unit", "type", ""), rows)]
    return page(*blocks)


def python_page() -> str:
    """The public names of `advens` and `advens.attacks`."""
    import advens
    import advens.attacks

    names = sorted({*advens.attacks.__all__} - {*advens.__all__})
    return page(
        _PYTHON,
        "## advens",
        *(_auto("advens", name) for name in sorted(advens.__all__)),
        "## advens.attacks",
        _SYMBOLS,
        *(_auto("advens.attacks", name) for name in names),
    )


def _auto(module: str, name: str) -> str:
    import importlib

    value = getattr(importlib.import_module(module), name)
    kind = "class" if inspect.isclass(value) else "function" if callable(value) else "data"
    members = "\n   :members:" if kind == "class" else ""
    return f"```{{eval-rst}}\n.. auto{kind}:: {module}.{name}{members}\n```"


# --- writing --------------------------------------------------------------------------------------


def pages() -> Iterator[tuple[str, str]]:
    """Path below `FOLDER`, and text, of every generated page."""
    from advens.attacks.parts import PARTS
    from advens.defenses.registry import DEFENSES

    yield "attacks/index.md", attacks_index()
    for name in attack_names():
        yield f"attacks/{name}.md", attack_page(name)
    yield "parts/index.md", parts_index()
    for kind, name in part_names():
        yield f"parts/{kind}-{name}.md", part_page(kind, name)
    builders = PARTS["builder"]
    yield "builders/index.md", _simple_index(_BUILDERS, builders, builders.info)
    for name in builders:
        yield f"builders/{name}.md", builder_page(name)
    yield "defenses/index.md", _simple_index(_DEFENSES, DEFENSES, DEFENSES.info)
    for name in DEFENSES:
        yield f"defenses/{name}.md", defense_page(name)
    yield "commands.md", commands_page()
    yield "suites.md", suites_page()
    yield "columns.md", columns_page()
    yield "python.md", python_page()


def write(source: Path) -> None:
    """Write every generated page below ``source``; one that has not changed keeps its date."""
    folder = source / FOLDER
    wanted = {folder / name: text for name, text in pages()}
    for path in set(folder.rglob("*.md")) - set(wanted):
        path.unlink()
    for path, text in wanted.items():
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")


def check_local(app: Any, error: Exception | None) -> None:
    """A page loads nothing from the network: pages are read offline, and nobody counts their readers."""
    from sphinx.errors import ExtensionError

    loaded = re.compile(
        r"<(?:script|img|iframe|source)[^>]* src=\"https?:|<link[^>]* href=\"https?:"
    )
    for path in () if error else Path(app.outdir).rglob("*.html"):
        if loaded.search(path.read_text(encoding="utf-8")):
            raise ExtensionError(f"{path} loads something from the network")


def setup(app: Any) -> dict[str, Any]:
    """What Sphinx calls."""
    app.connect("builder-inited", lambda app: write(Path(app.srcdir)))
    app.connect("build-finished", check_local)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
