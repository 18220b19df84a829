"""Numbers quoted on pages are the measured ones."""

import json
import re
from pathlib import Path

import pytest

from experiments.studies.imagenet.results import LABELS
from experiments.studies.imagenet.variants import COMPARED

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [path for path in DOCS.rglob("*.md") if "_build" not in path.parts]
QUOTED = {
    (path.relative_to(DOCS).as_posix(), name)
    for path in PAGES
    for name in re.findall(r"\{measured\}`([^`]+)`", path.read_text())
}
VARIANTS = {LABELS[name]: name for name in COMPARED}


@pytest.mark.parametrize("page", sorted({page for page, _ in QUOTED}))
def test_every_number_is_in_the_ledger(page):
    for name in sorted(name for where, name in QUOTED if where == page):
        study, _, metric = name.partition("/")
        summary = json.loads((DOCS / "results" / "ledger" / study / "summary.json").read_text())
        assert metric in summary["metrics"], name


def test_times_on_gpus_are_those_of_the_benchmark():
    page = (DOCS / "guides" / "performance.md").read_text()
    rows = re.findall(r"^\| (.*, forward \+ backward, \w+) \| (.*) \|$", page, re.MULTILINE)
    assert len(rows) >= 6
    for name, numbers in rows:
        quoted = numbers.split(" | ")
        for card, own in zip(("h100", "h200"), (quoted[:3], quoted[3:]), strict=True):
            table = (ROOT / "benchmarks" / "results" / f"nvidia_{card}" / "gpu.md").read_text()
            (row,) = [line for line in table.splitlines() if line.startswith(f"| {name} ")]
            cells = [cell.split()[0] for cell in row.strip("| ").split("|")[1:] if cell.strip()]
            assert own == [cells[0], cells[1], cells[-1]]


@pytest.mark.parametrize("page", ["index.md", "errors_in_notes.md", "ko/index.md"])
def test_the_number_of_claims_is_that_of_the_ledger(page):
    ledger = (DOCS / "results" / "LEDGER.md").read_text()
    claims = re.search(r"(\d+) claims", ledger)[1]
    assert re.search(rf"\b{claims}( claims|$|개)", (DOCS / page).read_text(), re.MULTILINE)


def test_the_table_of_inception_is_that_of_its_run():
    folder = DOCS / "results" / "imagenet"
    summary = json.loads((folder / "summary.json").read_text())["metrics"]
    measured = {name: metric["value"] for name, metric in summary.items()}
    page = (folder / "README.md").read_text()
    lines = re.findall(r"^\| (Inception|BN-.*?) \| (.*) \|$", page, re.MULTILINE)
    assert [name for name, _ in lines] == list(VARIANTS)
    for name, cells in lines:
        steps, *shares = cells.split(" | ")[1:6]
        key = VARIANTS[name]
        assert steps == (f"{measured[f'{key}_steps']:,.0f}" if f"{key}_steps" in measured else "-")
        numbers = ("best", "moving_top_1", "population_top_1", "population_top_5")
        assert shares == [f"{100 * measured[f'{key}_{number}']:.1f}" for number in numbers]


def test_the_errors_of_the_ensemble_are_those_that_were_measured():
    folder = DOCS / "results" / "imagenet"
    measured = json.loads((folder / "ensemble.json").read_text())
    page = (folder / "README.md").read_text()
    rows = re.findall(
        r"^\| (?!paper)([^|]*) \| (\d?) ?\| (\d+\.\d) \| (\d\.\d) \|$", page, re.MULTILINE
    )
    for (path, changes), (name, seed, *_) in zip(measured["networks"].items(), rows, strict=False):
        assert changes.endswith(f", seed {seed}"), path
        assert ("init_scale 1.4" in changes) == ("initial weights x 1.4" in name)
        assert ("per_activation" in changes) == ("per-activation" in name)
        assert re.findall(r"dropped 0(\.\d+)", changes) == re.findall(r"dropout (\.\d+)", name)
    quoted = [(top_1, top_5) for *_, top_1, top_5 in rows]
    errors = measured["errors"].values()
    assert quoted == [tuple(f"{100 * share:.1f}" for share in error.values()) for error in errors]
    *single, together = [error["top_1"] for error in errors]
    mean = sum(single) / len(single)
    for text in (
        f"{100 * (min(single) - together):.1f} points less",
        f"{100 * (mean - together):.1f} less than their mean",
        f"reduction by {100 * (1 - together / mean):.0f}%",
    ):
        assert text in page
