"""Arrows go one way: what each folder of experiments may import."""

import ast
from pathlib import Path

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


def test_a_study_is_its_docstring_its_claims_and_what_measures_them():
    for folder in (path for path in (ROOT / "studies").iterdir() if path.is_dir()):
        if folder.name == "__pycache__":
            continue
        names = {path.stem for path in folder.glob("*.py")}
        assert {"__init__", "claims", "measure"} <= names, folder.name
        assert [type(node) for node in ast.parse((folder / "__init__.py").read_text()).body] == [
            ast.Expr
        ]
