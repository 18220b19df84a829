"""All snippets on the pages under docs/ run, in order, in a separate process."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from environments import UNCACHED, own_environment

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))


def snippets(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


def environment():
    """Return an environment without the suite's eight devices, with this Python as `python`."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return own_environment(PYTHONPATH=str(ROOT), PATH=path)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python(page):
    code = "\n".join(snippets(page, "python"))
    command = [sys.executable, "-W", "error", "-c", code]
    # An incomplete cache entry causes a warning, which is an error here.
    own = environment() | UNCACHED
    done = subprocess.run(command, env=own, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_shell(page, tmp_path):
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    for code in snippets(page, "bash"):
        done = subprocess.run(
            ["bash", "-euc", code.replace("localhost:1234", f"127.0.0.1:{port}")],
            env=environment(),
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        assert "with BN, population statistics" in done.stdout


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []
