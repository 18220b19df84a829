"""Report pages of two finished runs: one satisfies its claims' rules, one violates them."""

import importlib

from experiments import environment, plotting, run_dir
from experiments.ledger import collect as ledger
from experiments.ledger import page as report
from experiments.ledger.claims import CLAIMS
from experiments.stats import estimates
from experiments.study import Study

HOSTILE = """<script>alert("x")</script> & 'so' on"""


def finished(runs, name, estimate):
    """Make a finished run in which every number is `estimate(check)`."""
    config = importlib.import_module(f"experiments.studies.{name}.config").PRESETS["quick"]
    with run_dir.create(runs, name, config) as run:
        run_dir.keep_environment(run, environment.describe())
        study = Study(name, run, preset="quick")
        for claim in CLAIMS:
            for check in claim.checks if claim.experiment == name else ():
                study.report(check.metric, estimate(check))
        for figure in sorted({claim.figure for claim in CLAIMS if claim.experiment == name} - {""}):
            study.figure(figure, plotting.figure, title=HOSTILE, alt=f"Axes alone. {HOSTILE}")
        study.finish()
    return run.path


def inside(check):
    """Make an estimate that satisfies the check."""
    low, high = check.low, check.high
    value = (
        high - 1 if low == -float("inf") else low + 1 if high == float("inf") else (low + high) / 2
    )
    return estimates.exact(value)


def outside(check):
    value = check.high + 1 if check.high < float("inf") else check.low - 1
    return estimates.mean([value, value + 0.1, value + 0.2] if value > 0 else [value] * 3)


def write_pages(folder):
    """Write the report of a run that satisfies its claims and of one that does not."""
    finished(folder / "runs", "identities", inside)
    finished(folder / "runs", "titanic", outside)
    results = ledger.collect([folder / "runs"], kept=folder / "none")
    report.write(results, folder / "pages")
    return folder / "pages"
