"""The notebooks run from first cell to last assert, and are what the .py beside them says."""

import os
from pathlib import Path

import jupytext
import nbclient
import nbformat
import pytest
from environments import UNCACHED, own_environment

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


def cells(notebook):
    return [(cell.cell_type, cell.source) for cell in notebook.cells]


def test_there_are_three():
    names = [path.stem for path in NOTEBOOKS]
    assert names == ["01_batch_norm", "02_gradients", "03_train_and_inference"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_and_script_are_the_same(path):
    notebook = nbformat.read(path, as_version=4)
    script = jupytext.read(path.with_suffix(".py"))
    assert cells(notebook) == cells(script), "run `make notebooks`"
    assert notebook.cells[-1].source.startswith("assert ")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path, tmp_path, monkeypatch):
    """In a fresh kernel, in a folder of its own, on one device until the notebook asks for more."""
    monkeypatch.setenv("XLA_FLAGS", own_environment()["XLA_FLAGS"])
    monkeypatch.setenv("PYTHONPATH", str(path.parents[1]))
    monkeypatch.setenv("JAX_PLATFORMS", os.environ.get("JAX_PLATFORMS", "cpu"))
    for name, value in UNCACHED.items():
        monkeypatch.setenv(name, value)
    notebook = nbformat.read(path, as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    )
    client.execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert any("image/png" in output.get("data", ()) for output in outputs)
