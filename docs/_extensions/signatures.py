"""Show signatures as written, without shapes: `x: ArrayLike`, not a union of ten types.

Shapes are in the docstrings, where they are explained.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from typing import TYPE_CHECKING, Any

import jaxtyping

import jbn

if TYPE_CHECKING:
    from sphinx.application import Sphinx

KINDS = {name for name in vars(jaxtyping) if name[0].isupper()} - {"Array", "ArrayLike"}
# Aliases inside jbn, spelled out so that the types in them become links.
ALIASES = {
    "OptionalState": "BatchNormState | None",
    "Factor": "Array | None",
    "Limit": "ArrayLike | Schedule",
    "State": "T",
    "AxisName": "str | tuple[str, ...]",
}


class Readable(ast.NodeTransformer):
    """Replaces `Float[Array, "N C"]` by `Array`, and writes each type of a union once."""

    def visit_Subscript(self, node: ast.Subscript) -> ast.expr:
        """Leave out shapes, and the parameters of jbn's generic classes."""
        name = node.value.id if isinstance(node.value, ast.Name) else ""
        self.generic_visit(node)
        if name in KINDS:
            parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
            return parts[0]
        return node.value if hasattr(jbn, name) else node

    def visit_BinOp(self, node: ast.BinOp) -> ast.expr:
        """Join a union without repetition."""
        self.generic_visit(node)
        if not isinstance(node.op, ast.BitOr):
            return node
        members = list(dict.fromkeys(ast.unparse(node).split(" | ")))
        return ast.parse(" | ".join(members), mode="eval").body

    def visit_Name(self, node: ast.Name) -> ast.expr:
        """Expand aliases, and write the full names of jbn's own types."""
        if node.id in ALIASES:
            return self.visit(ast.parse(ALIASES[node.id], mode="eval").body)
        if hasattr(jbn, node.id) and inspect.isclass(getattr(jbn, node.id)):
            return ast.parse(f"jbn.{node.id}", mode="eval").body
        return node


def definition(value: Any) -> ast.AST | None:
    """Parse the definition of a function or class; None if it has no source."""
    try:
        source = textwrap.dedent(inspect.getsource(value))
    except (OSError, TypeError):
        return None
    return ast.parse(source).body[0]


def of_function(node: ast.FunctionDef, *, bound: bool) -> tuple[str, str | None]:
    """Write the arguments and the return type of a function; `bound` leaves out self."""
    arguments = node.args
    if bound:
        arguments.args = arguments.args[1:]
    for argument in ast.walk(arguments):
        if isinstance(argument, ast.arg) and argument.annotation is not None:
            argument.annotation = Readable().visit(_unquoted(argument.annotation))
    returns = node.returns
    written = None if returns is None else ast.unparse(Readable().visit(_unquoted(returns)))
    return f"({ast.unparse(arguments)})", written


def of_class(value: type) -> str | None:
    """Write a class's signature: the arguments of __init__, or the fields of a dataclass."""
    fields: dict[str, str] = {}
    for base in reversed(value.__mro__):
        node = definition(base) if base.__module__.startswith("jbn") else None
        for part in node.body if isinstance(node, ast.ClassDef) else ():
            if isinstance(part, ast.FunctionDef) and part.name == "__init__":
                return of_function(part, bound=True)[0]
            if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name):
                kind = ast.unparse(Readable().visit(_unquoted(part.annotation)))
                default = "" if part.value is None else f" = {ast.unparse(part.value)}"
                fields[part.target.id] = f"{part.target.id}: {kind}{default}"
    return f"({', '.join(fields.values())})" if fields else None


def _unquoted(annotation: ast.expr) -> ast.expr:
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        return ast.parse(annotation.value, mode="eval").body
    return annotation


def rewrite(
    app: Sphinx, what: str, name: str, value: Any, options: Any, signature: Any, returns: Any
) -> tuple[str | None, str | None] | None:
    """Return the signature that autodoc shows."""
    if inspect.isclass(value):
        return of_class(value) or "", None
    node = definition(inspect.unwrap(value)) if callable(value) else None
    if isinstance(node, ast.FunctionDef):
        return of_function(node, bound=what == "method")
    return None


def setup(app: Sphinx) -> dict[str, Any]:
    """Rewrite every signature."""
    app.connect("autodoc-process-signature", rewrite)
    return {"parallel_read_safe": True}
