"""What the pages say exists: commands and their options, methods, columns, and files that they include."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import pytest

ROOT = Path(__file__).parents[2]
GENERATED = ROOT / "docs" / "reference" / "generated"
PAGES = sorted(
    [*(p for p in (ROOT / "docs").rglob("*.md") if GENERATED not in p.parents)]
    + [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "ARCHITECTURE.md", "SECURITY.md")]
    + [ROOT / "results" / "README.md"]
)


def code_lines(text: str) -> Iterator[str]:
    """Lines of code blocks, fenced or indented; a line that ends in a backslash goes on."""
    fenced = re.findall(r"^```[^\n{]*\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    indented = re.findall(r"(?:^    \S.*\n)+", text, re.MULTILINE)
    for block in (*fenced, *indented):
        for line in re.sub(r"\\\n\s*", " ", block).splitlines():
            yield from line.strip().split(" && ")


def commands(text: str) -> Iterator[list[str]]:
    """What a reader would type after ``advens``, in code blocks and in inline code."""
    inline = re.findall(r"`advens ([a-z][^`]*)`", text)
    typed = [line for line in code_lines(text) if re.match(r"(\.venv/bin/)?advens [a-z]", line)]
    for line in (*inline, *(line.partition("advens ")[2] for line in typed)):
        yield shlex.split(line, comments=True)


def known() -> dict[str, click.Command]:
    from advens.cli import cli

    context = click.Context(cli)
    return {name: cli.get_command(context, name) for name in cli.list_commands(context)}  # type: ignore[misc]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_on_a_page_exist(path: Path) -> None:
    have = known()
    for words in commands(path.read_text(encoding="utf-8")):
        assert words[0] in have, f"{path.name}: advens {' '.join(words)}"
        command = have[words[0]]
        if isinstance(command, click.Group) and len(words) > 1 and words[1].islower():
            command = command.commands[words[1]]
        options = {name for parameter in command.params for name in parameter.opts}
        for word in words:
            option = word.partition("=")[0]
            if option.startswith("-") and option != "--help":
                assert option in options, f"{path.name}: advens {' '.join(words)}"


def test_the_check_finds_what_does_not_exist() -> None:
    text = "Type `advens runn x`.\n\n```sh\nadvens run x --outt y \\\n    --limit 3\n```\n\n"
    text += "    advens craft a\n"
    assert list(commands(text)) == [
        ["runn", "x"],
        ["run", "x", "--outt", "y", "--limit", "3"],
        ["craft", "a"],
    ]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_that_a_page_runs_exist(path: Path) -> None:
    import importlib.util

    for name in re.findall(r"python -m\s+(advens[\w.]*)", path.read_text(encoding="utf-8")):
        assert importlib.util.find_spec(name), f"{path.name}: python -m {name}"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_between_files_lead_somewhere(path: Path) -> None:
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        found = (path.parent / target).resolve()
        assert found.exists() or GENERATED in found.parents, f"{path.name}: {target}"


@pytest.mark.parametrize("name", ["ARCHITECTURE.md", "CONTRIBUTING.md", "docs/design.md"])
def test_files_and_folders_that_are_named_exist(name: str) -> None:
    top = "advens|attacks|benchmarks|defenses|results|tests|docs"
    for path in re.findall(rf"`((?:{top})/[\w./-]*)`", (ROOT / name).read_text(encoding="utf-8")):
        assert (ROOT / path).exists(), f"{name}: {path}"


def test_everything_registered_has_a_page(catalogue: ModuleType) -> None:
    from advens.attacks.parts import PARTS
    from advens.attacks.registry import list_attacks
    from advens.defenses.registry import list_defenses

    pages = dict(catalogue.pages())
    wanted = [f"attacks/{name}.md" for name in list_attacks()]
    wanted += [f"defenses/{name}.md" for name in list_defenses()]
    wanted += [f"builders/{name}.md" for name in PARTS["builder"]]
    wanted += [
        f"parts/{kind}-{name}.md"
        for kind, parts in PARTS.items()
        if kind not in ("attack", "builder")
        for name in parts
    ]
    assert len(wanted) > 100
    assert not set(wanted) - set(pages)
    for name, text in pages.items():
        assert text.startswith("# "), name
        assert "FieldInfo" not in text, name
        assert " object at 0x" not in text, name


def test_a_page_holds_what_the_registry_says(catalogue: ModuleType) -> None:
    page: str = catalogue.attack_page("svre")
    assert ":paper: Xiong et al., CVPR 2022 (SVRE)" in page
    assert "| `fusion.rounds` | `4` | inner steps per surrogate (M = rounds K). |" in page
    assert "| 4 | 240 | 240 |" in page  # K + K + M passes a step, M = 4K, ten steps
    assert "| digits-ensembles | mi-svre | cnns | 44.6 [40.5, 48.9] | ab | 180 / 180 |" in page
    assert "not told apart" not in page
    alone: str = catalogue.attack_page("pma-plus")
    assert "45.8 [41.5, 50.2]" in alone
    assert "advens robustness" in alone


def test_columns_are_those_that_are_declared(catalogue: ModuleType) -> None:
    from advens.results.boards import BOARDS

    page: str = catalogue.columns_page()
    kinds: dict[str, Any] = catalogue.layouts()
    assert {"samples", "examples", *BOARDS} <= set(kinds)
    for kind, (summary, columns) in kinds.items():
        assert f"## {kind}\n\n{summary}" in page
        for column in columns:
            meaning = column.meaning.replace("|", "\\|")
            assert f"| `{column.name}` | {meaning} | {column.unit} | {column.type} |" in page, kind


def test_the_guide_names_every_part() -> None:
    from advens.attacks.parts import PARTS

    text = (ROOT / "docs" / "guide" / "choosing-an-attack.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| (\w+) \|.*\|(.*)\|$", text, re.MULTILINE))
    assert set(rows) == set(PARTS) - {"attack"}
    for kind, row in rows.items():
        assert set(re.findall(r"`([\w-]+)`", row)) == set(PARTS[kind]), kind


def test_the_glossary_decides_the_words() -> None:
    """Phrases that it lists as not used are on no other page."""
    glossary = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
    for word in ("in the open", "victim", "fooling rate", "how often it does"):
        assert word in glossary.partition("## Words that are not used")[2]
        for path in PAGES:
            if path.name != "glossary.md":
                assert word not in path.read_text(encoding="utf-8").lower(), f"{path.name}: {word}"
