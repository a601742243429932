"""How Sphinx builds the documentation: `make docs`."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_ext"))

from advens import __version__  # noqa: E402

project = "advens"
author = "the advens authors"
copyright = "the advens authors"
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "catalogue"]
exclude_patterns = ["_ext", "_static"]
templates_path: list[str] = []

myst_enable_extensions = ["colon_fence", "fieldlist"]
myst_heading_anchors = 3

default_role = "code"
autodoc_typehints = "description"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
napoleon_numpy_docstring = False
suppress_warnings = ["config.cache"]

html_theme = "pydata_sphinx_theme"
html_title = f"advens {version}"
html_static_path = ["_static"]
html_css_files = ["advens.css"]
html_sidebars: dict[str, list[str]] = {
    name: [] for name in ("glossary", "contributing", "design", "changelog")
}
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {
    "header_links_before_dropdown": 5,
    "navigation_depth": 2,
    "show_toc_level": 2,
    "navbar_align": "left",
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
}
pygments_style = "default"
