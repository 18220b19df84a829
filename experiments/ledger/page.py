"""The report: the ledger as self-contained HTML pages, and as Markdown.

report/index.html has the table of all claims, to filter, sort and expand; report/NAME.html is the
page of an experiment. Each page contains its style, script and figures, and needs no network or
server. The filters, search, order and language of the index are part of its URL.
"""

import ast
import base64
import dataclasses
import re
import shlex
import shutil
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import jinja2
import markupsafe
import tyro

from experiments import run_dir
from experiments.docstrings import STUDIES, docstring, summary_line
from experiments.ledger import collect as ledger
from experiments.ledger import korean, sources
from experiments.ledger.claims import CLAIMS
from experiments.ledger.collect import Result, Row
from experiments.ledger.interval_plot import interval_plot
from experiments.ledger.verdict_chart import verdict_chart
from experiments.stats import estimates, rules
from experiments.stats.rules import Claim

HERE = Path(__file__).parent
# Changes of bounds, according to `git log`.
MOVED = (
    "One bound has moved since: the largest slope of the sigmoid may differ from 1/4 by 1e-4, "
    "before by 1e-6, so that the rule can be read; it is exact arithmetic, and holds by both."
)
MARKS = {
    rules.HOLDS: "✓",
    rules.PARTLY: "◐",
    rules.UNSHOWN: "○",
    rules.FAILS: "✗",
    rules.UNMEASURED: "·",
}
COLUMNS = {
    "claim": "Claim",
    "source": "Source",
    "verdict": "Verdict",
    "measured": "Measured",
    "experiment": "Experiment",
}


@dataclasses.dataclass(frozen=True)
class Options:
    """Write the ledger of every claim as HTML pages.

    Each experiment is shown by its best finished run, the result that the project keeps among them:
    on the data that the claims are about, then by preset, then by seeds, then the newest.
    """

    runs: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="DIR")] = (Path("runs"),)
    """where run directories are; or run directories, which are taken before all others"""
    to: Annotated[Path, tyro.conf.arg(metavar="DIR")] = Path("report")
    """where the pages go"""
    keep: bool = False
    """also keep the results in docs/results/ledger, and write docs/results/LEDGER.md"""


def main(arguments: list[str]) -> int:
    """Write the report; return the exit status."""
    how = tyro.cli(Options, prog="python -m experiments report", args=arguments)
    for path in how.runs:
        if path.is_file():
            print(
                f"report: Expected --runs with folders, got {path}, which is a file. Pass the "
                f"folder of a run, or of all runs.",
                file=sys.stderr,
            )
            return 2
    without = [path for path in how.runs if not has_runs(path)]
    shown = ": shown is what the project keeps" if len(without) == len(how.runs) else ""
    for path in without:
        what = "finished runs" if path.is_dir() and any(path.iterdir()) else "runs"
        print(f"{path} has no {what}{shown}", file=sys.stderr)
    results = ledger.collect(how.runs, say=lambda line: print(line, file=sys.stderr))
    if not results:
        where = ", ".join(map(str, how.runs))
        print(
            f"Expected finished runs in {where}, found none. Make them with: python -m "
            "experiments all --preset quick",
            file=sys.stderr,
        )
        return 2
    for name, result in results.items():
        if result.lacks and not result.flaw:
            lacks = ", ".join(result.lacks)
            print(f"{name}: {result.path} lacks {lacks}: not measured", file=sys.stderr)
    if how.keep:
        results = keep(results, ledger.KEPT)
        page = ledger.KEPT.parent / "LEDGER.md"
        page.write_text(as_markdown(results), encoding="utf-8")
        print(f"kept: {ledger.KEPT}, {page}")
    write(results, how.to)
    counts = Counter[str](row.verdict for row in ledger.rows(results))
    print(", ".join(f"{counts[verdict]} {verdict}" for verdict in MARKS if counts[verdict]))
    print(f"report: {how.to / 'index.html'}")
    return 0


def has_runs(folder: Path) -> bool:
    """Tell whether a folder is a run, or has a finished run of any experiment."""
    names = {claim.experiment for claim in CLAIMS}
    return (folder / "config.json").exists() or any(run_dir.finished(folder, n) for n in names)


# ---- Pages ---------------------------------------------------------------------------------------


def write(results: Mapping[str, Result], folder: Path) -> None:
    """Write index.html and a page for each experiment."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = ledger.rows(results)
    names = list(dict.fromkeys(claim.experiment for claim in CLAIMS))
    figures = {name: figures_of(name, results.get(name)) for name in names}
    images = {figure["key"]: figure["data"] for of_study in figures.values() for figure in of_study}
    counts = Counter[str](row.verdict for row in rows)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        estimate=estimates.format_estimate,
        minutes=minutes,
        interval_plot=interval_plot,
        citations=sources.citations,
        language=language,
    )
    common: dict[str, Any] = {
        "marks": MARKS,
        "sources": sources.SOURCES,
        "notes": [key for key in sources.SOURCES if key.isdigit()],
        "later": sources.LATER,
        "korean": korean,
        "images": images,
        "style": trusted("style.css"),
        "script": trusted,
        "commands": {name: command(name, results.get(name)) for name in names},
    }
    environment.globals.update(common)
    docstrings = {name: docstring(name) for name in names}
    summaries = {name: summary_line(name).rstrip(".") for name in names}
    page = environment.get_template("index.html").render(
        rows=rows,
        counts={verdict: counts[verdict] for verdict in MARKS if counts[verdict]},
        columns=COLUMNS,
        chart=verdict_chart(rows, MARKS),
        moved=MOVED,
        results={name: results.get(name) for name in names},
        summaries=summaries,
        figure_of=lambda claim: figure_of(claim, figures[claim.experiment]),
    )
    (folder / "index.html").write_text(page, encoding="utf-8")
    for name in names:
        page = environment.get_template("experiment.html").render(
            name=name,
            summary=summaries[name],
            about=paragraphs(docstrings[name]),
            result=results.get(name),
            rows=[row for row in rows if row.claim.experiment == name],
            figures=figures[name],
            numbers_of=lambda figure, name=name: numbers_of(figure, name, results[name]),
            labels={
                check.metric: check.label
                for claim in CLAIMS
                if claim.experiment == name
                for check in claim.checks
            },
            options=option_texts(name),
        )
        (folder / f"{name}.html").write_text(page, encoding="utf-8")


def trusted(name: str) -> Any:
    """Read one of our own styles or scripts, which must not be escaped."""
    return markupsafe.Markup((HERE / "templates" / name).read_text(encoding="utf-8"))


def language(text: str) -> str:
    """Return the language of a title, for screen readers: Korean if it has any Korean letters."""
    return "ko" if re.search("[가-힣]", text) else "en"


def paragraphs(text: str) -> list[str]:
    """Split a docstring into paragraphs, without the command, which is shown separately."""
    texts = (" ".join(lines.split()) for lines in text.split("\n\n"))
    return [paragraph for paragraph in texts if not paragraph.startswith("Command:")]


def option_texts(name: str) -> dict[str, str]:
    """Read the descriptions of a study's options, the docstrings under the fields of its Config."""
    body = ast.parse((STUDIES / name / "config.py").read_text(encoding="utf-8")).body
    config = next(node for node in body if isinstance(node, ast.ClassDef) and node.name == "Config")
    texts = {}
    for field, text in zip(config.body, config.body[1:], strict=False):
        match field, text:
            case (
                ast.AnnAssign(target=ast.Name(id=option)),
                ast.Expr(value=ast.Constant(value=str(written))),
            ):
                texts[option] = " ".join(written.split())
    return texts


def command(name: str, result: Result | None) -> str:
    """Write the command that measures an experiment with the options of its result."""
    options = result.options if result else ["--preset", "quick"]
    return shlex.join(["python", "-m", "experiments", name, *options])


def figures_of(name: str, result: Result | None) -> list[dict[str, str]]:
    """Read the figures of an experiment: file, title, alt, and the image as a data URL."""
    figures: list[dict[str, str]] = []
    if result is None:
        return figures
    for figure in result.summary["figures"]:
        content = (result.path / figure["file"]).read_bytes()
        data = f"data:image/png;base64,{base64.b64encode(content).decode()}"
        figures.append({"caption": "", **figure, "key": f"{name}/{figure['file']}", "data": data})
    return figures


def figure_of(claim: Claim, figures: list[dict[str, str]]) -> dict[str, str] | None:
    """Find the figure that a claim names; None if it has only interval plots."""
    return next((figure for figure in figures if figure["file"] == f"{claim.figure}.png"), None)


def numbers_of(figure: Mapping[str, str], name: str, result: Result) -> list[Row]:
    """Find the claims that name a figure, with their measurements from the same run."""
    rows = [ledger.judge(claim, result.estimates) for claim in CLAIMS if claim.experiment == name]
    return [row for row in rows if figure["file"] == f"{row.claim.figure}.png"]


def minutes(seconds: Mapping[str, float]) -> str:
    """Write the total time of all parts."""
    total = round(sum(seconds.values()))
    return f"{total // 60} min {total % 60} s" if total >= 60 else f"{total} s"


# ---- What the project keeps ----------------------------------------------------------------------


def keep(results: Mapping[str, Result], folder: Path) -> dict[str, Result]:
    """Copy summaries and figures to the folder where the project keeps them."""
    copies = {}
    for name, result in results.items():
        target = folder / name
        if result.flaw:
            print(f"{name}: not kept, {result.flaw}", file=sys.stderr)
            continue
        if target != result.path:
            # The old results stay until their replacement is complete.
            made = target.with_name(f"{name}.partial")
            shutil.rmtree(made, ignore_errors=True)
            made.mkdir(parents=True)
            for file in ["summary.json", *(figure["file"] for figure in result.summary["figures"])]:
                shutil.copy(result.path / file, made / file)
            shutil.rmtree(target, ignore_errors=True)
            made.rename(target)
        copies[name] = Result(target, result.summary)
    return copies


def as_markdown(results: Mapping[str, Result]) -> str:
    """Format the ledger as Markdown, with links to the results that the project keeps."""
    rows = ledger.rows(results)
    counts = Counter[str](row.verdict for row in rows)
    lines = [
        "# Every claim about batch normalization, measured",
        "",
        f"{len(rows)} claims of five study notes (000 to 004), the paper and later work: "
        + ", ".join(f"**{counts[verdict]} {verdict}**" for verdict in MARKS if counts[verdict])
        + ". A claim holds where every number it names lies, with its whole 95 % interval, on the "
        "claim's side of the bound; it holds partly where some do. The rules, in "
        f"the `claims.py` of each [study](../../experiments/studies), were written before the "
        f"measurements. {MOVED}",
        "",
        "Made by `python -m experiments report --keep`, which also writes it as a page to filter, "
        "sort and open: `report/index.html`.",
    ]
    for name, result in results.items():
        mine = [row for row in rows if row.claim.experiment == name]
        environment = result.summary["environment"]
        lines += [
            "",
            f"## {name}",
            "",
            f"{summary_line(name)} `{command(name, result)}`; {result.basis}; "
            + (f"no verdicts: {result.flaw}; " if result.flaw else "")
            + f"{minutes(result.summary['seconds'])} on {environment['machine']['cores']} cores, "
            f"jax {environment['versions']['jax']}. Figures: "
            + ", ".join(
                f"[{figure['title']}](ledger/{name}/{figure['file']})"
                for figure in result.summary["figures"]
            ),
            "",
            "| claim | source | verdict | measured (95 % interval); rule |",
            "|---|---|---|---|",
            *(markdown_row(row) for row in mine),
        ]
    return "\n".join(lines) + "\n"


def markdown_row(row: Row) -> str:
    """Format one claim as a row of a table."""
    cells = []
    for finding in row.findings:
        differs = f" ({finding.differs})" if finding.differs else ""
        cells.append(
            f"{finding.check.label} (`{finding.check.metric}`): **{finding.number}**{differs}; "
            f"{finding.outcome}: "
            f"{finding.check.rule}"
        )
    text = f"{row.claim.text} (`{row.claim.id}`)"
    text += f" *{row.claim.correction}*" if row.claim.correction else ""
    parts = [
        text,
        ", ".join(row.claim.sources),
        f"{MARKS[row.verdict]} {row.verdict}",
        "<br>".join(cells),
    ]
    return "| " + " | ".join(part.replace("|", "\\|") for part in parts) + " |"
