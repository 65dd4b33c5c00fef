"""The documentation site: `sphinx-build -W docs outputs/docs`."""

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sphinx.application import Sphinx

import lrpilot

project = "lrpilot"
author = "The lrpilot developers"
release = lrpilot.__version__
html_title = f"lrpilot {release}"
html_theme = "furo"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
# docstrings write code in single backticks
default_role = "literal"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_typehints = "description"


def keep_tables(app: Sphinx, what: str, name: str, obj: Any, options: Any, text: list[str]) -> None:
    """Show the Markdown tables of a docstring as they stand there."""
    for i in reversed(range(len(text))):
        if text[i].startswith("|"):
            text[i] = f"   {text[i]}"
            if not text[i - 1].startswith("|"):
                text[i:i] = ["::", ""]


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", keep_tables)
