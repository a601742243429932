"""The page in headless Chromium: it loads nothing, fits the screen, and answers keys, pointer and filters."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from advens.results.boards import read_board, write_board
from advens.results.formats import percent
from advens.results.report.page import write_report
from advens.results.report.site import Source, gather, pages, write_site

playwright = pytest.importorskip("playwright.sync_api")
axe = pytest.importorskip("axe_playwright_python.sync_playwright")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
SCREENS = [(width, scheme) for width in (390, 1280) for scheme in ("light", "dark")]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three rows and seven targets in three families, with traces and its page."""
    from tests.results.conftest import made_up, write_run

    targets = {f"digits:t{k}": 0.3 + 0.1 * k for k in range(7)}
    frame = made_up(
        {("weak", "cnns"): 0.3, ("strong", "cnns"): 0.8, ("strong", "vits"): 0.6}, targets,
        white_box={"vits": ["digits:t0"]}, n=40,
    )  # fmt: skip
    family = {"digits:t1": "vit", "digits:t2": "vit", "digits:t3": "mlp"}
    frame["target_family"] = frame["target"].map(family).fillna("cnn")
    spec = {"name": "composed", "fusion": {"name": "adaea"}, "steps": 10, "threat": {"eps": 0.2}}
    store = write_run(tmp_path_factory.mktemp("made") / "run", frame, attack_params=spec)
    _traces(store)
    for name in ("matrix", "leaderboard"):
        write_board(store.directory, name)
    write_report(store.directory)
    return store.directory


def _traces(store: Any) -> None:
    from advens.results.store import schema, write_table

    rows = [
        {"what": "loss", "step": step, "sample_id": "0", "surrogate": name, "value": step + len(name)}
        for step in range(4) for name in ("digits:resnet", "digits:vit")
    ]  # fmt: skip
    cell = store.cells()[0]
    write_table(store.path("traces", f"{cell}.parquet"), schema.to_table("traces", pd.DataFrame(rows)))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def visit(browser: Any, made: Path) -> Iterator[Callable[..., Any]]:
    """``visit(width, scheme)``: the page of the run; what it said or asked for fails the test at its end."""
    contexts, said = [], []
    address = (made / "report.html").as_uri()

    def go(width: int = 1280, scheme: str = "light") -> Any:
        context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda asked: said.append(asked.url))
        page.goto(address)
        return page

    yield go
    for context in contexts:
        context.close()
    assert [each for each in said if each != address and not each.startswith("data:")] == []


def at(made: Path, attack: str, surrogates: str, target: str) -> dict[str, Any]:
    matrix = read_board(made, "matrix").set_index(["attack", "surrogates", "target"])
    found: dict[str, Any] = matrix.loc[(attack, surrogates, target)].to_dict()
    return found


def expected(made: Path, attack: str, surrogates: str, target: str) -> str:
    row = at(made, attack, surrogates, target)
    ends = f"{percent(row['asr_low'], 1)}–{percent(row['asr_high'], 1)}"
    return f"{attack} on {surrogates} → {target}: {percent(row['asr'], 1)} % [{ends}] of {row['n']} images"


@pytest.mark.parametrize(("width", "scheme"), SCREENS)
def test_it_fits_and_is_accessible(visit: Callable[..., Any], width: int, scheme: str) -> None:
    page = visit(width, scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.locator(".matrix .open").first.click()
    page.locator("details").evaluate_all("all => all.forEach(each => each.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    found = axe.Axe().run(page)
    assert found.violations_count == 0, found.generate_report()


def test_keys_walk_the_matrix(visit: Callable[..., Any], made: Path) -> None:
    page = visit()
    page.locator(".matrix .open").first.focus()
    for _ in range(2):
        page.keyboard.press("ArrowRight")
    status = page.locator("[role=status]")
    assert status.inner_text().startswith(expected(made, "strong", "cnns", "digits:t0"))
    page.keyboard.press("ArrowDown")
    assert status.inner_text().startswith(expected(made, "strong", "vits", "digits:t0"))
    assert "white-box, not in the mean" in status.inner_text()
    page.keyboard.press("End")
    assert status.inner_text().startswith(expected(made, "strong", "vits", "digits:t2"))  # vits stand last
    assert page.locator(".matrix [tabindex='0']").count() == 1
    page.keyboard.press("Control+Home")
    assert page.evaluate("document.activeElement.className") == "sort"


def test_the_pointer_shows_a_cell(visit: Callable[..., Any], made: Path) -> None:
    page = visit()
    page.locator(".matrix tbody tr").nth(2).locator("td").nth(1).hover()
    assert page.locator("[role=status]").inner_text().startswith(expected(made, "weak", "cnns", "digits:t0"))


def rows(page: Any) -> list[str]:
    names = page.locator(".matrix tbody tr[data-row]:not([hidden]) .open").all_inner_texts()
    return [name.replace("\n", " ") for name in names]


def test_columns_sort(visit: Callable[..., Any], made: Path) -> None:
    page = visit()
    order = ["strong cnns", "strong vits", "weak cnns"]
    assert rows(page) == order
    column = page.locator(".matrix [data-sort='0'] button")
    column.click()
    by_rate = sorted(order, key=lambda name: -at(made, *name.split(), "digits:t0")["asr"])
    assert rows(page) == by_rate
    column.click()
    assert rows(page) == by_rate[::-1]
    page.locator(".matrix [data-sort='attack'] button").click()
    assert rows(page) == sorted(order)


def test_filters_hide(visit: Callable[..., Any]) -> None:
    page = visit()
    page.locator("[name=family][value=vit]").uncheck()
    shown = page.locator(".matrix th.target:not([hidden])").all_inner_texts()
    assert [name.strip() for name in shown] == ["t0", "t4", "t5", "t6", "t3"]
    page.locator("[name=set]").select_option("cnns")
    assert rows(page) == ["strong cnns", "weak cnns"]
    page.locator("[name=attack]").fill("WEAK")
    assert rows(page) == ["weak cnns"]
    assert "1 of 3 rows and 5 of 7 targets" in page.locator("[role=status]").inner_text()
    page.locator(".matrix .open").locator("visible=true").focus()
    page.keyboard.press("End")
    assert "digits:t3" in page.locator("[role=status]").inner_text()


def test_a_row_opens_its_attack(visit: Callable[..., Any]) -> None:
    page = visit()
    button = page.locator(".matrix .open").first
    button.press("Enter")
    assert "adaea" in page.locator(".spec-row").inner_text()
    assert button.get_attribute("aria-expanded") == "true"
    button.press("Enter")
    assert page.locator(".spec-row").count() == 0


def test_the_theme_can_be_chosen(visit: Callable[..., Any]) -> None:
    page = visit(scheme="light")

    def background() -> Any:
        return page.evaluate("getComputedStyle(document.body).backgroundColor")

    light = background()
    page.get_by_role("button", name="Dark theme").click()
    dark = background()
    assert dark != light
    page.get_by_role("button", name="Light theme").click()
    assert background() == light


def test_it_prints(visit: Callable[..., Any]) -> None:
    page = visit(scheme="dark")
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.pdf(prefer_css_page_size=True)[:5] == b"%PDF-"


@pytest.fixture(scope="module")
def site(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site of two runs whose boards are merged, so that it has a page of every kind."""
    folder = tmp_path_factory.mktemp("site")
    sources = [Source(made, "one"), Source(shutil.copytree(made, folder / "two"), "two")]
    write_site(pages(gather(sources)), folder / "site")
    return folder / "site"


@pytest.mark.parametrize(("width", "scheme"), SCREENS)
def test_the_pages_of_a_site(browser: Any, site: Path, width: int, scheme: str) -> None:
    kinds = {path.parent.name: path for path in sorted(site.rglob("*.html"))}
    assert sorted(kinds) == ["attacks", "boards", "models", "runs", "site"]
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    for path in kinds.values():
        page, said = context.new_page(), list[str]()
        page.on("console", lambda message, said=said: said.append(message.text))
        page.on("pageerror", lambda error, said=said: said.append(str(error)))
        page.on("request", lambda asked, said=said: said.append(asked.url))
        page.goto(path.as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= width, path.name
        found = axe.Axe().run(page)
        assert found.violations_count == 0, found.generate_report()
        assert [each for each in said if each != path.as_uri() and not each.startswith("data:")] == []
        page.close()
    context.close()
