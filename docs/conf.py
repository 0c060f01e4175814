"""Sphinx: ``uv run sphinx-build -W docs site`` writes the site to ``site/``, without a network and for none."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from generate import write_pages

from aihwkit_nabn import __version__

project = "aihwkit_nabn"
author = copyright = "The aihwkit_nabn developers"
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["README.md"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
suppress_warnings = ["myst.xref_missing", "myst.header"]  # links to files of the repository: tests/docs looks at them
default_role = "py:obj"

add_module_names = False
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings say types and shapes in words
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_custom_sections = ["Source"]

smartquotes = False  # two dashes before an option stay two

html_theme = "furo"
html_title = f"aihwkit_nabn {version}"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False


def escape_bars(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Keep |weight|, outside of literals, from being a substitution to reStructuredText."""
    for number, line in enumerate(lines):
        parts = re.split(r"(``.*?``)", line)
        parts[::2] = [re.sub(r"\|(\w+)\|", r"\\|\1\\|", part) for part in parts[::2]]
        lines[number] = "".join(parts)


def setup(app: Any) -> None:
    """Write the pages that are made from the code, anew at every build."""
    write_pages(Path(__file__).parent / "generated")
    app.connect("autodoc-process-docstring", escape_bars, priority=400)
