"""What the study `saturation` measures."""

import functools
import itertools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float
from scipy import stats

import jbn
from experiments import sampling
from experiments.plotting import counted, describe_data, describe_layers, describe_runs
from experiments.stats import estimates, selection
from experiments.studies.saturation import sigmoid
from experiments.studies.saturation.config import Config
from experiments.studies.saturation.figures import plot_learned, plot_saturated, plot_zone
from experiments.study import Study
from experiments.tasks import data
from experiments.tasks.split import Split, sample_split
from experiments.training import sweep
from experiments.training.networks import Network
from jbn import diagnostics
from jbn.models import MLP

ACTIVATIONS = {"sigmoid": nn.sigmoid, "relu": nn.relu}


# ---- Shapes of distributions ---------------------------------------------------------------------


def largest_normalized(size: int) -> float:
    """Normalize one huge value among zeros, which reaches the bound sqrt(size - 1)."""
    x = jnp.zeros((size, 1)).at[0].set(1e4)  # Large enough for epsilon to be negligible.
    return float(jnp.max(normalized(x)))


def normalized(x: Float[Array, "N C"]) -> Float[Array, "N C"]:
    """Normalize with batch statistics, gamma 1 and beta 0."""
    params, state = jbn.init(x.shape[-1])
    return jbn.batch_norm(x, params, state, training=True)[0]


def shapes(config: Config) -> dict[str, Any]:
    """Normalize Gaussian and exponential values; measure the latter's shape before and after."""
    results: dict[str, list[Any]] = {"outside_one": [], "before": [], "after": []}
    for seed in range(config.seeds):
        rng = sampling.rng(seed, "values")
        gaussian = rng.normal(size=(config.sample, 1)).astype(np.float32)
        exponential = rng.exponential(size=(config.sample, 1)).astype(np.float32)
        results["outside_one"].append(np.mean(np.abs(normalized(jnp.asarray(gaussian))) > 1))
        results["before"].append(shape(exponential))
        results["after"].append(shape(np.asarray(normalized(jnp.asarray(exponential)))))
    return results


def shape(x: Float[np.ndarray, "N 1"]) -> tuple[float, float, float, float]:
    """Compute mean, standard deviation, skewness and excess kurtosis, in float64."""
    wide = x[:, 0].astype(np.float64)
    return wide.mean(), wide.std(), float(stats.skew(wide)), float(stats.kurtosis(wide))


# ---- Training ------------------------------------------------------------------------------------


def probe(config: Config, model: nn.Module, network: Network, split: Split) -> dict[str, Array]:
    """Measure a network's accuracies, and its units, with those of all layers on one axis.

    For every unit: the share of its inputs above 0; how far the sigmoid over these inputs is from a
    line, 1 - R2; gamma and beta.
    """
    collections = ["intermediates", "batch_stats"]
    x = split.test[0][: config.looked_at]
    _, sown = model.apply(network.variables, x, training=True, mutable=collections)
    inputs = side_by_side(sown["intermediates"], "activation_input_{}", 0)
    metrics = {
        **sweep.accuracies(model, network, split, statistics=config.statistics),
        "saturated": diagnostics.saturation(inputs, nn.sigmoid, threshold=sigmoid.FLAT),
        "active": jnp.mean(inputs > 0, axis=0),
        "bend": 1 - r2(inputs, nn.sigmoid(inputs)),
    }
    for name in ("scale", "bias") if network.batch_stats else ():
        metrics[name] = side_by_side(network.params, "norm_{}", name)
    return metrics


def side_by_side(tree: Any, name: str, leaf: Any) -> Array:
    """Concatenate a leaf of every hidden layer along the units."""
    layers = itertools.takewhile(tree.__contains__, map(name.format, itertools.count()))
    return jnp.concatenate([tree[layer][leaf] for layer in layers], -1)


def r2(x: Float[Array, "N units"], y: Float[Array, "N units"]) -> Float[Array, "units"]:
    """Compute the R2 of the least-squares line from x to y for each unit."""
    dx, dy = x - x.mean(0, keepdims=True), y - y.mean(0, keepdims=True)
    return jnp.sum(dx * dy, 0) ** 2 / (jnp.sum(dx**2, 0) * jnp.sum(dy**2, 0))


def large_weights(config: Config, split: Split, norm: str) -> dict[str, np.ndarray]:
    """Train sigmoids from large initial weights; return arrays (seeds, 1 + evaluations)."""
    model = MLP(config.hidden, kernel_init=nn.initializers.normal(config.large_sigma), norm=norm)
    history = sweep.train(
        lambda rate: (model, optax.sgd(rate)),
        jnp.array([config.large_learning_rate]),
        split,
        sweep.start(model, config.seeds, split.train[0]),
        steps=config.steps,
        batch_size=config.batch_size,
        observe=functools.partial(probe, config),
        evaluations=config.looks,
        before=True,
    )
    return {name: history[name][0] for name in ("saturated", "test")}


def ablation(config: Config, split: Split) -> dict[str, np.ndarray]:
    """Train with learned gamma and beta, and with both fixed at 1 and 0, at every rate.

    Returns:
      Arrays (activations, 2, rates, seeds, 2, ...): the first axis of 2 is learned, then fixed; the
      second is the start, then the end of training.
    """
    kernel_init = nn.initializers.normal(config.sigma)

    def build(setting: dict[str, Array]) -> tuple[nn.Module, optax.GradientTransformation]:
        activation = sweep.one_of(list(ACTIVATIONS.values()), setting["activation"])
        optimizer = optax.chain(
            optax.sgd(setting["rate"]), sweep.scaled("norm", setting["learned"])
        )
        return MLP(config.hidden, 10, activation, kernel_init, norm="batch"), optimizer

    rates = config.learning_rates
    history = sweep.train(
        build,
        sweep.grid(activation=range(len(ACTIVATIONS)), learned=[1.0, 0.0], rate=rates),
        split,
        sweep.start(
            MLP(config.hidden, kernel_init=kernel_init, norm="batch"), config.seeds, split.train[0]
        ),
        steps=config.steps,
        batch_size=config.batch_size,
        observe=functools.partial(probe, config),
        before=True,
    )
    shape = len(ACTIVATIONS), 2, len(rates)
    return {name: values.reshape(*shape, *values.shape[1:]) for name, values in history.items()}


def gaussian_share(history: dict[str, np.ndarray]) -> np.ndarray:
    """Compute the final share of inputs above 0 if they were Gaussian before gamma and beta."""
    return stats.norm.cdf(history["bias"][:, -1] / np.abs(history["scale"][:, -1]))


# ---- The experiment ------------------------------------------------------------------------------


def measure(config: Config, study: Study) -> None:
    """Measure, report and plot."""
    split = jax.device_put(
        sample_split(study.dataset(config.dataset), data.binary, validation=config.validation)
    )

    images = describe_data(study.dataset(config.dataset).name)

    # ---- Exact, and by sampling
    moments = study.part("shapes", lambda: shapes(config))
    means, stds, skews, kurtoses = moments["after"].T
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
        "outside_one": moments["outside_one"],
        "skew_after": skews,
        "kurtosis_after": kurtoses,
        "skew_change": skews - moments["before"][:, 2],
        "kurtosis_change": kurtoses - moments["before"][:, 3],
    }
    for metric, value in exact.items():
        study.report(metric, estimates.exact(value))
    for metric, values in sampled.items():
        study.report(metric, estimates.mean(values))
    study.figure(
        "zone",
        plot_zone,
        title="Unit variance keeps a sigmoid out of its flat parts, a large gamma does not",
        caption="By the formulas: no data, no network, no seeds.",
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
        functools.partial(plot_saturated, config, large),
        title=f"Saturated sigmoids over training, initial weights of {config.large_sigma:g}",
        caption=f"{images}, {describe_layers(config.hidden, 'sigmoids')}. "
        + describe_runs(config.seeds),
        alt="Share of saturated sigmoids, and test accuracy, against the training step, without "
        f"and with BN. In the end {without.mean():.2f} are saturated without, {with_bn.mean():.2f} "
        "with.",
    )

    # ---- Gamma and beta, learned or fixed
    results = study.part("ablation", lambda: ablation(config, split))
    learned, held = (
        {
            activation: selection.at_best(
                {name: values[i, kind] for name, values in results.items()}
            )
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
    gaussian = gaussian_share(learned["relu"])
    error = np.abs(active[:, -1] - gaussian).mean(1)
    study.report("active_first", estimates.mean(active[:, 0].mean(1)))
    study.report("active_error", estimates.mean(error))
    study.report("active_last", estimates.mean(active[:, -1].mean(1)))
    study.figure(
        "learned",
        functools.partial(plot_learned, learned, gaussian),
        title="The distributions that gamma and beta chose, and how many ReLUs they leave active",
        caption=f"{images}, {describe_layers(config.hidden)}. Units of all layers and of all "
        f"{counted(config.seeds, 'seed')}.",
        alt="Histograms of the learned gammas and betas of all units, for sigmoid and ReLU, with a "
        "line where all of them started; and each ReLU's share of inputs above 0 after training "
        "against that of a Gaussian input. On average "
        f"{active[:, -1].mean():.0%} are active, {active[:, 0].mean():.0%} at the start.",
    )
