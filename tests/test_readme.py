"""The README's code runs as printed, and its numbers are those that were measured.

So are the numbers of longer tables, which are in docs/.
"""

import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest

import jbn

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
RESULTS = ROOT / "docs" / "results"


def rows(page):
    """Return the cells of each row of a page's tables."""
    lines = [line for line in page.read_text().splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def metrics(path):
    """Return the values in a study's summary, by name."""
    found = json.loads((RESULTS / path / "summary.json").read_text())["metrics"]
    return {name: metric["value"] for name, metric in found.items()}


def test_example_runs_and_normalizes():
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    names = {}
    exec(example, names)
    assert len([line for line in example.splitlines() if line.strip()]) <= 12
    assert int(names["state"].count) == 2
    np.testing.assert_allclose(names["y"].mean(), 3, atol=0.1)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(names["gradient"]))


@pytest.mark.parametrize("name", ["README.md", "SECURITY.md", "CHANGELOG.md", "CONTRIBUTING.md"])
def test_links_lead_somewhere(name):
    text = re.sub(r"`[^`\n]*`", "", (ROOT / name).read_text())
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", text)
    assert [link for link in links if not (ROOT / link).exists()] == []
    assert len(links) >= 5 or name != "README.md"


def test_accuracies_beside_the_figure_are_those_that_were_measured():
    measured = metrics("mnist_mlp")
    steps = ("1000", "5000", "10000", "50000")
    names = {
        "without batch normalization": "without",
        "with it, population statistics": "with_population",
    }
    quoted = {cells[0]: cells[1:] for cells in rows(README) if cells[0] in names}
    assert quoted.keys() == names.keys()
    for row, name in names.items():
        assert quoted[row] == [f"{measured[f'accuracy_{name}_{n}']:.3f}"[1:] for n in steps]


@pytest.mark.parametrize("page", [RESULTS / "compare.md", README], ids=lambda page: page.name)
def test_norms_side_by_side_are_those_that_were_measured(page):
    measured = metrics("ledger/compare")
    header, *norms = (cells for cells in rows(page) if len(cells) == 7)
    assert len(norms) == 9
    columns = [
        f"{model}_{{}}_{size}" for model in ("mlp", "cnn", "resnet20") for size in ("8", "128")
    ]
    assert len(header) == 1 + len(columns)
    words = {"batch, bfloat16": "batch_bfloat16", "ghost, of 32": "ghost"}
    for norm, *cells in norms:
        for column, cell in zip(columns, cells, strict=True):
            run = column.format(words.get(norm, norm))
            data = ("mnist", "fashion_mnist", "cifar10")
            found = [measured.get(f"accuracy_{run}_{name}") for name in data]
            want = " ".join(f"{value:.2f}"[1:] for value in found if value is not None)
            assert cell == want, (norm, column)


def test_every_function_has_its_row_and_no_other():
    page = ROOT / "docs" / "guides" / "functions.md"
    named = set(re.findall(r"`([a-z_]+)`", " ".join(cells[0] for cells in rows(page)[1:])))
    functions = {
        name
        for name, value in vars(jbn).items()
        if callable(value) and name.islower() and not name.startswith("_")
    }
    assert named == functions
