"""A Korean page has the same headings, snippets, formulas and numbers as the English one."""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
ENGLISH = {
    "index": "index.md",
    "quick_start": "guides/quick_start.md",
    "choosing_a_norm": "guides/choosing_a_norm.md",
    "formulas": "theory/formulas.md",
    "mechanism": "theory/mechanism.md",
    "errors_in_notes": "errors_in_notes.md",
}


def structure(path):
    """Extract from a page what does not depend on its language."""
    text = path.read_text()
    blocks = re.findall(r"^```(\w+)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    rows = [line for line in prose.splitlines() if line.startswith("|")]
    return {
        "headings": [len(marks) for marks in re.findall(r"^(#+) ", prose, re.MULTILINE)],
        "snippets": blocks,
        "formulas": re.findall(r"^\$\$\n(.*?)^\$\$", prose, re.DOTALL | re.MULTILINE),
        "numbers": re.findall(r"\{(?:measured|setting)\}`[^`]+`", prose),
        "columns of each row": [row.count("|") for row in rows],
        "figures": re.findall(r"^```\{figure\} (?:\.\./)*(\S+)", text, re.MULTILINE),
    }


def test_every_page_has_an_english_one():
    assert {path.stem for path in (DOCS / "ko").glob("*.md")} == set(ENGLISH)


@pytest.mark.parametrize("name", ENGLISH)
def test_structure_is_that_of_the_english_page(name):
    assert structure(DOCS / "ko" / f"{name}.md") == structure(DOCS / ENGLISH[name])


@pytest.mark.parametrize("name", ENGLISH)
def test_links_lead_somewhere(name):
    page = DOCS / "ko" / f"{name}.md"
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []
