"""The ledger: every claim with its measurements and the verdict that follows."""

import contextlib
import importlib
import json
import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from experiments import run_dir
from experiments.ledger.claims import CLAIMS
from experiments.options import OWN
from experiments.plotting import counted
from experiments.stats import estimates, rules
from experiments.stats.estimates import Estimate
from experiments.stats.rules import Check, Claim, Outcome, Verdict

MOST, LONGEST = 3, 60  # Number of changed options to name, and characters to show of each.
KEPT = Path(__file__).parents[2] / "docs" / "results" / "ledger"


# Measurements are stored in parts, from which the figures are made.
REDRAW = "Resume the run by its path to redraw its figures; nothing is measured again."


class Finding(NamedTuple):
    """A check, the number it compares (None if not measured), and the outcome."""

    check: Check
    estimate: Estimate | None
    outcome: Outcome

    @property
    def number(self) -> str:
        """Write the number, with as many digits as the rule requires."""
        if self.estimate is None:
            return "not measured"
        return estimates.format_estimate(self.estimate, self.check.bounds)

    @property
    def differs(self) -> str:
        """Say by how much the number differs from the expected one."""
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


class BadRun(ValueError):
    """A folder cannot be read as a finished run."""


class Result(NamedTuple):
    """The results of a finished run: its folder and its summary.json."""

    path: Path
    summary: dict[str, Any]

    @property
    def estimates(self) -> dict[str, Estimate]:
        """Return its numbers by name."""
        return {name: estimates.from_json(entry) for name, entry in self.summary["metrics"].items()}

    @property
    def preset(self) -> str:
        """Name the preset that the config equals, whatever the summary says.

        If it equals none: "own options", or, if the summary names a preset, that preset and what
        differs from it, as when another version had other options.
        """
        said, presets = self.summary["preset"], _presets(self.summary["config"]["experiment"])
        for name, of_preset in presets.items():
            if not _changed(self.config, of_preset):
                return name
        if said not in presets:
            return OWN
        changed = _changed(self.config, presets[said])
        shown = [f"{key}={typed(value)}"[:LONGEST] for key, value in changed.items()]
        rest = [f"{len(shown) - MOST} more"] if len(shown) > MOST else []
        return f"{said}, changed: {', '.join([*shown[:MOST], *rest])}"

    @property
    def options(self) -> list[str]:
        """Return the command-line options that give its config: a preset, then other options."""
        experiment = self.summary["config"]["experiment"]
        presets, name = _presets(experiment), self.preset.partition(",")[0]
        words = ["--preset", name] if name in presets else []
        of_preset = presets[name if words else _usual(experiment)]
        for key, value in _changed(self.config, of_preset).items():
            if key not in of_preset or key not in self.config:
                continue  # Exists only in this version, or only in that of the run.
            option = key.replace("_", "-")
            if isinstance(value, bool):
                words += [f"--{option}" if value else f"--no-{option}"]
            else:
                words += [f"--{option}", *map(str, value if isinstance(value, list) else [value])]
        return words

    @property
    def config(self) -> dict[str, Any]:
        """Return the config, in its JSON form."""
        return {key: of for key, of in self.summary["config"].items() if key != "experiment"}

    @property
    def data(self) -> dict[str, Any]:
        """Describe the data sets it was measured on, by the names they were requested by."""
        return self.summary["data"]

    @property
    def commit(self) -> str:
        """Name the commit it was measured with; "-dirty" if there were uncommitted changes."""
        whole = self.summary["environment"].get("commit") or "unknown"
        code, dash, dirty = whole.partition("-")
        return code[:10] + dash + dirty

    @property
    def seeds(self) -> int:
        """Count its seeds: the fewest that any number is based on; 0 if all are exact."""
        runs = [entry["runs"] for entry in self.summary["metrics"].values() if entry["runs"]]
        return min(runs, default=0)

    @property
    def basis(self) -> str:
        """Say what its numbers are based on: data, number of training examples, preset."""
        parts = [
            f"{dataset['name']} ({dataset['train_examples']:,} training examples)"
            if "train_examples" in dataset
            else dataset["name"]
            for dataset in self.data.values()
        ]
        return ", ".join([*parts, f"preset {self.preset}" if self.preset != OWN else OWN])

    @property
    def flaw(self) -> str:
        """Say why it gives no verdicts: a smoke run, or other data than the claims are about."""
        name = self.summary["config"].get("experiment", "")
        wanted = _presets(name)[_usual(name)]
        # Claims mention the values of the last two: batches of 8, ghost batches of 32.
        for field in ("dataset", "datasets", "source", "target", "batch_sizes", "ghost"):
            got = self.summary["config"].get(field)
            if field in wanted and got != wanted[field]:
                how = f"with {field}" if field in ("batch_sizes", "ghost") else "on"
                return f"measured {how} {got}, not {wanted[field]}"
        for asked, dataset in self.data.items():
            if dataset["name"] != asked:
                return f"measured on {dataset['name']}, not {asked}"
        return "a smoke run" if self.preset.startswith("smoke") else ""

    @property
    def rank(self) -> tuple[bool, int, int, int]:
        """Return a key to sort runs by: fit for verdicts, preset, completeness, seeds."""
        order = {"paper": 3, "quick": 2, "smoke": 0}
        return not self.flaw, order.get(self.preset, 1), -len(self.lacks), self.seeds

    @property
    def lacks(self) -> list[str]:
        """Name the numbers that claims need but it lacks, perhaps as a run of another version."""
        name, metrics = self.summary["config"]["experiment"], self.summary["metrics"]
        wanted = {c.metric: None for of in CLAIMS if of.experiment == name for c in of.checks}
        return [metric for metric in wanted if metric not in metrics]


def _presets(name: str) -> dict[str, dict[str, Any]]:
    """Return the options of an experiment's presets, in their JSON form."""
    presets = importlib.import_module(f"experiments.studies.{name}.config").PRESETS
    return {preset: run_dir.to_json(config) for preset, config in presets.items()}


def _usual(name: str) -> str:
    """Name an experiment's default preset."""
    settings = importlib.import_module(f"experiments.studies.{name}.config")
    return getattr(settings, "DEFAULT_PRESET", "quick")


def _changed(config: Mapping[str, Any], of_preset: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that differ from a preset's; those missing in the config are "unknown"."""
    options = {key: config.get(key, "unknown") for key in [*of_preset, *config]}
    return {key: of for key, of in options.items() if key not in of_preset or of != of_preset[key]}


def typed(value: Any) -> str:
    """Write the value of an option as it is typed."""
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def judge(claim: Claim, measured: Mapping[str, Estimate]) -> Row:
    """Compare the measurements with the rule of a claim."""
    findings = []
    for check in claim.checks:
        estimate = measured.get(check.metric)
        findings.append(Finding(check, estimate, rules.outcome(check, estimate)))
    return Row(claim, findings, rules.verdict([finding.outcome for finding in findings]))


def rows(results: Mapping[str, Result]) -> list[Row]:
    """Judge every claim; without a result fit for a verdict, a claim is not measured."""
    measured = {name: result.estimates for name, result in results.items() if not result.flaw}
    return [judge(claim, measured.get(claim.experiment, {})) for claim in CLAIMS]


def collect(
    runs: Sequence[Path], kept: Path = KEPT, *, say: Callable[[str], None] = lambda line: None
) -> dict[str, Result]:
    """Find each experiment's best finished run, including the result that the project keeps.

    The best is the one with the highest `Result.rank`, of equals the newest. A run that cannot be
    read is reported and left out.

    Args:
      runs: folders of runs, or folders of single runs, which take precedence over all others.
      kept: folder of the results that the project keeps.
      say: called with a line for every run that is left out, with the reason.
    """
    results = {}
    chosen = [path for path in runs if (path / "config.json").exists()]
    for name in dict.fromkeys(claim.experiment for claim in CLAIMS):
        named = _read([path for path in chosen if _is_of(path, name)], name, say)
        folders = [root for root in runs if root not in chosen]
        paths = [path for root in folders for path in run_dir.finished(root, name)]
        if (kept / name / "summary.json").is_file():
            paths.append(kept / name)
        candidates = named or _read(paths, name, say)
        if not candidates:
            continue
        # Of equals, max returns the first one, which is the newest.
        results[name] = best = max(candidates, key=lambda result: result.rank)
        for other in candidates:
            if other is not best:
                say(
                    f"{name}: using {best.path} ({_worth(best)}), "
                    f"not {other.path} ({_worth(other)})"
                )
    return results


def _worth(result: Result) -> str:
    seeds = counted(result.seeds, "seed") if result.seeds else "no seeds"
    return result.flaw or f"{result.preset}, {seeds}"


def _is_of(path: Path, name: str) -> bool:
    try:
        return run_dir.read_json(path / "config.json").get("experiment") == name
    except (ValueError, AttributeError, OSError, RecursionError):
        return path.parent.name == name


def _read(paths: Sequence[Path], name: str, say: Callable[[str], None]) -> list[Result]:
    results = []
    for path in paths:
        try:
            results.append(result_of(path, name))
        except BadRun as error:
            say(f"{name}: left out {path}: {error}")
    return results


def result_of(path: Path, name: str) -> Result:
    """Read the results of a finished run.

    Raises:
      BadRun: it is damaged, of another experiment, or names a file outside its folder.
    """
    try:
        summary = run_dir.read_json(path / "summary.json")
    except (ValueError, OSError, RecursionError) as error:
        raise BadRun(f"expected summary.json to be complete JSON, got {error}") from None
    result = Result(path, summary)
    try:
        # Refuses what a page cannot show: NaN, and surrogates, which have no UTF-8.
        json.dumps(summary, allow_nan=False, ensure_ascii=False).encode()
        _check(summary, path, name)
        str((result.basis, result.rank, result.commit))
    except BadRun:
        raise
    except Exception as error:  # Damaged content may raise any type of error.
        kind = type(error).__name__
        raise BadRun(f"expected the summary of a run, got {kind} from it: {error}"[:300]) from None
    return result


def _is_png(file: Path) -> bool:
    """Tell whether a file is a PNG that is complete by its own checksums."""
    try:
        with Image.open(file, formats=["PNG"]) as image:
            image.verify()
    except Exception:  # Damaged files may raise any type of error.
        return False
    return True


def _check(summary: Any, path: Path, name: str) -> None:
    """Refuse anything but the summary of a run of this experiment.

    Raises:
      BadRun: it is not; or any other error if types are wrong.
    """
    kinds: dict[str, type] = {"config": dict, "data": dict, "metrics": dict, "figures": list}
    kinds |= {"seconds": dict, "preset": str}
    for key, kind in kinds.items():
        if not isinstance(summary[key], kind):
            raise BadRun(f"expected `{key}` to be a {kind.__name__}, got {summary[key]!r}"[:300])
    if summary["config"]["experiment"] != name:
        raise BadRun(f"expected a run of {name}, got one of {summary['config']['experiment']}")
    begun = summary["config"]
    with contextlib.suppress(OSError, run_dir.Damaged):  # Kept results have no config.json.
        begun = run_dir.read_json(path / "config.json")
    if begun != summary["config"]:
        raise BadRun("expected the options in summary.json to match config.json")
    for metric, entry in summary["metrics"].items():
        estimate = estimates.from_json(entry)
        numbers = (estimate.value, estimate.low, estimate.high, *estimate.values)
        if not all(isinstance(x, (int, float)) and math.isfinite(x) for x in numbers):
            raise BadRun(f"expected finite numbers for {metric}, got {list(numbers)}")
        if (
            not estimate.low <= estimate.value <= estimate.high
            or not isinstance(estimate.runs, int)
            or isinstance(estimate.runs, bool)
            or estimate.runs < 0
        ):
            raise BadRun(
                f"expected {metric} in its interval, from a whole number of runs, got {entry}"
            )
    for figure in summary["figures"]:
        file = path / figure["file"]
        if file.resolve().parent != path.resolve() or file.suffix != ".png":
            raise BadRun(f"expected a figure in the run's folder, got {figure['file']!r}")
        if not file.is_file():
            raise BadRun(f"expected the figure {figure['file']}, found none. {REDRAW}")
        if not _is_png(file):
            raise BadRun(f"expected the figure {figure['file']} to be a complete PNG. {REDRAW}")
        if not isinstance(figure["title"] + figure["alt"] + figure.get("caption", ""), str):
            raise BadRun(f"expected a title and a text for {figure['file']}, got {figure}")
    for seconds in summary["seconds"].values():
        if isinstance(seconds, (bool, str)) or not 0 <= float(seconds) < math.inf:
            raise BadRun(f"expected seconds, got {seconds!r}")
    machine, versions = summary["environment"]["machine"], summary["environment"]["versions"]
    if not (
        isinstance(machine["cores"], int) and isinstance(versions["jax"] + machine["cpu"], str)
    ):
        raise BadRun(f"expected machine and versions, got {machine} and {versions}")
    for dataset in Result(path, summary).data.values():
        if not isinstance(dataset["name"] + dataset["sha256"] + dataset["source"], str):
            raise BadRun(f"expected data with name, source and checksum, got {dataset}")


def as_text(result: Result) -> str:
    """Format one experiment's claims, verdicts and numbers for a terminal."""
    measured, flaw, name = result.estimates, result.flaw, result.summary["config"]["experiment"]
    lines = [f"On {result.basis}." + f" No verdicts: {flaw}." * bool(flaw)]
    for claim in CLAIMS:
        if claim.experiment != name:
            continue
        row = judge(claim, measured)
        verdict = rules.UNMEASURED if flaw else row.verdict
        lines += [f"{verdict.upper()}: {claim.text} ({claim.id})"]
        for finding in row.findings:
            outcome = "no verdict" if flaw else finding.outcome
            text = f"{finding.check.label}: {finding.number}; {outcome}: {finding.check.rule}"
            lines += textwrap.wrap(text, 96, initial_indent="    ", subsequent_indent="      ")
    return "\n".join(lines)
