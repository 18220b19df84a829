"""The layout of experiments: imports between folders go one way, and studies have one form."""

import ast
import importlib
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "experiments"
# A folder imports only from itself and from those before it.
ORDER = (
    {"checks"},
    {"datasets"},
    {"stats", "sampling", "docstrings", "run_dir", "environment", "option_errors"},
    {"tasks", "options", "plotting"},
    {"training"},
    {"study"},
    {"studies"},
    {"ledger"},
    {"cli"},
    {"__main__"},
)
RANK = {name: rank for rank, names in enumerate(ORDER) for name in names}


def imported(path):
    """Yield the modules of experiments that a file imports, as tuples of name parts."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
            yield from (name.split(".")[1:] for name in names if name.startswith("experiments."))
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
            beside = RANK[there[0]] == RANK[here[0]] and there[0] != here[0]
            claims = here[-1] == "claims" and here[0] == "studies" and there != ["stats", "rules"]
            if (
                RANK[there[0]] > RANK[here[0]]
                or beside
                or claims
                or (study and there[1] != here[1])
            ):
                wrong.append(f"{'.'.join(here)} imports {'.'.join(there)}")
    assert not wrong


STUDIES = [path.parent for path in sorted((ROOT / "studies").glob("*/__init__.py"))]
of_study = pytest.mark.parametrize("folder", STUDIES, ids=lambda folder: folder.name)


def test_every_study_is_listed_and_its_claims_are_registered():
    from experiments.__main__ import ALONE, EXPERIMENTS
    from experiments.ledger.claims import CLAIMS

    assert {folder.name for folder in STUDIES} == {*EXPERIMENTS, *ALONE}
    for folder in STUDIES:
        claims = importlib.import_module(f"experiments.studies.{folder.name}.claims").CLAIMS
        assert set(claims) <= set(CLAIMS), folder.name
        assert {claim.experiment for claim in claims} <= {folder.name}
        assert claims or folder.name in ALONE


@of_study
def test_a_study_has_one_form(folder):
    names = {path.stem for path in folder.glob("*.py")}
    assert {"__init__", "claims", "config", "measure", "figures"} <= names
    body = ast.parse((folder / "__init__.py").read_text()).body
    assert [type(node) for node in body] == [ast.Expr]  # Only a docstring.


# Modules that check options.
CHECKS = ("checks", "datasets", "studies.imagenet.variants")


@pytest.mark.parametrize(
    "path",
    [folder / "config.py" for folder in STUDIES]
    + [ROOT / f"{name.replace('.', '/')}.py" for name in CHECKS],
    ids=lambda path: f"{path.parent.name}/{path.stem}",
)
def test_options_import_nothing_slow(path):
    """Wrong options are therefore refused at once."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        for name in names:
            is_check = name in [f"experiments.{check}" for check in CHECKS]
            assert is_check or name.partition(".")[0] in sys.stdlib_module_names, f"{path}: {name}"


@of_study
def test_what_plots_is_in_figures_and_is_called_so(folder):
    for path in folder.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.FunctionDef):
                continue
            plots = isinstance(node.returns, ast.Name) and node.returns.id == "Figure"
            assert not plots or path.stem == "figures", f"{path}: {node.name}"
            assert not plots or node.name.startswith("plot_"), f"{path}: {node.name}"
            assert not node.name.startswith("draw"), f"{path}: {node.name}: plot_ or sample_"


@of_study
def test_figures_of_claims_are_reported_under_their_names(folder):
    """The name leads from a row of the ledger to the line that plots it."""
    from experiments.ledger.claims import CLAIMS

    source = "".join(path.read_text() for path in folder.glob("*.py"))
    for claim in CLAIMS:
        if claim.experiment == folder.name and claim.figure:
            assert f'"{claim.figure}",\n' in source, claim.id
