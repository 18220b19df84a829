"""The ledger: every claim with what was measured and the verdict that follows."""

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from experiments import run_dir
from experiments.ledger.claims import CLAIMS
from experiments.options import OWN
from experiments.stats import estimates, rules
from experiments.stats.estimates import Estimate
from experiments.stats.rules import Check, Claim, Outcome, Verdict

KEPT = Path(__file__).parents[2] / "docs" / "results" / "ledger"


class Finding(NamedTuple):
    """A check, the number it compares, and how that came out; None where it was not measured."""

    check: Check
    estimate: Estimate | None
    outcome: Outcome

    @property
    def differs(self) -> str:
        """Say by how much the number differs from the one that was expected."""
        if self.check.expected is None or self.estimate is None:
            return ""
        by = self.estimate.value - self.check.expected
        expected = f"{self.check.expected:.4g}"
        if abs(by) <= 5e-4 * abs(self.check.expected):
            return f"as expected, {expected}"
        return f"expected {expected}, differs by {by:+.2g}"


class Row(NamedTuple):
    """A claim with its findings."""

    claim: Claim
    findings: list[Finding]
    verdict: Verdict


class Result(NamedTuple):
    """What a finished run left: the folder, and its summary.json."""

    path: Path
    summary: dict[str, Any]

    @property
    def estimates(self) -> dict[str, Estimate]:
        """Return its numbers by name."""
        return {name: estimates.from_json(made) for name, made in self.summary["metrics"].items()}

    @property
    def preset(self) -> str:
        """Name the preset of its config, "own options" where it is none."""
        return self.summary.get("preset", OWN)

    @property
    def data(self) -> dict[str, Any]:
        """Describe the data sets it was measured on, by name."""
        if "data" in self.summary:
            return self.summary["data"]
        found = self.summary["environment"]["data"]
        return {found["name"]: found}


def judge(claim: Claim, measured: Mapping[str, Estimate]) -> Row:
    """Compare what was measured with the rule of a claim."""
    findings = []
    for check in claim.checks:
        estimate = measured.get(check.metric)
        findings.append(Finding(check, estimate, rules.outcome(check, estimate)))
    return Row(claim, findings, rules.verdict([finding.outcome for finding in findings]))


def rows(results: Mapping[str, Result]) -> list[Row]:
    """Judge every claim; one whose experiment has no result is not measured."""
    measured = {name: result.estimates for name, result in results.items()}
    return [judge(claim, measured.get(claim.experiment, {})) for claim in CLAIMS]


def collect(runs: Path, kept: Path = KEPT) -> dict[str, Result]:
    """Find each experiment's newest finished run, else the result that the project keeps.

    A smoke run gives no verdict, and stands only where there is nothing else.
    """
    results = {}
    for name in dict.fromkeys(claim.experiment for claim in CLAIMS):
        found = [result_of(path) for path in run_dir.finished(runs, name)]
        if (kept / name / "summary.json").is_file():
            found.append(result_of(kept / name))
        if found:
            results[name] = next((r for r in found if r.preset != "smoke"), found[0])
    return results


def result_of(path: Path) -> Result:
    """Read what a finished run left."""
    return Result(path, run_dir.read_json(path / "summary.json"))


def as_text(name: str, measured: Mapping[str, Estimate]) -> str:
    """Lay out one experiment's claims, verdicts and numbers for a terminal."""
    lines = []
    for claim in CLAIMS:
        if claim.experiment != name:
            continue
        row = judge(claim, measured)
        lines += [f"{row.verdict.upper()}: {claim.text} ({claim.id})"]
        for finding in row.findings:
            number = estimates.format_estimate(finding.estimate) if finding.estimate else "-"
            text = f"{finding.check.label}: {number}; {finding.outcome}: {finding.check.rule}"
            lines += textwrap.wrap(text, 96, initial_indent="    ", subsequent_indent="      ")
    return "\n".join(lines)
