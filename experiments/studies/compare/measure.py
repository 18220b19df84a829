"""Measurements of the study `compare`."""

import functools
from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.figure import Figure

from experiments.plotting import counted, describe_data, describe_layers, describe_runs
from experiments.studies.compare.comparisons import Key, Results, report, table
from experiments.studies.compare.config import Config, applies
from experiments.studies.compare.figures import Curves, name_of, plot_curves, plot_last
from experiments.studies.compare.training import (
    Arrays,
    Trained,
    at_best_rate,
    for_model,
    sample_images,
    side_by_side,
    step_seconds,
)
from experiments.study import Study
from experiments.tasks.split import Split


def measure(config: Config, study: Study) -> None:
    """Train, report, tabulate, plot."""
    results = train_all(config, study)
    report(config, results, study.report)
    study.table(table(config, results))

    runs = describe_runs(config.seeds, "Points", "bars")
    data = {name: describe_data(study.dataset(name).name) for name in results.tests}
    names = [name_of(config, model) for model in config.models]
    layers = {
        "mlp": describe_layers(config.hidden),
        "cnn": f"stages of {', '.join(map(str, config.cnn_widths))} features",
        "resnet20": f"stages of {', '.join(map(str, config.resnet_widths))} features",
    }
    networks = [f"{name} of {layers[of]}" for name, of in zip(names, config.models, strict=True)]
    about = (
        f"{'; '.join(networks)}; images of {32 // config.shrink}x{32 // config.shrink}, "
        f"{config.examples:,} seen by each, at its best rate."
    )
    study.figure(
        "last",
        lambda: plot_last(
            config,
            {
                dataset: {key: test[:, -1] for key, test in accuracies.items()}
                for dataset, accuracies in results.tests.items()
            },
        ),
        title="Test accuracy of every norm, by network, data set and size of the batch",
        caption=f"{about} {runs}",
        alt="Last test accuracy by norm, a panel for each network and size of the batch, a series "
        "of points for each data set.",
    )
    means = {  # Over data sets.
        key: np.mean([accuracies[key] for accuracies in results.tests.values()], axis=0)
        for key in results.seconds
    }

    def plot(curves: Curves) -> Callable[[], Figure]:
        return lambda: plot_curves(config, curves, results.seconds)

    lines = (
        f"Lines: means over {counted(config.seeds, 'seed')}. At the end, side by side, "
        f"{runs[0].lower()}{runs[1:]} Seconds: steps times the time of a step, of one network "
        f"alone, median of {counted(config.rounds, 'round')} by turns, all compiled."
    )
    alt = (
        "Test accuracy against steps and against seconds, a row of panels for each of "
        f"{', '.join(names)}, two panels for each size of the batch, a line for each norm."
    )
    study.figure(
        "curves",
        plot(means),
        title="Test accuracy against steps and against seconds, mean over the data sets",
        caption=f"{', '.join(data.values())}; {about} {lines}",
        alt=alt,
    )
    for dataset, accuracies in results.tests.items():
        study.figure(
            f"curves_{dataset}",
            plot(accuracies),
            title=f"Test accuracy against steps and against seconds, {data[dataset]}",
            caption=f"{data[dataset]}; {about} {lines}",
            alt=alt,
        )


def train_all(config: Config, study: Study) -> Results:
    """Train and time every network with every norm at every batch size."""
    splits: dict[str, Split] = {
        name: sample_images(config, study.dataset(name)) for name in config.datasets
    }
    tests: dict[str, dict[Key, np.ndarray]] = {name: {} for name in splits}
    rates: dict[str, dict[Key, float]] = {name: {} for name in splits}
    seconds: dict[Key, float] = {}
    for model in config.models:
        images: dict[str, Split] = {name: for_model(model, split) for name, split in splits.items()}
        for size in config.batch_sizes:
            norms = [norm for norm in config.norms if applies(config, model, norm, size)]
            parts, timed = train_each(study, Trained(config, model, size, images), norms)
            for norm in norms:
                key = model, norm, size
                seconds[key] = float(np.median(timed[norm]))
                for name in splits:
                    tests[name][key] = parts[norm][f"{name}_test"]
                    rates[name][key] = float(parts[norm][f"{name}_rate"])
    return Results(tests, rates, seconds)


def train_each(
    study: Study, trained: Trained, norms: Sequence[str]
) -> tuple[dict[str, Arrays], Arrays]:
    """Train one network at one batch size with every norm, one part each; then time them all."""

    @functools.cache
    def compile_all() -> None:  # Not needed if all parts are kept already.
        side_by_side(trained.warm_up, norms)

    def train(norm: str) -> Arrays:
        compile_all()
        return at_best_rate(trained, norm)

    def time_steps() -> Arrays:
        compile_all()
        return step_seconds(trained, norms)

    name = f"{trained.name}_{trained.size}"
    parts = {norm: study.part(f"{name}_{norm}", functools.partial(train, norm)) for norm in norms}
    return parts, study.part(f"{name}_seconds", time_steps)
