"""Insert measured numbers and figures, read from docs/results when the pages are built.

`` {measured}`batch_size/bn_2` `` becomes the number of that name with its interval, and
`` {setting}`batch_size` `` the data, the preset and the seeds it was measured with. This way no
page quotes an outdated number. The page `gallery` gets every figure of the ledger.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.docstrings import summary_line
from experiments.stats import estimates

if TYPE_CHECKING:
    from sphinx.application import Sphinx

LEDGER = Path(__file__).parents[1] / "results" / "ledger"
FIGURES = "<!-- figures of the ledger -->"
DATA = {
    "mnist": "MNIST",
    "fashion_mnist": "Fashion-MNIST",
    "cifar10": "CIFAR-10",
    "titanic": "Titanic",
    "digits": "digits of scikit-learn",
}
SEEDS = {"en": "{} seeds", "ko": "시드 {}개"}
NO_DATA = {"en": "no data set", "ko": "데이터 없음"}
PRESET = {"en": "preset {}", "ko": "{} 프리셋"}


@functools.cache
def summary(study: str) -> dict[str, Any]:
    """Read the results of a study's stored run."""
    path = LEDGER / study / "summary.json"
    if not path.exists():
        there = sorted(folder.name for folder in LEDGER.iterdir())
        raise ValueError(f"Expected a study among {there}, got {study!r}. Fix its name.")
    return json.loads(path.read_text())


def number(name: str) -> str:
    """Write a measured number with its interval; `name` is study/metric."""
    study, _, metric = name.partition("/")
    metrics = summary(study)["metrics"]
    if metric not in metrics:
        raise ValueError(
            f"Expected a number that {study} measured, got {name!r}. Use one of {sorted(metrics)}."
        )
    text = estimates.format_estimate(estimates.from_json(metrics[metric]))
    return text.replace("-", "\N{MINUS SIGN}").replace(" to ", " … ")


def setting(study: str, language: str) -> str:
    """Write the data, the preset and the seeds of a study's stored run."""
    content = summary(study)
    data = ", ".join(DATA.get(name, name) for name in content["data"]) or NO_DATA[language]
    parts = [data, PRESET[language].format(content["preset"])]
    if "seeds" in content["config"]:
        parts.append(SEEDS[language].format(content["config"]["seeds"]))
    return ", ".join(parts)


def measured_role(
    name: str, raw: str, text: str, line: int, inliner: Any, options: Any = None, content: Any = ()
) -> tuple[list[Any], list[Any]]:
    """Insert a measured number into a sentence."""
    return _inline(raw, number(text), "measured")


def setting_role(
    name: str, raw: str, text: str, line: int, inliner: Any, options: Any = None, content: Any = ()
) -> tuple[list[Any], list[Any]]:
    """Insert data, preset and seeds into a sentence, in the language of the page."""
    document = inliner.document.settings.env.docname
    language = "ko" if document.startswith("ko/") else "en"
    return _inline(raw, setting(text, language), "setting")


def _inline(raw: str, text: str, kind: str) -> tuple[list[Any], list[Any]]:
    from docutils import nodes

    return [nodes.inline(raw, text, classes=[kind])], []


def gallery() -> str:
    """Write every figure of the ledger as Markdown, by study."""
    lines = []
    for folder in sorted(folder for folder in LEDGER.iterdir() if folder.is_dir()):
        study = folder.name
        lines += [
            f"## {study}",
            "",
            f"{summary_line(study)} Measured on: {setting(study, 'en')}. "
            f"[Its claims](results/LEDGER.md#{study}).",
            "",
        ]
        for figure in summary(study)["figures"]:
            lines += [
                f"```{{figure}} results/ledger/{study}/{figure['file']}",
                f":alt: {json.dumps(figure['alt'], ensure_ascii=False)}",
                ":loading: lazy",
                "",
                f"**{figure['title']}.** {figure['caption']}",
                "```",
                "",
            ]
    return "\n".join(lines)


def fill(app: Sphinx, name: str, source: list[str]) -> None:
    """Insert the figures where a page asks for them."""
    if FIGURES in source[0]:
        source[0] = source[0].replace(FIGURES, gallery())


def setup(app: Sphinx) -> dict[str, Any]:
    """Add the two roles and the figures."""
    app.add_role("measured", measured_role)
    app.add_role("setting", setting_role)
    app.connect("source-read", fill)
    return {"parallel_read_safe": True}
