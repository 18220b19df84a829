"""What the README shows runs as it stands there."""

import re
from pathlib import Path

import jax
import numpy as np

README = Path(__file__).parents[1] / "README.md"


def test_example_runs_and_normalizes():
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    names = {}
    exec(example, names)
    assert len([line for line in example.splitlines() if line.strip()]) <= 12
    assert int(names["state"].count) == 2
    np.testing.assert_allclose(names["y"].mean(), 3, atol=0.1)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(names["gradient"]))


def test_links_lead_somewhere():
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", README.read_text())
    assert len(links) >= 5
    assert [link for link in links if not (README.parent / link).exists()] == []
