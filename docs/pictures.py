"""The pictures that the README begins with: the report of the quickstart run, light and dark.

    make run && .venv/bin/python docs/pictures.py runs/quickstart

Chromium must be installed; Pillow reduces the pictures to 128 colours, which are enough for the page.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from advens.results.report.page import write_report

WIDTH = 1120
TOP, BOTTOM = "#matrix-0", "#board-0"
"""The sections of the page that are shown, the first and the last."""
MARGIN = 24
OUT = Path(__file__).parent / "_static"


def main(directory: Path) -> None:
    """Write ``report-light.png`` and ``report-dark.png`` of a run."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as started:
        page_file = write_report(directory, Path(folder) / "report.html")
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for scheme in ("light", "dark"):
            page = browser.new_page(viewport={"width": WIDTH, "height": 900}, color_scheme=scheme)
            page.goto(Path(page_file).as_uri())
            path = OUT / f"report-{scheme}.png"
            first, last = (page.locator(name).bounding_box() for name in (TOP, BOTTOM))
            top, end = first["y"], last["y"] + last["height"] + MARGIN
            clip = {"x": 0, "y": top, "width": WIDTH, "height": end - top}
            page.screenshot(path=path, full_page=True, clip=clip)
            Image.open(path).convert("RGB").quantize(128).save(path, optimize=True)
        browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
