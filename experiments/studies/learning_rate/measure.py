"""Measurements of the study `learning_rate`."""

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int

from experiments.plotting import counted, describe_data, describe_layers, describe_runs
from experiments.stats import estimates, selection
from experiments.studies.learning_rate.config import DECAYS, HIGH, LOW, Config
from experiments.studies.learning_rate.figures import plot_grid, plot_plateau, plot_speed
from experiments.studies.learning_rate.training import (
    ACTIVATIONS,
    METHODS,
    Setting,
    sample_examples,
    train,
)
from experiments.study import Study

REACHED, CHANCE = 0.9, 0.2  # Accuracies.


# ---- Measures ------------------------------------------------------------------------------------


def evaluation_steps(steps: int, every: int) -> Int[np.ndarray, "evaluations"]:
    """Return the steps after which networks are evaluated."""
    return np.arange(every, steps + 1, every)


def largest_rate(
    accuracy: Float[np.ndarray, "seeds rates"], rates: Sequence[float]
) -> Float[np.ndarray, "seeds"]:
    """Find the largest rate whose final accuracy is at least 90 %, for each seed.

    If there is none, the result is one grid step below the smallest rate. If it is the largest rate
    of the grid, the true one may be larger.
    """
    below = rates[0] ** 2 / rates[1]
    return np.where(accuracy >= REACHED, np.asarray(rates)[None], below).max(-1)


def likeness(params: Mapping[str, Any]) -> tuple[float, int]:
    """Measure how alike the hidden units of each layer are, and the rank of the weights.

    Returns:
      the largest difference between the weights into (or out of) a hidden unit and those of
      the first unit of its layer; the largest rank of a weight matrix.
    """
    names = [f"dense_{i}" for i in range(len(params) - 1)]
    layers = [params[name] for name in (*names, "output")]
    difference = 0.0
    for layer, after in itertools.pairwise(layers):
        for weights in (layer["kernel"].T, layer["bias"], after["kernel"]):
            difference = max(difference, float(np.abs(weights - weights[:1]).max()))
    return difference, max(int(np.linalg.matrix_rank(layer["kernel"])) for layer in layers)


# ---- The experiment ------------------------------------------------------------------------------


def measure(config: Config, study: Study) -> None:
    """Train over grids and report."""
    dataset = study.dataset(config.dataset)
    given = sample_examples(
        dataset, validation=config.validation, population_batches=config.population_batches
    )
    fit = functools.partial(train, given, hidden=config.hidden, looked_at=config.looked_at)

    def run(
        name: str, *arguments: Any, seeds: int = config.seeds, **options: Any
    ) -> dict[str, np.ndarray]:
        def start() -> dict[str, np.ndarray]:
            results = fit(*arguments, seeds=seeds, **options)
            return {"validation": results["validation"], "test": results["test"]}

        return study.part(name, start)

    def from_zero() -> dict[str, np.ndarray]:
        settings = [Setting(LOW, 0.0)]
        results = fit("sigmoid", "none", settings, config.short_steps, seeds=config.seeds)
        alike = [
            likeness(jax.tree.map(lambda leaf, seed=seed: leaf[0, seed], results["params"]))
            for seed in range(config.seeds)
        ]
        difference, rank = np.transpose(alike)
        return {"test": results["test"][0, :, -1], "difference": difference, "rank": rank}

    grid(config, study, run)
    speed(config, study, run)
    zero = study.part("zero", from_zero)
    study.report("zero_difference", estimates.exact(zero["difference"].max()))
    study.report("zero_rank", estimates.exact(zero["rank"].max()))
    study.report("zero_accuracy", estimates.mean(zero["test"]))


def grid(config: Config, study: Study, run: Callable[..., Any]) -> None:
    """Compare where networks reach 90 %, over rates and initial weights."""
    settings = [Setting(rate, sigma) for sigma in config.sigmas for rate in config.rates]
    shape = len(config.sigmas), len(config.rates), config.seeds
    small, large = config.sigmas.index(0.05), config.sigmas.index(5.0)
    last = {
        (activation, method): run(
            f"grid_{activation}_{method}", activation, method, settings, config.grid_steps
        )["test"].reshape(shape)
        for activation in ACTIVATIONS
        for method in METHODS
    }
    for activation, gain in (("sigmoid", "grid_gain"), ("relu", "grid_gain_relu")):
        batch, none = last[activation, "batch"], last[activation, "none"]
        shares = (np.mean(accuracy >= REACHED, (0, 1)) for accuracy in (batch, none))
        study.report(gain, estimates.paired(*shares))
        rates = [largest_rate(accuracy[small].T, config.rates) for accuracy in (batch, none)]
        study.report(f"rate_ratio_{activation}", estimates.ratio(rates[0] / rates[1]))
    batch, none = (
        last["sigmoid", method][large, config.rates.index(0.01)] for method in ("batch", "none")
    )
    study.report("gain_sigma_5", estimates.paired(batch, none))
    data = describe_data(study.dataset(config.dataset).name)
    study.figure(
        "grid",
        lambda: plot_grid(config, last),
        title="Where networks train: learning rate and initial weights",
        caption=f"{data}, {describe_layers(config.hidden)}. Colors and numbers: means over "
        f"{counted(config.seeds, 'seed')}.",
        alt="Four heat maps of the last test accuracy over learning rate and sigma: sigmoid and "
        "ReLU, without and with BN; each cell is the mean over seeds.",
    )


def speed(config: Config, study: Study, run: Callable[..., Any]) -> None:
    """Compare plateaus, explosions, steps to 90 %, and last accuracies."""
    # ---- At chance, and beyond --------------------------------------------------------------
    slow = Setting(0.01, 0.05)
    stalled = run(
        "plateau", "sigmoid", "none", [slow], config.plateau_steps, every=config.plateau_every
    )
    evaluations = evaluation_steps(config.plateau_steps, config.plateau_every)
    chance = selection.steps_to(CHANCE, stalled["test"][0], evaluations)
    study.report("chance_without", estimates.mean(chance))
    large = [Setting(rate, 0.5) for rate in config.exploding_rates]
    exploding = run(
        "exploding", "relu", "none", large, config.short_steps, seeds=config.exploding_seeds
    )
    failed = exploding["test"][..., -1] < CHANCE
    study.report("diverged_small", estimates.share(failed[0]))
    study.report("diverged_large", estimates.share(failed[-1]))

    # ---- Speed ------------------------------------------------------------------------------
    rates = [Setting(rate, 0.1) for rate in config.fast_rates]
    decays = [Setting(HIGH, 0.1, factor * config.half_life) for factor in DECAYS]
    low, high = (config.fast_rates.index(rate) for rate in (LOW, HIGH))
    run_fast = functools.partial(run, every=config.fast_every)
    evaluations = evaluation_steps(config.fast_steps, config.fast_every)
    steps, best = {}, {}
    for method in METHODS:
        accuracies = run_fast(
            f"speed_sigmoid_{method}", "sigmoid", method, rates, config.fast_steps
        )
        validation, steps[method] = (
            selection.steps_to(REACHED, accuracies[images], evaluations)
            for images in ("validation", "test")
        )
        best[method] = steps[method][selection.best(validation, "lowest")]
    # The short plateau with BN is trained along with these: as many settings as there are rates
    # need no new compilation.
    accuracy = run_fast("decay", "sigmoid", "batch", [*decays, slow], config.fast_steps)["test"]
    learning, decayed = accuracy[-1], accuracy[:-1, :, -1]
    study.report("chance_with", estimates.mean(selection.steps_to(CHANCE, learning, evaluations)))
    for name, batch, none in (
        ("steps_ratio_low", steps["batch"][low], steps["none"][low]),
        ("steps_ratio_best", best["batch"], best["none"]),
        ("slowness_without", steps["none"][low], steps["none"][high]),
        ("slowness_with", steps["batch"][low], steps["batch"][high]),
    ):
        study.report(name, estimates.ratio(batch / none))

    # ---- The end ----------------------------------------------------------------------------
    study.report("slow_minus_fast", estimates.paired(decayed[-1], decayed[0]))
    end = {
        method: run(f"speed_relu_{method}", "relu", method, rates, config.fast_steps)
        for method in METHODS
    }
    none, batch = (end[method]["test"][..., -1] for method in ("none", "batch"))
    choice = selection.best(end["batch"]["validation"][..., -1], "highest")
    study.report("last_gain_low", estimates.paired(batch[low], none[low]))
    study.report("gain_from_high_rate", estimates.paired(batch[choice], batch[low]))

    data = describe_data(study.dataset(config.dataset).name)
    about = f"{data}, {describe_layers(config.hidden)}."
    study.figure(
        "plateau",
        lambda: plot_plateau(config, stalled["test"][0], learning, failed),
        title="Too small a step, and too large a one",
        caption=f"{about} {describe_runs(config.seeds)} Points: shares of "
        f"{counted(config.exploding_seeds, 'seed')}; bars: 95 % intervals (Wilson).",
        alt="Left: test accuracy over steps at sigma .05 and rate .01, sigmoid, without and with "
        "BN. Right: share of ReLU networks with large weights that fail, by learning rate.",
    )
    study.figure(
        "speed",
        lambda: plot_speed(config, steps, {"none": none, "batch": batch}, decayed),
        title="Speed, end and decay",
        caption=f"{about} {describe_runs(config.seeds, 'Points', 'bars')} The means of steps are "
        "geometric.",
        alt="Left: steps to 90 % by learning rate, sigmoid. Middle: last test error by learning "
        "rate, ReLU; both without and with BN. Right: last test error by half-life of the "
        "rate, sigmoid with BN.",
    )
