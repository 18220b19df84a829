"""What the study `shift` measures and reports."""

import functools

import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from experiments import sampling
from experiments.plotting import describe_data, describe_layers, describe_runs
from experiments.stats import estimates, selection
from experiments.studies.shift.config import Config
from experiments.studies.shift.data import Data, prepare
from experiments.studies.shift.deep import (
    VARIANTS,
    changes_by_depth,
    growth,
    train,
)
from experiments.studies.shift.figures import (
    describe_means,
    plot_depth,
    plot_landscape,
    plot_shift,
    plot_untrained,
)
from experiments.studies.shift.noise import NoisyBatchNorm
from experiments.studies.shift.probe import PROBE_EXAMPLES, drifts, from_settled, train_and_probe
from experiments.studies.shift.weights import sample_networks
from experiments.study import Study
from experiments.training.deep_mlp import DeepMLP
from jbn.linen import BatchNorm
from jbn.models import MLP

NORMS = {"none": None, "batch": BatchNorm, "noisy": NoisyBatchNorm}
LAYERS, WIDTH = 20, 100  # Depth and width of the untrained networks.


def measure(config: Config, study: Study) -> None:
    """Measure all parts; report and plot."""
    data = prepare(study.dataset(config.dataset), config)
    report_training(config, study, data)
    report_depth(config, study, data)
    report_untrained(config, study, data)


def report_training(config: Config, study: Study, data: Data) -> None:
    """Measure shift and landscape while Fig. 1's network trains."""
    every = config.look_every

    def train_with(
        norm: str, data: Data, steps: int, batch_size: int, gradients: bool
    ) -> dict[str, Array]:
        model, seeds = MLP(config.hidden, norm=NORMS[norm]), range(config.seeds)
        x, labels = data.split.train
        start = sample_networks(model, optax.sgd(0), seeds, x.shape[1], lambda *_: config.sigma)
        batches = sampling.all_batches(seeds, steps + 1, batch_size, len(labels))
        return train_and_probe(
            model,
            config.learning_rate,
            data,
            start,
            sampling.keys(seeds, "noise"),
            batches,
            every=every,
            gradients=gradients,
        )

    parts = {
        norm: study.part(
            f"training_{norm}",
            lambda norm=norm: train_with(norm, data, config.steps, config.batch_size, True),
        )
        for norm in NORMS
    }
    x, labels = (leaf[: config.subset] for leaf in data.split.train)
    subset = data._replace(split=data.split._replace(train=(x, labels)))
    descent = {
        name: study.part(
            f"descent_{name}",
            lambda size=size: train_with("none", subset, config.subset_steps, size, False),
        )
        for name, size in (("full", config.subset), ("mini", config.batch_size))
    }

    percentiles = {name: part["percentiles"] for name, part in (parts | descent).items()}
    drift = {name: drifts(of, every) for name, of in percentiles.items()}
    study.report("drift", estimates.paired(drift["batch"], drift["none"]))
    study.report("noisy_drift", estimates.paired(drift["noisy"], drift["none"]))
    study.report("full_batch_drift", estimates.ratio(drift["full"] / drift["mini"]))
    gain = estimates.paired(parts["noisy"]["accuracy"], parts["none"]["accuracy"])
    study.report("noisy_gain", gain)

    mean = {
        name: {norm: parts[norm][name].mean(1) for norm in NORMS}
        for name in ("gradient_shift", "loss_range", "gradient_change")
    }
    shift = mean["gradient_shift"]
    study.report("gradient_shift", estimates.paired(shift["batch"], shift["none"]))
    for name in ("loss_range", "gradient_change"):
        study.report(name, estimates.ratio(mean[name]["batch"] / mean[name]["none"]))

    medians = {name: from_settled(of[:, :, 1], every) for name, of in percentiles.items()}
    data_name = describe_data(study.dataset(config.dataset).name)
    about = f"{data_name}, {describe_layers(config.hidden, 'sigmoids')}. "
    about += describe_runs(config.seeds)
    study.figure(
        "shift",
        functools.partial(plot_shift, parts, medians, every),
        title="Internal covariate shift by two measures, and in mini-batches or not",
        caption=f"{about} The means of the gradients are geometric. Right: {config.subset:,} "
        "images.",
        alt="Three panels against training steps, lines for the mean over seeds. "
        "The median of the input to a unit of the last hidden layer, as distance from where "
        "it was once training had settled, for networks without BN, with BN and with noisy BN: "
        f"largest distances {describe_means(drift)}. The relative change of a layer's gradient "
        "by the step of the layers before it: means over training "
        f"{describe_means(shift)}. The first again, without BN, for mini-batches and for the full "
        "batch of a small set.",
    )
    study.figure(
        "landscape",
        functools.partial(plot_landscape, parts, every),
        title="How loss and gradient vary along a step",
        caption=f"{about} The means are geometric.",
        alt="Two panels against training steps, for networks without BN, with BN, with noisy BN: "
        "how far the loss ranges from half a step to four steps along the gradient, means over "
        f"training {describe_means(mean['loss_range'])}; and by how much the gradient changes "
        f"there at most, relative to its length, means {describe_means(mean['gradient_change'])}.",
    )


def report_depth(config: Config, study: Study, data: Data) -> None:
    """Measure how accuracy after an equal number of steps depends on depth."""

    def train_all(name: str) -> dict[str, np.ndarray]:
        results = [
            train(
                VARIANTS[name],
                depth,
                config.width,
                data,
                rates=config.rates,
                seeds=config.seeds,
                steps=config.depth_steps,
                batch_size=config.batch_size,
            )
            for depth in config.depths
        ]
        return {key: np.stack([one[key] for one in results]) for key in results[0]}

    parts = {
        name: study.part(f"rates_{name}", lambda name=name: train_all(name)) for name in VARIANTS
    }
    accuracy = {}
    for name, of in parts.items():  # (depths, rates, seeds)
        chosen = selection.best(of["validation"], "highest")
        accuracy[name] = of["test"][np.arange(len(chosen)), chosen]
    last = {name: by_depth[-1] for name, by_depth in accuracy.items()}
    study.report("sigmoid_depth", estimates.paired(last["sigmoid"], accuracy["sigmoid"][0]))
    study.report("bn_over_relu", estimates.paired(last["sigmoid_bn"], last["relu"]))
    study.report("bn_over_dropout", estimates.paired(last["sigmoid_bn"], last["sigmoid_dropout"]))
    study.report("bn_over_l2", estimates.paired(last["sigmoid_bn"], last["sigmoid_l2"]))
    study.report("relu_bn_over_relu", estimates.paired(last["relu_bn"], last["relu"]))
    study.figure(
        "depth",
        functools.partial(plot_depth, config.depths, accuracy),
        title=f"Test accuracy after {config.depth_steps:,} steps, by depth",
        caption=f"{describe_data(study.dataset(config.dataset).name)}, hidden layers of "
        f"{config.width} units. {describe_runs(config.seeds)}",
        alt="Two panels against the number of hidden layers, sigmoid and ReLU: test accuracy of "
        "each network at its best rate. At the largest depth, sigmoid: "
        + "; ReLU: ".join(
            describe_means(
                {name: runs for name, runs in last.items() if name.startswith(activation)}
            )
            for activation in ("sigmoid", "relu")
        )
        + ".",
    )


def report_untrained(config: Config, study: Study, data: Data) -> None:
    """Measure how changes of the weights propagate through untrained networks."""

    def run(norm: str) -> dict[str, np.ndarray]:
        x = data.split.train[0][:PROBE_EXAMPLES].astype(jnp.float32)
        return changes_by_depth(DeepMLP(LAYERS, WIDTH, norm=NORMS[norm]), x, config.untrained)

    parts = {
        norm: study.part(f"untrained_{norm}", lambda norm=norm: run(norm))
        for norm in ("none", "batch")
    }
    none, batch = parts["none"], parts["batch"]
    nudged = none["nudged"]
    study.report("amplification", estimates.ratio(nudged[:, -1] / nudged[:, 1]))
    study.report("amplification_bn", estimates.ratio(batch["nudged"][:, -1] / nudged[:, -1]))
    study.report("outlier_growth", estimates.ratio(growth(none["outliers"])))
    study.report("outlier_bn", estimates.ratio(batch["outliers"][:, -1]))
    study.report("growth_without", estimates.ratio(growth(none["large"])))
    study.report("growth_with", estimates.ratio(growth(batch["large"])))
    study.figure(
        "untrained",
        functools.partial(plot_untrained, parts),
        title="What a change becomes on its way through an untrained ReLU network",
        caption=f"{describe_data(study.dataset(config.dataset).name)}, {LAYERS} layers of {WIDTH} "
        f"ReLUs, untrained. {describe_runs(config.untrained, mean='geometric means')}",
        alt="Three panels against the layer, with and without BN: the relative change of "
        "pre-activations W x after the first layer's weights moved by 1 %; the deviation of the "
        "inputs to the nonlinearity with a hundredth of all weights ten times as large, relative "
        "to that without; and that deviation with all weights 1.5 times He's. At the last layer: "
        + "; ".join(
            describe_means({norm: part[name][:, -1] for norm, part in parts.items()})
            for name in ("nudged", "outliers", "large")
        )
        + ".",
    )
