"""Docstrings of studies, read without importing the studies."""

import ast
from pathlib import Path

STUDIES = Path(__file__).parent / "studies"


def docstring(name: str) -> str:
    """Return a study's docstring."""
    source = STUDIES / name / "__init__.py"
    return ast.get_docstring(ast.parse(source.read_text())) or ""


def summary_line(name: str) -> str:
    """Return the first line of a study's docstring."""
    return docstring(name).partition("\n")[0]
