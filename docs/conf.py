"""Sphinx configuration of the pages in this folder; build them with `make docs`."""

import sys
import tomllib
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "_extensions"), str(HERE.parent)]

import jbn  # noqa: E402

PROJECT = tomllib.loads((HERE.parent / "pyproject.toml").read_text())["project"]

project = PROJECT["name"]
release = version = jbn.__version__
author = "the authors of jbn"
copyright = f"{author}, {PROJECT['license']}"

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "docstrings",
    "mathml",
    "outside_links",
    "public_names",
    "results",
    "signatures",
]
exclude_patterns = ["_build", "examples", "notebooks/*.py"]

# ---- Pages

myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # Notebooks are stored with their outputs, and tests run them.
nb_merge_streams = True
# Code that Pygments cannot parse is shown without highlighting; that is not an error.
suppress_warnings = ["misc.highlighting_failure"]

# ---- Docstrings

napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
autodoc_typehints = "none"
autodoc_member_order = "bysource"
default_role = "py:obj"
maximum_signature_line_length = 70
python_use_unqualified_type_names = True
add_module_names = False

# Names from other libraries and expressions in docstrings have no page to link to.
nitpicky = True
nitpick_ignore_regex = [
    (r"py:(class|exc|obj|meth|func|attr)", r"(?s)(?!jbn\.).*"),
    (r"py:class", r"jbn\.models\.inception\.Block"),
]

# ---- The site

html_theme = "furo"
html_title = "jbn"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_favicon = "_static/icon.svg"
pygments_dark_style = "github-dark"
html_copy_source = False
html_show_sphinx = False
html_theme_options = {"navigation_with_keys": True}


def set_language(app, page, template, context, doctree):
    """Mark Korean pages as Korean for browsers and screen readers."""
    if page.startswith("ko/"):
        context["language"] = "ko"


def setup(app):
    """Set the language of each page."""
    app.connect("html-page-context", set_language)
