"""Make each notebook by executing the script next to it; equal results give equal bytes.

    python notebooks/build.py          # all
    python notebooks/build.py 04 05    # those whose names begin with 04 or 05

Cells are named by their position. Times, versions and widget output (which has random names) are
left out, so that executing again changes no file.
"""

import sys
from pathlib import Path

import jupytext
import nbclient
import nbformat

HERE = Path(__file__).parent
WIDGET = "application/vnd.jupyter.widget-view+json"


def build(script: Path) -> None:
    """Execute a script as a notebook and write the notebook next to it."""
    notebook = jupytext.read(script)
    client = nbclient.NotebookClient(
        notebook,
        timeout=600,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": HERE}},
    )
    client.execute()
    for place, cell in enumerate(notebook.cells):
        cell.id, cell.metadata = f"cell-{place:02}", {}
        if cell.cell_type == "code":
            cell.outputs = [out for out in cell.outputs if WIDGET not in out.get("data", ())]
    notebook.metadata.pop("widgets", None)
    notebook.metadata.get("language_info", {}).pop("version", None)
    notebook.metadata.get("jupytext", {}).pop("text_representation", None)
    nbformat.write(notebook, script.with_suffix(".ipynb"))


if __name__ == "__main__":
    wanted = tuple(sys.argv[1:]) or ("",)
    for path in sorted(HERE.glob("[0-9]*.py")):
        if path.name.startswith(wanted):
            print(path.with_suffix(".ipynb").name)
            build(path)
