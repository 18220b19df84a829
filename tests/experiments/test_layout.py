"""One finds one's way: arrows between the folders of experiments, and the form of a study."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "experiments"
# A folder imports from itself, and from those before it.
ORDER = (
    {"stats", "sampling", "tasks", "docstrings", "plotting", "run_dir", "options"},
    {"study", "training"},
    {"studies"},
    {"ledger"},
    {"cli"},
    {"__main__"},
)
RANK = {name: rank for rank, names in enumerate(ORDER) for name in names}


def imported(path):
    """Yield the modules of experiments that a file imports, as parts of their names."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("experiments"):
            package, *parts = node.module.split(".")
            assert package == "experiments"
            yield from [parts] if parts else ([alias.name] for alias in node.names)


def test_arrows_go_one_way():
    wrong = []
    for path in sorted(ROOT.rglob("*.py")):
        here = path.relative_to(ROOT).with_suffix("").parts
        if here == ("__init__",):
            continue
        for there in imported(path):
            study = "studies" in (here[0], there[0]) and here[0] == there[0]
            if RANK[there[0]] > RANK[here[0]] or (study and there[1] != here[1]):
                wrong.append(f"{'.'.join(here)} imports {'.'.join(there)}")
    assert not wrong


STUDIES = [path.parent for path in sorted((ROOT / "studies").glob("*/__init__.py"))]
of_study = pytest.mark.parametrize("folder", STUDIES, ids=lambda folder: folder.name)


@of_study
def test_a_study_has_one_form(folder):
    names = {path.stem for path in folder.glob("*.py")}
    assert {"__init__", "claims", "config", "measure", "figures"} <= names
    body = ast.parse((folder / "__init__.py").read_text()).body
    assert [type(node) for node in body] == [ast.Expr]  # Its docstring alone.


@of_study
def test_options_import_nothing_slow(folder):
    """So that wrong ones are refused at once."""
    tree = ast.parse((folder / "config.py").read_text())
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        for name in names:
            assert name.partition(".")[0] in sys.stdlib_module_names, f"{folder.name}: {name}"


@of_study
def test_what_plots_is_in_figures_and_is_called_so(folder):
    for path in folder.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.FunctionDef):
                continue
            plots = isinstance(node.returns, ast.Name) and node.returns.id == "Figure"
            assert not plots or path.stem == "figures", f"{path}: {node.name}"
            assert not node.name.startswith("draw"), f"{path}: {node.name}: plot_ or sample_"


@of_study
def test_figures_of_claims_are_reported_under_their_names(folder):
    """From a row of the ledger to the line that plots it, by its name."""
    from experiments.ledger.claims import CLAIMS

    source = "".join(path.read_text() for path in folder.glob("*.py"))
    for claim in CLAIMS:
        if claim.experiment == folder.name and claim.figure:
            assert f'"{claim.figure}",\n' in source, claim.id
