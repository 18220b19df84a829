"""A folder a study: what it measures, and its figures."""

import ast
from pathlib import Path


def docstring(name: str) -> str:
    """Return a study's docstring, without importing the study."""
    source = Path(__file__).parent / name / "__init__.py"
    return ast.get_docstring(ast.parse(source.read_text())) or ""


def summary_line(name: str) -> str:
    """Return the first line of a study's docstring."""
    return docstring(name).partition("\n")[0]
