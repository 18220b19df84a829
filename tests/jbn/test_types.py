"""Types as users see them, in `help` and in type checkers."""

import inspect
import pathlib
import subprocess
import sys

import pytest

import jbn
import jbn.convert
import jbn.diagnostics

ROOT = pathlib.Path(__file__).parents[2]
FUNCTIONS = {
    f"{module.__name__}.{name}": value
    for module in (jbn, jbn.convert, jbn.diagnostics)
    for name, value in vars(module).items()
    if inspect.isfunction(value) and value.__module__.startswith(module.__name__) and name[0] != "_"
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_help_shows_types_as_they_are_written(name):
    """Evaluated, jaxtyping's unions would fill a screen: 1,045 characters for `batch_norm`."""
    signature = str(inspect.signature(FUNCTIONS[name]))
    assert len(signature) <= 600
    assert "Union[" not in signature
    assert "jaxlib" not in signature


def test_what_type_checkers_see():
    """`assert_type` holds in users' code, and attributes of results are known."""
    pyrefly = pathlib.Path(sys.executable).parent / "pyrefly"
    if not pyrefly.exists():
        pytest.skip("needs pyrefly, of the extra dev")
    command = [pyrefly, "check", "tests/jbn/typing_examples.py", "--python-interpreter-path"]
    checked = subprocess.run(
        [*command, sys.executable], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
