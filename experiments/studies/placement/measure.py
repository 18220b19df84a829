"""What the study `placement` measures, its options and presets."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, UInt8
from matplotlib.figure import Figure

from experiments import plotting
from experiments.plotting import METHODS
from experiments.stats import estimates, selection
from experiments.study import Study
from experiments.tasks import data
from experiments.tasks.split import Split, sample_split
from experiments.training import sweep
from jbn.linen import BatchNorm
from jbn.models import MLP
from jbn.models.inception import local_response_norm
from jbn.models.units import Norm, Placement, unit

# As Krizhevsky et al., 2012, section 3.3: over five features, k 2, beta .75.
LRN = functools.partial(local_response_norm, bias=2.0, alpha=1e-4)
ACTIVATIONS = {"sigmoid": nn.sigmoid, "tanh": nn.tanh, "relu": nn.relu}


@dataclass(frozen=True)
class Config:
    """What the run depends on, and nothing else."""

    dataset: Literal["mnist", "fashion_mnist", "digits"] = "fashion_mnist"
    """digits are the small ones inside scikit-learn"""
    seeds: int = 5
    """how many seeds"""
    batch_size: int = 60
    """examples in a batch"""
    validation: int = 2_000
    """training images, drawn at random, to choose the rate on"""
    statistics: int = 2_000
    """training images that the population statistics are computed from"""
    steps: int = 800
    """training steps of the three-layer networks"""
    hidden: tuple[int, ...] = (100, 100, 100)
    """width of each of their hidden layers"""
    sigma: float = 0.1
    """standard deviation of their initial weights"""
    learning_rates: tuple[float, ...] = (0.1, 0.4, 1.6)
    """grid of their rates, of plain SGD"""
    conv_steps: int = 300
    """training steps of the convolutional networks"""
    widths: tuple[int, ...] = (8, 16)
    """features of each of their stages"""
    conv_learning_rates: tuple[float, ...] = (0.004, 0.016)
    """grid of their rates, of Adam"""


PRESETS = {
    "smoke": Config(
        dataset="digits",
        seeds=2,
        batch_size=20,
        validation=60,
        statistics=60,
        steps=10,
        hidden=(20,),
        learning_rates=(0.4,),
        conv_steps=4,
        widths=(6,),
        conv_learning_rates=(0.01,),
    ),
    "quick": Config(),
    "paper": Config(
        seeds=10,
        steps=2_000,
        learning_rates=(0.1, 0.4, 1.6, 6.4),
        conv_steps=600,
        conv_learning_rates=(0.001, 0.004, 0.016, 0.064),
    ),
}


# ---- Before and after ----------------------------------------------------------------------------


def with_bias(*, use_running_average: bool, name: str) -> nn.Module:
    """Make a BatchNorm that the layer before it does not recognize, and so keeps its bias."""
    return BatchNorm(use_running_average, name=name)


def dense(config: Config, split: Split, placement: Placement) -> dict[str, np.ndarray]:
    """Train three-layer networks of every nonlinearity at every rate.

    Before BN there is a bias, either held at 0, which is to leave it out, or learned.

    Returns: accuracies, (activations, 2, rates, seeds, 1): held, then learned. Where BN comes after
      the nonlinearity, the bias belongs to the latter and is learned: the second axis has length 1.
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
    seen = train(config, build, settings, split, config.steps)
    shape = len(ACTIVATIONS), len(kinds), len(rates)
    return {name: values.reshape(*shape, *values.shape[1:]) for name, values in seen.items()}


def is_hidden_bias(params: Any) -> Any:
    """Mark the biases of the hidden layers."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: path[0].key.startswith("dense") and path[-1].key == "bias", params
    )


def train(
    config: Config, build: sweep.Build, settings: dict[str, np.ndarray], split: Split, steps: int
) -> dict[str, np.ndarray]:
    """Train every setting with every seed: accuracies at the end."""
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


class PatchConv(nn.Module):
    """3x3 convolution as a dense layer on patches.

    The same as `nn.Conv`, whose gradient in a scan on a CPU takes ten times as long.
    """

    features: int
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "N H W in"]) -> Float[Array, "N H W features"]:
        height, width = x.shape[1:3]
        padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        shifts = [padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
        dense = nn.Dense(
            self.features,
            use_bias=self.use_bias,
            kernel_init=nn.initializers.he_normal(),
            name="patches",
        )
        return dense(jnp.concatenate(shifts, -1))


class SmallCNN(nn.Module):
    """Two convolutions to a stage, a max pool after each stage, then the mean over space."""

    widths: tuple[int, ...]
    norm: Norm = None
    activation: Callable[[Array], Array] = nn.relu

    @nn.compact
    def __call__(self, x: Float[Array, "N H W"], *, training: bool) -> Float[Array, "N outputs"]:
        x = x[..., None]
        for stage, width in enumerate(self.widths):
            for i in range(2):
                x = unit(
                    functools.partial(PatchConv, width),
                    x,
                    training=training,
                    name=f"conv_{stage}_{i}",
                    norm=self.norm,
                    norm_name=f"norm_{stage}_{i}",
                    activation=self.activation,
                )
            x = nn.max_pool(x, (2, 2), (2, 2), padding="SAME")
        return nn.Dense(10, kernel_init=nn.initializers.he_normal(), name="output")(x.mean((1, 2)))


def halved(images: UInt8[np.ndarray, "N H W"]) -> Float[np.ndarray, "N h w"]:
    """Average gray levels over squares of two by two pixels; an odd last row or column goes."""
    count, height, width = images.shape
    even = images[:, : height // 2 * 2, : width // 2 * 2].astype(np.float32)
    return even.reshape(count, height // 2, 2, width // 2, 2).mean((2, 4))


def convolutional(config: Config, split: Split, norm: Norm) -> dict[str, np.ndarray]:
    """Train convolutional networks at every rate: accuracies, (2, rates, seeds, 1).

    Without LRN, then with it.
    """

    def build(setting: dict[str, Array]) -> tuple[nn.Module, optax.GradientTransformation]:
        activation = sweep.one_of([nn.relu, lambda x: LRN(nn.relu(x))], setting["lrn"])
        return SmallCNN(config.widths, norm, activation), optax.adam(setting["rate"])

    settings = sweep.grid(lrn=[0, 1], rate=config.conv_learning_rates)
    seen = train(config, build, settings, split, config.conv_steps)
    return {name: values.reshape(2, -1, *values.shape[1:]) for name, values in seen.items()}


# ---- Figures -------------------------------------------------------------------------------------


def draw_order(config: Config, found: dict[str, dict[str, np.ndarray]]) -> Figure:
    """Draw test accuracy against the rate, BN before and after, for each nonlinearity."""
    made = plotting.figure(3, width=4.0)
    looks = {
        "before": METHODS["batch"]._replace(label="BN before the nonlinearity"),
        "after": METHODS["layer"]._replace(linestyle="--", label="BN after the nonlinearity"),
    }
    for i, (axes, activation) in enumerate(zip(made.axes, ACTIVATIONS, strict=True)):
        for order, look in looks.items():
            seen = found[order]["test"][i, 0, :, :, -1]
            axes.plot(config.learning_rates, seen.mean(1), **look._asdict())
            ends = seen.min(1), seen.max(1)
            axes.fill_between(config.learning_rates, *ends, color=look.color, alpha=0.2)
        axes.set(xscale="log", xlabel="learning rate", title=METHODS[activation].label)
        axes.set_xticks(config.learning_rates, [f"{rate:g}" for rate in config.learning_rates])
        axes.minorticks_off()
    made.axes[0].set_ylabel("test accuracy")
    made.axes[1].legend(loc="lower left")
    return made


def draw_response(found: dict[str, list[np.ndarray]]) -> Figure:
    """Draw the test accuracy of every seed, without and with LRN, without and with BN."""
    made = plotting.figure()
    (axes,) = made.axes
    for norm in ("none", "batch"):
        look = METHODS[norm]
        pairs = np.stack(found[norm])
        axes.plot([0, 1], pairs, color=look.color, marker=look.marker, linewidth=0.8, alpha=0.5)
        axes.plot([0, 1], pairs.mean(1), **look._replace(marker="")._asdict(), linewidth=2.5)
    axes.set_xticks([0, 1], ["without LRN", "with LRN"])
    axes.set(ylabel="test accuracy", xlim=(-0.3, 1.3))
    axes.legend()
    return made


# ---- The experiment ------------------------------------------------------------------------------


def tested(found: dict[str, np.ndarray], *kind: int) -> Float[np.ndarray, "seeds"]:
    """Take the last test accuracy of one kind of network at its best rate."""
    return selection.at_best({name: values[kind] for name, values in found.items()})["test"][:, -1]


def measure(config: Config, study: Study) -> None:
    """Measure, report, draw."""
    dataset = study.dataset(config.dataset)
    binary = jax.device_put(sample_split(dataset, data.binary, validation=config.validation))

    # ---- Before and after
    found = {
        "before": study.part("before", lambda: dense(config, binary, "before")),
        "after": study.part("after", lambda: dense(config, binary, "after")),
    }
    gains = []
    for i, activation in enumerate(ACTIVATIONS):
        before, biased, after = (
            tested(found[order], i, kind)
            for order, kind in (("before", 0), ("before", 1), ("after", 0))
        )
        study.report(f"before_{activation}", estimates.paired(before, after))
        gains.append(biased - before)
    study.report("bias_gain", estimates.mean(np.mean(gains, axis=0)))  # One number a seed.
    study.figure(
        "order",
        functools.partial(draw_order, config, found),
        title="Test accuracy against the rate, BN before or after the nonlinearity",
        alt="For sigmoid, tanh and ReLU, the mean of test accuracy over seeds, and its range, "
        "against the learning rate. Before - after, each at its best rate: "
        + ", ".join(
            f"{estimates.words(study.estimates[f'before_{activation}'])} for {activation}"
            for activation in ACTIVATIONS
        )
        + ".",
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
    responses = {norm: [tested(seen, lrn) for lrn in (0, 1)] for norm, seen in networks.items()}
    for metric, norm in (("lrn_gain", "none"), ("lrn_gain_bn", "batch")):
        without, with_lrn = responses[norm]
        study.report(metric, estimates.paired(with_lrn, without))
    study.figure(
        "local_response",
        functools.partial(draw_response, responses),
        title="Local response normalization in a small CNN, without and with BN",
        alt="Test accuracy of every seed, thin, and their mean, without and with LRN. It gains "
        f"{estimates.words(study.estimates['lrn_gain'])} without BN, "
        f"{estimates.words(study.estimates['lrn_gain_bn'])} with.",
    )
