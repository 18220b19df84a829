"""What the study `saturation` measures, its options and presets."""

import functools
import itertools
from dataclasses import dataclass
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float
from matplotlib.figure import Figure
from scipy import stats

import jbn
from experiments import plotting, sampling
from experiments.plotting import METHODS
from experiments.stats import estimates, selection
from experiments.studies.saturation import sigmoid
from experiments.study import Study
from experiments.tasks import data
from experiments.tasks.split import Split, sample_split
from experiments.training import sweep
from experiments.training.networks import Network
from jbn import diagnostics
from jbn.models import MLP

ACTIVATIONS = {"sigmoid": nn.sigmoid, "relu": nn.relu}


@dataclass(frozen=True)
class Config:
    """What the run depends on, and nothing else."""

    dataset: Literal["mnist", "fashion_mnist", "digits"] = "mnist"
    """digits are the small ones inside scikit-learn"""
    seeds: int = 5
    """how many seeds"""
    steps: int = 2_000
    """training steps"""
    batch_size: int = 60
    """examples in a batch"""
    hidden: tuple[int, ...] = (100, 100, 100)
    """width of each hidden layer"""
    sigma: float = 0.1
    """standard deviation of the initial weights"""
    learning_rates: tuple[float, ...] = (0.1, 0.4, 1.6, 6.4)
    """grid that gamma and beta's worth is measured on, each network at its best"""
    large_sigma: float = 1.0
    """standard deviation of large initial weights"""
    large_learning_rate: float = 0.1
    """rate that these are trained at"""
    looks: int = 10
    """times that saturation is looked at over training, a divisor of `steps`"""
    validation: int = 5_000
    """training images, drawn at random, to choose the rate on"""
    statistics: int = 10_000
    """training images that the population statistics are computed from"""
    looked_at: int = 1_000
    """test images on which units are looked at"""
    sample: int = 1_000_000
    """values drawn to measure a distribution's shape"""

    def __post_init__(self) -> None:
        """Refuse what cannot be measured."""
        if self.steps % self.looks:
            raise ValueError(f"Expected `looks` to divide {self.steps} steps, got {self.looks}.")


PRESETS = {
    "smoke": Config(
        dataset="digits",
        seeds=2,
        steps=60,
        hidden=(20,),
        learning_rates=(0.4,),
        looks=2,
        validation=300,
        statistics=500,
        looked_at=200,
        sample=10_000,
    ),
    "quick": Config(),
    "paper": Config(seeds=10, steps=10_000),
}


# ---- Shapes of distributions ---------------------------------------------------------------------


def largest_normalized(size: int) -> float:
    """Normalize one huge value among zeros, which reaches the bound sqrt(size - 1)."""
    x = jnp.zeros((size, 1)).at[0].set(1e4)  # So large that epsilon is nothing beside it.
    return float(jnp.max(normalized(x)))


def normalized(x: Float[Array, "N C"]) -> Float[Array, "N C"]:
    """Normalize by the batch, gamma 1 and beta 0."""
    params, state = jbn.init(x.shape[-1])
    return jbn.batch_norm(x, params, state, training=True)[0]


def shapes(config: Config) -> dict[str, Any]:
    """Normalize Gaussian and exponential values; measure the latter's shape before and after."""
    found: dict[str, list[Any]] = {"outside_one": [], "before": [], "after": []}
    for seed in range(config.seeds):
        rng = sampling.rng(seed, "values")
        gaussian = rng.normal(size=(config.sample, 1)).astype(np.float32)
        exponential = rng.exponential(size=(config.sample, 1)).astype(np.float32)
        found["outside_one"].append(np.mean(np.abs(normalized(jnp.asarray(gaussian))) > 1))
        found["before"].append(shape(exponential))
        found["after"].append(shape(np.asarray(normalized(jnp.asarray(exponential)))))
    return found


def shape(x: Float[np.ndarray, "N 1"]) -> tuple[float, float, float, float]:
    """Compute mean, standard deviation, skewness and excess kurtosis, in float64."""
    wide = x[:, 0].astype(np.float64)
    return wide.mean(), wide.std(), float(stats.skew(wide)), float(stats.kurtosis(wide))


# ---- Training ------------------------------------------------------------------------------------


def look(config: Config, model: nn.Module, network: Network, split: Split) -> dict[str, Array]:
    """Look at a network: its accuracies, and its units, those of all layers side by side.

    Of every unit: the share of inputs above 0; how far the sigmoid over them is from a line,
    1 - R2; gamma and beta.
    """
    collections = ["intermediates", "batch_stats"]
    x = split.test[0][: config.looked_at]
    _, sown = model.apply(network.variables, x, training=True, mutable=collections)
    inputs = side_by_side(sown["intermediates"], "activation_input_{}", 0)
    seen = {
        **sweep.accuracies(model, network, split, statistics=config.statistics),
        "saturated": diagnostics.saturation(inputs, nn.sigmoid, threshold=sigmoid.FLAT),
        "active": jnp.mean(inputs > 0, axis=0),
        "bend": 1 - r2(inputs, nn.sigmoid(inputs)),
    }
    for name in ("scale", "bias") if network.batch_stats else ():
        seen[name] = side_by_side(network.params, "norm_{}", name)
    return seen


def side_by_side(tree: Any, name: str, leaf: Any) -> Array:
    """Concatenate a leaf of every hidden layer along the units."""
    layers = itertools.takewhile(tree.__contains__, map(name.format, itertools.count()))
    return jnp.concatenate([tree[layer][leaf] for layer in layers], -1)


def r2(x: Float[Array, "N units"], y: Float[Array, "N units"]) -> Float[Array, "units"]:
    """Compute the R2 of the best line from x to y, unit by unit."""
    dx, dy = x - x.mean(0, keepdims=True), y - y.mean(0, keepdims=True)
    return jnp.sum(dx * dy, 0) ** 2 / (jnp.sum(dx**2, 0) * jnp.sum(dy**2, 0))


def large_weights(config: Config, split: Split, norm: str) -> dict[str, np.ndarray]:
    """Train sigmoids from large initial weights: (seeds, 1 + looks)."""
    model = MLP(config.hidden, kernel_init=nn.initializers.normal(config.large_sigma), norm=norm)
    seen = sweep.train(
        lambda rate: (model, optax.sgd(rate)),
        jnp.array([config.large_learning_rate]),
        split,
        sweep.start(model, config.seeds, split.train[0]),
        steps=config.steps,
        batch_size=config.batch_size,
        observe=functools.partial(look, config),
        looks=config.looks,
        before=True,
    )
    return {name: seen[name][0] for name in ("saturated", "test")}


def ablation(config: Config, split: Split) -> dict[str, np.ndarray]:
    """Train with gamma and beta learned, and with both held at 1 and 0, at every rate.

    Returns: (activations, 2, rates, seeds, 2, ...): learned, then held; at the start, at the end.
    """
    kernel_init = nn.initializers.normal(config.sigma)

    def build(setting: dict[str, Array]) -> tuple[nn.Module, optax.GradientTransformation]:
        activation = sweep.one_of(list(ACTIVATIONS.values()), setting["activation"])
        optimizer = optax.chain(
            optax.sgd(setting["rate"]), sweep.scaled("norm", setting["learned"])
        )
        return MLP(config.hidden, 10, activation, kernel_init, norm="batch"), optimizer

    rates = config.learning_rates
    seen = sweep.train(
        build,
        sweep.grid(activation=range(len(ACTIVATIONS)), learned=[1.0, 0.0], rate=rates),
        split,
        sweep.start(
            MLP(config.hidden, kernel_init=kernel_init, norm="batch"), config.seeds, split.train[0]
        ),
        steps=config.steps,
        batch_size=config.batch_size,
        observe=functools.partial(look, config),
        before=True,
    )
    shape = len(ACTIVATIONS), 2, len(rates)
    return {name: values.reshape(*shape, *values.shape[1:]) for name, values in seen.items()}


def gaussian_share(seen: dict[str, np.ndarray]) -> np.ndarray:
    """Compute what share of inputs would be above 0 at the end, were they Gaussian before."""
    return stats.norm.cdf(seen["bias"][:, -1] / np.abs(seen["scale"][:, -1]))


# ---- Figures -------------------------------------------------------------------------------------


def draw_saturated(config: Config, found: dict[str, dict[str, np.ndarray]]) -> Figure:
    """Draw the share saturated, and accuracy, over training from large initial weights."""
    made = plotting.figure(2)
    steps = np.linspace(0, config.steps, config.looks + 1)
    words = {"saturated": "share of units with slope below .01", "test": "test accuracy"}
    for axes, (name, label) in zip(made.axes, words.items(), strict=True):
        for norm, seen in found.items():
            plotting.band(axes, steps, seen[name].T, norm)
        axes.set(xlabel="training step", ylabel=label, ylim=(-0.03, 1))
    made.axes[0].legend()
    return made


def draw_learned(found: dict[str, dict[str, np.ndarray]]) -> Figure:
    """Draw histograms of learned gamma and beta, and the active share of every ReLU; all seeds."""
    made = plotting.figure(3, width=4.4)
    starts = {"scale": ("gamma", 1.0), "bias": ("beta", 0.0)}
    for axes, (name, (greek, start)) in zip(made.axes[:2], starts.items(), strict=True):
        ends = [bound(seen[name][:, -1]) for seen in found.values() for bound in (np.min, np.max)]
        bins = np.linspace(min(ends), max(ends), 40).tolist()
        for activation, seen in found.items():
            look = METHODS[activation]
            line = {"color": look.color, "linestyle": look.linestyle, "label": look.label}
            axes.hist(seen[name][:, -1].ravel(), bins, histtype="step", density=True, **line)
        axes.axvline(start, color=plotting.BLACK, linewidth=1, label="at the start")
        axes.set(xlabel=f"learned {greek}", ylabel="density over units")
    made.axes[0].legend()
    axes, relu = made.axes[2], found["relu"]
    axes.plot([0, 1], [0, 1], "--", color=plotting.GRAY, label="Gaussian inputs")
    color = METHODS["relu"].color
    axes.scatter(
        gaussian_share(relu), relu["active"][:, -1], s=5, alpha=0.4, color=color, label="a ReLU"
    )
    axes.plot(0.5, 0.5, "o", color=plotting.BLACK, label="gamma 1, beta 0")
    axes.set(xlabel="Phi(beta / |gamma|)", ylabel="share of inputs above 0", aspect="equal")
    axes.legend()
    return made


# ---- The experiment ------------------------------------------------------------------------------


def measure(config: Config, study: Study) -> None:
    """Measure, report, draw."""
    split = jax.device_put(
        sample_split(study.dataset(config.dataset), data.binary, validation=config.validation)
    )

    # ---- Exact, and by sampling
    made = study.part("shapes", lambda: shapes(config))
    means, stds, skews, kurtoses = made["after"].T
    exact = {
        "within_196": 2 * stats.norm.cdf(sigmoid.ZONE) - 1,
        "line_r2": sigmoid.best_line(sigmoid.ZONE)[1],
        "slope_ratio": diagnostics.slopes(sigmoid.ZONE, nn.sigmoid)
        / diagnostics.slopes(0.0, nn.sigmoid),
        "largest_possible": largest_normalized(config.batch_size),
        "saturated_unit": sigmoid.saturated_share(1.0),
        "saturated_scale_10": sigmoid.saturated_share(10.0),
        "moment_error": np.max([np.abs(means), np.abs(stds - 1)]),
    }
    sampled = {
        "outside_one": made["outside_one"],
        "skew_after": skews,
        "kurtosis_after": kurtoses,
        "skew_change": skews - made["before"][:, 2],
        "kurtosis_change": kurtoses - made["before"][:, 3],
    }
    for metric, value in exact.items():
        study.report(metric, estimates.exact(value))
    for metric, values in sampled.items():
        study.report(metric, estimates.mean(values))
    study.figure(
        "zone",
        sigmoid.draw,
        title="Unit variance keeps a sigmoid out of its flat parts, a large gamma does not",
        alt="Left: the sigmoid, its best line within 1.96, the density of N(0, 1), and where the "
        "slope is below .01. Middle: the share of a Gaussian input in the flat parts, from almost "
        "none at gamma 1 to most at 10. Right: the density of exponential values before and after "
        "normalization, of the same skewed shape, and N(0, 1).",
    )

    # ---- Large initial weights
    large = {
        norm: study.part(f"large_{norm}", functools.partial(large_weights, config, split, norm))
        for norm in ("none", "batch")
    }
    without, with_bn = (large[norm]["saturated"][:, -1] for norm in large)
    study.report("saturated_difference", estimates.paired(with_bn, without))
    study.figure(
        "saturated",
        functools.partial(draw_saturated, config, large),
        title=f"Saturated sigmoids over training, initial weights of {config.large_sigma:g}",
        alt="Share of saturated sigmoids, and test accuracy, against the training step, without "
        f"and with BN. In the end {without.mean():.2f} are saturated without, {with_bn.mean():.2f} "
        "with.",
    )

    # ---- Gamma and beta, learned or held
    found = study.part("ablation", lambda: ablation(config, split))
    learned, held = (
        {
            activation: selection.at_best({name: values[i, kind] for name, values in found.items()})
            for i, activation in enumerate(ACTIVATIONS)
        }
        for kind in (0, 1)
    )
    gain, gain_relu = (
        estimates.paired(learned[name]["test"][:, -1], held[name]["test"][:, -1])
        for name in learned
    )
    bends = (kind["sigmoid"]["bend"][:, -1].mean(1) for kind in (learned, held))
    study.report("gain_scale_bias", gain)
    study.report("gain_scale_bias_relu", gain_relu)
    study.report("slope_range", estimates.paired(*bends))
    for name in ("scale", "bias"):
        spread = learned["sigmoid"][name][:, -1].std(1)
        study.report(f"{name}_spread", estimates.mean(spread))

    active = learned["relu"]["active"]
    error = np.abs(active[:, -1] - gaussian_share(learned["relu"])).mean(1)
    study.report("active_first", estimates.mean(active[:, 0].mean(1)))
    study.report("active_error", estimates.mean(error))
    study.report("active_last", estimates.mean(active[:, -1].mean(1)))
    study.figure(
        "learned",
        functools.partial(draw_learned, learned),
        title="The distributions that gamma and beta chose, and how many ReLUs they leave active",
        alt="Histograms of the learned gammas and betas of all units, for sigmoid and ReLU, with a "
        "line where all of them started; and each ReLU's share of inputs above 0 after training "
        "against that of a Gaussian input. On average "
        f"{active[:, -1].mean():.0%} are active, {active[:, 0].mean():.0%} at the start.",
    )
