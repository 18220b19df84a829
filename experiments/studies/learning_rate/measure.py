"""What the study `learning_rate` measures, its options and presets."""

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import numpy as np
from jaxtyping import Float, Int
from matplotlib.figure import Figure

from experiments import plotting
from experiments.stats import estimates, selection
from experiments.studies.learning_rate.settings import (
    ACTIVATIONS,
    METHODS,
    Setting,
    examples,
    train,
)
from experiments.study import Study


@dataclass(frozen=True)
class Config:
    """What the run depends on, and nothing else; lengths of training in steps."""

    dataset: Literal["mnist", "fashion_mnist", "digits"] = "mnist"
    """digits are the small ones inside scikit-learn"""
    seeds: int = 3
    """how many seeds"""
    hidden: tuple[int, ...] = (100, 100, 100)
    """width of each hidden layer"""
    rates: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
    """of the grid, ascending, with .01"""
    sigmas: tuple[float, ...] = (0.05, 0.5, 5.0)
    """of the grid, ascending, with .05 and 5"""
    grid_steps: int = 1500
    """of the grid"""
    plateau_steps: int = 20_000
    """at sigma .05 and rate .01, without BN"""
    plateau_every: int = 250
    """steps between looks there, a divisor"""
    fast_rates: tuple[float, ...] = (0.1, 0.3, 1.0, 3.0)
    """whose speed is measured, at sigma .1; ascending, with .1 and 1"""
    fast_steps: int = 5000
    """of those"""
    fast_every: int = 50
    """steps between looks there, a divisor"""
    half_life: int = 500
    """of the decay from rate 1, which is also taken 6 times longer and shorter"""
    exploding_rates: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 0.1, 1.0)
    """of ReLU with weights of sigma .5, ascending to 1"""
    exploding_seeds: int = 8
    """how many seeds of those"""
    short_steps: int = 500
    """of those, and from weights of zero"""
    validation: int = 1000
    """training images, drawn at random, to choose the rate on"""
    looked_at: int = 2000
    """test images where looks are many; else all"""
    population_batches: int = 10
    """training batches that the population statistics are averaged over"""

    def __post_init__(self) -> None:
        """Refuse what has no answer."""
        needed = {
            "rates": (0.01,),
            "sigmas": (0.05, 5.0),
            "fast_rates": (LOW, HIGH),
            "exploding_rates": (1.0,),
        }
        for name, values in needed.items():
            given = getattr(self, name)
            if len(given) < 2 or not set(values) <= set(given) or list(given) != sorted(given):
                raise ValueError(f"Expected `{name}` ascending, with {values}, got {given}.")


LOW, HIGH = 0.1, 1.0  # Rates.
DECAYS = (1 / 6, 1, 6)  # Factors of the half-life.
REACHED, CHANCE = 0.9, 0.2  # Accuracies.
PRESETS = {
    # Alike in length and number, so that few programs are compiled.
    "smoke": Config(
        dataset="digits",
        seeds=2,
        hidden=(16,),
        rates=(0.01, 1.0),
        sigmas=(0.05, 5.0),
        grid_steps=20,
        plateau_steps=20,
        plateau_every=20,
        fast_steps=20,
        fast_every=20,
        half_life=10,
        exploding_rates=(1e-4, 1e-2, 0.1, 1.0),
        exploding_seeds=2,
        short_steps=20,
        validation=100,
        population_batches=2,
    ),
    "quick": Config(),
    "paper": Config(
        seeds=5,
        sigmas=(0.005, 0.05, 0.5, 5.0),
        grid_steps=5000,
        plateau_steps=50_000,
        fast_steps=10_000,
        half_life=1000,
        exploding_seeds=16,
    ),
}


# ---- Measures ------------------------------------------------------------------------------------


def evaluations(steps: int, every: int) -> Int[np.ndarray, "evaluations"]:
    """Number the steps after which networks are looked at."""
    return np.arange(every, steps + 1, every)


def largest_rate(
    accuracy: Float[np.ndarray, "seeds rates"], rates: Sequence[float]
) -> Float[np.ndarray, "seeds"]:
    """Find the largest rate whose last accuracy is 90 %, by seed.

    Where there is none, it counts as one step of the grid below the smallest; where it is the
    largest of the grid, the truth may be larger.
    """
    below = rates[0] ** 2 / rates[1]
    return np.where(accuracy >= REACHED, np.asarray(rates)[None], below).max(-1)


def likeness(params: Mapping[str, Any]) -> tuple[float, int]:
    """Measure how alike the hidden units of each layer are, and the rank of the weights.

    Returns: the largest difference between the weights into (or out of) a hidden unit and those of
      the first unit of its layer; the largest rank of a weight matrix.
    """
    layers = [params[name] for name in sorted(params)]  # dense_0, dense_1, ..., output.
    difference = 0.0
    for layer, after in itertools.pairwise(layers):
        for weights in (layer["kernel"].T, layer["bias"], after["kernel"]):
            difference = max(difference, float(np.abs(weights - weights[:1]).max()))
    return difference, max(int(np.linalg.matrix_rank(layer["kernel"])) for layer in layers)


# ---- The experiment ------------------------------------------------------------------------------


def measure(config: Config, study: Study) -> None:
    """Train over grids and report."""
    dataset = study.dataset(config.dataset)
    given = examples(
        dataset, validation=config.validation, population_batches=config.population_batches
    )
    fit = functools.partial(train, given, hidden=config.hidden, looked_at=config.looked_at)

    def run(
        name: str, *arguments: Any, seeds: int = config.seeds, **options: Any
    ) -> dict[str, np.ndarray]:
        def start() -> dict[str, np.ndarray]:
            found = fit(*arguments, seeds=seeds, **options)
            return {"validation": found["validation"], "test": found["test"]}

        return study.part(name, start)

    def from_zero() -> dict[str, np.ndarray]:
        settings = [Setting(LOW, 0.0)]
        found = fit("sigmoid", "none", settings, config.short_steps, seeds=config.seeds)
        alike = [
            likeness(jax.tree.map(lambda leaf, seed=seed: leaf[seed, 0], found["params"]))
            for seed in range(config.seeds)
        ]
        difference, rank = np.transpose(alike)
        return {"test": found["test"][:, 0, -1], "difference": difference, "rank": rank}

    grid(config, study, run)
    speed(config, study, run)
    zero = study.part("zero", from_zero)
    study.report("zero_difference", estimates.exact(zero["difference"].max()))
    study.report("zero_rank", estimates.exact(zero["rank"].max()))
    study.report("zero_accuracy", estimates.mean(zero["test"]))


def grid(config: Config, study: Study, run: Callable[..., Any]) -> None:
    """Compare where networks reach 90 %, over rates and initial weights."""
    settings = [Setting(rate, sigma) for sigma in config.sigmas for rate in config.rates]
    shape = config.seeds, len(config.sigmas), len(config.rates)
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
        shares = (np.mean(accuracy >= REACHED, (1, 2)) for accuracy in (batch, none))
        study.report(gain, estimates.paired(*shares))
        rates = [largest_rate(accuracy[:, small], config.rates) for accuracy in (batch, none)]
        study.report(f"rate_ratio_{activation}", estimates.ratio(rates[0] / rates[1]))
    batch, none = (
        last["sigmoid", method][:, large, config.rates.index(0.01)] for method in ("batch", "none")
    )
    study.report("gain_sigma_5", estimates.paired(batch, none))
    study.figure(
        "grid",
        lambda: draw_grid(config, last),
        title="Where networks train: learning rate and initial weights",
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
    looks = evaluations(config.plateau_steps, config.plateau_every)
    chance = selection.steps_to(CHANCE, stalled["test"][:, 0], looks)
    study.report("chance_without", estimates.mean(chance))
    large = [Setting(rate, 0.5) for rate in config.exploding_rates]
    exploding = run(
        "exploding", "relu", "none", large, config.short_steps, seeds=config.exploding_seeds
    )
    failed = exploding["test"][..., -1] < CHANCE
    study.report("diverged_small", estimates.share(failed[:, 0]))
    study.report("diverged_large", estimates.share(failed[:, -1]))

    # ---- Speed ------------------------------------------------------------------------------
    rates = [Setting(rate, 0.1) for rate in config.fast_rates]
    decays = [Setting(HIGH, 0.1, factor * config.half_life) for factor in DECAYS]
    low, high = (config.fast_rates.index(rate) for rate in (LOW, HIGH))
    looked = functools.partial(run, every=config.fast_every)
    looks = evaluations(config.fast_steps, config.fast_every)
    steps, best = {}, {}
    for method in METHODS:
        seen = looked(f"speed_sigmoid_{method}", "sigmoid", method, rates, config.fast_steps)
        validation, steps[method] = (
            selection.steps_to(REACHED, seen[images], looks) for images in ("validation", "test")
        )
        best[method] = steps[method][:, selection.best(validation.T, "lowest")]
    # The plateau with BN is short and goes along; with as many settings as rates, nothing compiles.
    seen = looked("decay", "sigmoid", "batch", [*decays, slow], config.fast_steps)["test"]
    learning, decayed = seen[:, -1], seen[:, :-1, -1]
    study.report("chance_with", estimates.mean(selection.steps_to(CHANCE, learning, looks)))
    for name, batch, none in (
        ("steps_ratio_low", steps["batch"][:, low], steps["none"][:, low]),
        ("steps_ratio_best", best["batch"], best["none"]),
        ("slowness_without", steps["none"][:, low], steps["none"][:, high]),
        ("slowness_with", steps["batch"][:, low], steps["batch"][:, high]),
    ):
        study.report(name, estimates.ratio(batch / none))

    # ---- The end ----------------------------------------------------------------------------
    study.report("slow_minus_fast", estimates.paired(decayed[:, -1], decayed[:, 0]))
    end = {
        method: run(f"speed_relu_{method}", "relu", method, rates, config.fast_steps)
        for method in METHODS
    }
    none, batch = (end[method]["test"][..., -1] for method in ("none", "batch"))
    choice = selection.best(end["batch"]["validation"][..., -1].T, "highest")
    study.report("last_gain_low", estimates.paired(batch[:, low], none[:, low]))
    study.report("gain_from_high_rate", estimates.paired(batch[:, choice], batch[:, low]))

    study.figure(
        "plateau",
        lambda: draw_plateau(config, stalled["test"][:, 0], learning, failed),
        title="Too small a step, and too large a one",
        alt="Left: test accuracy over steps at sigma .05 and rate .01, sigmoid, without and with "
        "BN. Right: share of ReLU networks with large weights that fail, by learning rate.",
    )
    study.figure(
        "speed",
        lambda: draw_speed(config, steps, {"none": none, "batch": batch}, decayed),
        title="Speed, end and decay",
        alt="Left: steps to 90 % by learning rate, sigmoid. Middle: last test error by learning "
        "rate, ReLU; both without and with BN. Right: last test error by half-life of the "
        "rate, sigmoid with BN.",
    )


# ---- Figures -------------------------------------------------------------------------------------


def draw_grid(config: Config, last: Mapping[tuple[str, str], np.ndarray]) -> Figure:
    """Draw a heat map for each nonlinearity and method."""
    made = plotting.figure(2, 2, width=5.6, height=2.4)
    for axes, (names, accuracy) in zip(made.axes, last.items(), strict=True):
        mean = 100 * accuracy.mean(0)
        image = axes.imshow(
            mean, cmap=plotting.SEQUENTIAL, vmin=0, vmax=100, origin="lower", aspect="auto"
        )
        for (y, x), value in np.ndenumerate(mean):
            color = "black" if value > 60 else "white"
            axes.text(x, y, f"{value:.0f}", color=color, ha="center", va="center")
        axes.set_title(", ".join(plotting.METHODS[name].label for name in names))
        axes.set_xticks(range(len(config.rates)), [f"{rate:g}" for rate in config.rates])
        axes.set_yticks(range(len(config.sigmas)), [f"{sigma:g}" for sigma in config.sigmas])
        axes.set(xlabel="learning rate", ylabel="sigma")
        axes.grid(visible=False)
    label = f"test accuracy after {config.grid_steps:,} steps / %"
    made.colorbar(image, ax=made.axes, label=label)
    return made


def draw_plateau(
    config: Config, stalled: np.ndarray, learning: np.ndarray, failed: np.ndarray
) -> Figure:
    """Draw accuracies over steps, and the share of failures by rate."""
    made = plotting.figure(2)
    left, right = made.axes
    for method, runs, every in (
        ("none", stalled, config.plateau_every),
        ("batch", learning, config.fast_every),
    ):
        steps = every * np.arange(1, runs.shape[1] + 1)
        plotting.band(left, steps, 100 * runs.T, method)
    left.set(xlabel="steps", ylabel="test accuracy / %", title="Sigmoid, sigma .05, rate .01")
    left.set(xscale="log", ylim=(0, 100))
    left.legend(loc="center right")
    right.plot(config.exploding_rates, 100 * failed.mean(0), **plotting.METHODS["none"]._asdict())
    right.set(
        xlabel="learning rate",
        ylabel=f"share that fails in {config.short_steps} steps / %",
        title="ReLU, sigma .5",
        xscale="log",
        ylim=(-4, 104),
    )
    right.legend(loc="lower right")
    return made


def draw_speed(
    config: Config,
    steps: Mapping[str, np.ndarray],
    end: Mapping[str, np.ndarray],
    decayed: np.ndarray,
) -> Figure:
    """Draw steps to 90 %, and last errors by rate and by half-life."""
    made = plotting.figure(3, width=4.2)
    left, middle, right = made.axes
    for method in METHODS:
        look = plotting.METHODS[method]._asdict()
        left.plot(config.fast_rates, steps[method].mean(0), **look)
        middle.plot(config.fast_rates, 100 * (1 - end[method].mean(0)), **look)
    half_lives = [factor * config.half_life for factor in DECAYS]
    right.plot(half_lives, 100 * (1 - decayed.mean(0)), **look)
    title, last = f"after {config.fast_steps:,} steps", "last test error / %"
    left.set(ylabel="steps to 90 %", yscale="log", title="Sigmoid")
    middle.set(ylabel=last, yscale="log", title=f"ReLU, {title}")
    right.set(ylabel=last, title=f"Sigmoid, from rate {HIGH:g}, {title}")
    for axes in made.axes:
        axes.set(xscale="log", xlabel="learning rate")
        axes.legend()
    right.set_xlabel("half-life of the rate / steps")
    return made
