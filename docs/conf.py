"""How Sphinx builds the pages of this folder: `scripts/docs`.

The pages are written for a code host, where links lead to files and folders of the repository. On the site
a link to a page leads to that page, a link to another file downloads it, and a link to a folder becomes
plain text.
"""

from __future__ import annotations

import os
import re
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sphinx.application import Sphinx

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent

project = "balancer"
author = "the balancer authors"
version = release = metadata.version("balancer")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_click"]
html_theme = "furo"
html_title = f"balancer {release}"

myst_heading_anchors = 3
default_role = "code"  # docstrings quote code as Markdown does
smartquotes = False  # options and their values are to be copied
autodoc_member_order = "bysource"

PAGES_OF = {
    ROOT / "README.md": "project/readme.md",
    ROOT / "CONTRIBUTING.md": "project/contributing.md",
    ROOT / "SECURITY.md": "project/security.md",
    ROOT / "CHANGELOG.md": "project/changelog.md",
}
"""Files from outside this folder, and the pages that include them."""

_LINK = re.compile(r"(?P<text>!?\[[^\]]*\])\((?!\w+:|#)(?P<path>[^)\s#]+)(?P<anchor>#[^)\s]*)?\)")


def for_the_site(text: str, folder: Path) -> str:
    """Rewrite the links of a page in `folder`. A link to nothing stays as it is, and Sphinx warns of it."""

    def relinked(link: re.Match[str]) -> str:
        path, anchor = (folder / link["path"]).resolve(), link["anchor"] or ""
        if path.is_dir():
            return link["text"][1:-1]
        if path in PAGES_OF:
            return f"{link['text']}(/{PAGES_OF[path]}{anchor})"
        if path.is_file():
            return f"{link['text']}(/{os.path.relpath(path, DOCS)}{anchor})"
        return link[0]

    return _LINK.sub(relinked, text)


def _read_page(app: Sphinx, docname: str, content: list[str]) -> None:
    content[0] = for_the_site(content[0], app.env.doc2path(docname).parent)


def _read_included(app: Sphinx, path: Path, docname: str, content: list[str]) -> None:
    content[0] = for_the_site(content[0], (DOCS / path).parent)


def _without_signature(
    app: Sphinx, kind: str, name: str, obj: object, options: object, signature: str, returns: str
) -> tuple[str, None] | None:
    """Nobody makes a manifest or a config by calling its class with every field."""
    return ("", None) if kind == "class" else None


def setup(app: Sphinx) -> None:
    app.connect("source-read", _read_page)
    app.connect("include-read", _read_included)
    app.connect("autodoc-process-signature", _without_signature)
