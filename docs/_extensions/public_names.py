"""List the public names, and check that each one has an entry on a page."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment


MODULES = ("jbn", "jbn.linen", "jbn.nnx", "jbn.models", "jbn.convert", "jbn.diagnostics")


def public_names(module: str) -> list[str]:
    """List a module's public names: `import x as x`, and definitions without an underscore.

    Submodules are left out, as they have their own pages.
    """
    loaded = importlib.import_module(module)
    names = []
    for node in ast.parse(Path(str(loaded.__file__)).read_text()).body:
        if isinstance(node, ast.ImportFrom):
            names += [alias.name for alias in node.names if alias.asname == alias.name]
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.append(node.name)
    names = [f"{module}.{name}" for name in names if not name.startswith("_")]
    return [name for name in names if name not in MODULES]


def check(app: Sphinx, env: BuildEnvironment) -> None:
    """Fail if a public name has no entry."""
    from sphinx.errors import ExtensionError

    documented = set(env.domains.python_domain.objects)
    public = {name for module in MODULES for name in public_names(module)}
    missing = sorted(public - documented)
    if missing:
        raise ExtensionError(
            f"Expected an entry in docs/api for every public name, got none for {missing}. Add "
            "them to the page of their module."
        )


def setup(app: Sphinx) -> dict[str, Any]:
    """Run the check once all pages are read."""
    app.connect("env-check-consistency", check)
    return {"parallel_read_safe": True}
