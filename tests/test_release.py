"""Version, metadata and workflows of a release agree in all places that state them."""

import ast
import re
import sys
import tomllib
from pathlib import Path

import jax
import pytest
import yaml

import jbn

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
EXTRAS = PROJECT["optional-dependencies"]
FORMS = [path for path in (ROOT / ".github/ISSUE_TEMPLATE").glob("*") if path.stem != "config"]
NAMED_OTHERWISE = {
    "PIL": "pillow",
    "absl": "absl-py",
    "haiku": "dm-haiku",
    "orbax": "orbax-checkpoint",
    "sklearn": "scikit-learn",
}
CLASSIFIED = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"]))


def canonical(requirement):
    """Return the package name in a requirement, normalized as package indexes do."""
    return re.match(r"[\w.-]+", requirement)[0].lower().replace("_", "-").replace(".", "-")


def installed_by(extra):
    """Return the direct requirements of `jbn[extra]`, including those of nested extras."""
    names = set()
    for requirement in EXTRAS[extra]:
        inner = re.fullmatch(r"jbn\[(.*)\]", requirement)
        if inner:
            names.update(*(installed_by(one) for one in inner[1].split(",")))
        else:
            names.add(canonical(requirement))
    return names | {canonical(requirement) for requirement in PROJECT["dependencies"]}


def what_runs(path):
    """Parse a module without the blocks that only type checkers read."""
    tree = ast.parse(path.read_text())
    for node in tree.body:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    return tree


def imported_by(folder):
    """Return the third-party packages that a folder's modules import, at any level."""
    modules = set()
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(what_runs(path)):
            if isinstance(node, ast.Import):
                modules |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
                modules.add(node.module.partition(".")[0])
    others = modules - set(sys.stdlib_module_names) - {"jbn", "experiments", "benchmarks"}
    return {canonical(NAMED_OTHERWISE.get(module, module)) for module in others}


def on_an_index(text):
    """Convert the README as the build does."""
    for rule in PYPROJECT["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"][
        "substitutions"
    ]:
        text = re.sub(rule["pattern"], rule["replacement"], text)
    return text


def test_the_version_is_one():
    """The build reads the file that defines `jbn.__version__`, not the installed version."""
    assert "version" in PROJECT["dynamic"]
    source = (ROOT / PYPROJECT["tool"]["hatch"]["version"]["path"]).read_text()
    version = jbn.__version__
    assert re.findall(r'^__version__ = "(.*)"$', source, re.MULTILINE) == [version]
    newest = re.search(r"^## (\S+) \((\S+)\)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert newest.groups() == (version, citation["date-released"])
    assert citation["version"] == version
    assert citation["license"] == PROJECT["license"]
    minor = version.rpartition(".")[0]
    assert f"at present {minor}." in (ROOT / "SECURITY.md").read_text()


def test_readme_has_no_link_into_the_repository_on_an_index():
    readme = (ROOT / "README.md").read_text()
    text = on_an_index(readme)
    targets = re.findall(r"\]\(([^)]*)\)", text)
    assert targets
    assert all(target.startswith(("http://", "https://")) for target in targets)
    assert text.count("```") == readme.count("```")
    repository = PROJECT.get("urls", {}).get("repository", "https:")
    inside = [target for target in targets if "arxiv.org" not in target]
    assert all(target.startswith(repository) for target in inside)
    assert bool(inside) == ("urls" in PROJECT)


@pytest.mark.parametrize(
    ("folder", "extra", "without"),
    [
        # Users install the frameworks they convert from themselves.
        ("jbn", "all", {"torch", "keras", "dm-haiku", "equinox"}),
        ("experiments", "experiments", {"torch"}),
    ],
)
def test_an_extra_installs_what_is_imported(folder, extra, without):
    assert imported_by(folder) - without <= installed_by(extra)


def test_pythons_are_those_that_are_tested():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    ci = workflow["jobs"]["ci"]
    assert ci["strategy"]["matrix"]["python"] == CLASSIFIED
    assert PROJECT["requires-python"] == f">={CLASSIFIED[0]}"
    assert any(step.get("run") == "bash .ci/run" for step in ci["steps"])


def test_commands_of_workflows_are_there():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    called = set()
    for path in (ROOT / ".github" / "workflows").glob("*.yml"):
        for job in yaml.safe_load(path.read_text())["jobs"].values():
            for step in job["steps"]:
                called |= set(re.findall(r"\bmake ([\w-]+)", step.get("run", "")))
    assert {"build", "test-newest", "compiled"} <= called
    assert called <= targets


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.name)
def test_forms_for_issues_are_complete(path):
    form = yaml.safe_load(path.read_text())
    assert form["name"]
    assert form["description"]
    fields = [field for field in form["body"] if field["type"] != "markdown"]
    assert all(field["attributes"]["label"] for field in fields)
    ids = [field["id"] for field in fields]
    assert len(ids) == len(set(ids))


def test_oldest_jax_of_the_metadata_is_that_of_the_constraints():
    (oldest,) = re.findall(r"^jax==(\S+?); python_version < ", constraints(), re.MULTILINE)
    assert f"jax>={oldest}" in PROJECT["dependencies"]
    if sys.version_info < (3, 12):
        assert jax.__version__ >= oldest


def constraints():
    """Return the text of the pinned versions."""
    return (ROOT / "constraints.txt").read_text()
