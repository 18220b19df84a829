"""What the study `shift` measures, its options and presets."""

import functools
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from experiments import sampling
from experiments.stats import estimates
from experiments.studies.shift.figures import (
    draw_depth,
    draw_landscape,
    draw_shift,
    draw_untrained,
    words,
)
from experiments.studies.shift.moving import (
    PROBE,
    Data,
    NoisyBatchNorm,
    draw,
    drifts,
    while_training,
)
from experiments.studies.shift.stacks import (
    VARIANTS,
    Stack,
    accuracy_at_best_rate,
    changes_by_depth,
    growth,
)
from experiments.study import Study
from experiments.tasks.data import Dataset, binary
from experiments.tasks.split import sample_split
from jbn.linen import BatchNorm
from jbn.models import MLP

NORMS = {"none": None, "batch": BatchNorm, "noisy": NoisyBatchNorm}
LAYERS, WIDTH = 20, 100  # Of the untrained networks.


@dataclass(frozen=True)
class Config:
    """What the numbers depend on."""

    dataset: Literal["mnist", "fashion_mnist", "digits"] = "mnist"
    """digits are the small ones inside scikit-learn"""
    seeds: int = 5
    """of every trained network"""
    train_examples: int = 50_000
    """images to train on"""
    test_examples: int = 5_000
    """images to test on, and as many training images, drawn at random, to choose rates by"""
    batch_size: int = 60
    """examples in a batch"""
    hidden: tuple[int, ...] = (100, 100, 100)
    """width of each layer of Fig. 1's network"""
    sigma: float = 0.1
    """deviation of its initial weights"""
    learning_rate: float = 0.1
    """of its plain gradient descent, for all methods"""
    steps: int = 5_000
    """of its training"""
    look_every: int = 100
    """steps between measurements"""
    subset: int = 500
    """examples, the whole of which is the full batch"""
    subset_steps: int = 2_000
    """steps of training on them"""
    depths: tuple[int, ...] = (3, 10, 20)
    """numbers of hidden layers, from the least to the most"""
    width: int = 64
    """of those layers"""
    rates: tuple[float, ...] = (0.003, 0.01, 0.03, 0.1, 0.3)
    """learning rates, with momentum .9, to choose the best of for each depth and network"""
    depth_steps: int = 500
    """of the training of each"""
    untrained: int = 20
    """seeds of the untrained networks"""


PRESETS = {
    "smoke": Config(
        dataset="digits",
        seeds=2,
        train_examples=1_000,
        test_examples=200,
        hidden=(20,),
        steps=40,
        look_every=10,
        subset=60,
        subset_steps=40,
        depths=(2,),
        width=16,
        rates=(0.01, 0.1),
        depth_steps=20,
        untrained=2,
    ),
    "quick": Config(),
    "paper": Config(
        seeds=10,
        steps=20_000,
        look_every=200,
        subset_steps=5_000,
        depth_steps=1_500,
        untrained=50,
    ),
}


def prepare(dataset: Dataset, config: Config) -> Data:
    """Draw images; the first ones to train on, which come at random, give population statistics."""
    drawn = sample_split(
        dataset,
        binary,
        validation=config.test_examples,
        train=config.train_examples,
        test=config.test_examples,
        dtype=np.uint8,
    )
    batches = min(config.train_examples // config.batch_size, 20)
    population = drawn.train[0][: batches * config.batch_size]
    return jax.device_put(Data(drawn, population.reshape(batches, config.batch_size, -1)))


# ---- The experiment ------------------------------------------------------------------------------


def measure(config: Config, study: Study) -> None:
    """Measure part by part; report and draw."""
    data = prepare(study.dataset(config.dataset), config)
    report_training(config, study, data)
    report_depth(config, study, data)
    report_untrained(config, study, data)


def report_training(config: Config, study: Study, data: Data) -> None:
    """Measure the shift, and the landscape, while Fig. 1's network trains."""
    every = config.look_every

    def train(
        norm: str, data: Data, steps: int, batch_size: int, gradients: bool
    ) -> dict[str, Array]:
        model, seeds = MLP(config.hidden, norm=NORMS[norm]), range(config.seeds)
        x, labels = data.split.train
        start = draw(model, optax.sgd(0), seeds, x.shape[1], lambda *_: config.sigma)
        batches = sampling.all_batches(seeds, steps + 1, batch_size, len(labels))
        return while_training(
            model,
            config.learning_rate,
            data,
            start,
            sampling.keys(seeds, "noise"),
            batches,
            every=every,
            gradients=gradients,
        )

    seen = {
        norm: study.part(
            f"training_{norm}",
            lambda norm=norm: train(norm, data, config.steps, config.batch_size, True),
        )
        for norm in NORMS
    }
    x, labels = (leaf[: config.subset] for leaf in data.split.train)
    subset = data._replace(split=data.split._replace(train=(x, labels)))
    descent = {
        name: study.part(
            f"descent_{name}",
            lambda size=size: train("none", subset, config.subset_steps, size, False),
        )
        for name, size in (("full", config.subset), ("mini", config.batch_size))
    }

    drift = {name: drifts(found["percentiles"], every) for name, found in (seen | descent).items()}
    study.report("drift", estimates.paired(drift["batch"], drift["none"]))
    study.report("noisy_drift", estimates.paired(drift["noisy"], drift["none"]))
    study.report("full_batch_drift", estimates.ratio(drift["full"] / drift["mini"]))
    gain = estimates.paired(seen["noisy"]["accuracy"], seen["none"]["accuracy"])
    study.report("noisy_gain", gain)

    mean = {
        name: {norm: seen[norm][name].mean(1) for norm in NORMS}
        for name in ("gradient_shift", "loss_range", "gradient_change")
    }
    shift = mean["gradient_shift"]
    study.report("gradient_shift", estimates.paired(shift["batch"], shift["none"]))
    for name in ("loss_range", "gradient_change"):
        study.report(name, estimates.ratio(mean[name]["batch"] / mean[name]["none"]))

    study.figure(
        "shift",
        functools.partial(draw_shift, seen, descent, every),
        title="Internal covariate shift by two measures, and in mini-batches or not",
        alt="Three panels against training steps, lines for the mean over seeds, bands for all. "
        "The median of the input to a unit of the last hidden layer, as distance from where "
        "it was once training had settled, for networks without BN, with BN and with noisy BN: "
        f"largest distances {words(drift)}. The relative change of a layer's gradient by the step "
        f"of the layers before it: means over training {words(shift)}. The first "
        "again, without BN, for mini-batches and for the full batch of a small set.",
    )
    study.figure(
        "landscape",
        functools.partial(draw_landscape, seen, every),
        title="How loss and gradient vary along a step",
        alt="Two panels against training steps, for networks without BN, with BN, with noisy BN: "
        "how far the loss ranges from half a step to four steps along the gradient, means over "
        f"training {words(mean['loss_range'])}; and by how much the gradient changes there at "
        f"most, relative to its length, means {words(mean['gradient_change'])}.",
    )


def report_depth(config: Config, study: Study, data: Data) -> None:
    """Measure how accuracy after equal steps depends on depth."""

    def train(name: str) -> dict[str, np.ndarray]:
        found = [
            accuracy_at_best_rate(
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
        return {key: np.stack([one[key] for one in found]) for key in found[0]}

    found = {name: study.part(f"depth_{name}", lambda name=name: train(name)) for name in VARIANTS}
    accuracy = {name: by_depth["accuracy"] for name, by_depth in found.items()}
    last = {name: by_depth[-1] for name, by_depth in accuracy.items()}
    study.report("sigmoid_depth", estimates.paired(last["sigmoid"], accuracy["sigmoid"][0]))
    study.report("bn_over_relu", estimates.paired(last["sigmoid_bn"], last["relu"]))
    study.report("bn_over_dropout", estimates.paired(last["sigmoid_bn"], last["sigmoid_dropout"]))
    study.report("bn_over_l2", estimates.paired(last["sigmoid_bn"], last["sigmoid_l2"]))
    study.report("relu_bn_over_relu", estimates.paired(last["relu_bn"], last["relu"]))
    study.figure(
        "depth",
        functools.partial(draw_depth, config.depths, accuracy),
        title=f"Test accuracy after {config.depth_steps:,} steps, by depth",
        alt="Two panels against the number of hidden layers, sigmoid and ReLU: test accuracy of "
        "each network at its best rate. At the largest depth, sigmoid: "
        + "; ReLU: ".join(
            words({name: runs for name, runs in last.items() if name.startswith(activation)})
            for activation in ("sigmoid", "relu")
        )
        + ".",
    )


def report_untrained(config: Config, study: Study, data: Data) -> None:
    """Measure what changes of the weights become on their way through untrained networks."""

    def run(norm: str) -> dict[str, np.ndarray]:
        x = data.split.train[0][:PROBE].astype(jnp.float32)
        return changes_by_depth(Stack(LAYERS, WIDTH, norm=NORMS[norm]), x, config.untrained)

    seen = {
        norm: study.part(f"untrained_{norm}", lambda norm=norm: run(norm))
        for norm in ("none", "batch")
    }
    none, batch = seen["none"], seen["batch"]
    nudged = none["nudged"]
    study.report("amplification", estimates.ratio(nudged[:, -1] / nudged[:, 1]))
    study.report("amplification_bn", estimates.ratio(batch["nudged"][:, -1] / nudged[:, -1]))
    study.report("outlier_growth", estimates.ratio(growth(none["outliers"])))
    study.report("outlier_bn", estimates.ratio(batch["outliers"][:, -1]))
    study.report("growth_without", estimates.ratio(growth(none["large"])))
    study.report("growth_with", estimates.ratio(growth(batch["large"])))
    study.figure(
        "untrained",
        functools.partial(draw_untrained, seen),
        title="What a change becomes on its way through an untrained ReLU network",
        alt="Three panels against the layer, with and without BN: the relative change of the sums "
        "W x after the first layer's weights moved by 1 %; the deviation of the inputs to the "
        "nonlinearity with a hundredth of all weights ten times as large, relative to that "
        "without; and that deviation with all weights 1.5 times He's. At the last layer: "
        + "; ".join(
            words({norm: found[name][:, -1] for norm, found in seen.items()})
            for name in ("nudged", "outliers", "large")
        )
        + ".",
    )
