"""The notebooks run from the first cell to the last assert and match the .py files beside them."""

import os
import re
import tomllib
from pathlib import Path

import jupytext
import nbclient
import nbformat
import pytest
from environments import UNCACHED, own_environment

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def cells(notebook):
    return [(cell.cell_type, cell.source) for cell in notebook.cells]


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_there_are_eight():
    assert [path.stem for path in NOTEBOOKS] == [
        "01_batch_norm",
        "02_gradients",
        "03_train_and_inference",
        "04_fig1_live",
        "05_many_devices",
        "06_architectures",
        "07_small_batches",
        "08_from_torch",
    ]


def test_all_install_jbn_from_the_address_of_the_project():
    setups = {code(nbformat.read(path, as_version=4))[0].source for path in NOTEBOOKS}
    assert len(setups) == 1, "the first cells of code differ"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    address = project.get("urls", {}).get("repository", "")
    assert f'REPOSITORY = "{address}"' in setups.pop(), "write [project.urls] repository there"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_executing_again_can_leave_no_trace(path):
    """The notebook contains nothing that differs between two executions of the same script."""
    notebook = nbformat.read(path, as_version=4)
    assert [cell.id for cell in notebook.cells] == [
        f"cell-{place:02}" for place in range(len(notebook.cells))
    ]
    assert not any(cell.metadata for cell in notebook.cells)
    assert set(notebook.metadata) == {"jupytext", "kernelspec", "language_info"}
    assert "version" not in notebook.metadata.language_info
    mimes = {
        mime for cell in code(notebook) for out in cell.outputs for mime in out.get("data", ())
    }
    assert not any("widget" in mime for mime in mimes)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_there_are_two_exercises_with_answers(path):
    prose = jupytext.read(path.with_suffix(".py")).cells
    text = "\n".join(cell.source for cell in prose if cell.cell_type == "markdown")
    exercises = text.split("## Exercises\n")[1]
    questions, answers = exercises.split("## Answers\n")
    assert [len(re.findall(r"^\d\. ", part, re.M)) for part in (questions, answers)] == [2, 2]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_and_script_are_the_same(path):
    notebook = nbformat.read(path, as_version=4)
    script = jupytext.read(path.with_suffix(".py"))
    assert cells(notebook) == cells(script), "run `make notebooks`"
    assert notebook.cells[-1].source.startswith("assert ")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path, tmp_path, monkeypatch):
    """Run in a fresh kernel and an empty folder, on one device until the notebook asks for more."""
    monkeypatch.setenv("XLA_FLAGS", own_environment()["XLA_FLAGS"])
    monkeypatch.setenv("JBN_NOTEBOOKS_QUICK", "1")
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
