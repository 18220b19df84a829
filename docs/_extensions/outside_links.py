"""Rewrite links to files of the repository that are not pages, such as `../benchmarks/NOTES.md`.

They work as written when the Markdown is read inside the repository. On the site they link to the
repository's address, `repository` in [project.urls] of pyproject.toml; without one, the path is
written out instead.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sphinx.application import Sphinx


ROOT = Path(__file__).parents[2]
PAGES = ROOT / "docs"
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((?!\w+:)([^)#]+)(#[^)]*)?\)")
ADDRESS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"].get("urls", {})


def rewritten(text: str, folder: Path) -> str:
    """Point links that leave docs/ or enter docs/examples to the repository."""

    def one(match: re.Match[str]) -> str:
        words, target, anchor = match[1], match[2], match[3] or ""
        path = (folder / target).resolve()
        is_page = path.is_relative_to(PAGES) and not path.is_relative_to(PAGES / "examples")
        if is_page or not path.is_relative_to(ROOT):
            return match[0]
        inside = path.relative_to(ROOT).as_posix()
        if "repository" in ADDRESS:
            return f"[{words}]({ADDRESS['repository']}/blob/main/{inside}{anchor})"
        return f"`{inside}`" if Path(inside).name in words else f"{words} (`{inside}`)"

    return LINK.sub(one, text)


def read(app: Sphinx, name: str, source: list[str]) -> None:
    """Rewrite the links of a Markdown page."""
    path = Path(str(app.env.doc2path(name)))
    if path.suffix == ".md":
        source[0] = rewritten(source[0], path.parent)


def setup(app: Sphinx) -> dict[str, Any]:
    """Rewrite pages when they are read."""
    app.connect("source-read", read)
    return {"parallel_read_safe": True}
