"""Every snippet of the pages in subfolders of docs/ runs, in order, one namespace per page.

Pages directly in docs/ run in separate processes, see `tests/test_docs.py`. Korean pages have the
snippets of the English ones (`test_korean_pages.py`) and are not run again.
"""

import re
from pathlib import Path

import jax
import pytest

DOCS = Path(__file__).parents[2] / "docs"
PAGES = sorted(path for folder in ("guides", "theory") for path in (DOCS / folder).glob("*.md"))
PEERS = re.compile(r"^(?:import|from) (torch|keras|haiku|equinox|sklearn)\b", re.MULTILINE)


def snippets(page, language="python"):
    pattern = rf"^```{language}\n(.*?)^```"
    return re.findall(pattern, page.read_text(), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_python(page, capsys):
    code = snippets(page)
    for peer in sorted(set(PEERS.findall("\n".join(code)))):
        pytest.importorskip(peer, reason=f"{peer} is not installed")
    names = {"__name__": f"docs.{page.stem}"}
    with jax.numpy_rank_promotion("allow"):  # JAX's default, which readers have.
        for i, snippet in enumerate(code):
            exec(compile(snippet, f"{page.name}, snippet {i + 1}", "exec"), names)
    printed = capsys.readouterr().out
    for output in snippets(page, "text"):  # Numbers may differ in the last digit, headers not.
        assert output.splitlines()[0] in printed


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []
