"""Measurements of the study `placement`."""

import functools
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax
from jaxtyping import Array, Float, UInt8

from experiments.plotting import describe_data, describe_layers, describe_runs
from experiments.stats import estimates, selection
from experiments.studies.placement.config import Config
from experiments.studies.placement.figures import plot_order, plot_response
from experiments.studies.placement.small_cnn import SmallCNN
from experiments.study import Study
from experiments.tasks import data
from experiments.tasks.split import Split, sample_split
from experiments.training import sweep
from jbn.linen import BatchNorm
from jbn.models import MLP
from jbn.models.inception import local_response_norm
from jbn.models.units import Norm, Placement

# As in Krizhevsky et al., 2012, section 3.3: over five features, k = 2, beta = .75.
LRN = functools.partial(local_response_norm, bias=2.0, alpha=1e-4)
ACTIVATIONS = {"sigmoid": nn.sigmoid, "tanh": nn.tanh, "relu": nn.relu}


# ---- Before and after ----------------------------------------------------------------------------


def with_bias(*, use_running_average: bool, name: str) -> nn.Module:
    """Make a BatchNorm that the layer before does not recognize, so that it keeps its bias."""
    return BatchNorm(use_running_average, name=name)


def dense(config: Config, split: Split, placement: Placement) -> dict[str, np.ndarray]:
    """Train three-layer networks of every nonlinearity at every rate.

    If BN comes first, the bias before it is either held at 0, which is to leave it out, or learned.

    Returns:
      accuracies, (activations, 2, rates, seeds, 1): with the bias held, then learned. If BN comes
      after the nonlinearity, the bias is always learned, and the second axis has length 1.
    """
    kernel_init = nn.initializers.normal(config.sigma)
    held = placement == "before"

    def build(setting: dict[str, Array]) -> tuple[nn.Module, optax.GradientTransformation]:
        activation = sweep.one_of(list(ACTIVATIONS.values()), setting["activation"])
        model = MLP(config.hidden, 10, activation, kernel_init, with_bias, placement)
        hold = optax.masked(optax.scale(setting["learned"]), is_hidden_bias)
        return model, optax.chain(optax.sgd(setting["rate"]), hold)

    kinds, rates = [0.0, 1.0] if held else [1.0], config.learning_rates
    settings = sweep.grid(activation=range(len(ACTIVATIONS)), learned=kinds, rate=rates)
    accuracies = train(config, build, settings, split, config.steps)
    shape = len(ACTIVATIONS), len(kinds), len(rates)
    return {name: values.reshape(*shape, *values.shape[1:]) for name, values in accuracies.items()}


def is_hidden_bias(params: Any) -> Any:
    """Mark the biases of the hidden layers."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: path[0].key.startswith("dense") and path[-1].key == "bias", params
    )


def train(
    config: Config, build: sweep.Build, settings: dict[str, np.ndarray], split: Split, steps: int
) -> dict[str, np.ndarray]:
    """Train every setting with every seed; return the accuracies at the end."""
    model, _ = build({name: values[0] for name, values in settings.items()})
    return sweep.train(
        build,
        settings,
        split,
        sweep.start(model, config.seeds, split.train[0]),
        steps=steps,
        batch_size=config.batch_size,
        observe=functools.partial(sweep.accuracies, statistics=config.statistics),
    )


# ---- A small CNN, with LRN and without -----------------------------------------------------------


def halved(images: UInt8[np.ndarray, "N H W"]) -> Float[np.ndarray, "N h w"]:
    """Average gray levels over squares of 2x2 pixels; an odd last row or column is dropped."""
    count, height, width = images.shape
    even = images[:, : height // 2 * 2, : width // 2 * 2].astype(np.float32)
    return even.reshape(count, height // 2, 2, width // 2, 2).mean((2, 4))


def convolutional(config: Config, split: Split, norm: Norm) -> dict[str, np.ndarray]:
    """Train convolutional networks without and with LRN, at every rate.

    Returns:
      accuracies, (2, rates, seeds, 1): without LRN, then with it.
    """

    def build(setting: dict[str, Array]) -> tuple[nn.Module, optax.GradientTransformation]:
        activation = sweep.one_of([nn.relu, lambda x: LRN(nn.relu(x))], setting["lrn"])
        return SmallCNN(config.widths, norm, activation), optax.adam(setting["rate"])

    settings = sweep.grid(lrn=[0, 1], rate=config.conv_learning_rates)
    accuracies = train(config, build, settings, split, config.conv_steps)
    return {name: values.reshape(2, -1, *values.shape[1:]) for name, values in accuracies.items()}


# ---- The experiment ------------------------------------------------------------------------------


def tested(accuracies: dict[str, np.ndarray], *kind: int) -> Float[np.ndarray, "seeds"]:
    """Return the final test accuracy of one kind of network at its best rate."""
    best = selection.at_best({name: values[kind] for name, values in accuracies.items()})
    return best["test"][:, -1]


def measure(config: Config, study: Study) -> None:
    """Measure, report, plot."""
    dataset = study.dataset(config.dataset)
    binary = jax.device_put(sample_split(dataset, data.binary, validation=config.validation))

    # ---- Before and after
    results = {
        "before": study.part("before", lambda: dense(config, binary, "before")),
        "after": study.part("after", lambda: dense(config, binary, "after")),
    }
    gains = {}
    for i, activation in enumerate(ACTIVATIONS):
        before, biased, after = (
            tested(results[order], i, kind)
            for order, kind in (("before", 0), ("before", 1), ("after", 0))
        )
        study.report(f"before_{activation}", estimates.paired(before, after))
        gains[activation] = biased - before
    # One number per seed.
    study.report("bias_gain", estimates.mean(np.mean(list(gains.values()), axis=0)))
    accuracy = {  # Without a bias before BN.
        order: dict(zip(ACTIVATIONS, accuracies["test"][:, 0, ..., -1], strict=True))
        for order, accuracies in results.items()
    }
    images = describe_data(dataset.name)
    study.figure(
        "order",
        functools.partial(plot_order, config, accuracy, gains),
        title="BN before or after the nonlinearity, by the rate, and a bias before BN",
        caption=f"{images}, {describe_layers(config.hidden)}. Right: each at its best rate, "
        "differences seed by seed. "
        + describe_runs(config.seeds, "Lines and points", "bands and bars"),
        alt="For sigmoid, tanh and ReLU, the mean of test accuracy over seeds "
        "against the learning rate. Before - after, each at its best rate: "
        + ", ".join(
            f"{estimates.format_estimate(study.estimates[f'before_{activation}'])} for {activation}"
            for activation in ACTIVATIONS
        )
        + ". Right: what a bias before BN gains, for each and on average, "
        + f"{estimates.format_estimate(study.estimates['bias_gain'])}.",
    )

    # ---- Local response normalization
    mean = halved(dataset.train_images).mean()
    gray = jax.device_put(
        sample_split(dataset, lambda images: halved(images) - mean, validation=config.validation)
    )
    networks = {
        "none": study.part("conv_none", lambda: convolutional(config, gray, None)),
        "batch": study.part("conv_batch", lambda: convolutional(config, gray, "batch")),
    }
    responses = {
        norm: [tested(accuracies, lrn) for lrn in (0, 1)] for norm, accuracies in networks.items()
    }
    for metric, norm in (("lrn_gain", "none"), ("lrn_gain_bn", "batch")):
        without, with_lrn = responses[norm]
        study.report(metric, estimates.paired(with_lrn, without))
    study.figure(
        "local_response",
        functools.partial(plot_response, responses),
        title="Local response normalization in a small CNN, without and with BN",
        caption=f"{images}, a CNN of {len(config.widths)} stages. Thin lines: each seed. "
        + describe_runs(config.seeds, "Points", "bars"),
        alt="Test accuracy of every seed, thin, and their mean, without and with LRN. It gains "
        f"{estimates.format_estimate(study.estimates['lrn_gain'])} without BN, "
        f"{estimates.format_estimate(study.estimates['lrn_gain_bn'])} with.",
    )
