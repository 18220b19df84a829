"""Treat docstrings as plain text with `code` and *emphasis*; bars and stars are not markup."""

from __future__ import annotations

import inspect
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sphinx.application import Sphinx


CODE_OR_EMPHASIS = re.compile(r"(`[^`]*`|(?<![\w*])\*[A-Za-z]+\*(?![\w*]))")
DOCTEST = re.compile(r"^\s*>>> ")
# An example of a single expression, on the same line as its header.
SHORT_EXAMPLE = re.compile(r"^Example: `([^`]*)`\.?$", re.MULTILINE)
# An argument documented on the same line as the one before it.
NEXT_ARGUMENT = re.compile(r"(?<=\.) (\w+): ")
VARIADIC = re.compile(r"^\s*\*{1,2}\w+:")


def escaped(text: str) -> str:
    """Escape what reStructuredText would read as markup, outside of code and emphasis."""
    parts = CODE_OR_EMPHASIS.split(text)
    return "".join(
        part if i % 2 else re.sub(r"([|*\\])", r"\\\1", part) for i, part in enumerate(parts)
    )


def process(app: Sphinx, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    """Escape a docstring by paragraph; keep doctests, and names such as **kwargs."""
    whole = SHORT_EXAMPLE.sub(
        lambda match: f"Example:\n  `{' '.join(match[1].split())}`", "\n".join(lines)
    )
    try:
        names = set(inspect.signature(value).parameters)
    except (TypeError, ValueError):  # A module, or something else that is not callable.
        names = set()
    whole = NEXT_ARGUMENT.sub(
        lambda match: f"\n  {match[1]}: " if match[1] in names else match[0], whole
    )
    paragraphs = whole.split("\n\n")
    done = []
    for paragraph in paragraphs:
        before, doctest = [], []
        for line in paragraph.split("\n"):
            (doctest if doctest or DOCTEST.match(line) else before).append(line)
        text = "\n".join(before)
        if not any(VARIADIC.match(line) for line in before):
            text = escaped(text)
        done.append("\n".join([text, *doctest] if before else doctest))
    lines[:] = "\n\n".join(done).split("\n")


def setup(app: Sphinx) -> dict[str, Any]:
    """Escape before napoleon reads the sections."""
    app.connect("autodoc-process-docstring", process, priority=400)
    return {"parallel_read_safe": True}
