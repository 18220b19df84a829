"""The numbers of the paper's Fig. 1, computed from the files of a run."""

import functools
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from experiments.plotting import describe_data, describe_layers, describe_runs
from experiments.run_dir import Run, read_rows
from experiments.stats import estimates, selection
from experiments.stats.drift import settled_from
from experiments.stats.estimates import Estimate
from experiments.studies.mnist_mlp.config import Config
from experiments.study import Study

CURVES = {
    "without": "without BN",
    "with_population": "with BN, population statistics",
    "with_exponential": "with BN, exponential averages",
}
MILESTONES = (1_000, 5_000, 10_000, 50_000)


class Metrics(NamedTuple):
    """The rows of metrics.jsonl as arrays, by network and statistics."""

    steps: Int[np.ndarray, "T"]
    accuracy: dict[str, Float[np.ndarray, "T seeds"]]
    percentiles: dict[str, Float[np.ndarray, "T seeds 3 units"]]


def read_metrics(run: Run) -> Metrics:
    """Read the metrics recorded during a run."""
    rows = list(read_rows(run.path / "metrics.jsonl"))

    def collect(kind: str) -> dict[str, np.ndarray]:
        return {name: np.array([row[kind][name] for row in rows]) for name in rows[0][kind]}

    steps = np.array([row["step"] for row in rows])
    return Metrics(steps, collect("accuracy"), collect("percentiles"))


def report(config: Config, study: Study) -> None:
    """Report the numbers behind the paper's figure, and plot the figure."""
    metrics = read_metrics(study.run)
    for name, number in estimate(metrics).items():
        study.report(name, number)
    data = study.datasets[config.dataset].name
    study.table(table(config, data, study.estimates))

    from experiments.studies.mnist_mlp import figures  # Half a second; only one host needs it.

    study.figure(
        "fig1",
        lambda: figures.plot_fig1(metrics, data),
        title="Fig. 1: test accuracy, and the input to a typical sigmoid",
        caption=f"{describe_data(data)}, {describe_layers(config.hidden, 'sigmoids')}. Accuracy: "
        f"{describe_runs(config.seeds, 'lines')} Inputs: 15th, 50th and 85th percentile over test "
        "images, of one sigmoid of the last hidden layer, of the first seed.",
        alt="Three panels against training steps: test accuracy with batch normalization rises "
        "sooner and ends higher; the percentiles of the input to a sigmoid of the last layer drift "
        "without it and stay with it.",
    )
    for name, panel in figures.panels(metrics, data).items():
        study.figure(
            name, functools.partial(figures.plot_panel, panel), title=name, alt="", listed=False
        )


def estimate(metrics: Metrics) -> dict[str, Estimate]:
    """Estimate the numbers over seeds.

    Drift, range and spread are measured per unit once training has settled, then averaged over
    units. Drift is how far the median moves from where it was at that time, range the largest minus
    the smallest median, and spread the ratio of the largest to the smallest p85 - p15.
    """
    steps, accuracy, inputs = metrics
    last = steps[-1]

    def at(name: str, step: int) -> np.ndarray:
        return accuracy[name][np.argmin(np.abs(steps - step))]

    results = {
        f"accuracy_{name}_{step}": estimates.mean(at(name, step))
        for name in CURVES
        for step in milestones(steps)
    }
    best = at("without", last)
    share = selection.steps_to(best, accuracy["with_population"].T, steps) / last
    results |= {
        "accuracy_gain_early": estimates.paired(at("with_population", 1000), at("without", 1000)),
        "accuracy_gain_last": estimates.paired(at("with_population", last), best),
        "share_of_steps": estimates.mean(share),
    }
    settled, drift = steps >= settled_from(last), drifts(metrics)
    for name, values in inputs.items():
        p15, p50, p85 = np.moveaxis(values[settled], 2, 0)
        spread = p85 - p15
        ratio = spread.max(0) / np.maximum(spread.min(0), 1e-4)  # The resolution of the records.
        results |= {
            f"drift_{name}": estimates.mean(drift[name].mean(-1)),
            f"range_{name}": estimates.mean((p50.max(0) - p50.min(0)).mean(-1)),
            f"spread_{name}": estimates.mean(ratio.mean(-1)),
        }
    means = (drift[name].mean(-1) for name in ("without", "with"))
    return {**results, "drift_difference": estimates.paired(*means)}


def milestones(steps: Int[np.ndarray, "T"]) -> list[int]:
    """Choose the steps whose accuracy is reported: those of the paper's figure, and the last."""
    return sorted({*MILESTONES, int(steps[-1])} & set(steps.tolist()))


def drifts(metrics: Metrics) -> dict[str, Float[np.ndarray, "seeds units"]]:
    """Compute how far each unit's median moves from where it was once training had settled."""
    settled = metrics.steps >= settled_from(metrics.steps[-1])
    medians = {name: values[settled][:, :, 1] for name, values in metrics.percentiles.items()}
    return {name: np.abs(median - median[0]).max(0) for name, median in medians.items()}


def typical_unit(metrics: Metrics) -> int:
    """Choose the first seed's unit whose drift is nearest to the middle rank in both networks."""
    # Twice the rank, minus 1, with ties averaged; scipy.stats would take a second to import.
    drift = [values[0] for values in drifts(metrics).values()]
    ranks = [(x <= x[:, None]).sum(1) + (x < x[:, None]).sum(1) for x in drift]
    distance = [np.abs(rank - len(rank)) for rank in ranks]
    return int(np.sum(distance, axis=0).argmin())


def table(config: Config, data: str, measured: Mapping[str, Estimate]) -> str:
    """Format the results as text."""
    curve = next(iter(CURVES))
    prefix = f"accuracy_{curve}_"
    steps = [int(name.removeprefix(prefix)) for name in measured if name.startswith(prefix)]

    def cell(name: str) -> str:
        estimate = measured[name]
        half = (estimate.high - estimate.low) / 2
        return f"{estimate.value:.3f}" + f" ± {half:.3f}" * (estimate.runs > 1)

    def line(label: str, cells: list[str]) -> str:
        return f"{label:32}" + "".join(f"{cell:>16}" for cell in cells)

    lines = [line("test accuracy after step", [f"{step:,}" for step in steps])]
    for name, label in CURVES.items():
        lines.append(line("  " + label, [cell(f"accuracy_{name}_{step}") for step in steps]))
    since = settled_from(config.steps)
    lines += ["", line(f"last sigmoids' inputs, step {since:,} on", ["without BN", "with BN"])]
    for name, label in (
        ("drift", "drift of the median"),
        ("range", "range of the median"),
        ("spread", "largest / smallest spread"),
    ):
        lines.append(line("  " + label, [cell(f"{name}_{net}") for net in ("without", "with")]))
    lines += ["", f"data: {data}; {config.seeds} seed{'s' * (config.seeds > 1)}"]
    if config.seeds > 1:
        lines[-1] += ": mean ± half the width of its 95 % interval"
    return "\n".join(lines)
