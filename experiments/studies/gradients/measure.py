"""What the study `gradients` measures, its options and presets."""

import functools
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import matplotlib as mpl
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments import plotting
from experiments.stats import estimates
from experiments.studies.gradients import deep, training
from experiments.studies.gradients.backprop import backprop_errors
from experiments.studies.gradients.deep import (
    ACTIVATIONS,
    ARCHITECTURES,
    INITS,
    Deep,
    factor,
    layers_between,
    mean_factor,
    of_init,
)
from experiments.studies.gradients.training import Training
from experiments.study import Study
from jbn import diagnostics


@dataclass(frozen=True)
class Config(Training):
    """What the measurements depend on, and nothing else."""

    field_networks: int = 40
    """networks that the mean field theory is tested with"""
    field_width: int = 256
    """their width, large as the theory wants it"""
    field_batch: int = 128
    """their batches where the theory wants large ones"""


PRESETS = {
    "smoke": Config(
        dataset="digits",
        seeds=2,
        train_examples=600,
        test_examples=200,
        batch_size=20,
        depth=6,
        width=20,
        first_steps=5,
        dying_rates=(0.1, 0.8),
        dying_steps=10,
        residual_depth=6,
        residual_width=10,
        residual_rates=(0.01, 0.1),
        residual_steps=10,
        residual_seeds=2,
        field_networks=10,
        field_width=32,
        field_batch=16,
    ),
    "quick": Config(),
    "paper": Config(
        seeds=12,
        dying_steps=1000,
        residual_steps=500,
        residual_seeds=10,
        field_networks=200,
    ),
}

SHOWN = INITS[:5]  # The others tell what the scale does with BN.
GROUPS = 5  # Of networks, each with its mean square.
LINEAR_BATCH = 6  # (B - 2) / (B - 3) is far from 1.


# ---- At initialization ---------------------------------------------------------------------------


def mean_field(config: Config) -> dict[str, Float[np.ndarray, "networks L"]]:
    """Measure squared gradients through BN, where its mean field theory is to hold."""
    make = functools.partial(Deep, config.depth, config.field_width, norm="batch")
    measure = functools.partial(deep.mean_field, seeds=config.field_networks)
    return {
        "relu": measure(make(), batch_size=config.field_batch),
        "linear": measure(make(activation=ACTIVATIONS["linear"]), batch_size=LINEAR_BATCH),
    }


# ---- The experiment ------------------------------------------------------------------------------


def measure(config: Config, study: Study) -> None:
    """Measure all parts, report the numbers, draw the figures."""
    data = functools.cache(lambda: training.examples(config, study))  # Only for what is not kept.
    profiles = functools.partial(
        deep.profiles, width=config.width, seeds=config.seeds, batch_size=config.batch_size
    )
    every = itertools.product(ACTIVATIONS, ARCHITECTURES)
    shallow = study.part("layers", lambda: profiles(every, config.depth))
    few = [(activation, "none") for activation in ("sigmoid", "tanh", "relu", "leaky")]
    few += [("relu", "batch"), ("relu", "residual")]
    deeper = shallow
    if config.residual_depth != config.depth:
        deeper = study.part("deeper", lambda: profiles(few, config.residual_depth))
    field = study.part("mean field", lambda: mean_field(config))
    steps = study.part("first steps", lambda: training.first_steps(config, data()))
    dead = study.part("dying", lambda: training.dying(config, data()))
    skipped = study.part("residual", lambda: training.residual(config, data()))
    errors = study.part(
        "backpropagation", lambda: {"error": np.array(backprop_errors(range(config.seeds)))}
    )

    report_start(study, shallow, deeper, field)
    report_dying(study, dead, config)
    report_first_steps(study, steps, config)
    report_residual(study, shallow, deeper, skipped, config)
    study.report("backprop_error", estimates.exact(errors["error"].max()))
    right, left = diagnostics.slopes(np.array([100.0, -1.0]), nn.relu)
    study.report("relu_slope_right", estimates.exact(right))
    study.report("relu_slope_left", estimates.exact(left))

    study.figure(
        "layers",
        lambda: draw_layers(shallow),
        title="Only some initial weights keep the gradient, unless BN or a sum does",
        alt="Three heat maps, without BN, with BN and residual, of networks of "
        f"{config.depth} layers before training: the norm of the gradient by layer, for five "
        "nonlinearities with five kinds of initial weights each. Without BN most rows fade towards "
        "the first layer, sigmoid and small weights soonest, and large weights make it grow. With "
        "BN the change from layer to layer does not depend on the scale of the weights.",
    )
    study.figure(
        "depth",
        lambda: draw_depth(config, deeper, steps),
        title="From layer to layer: the gradient before training, and what the layers then learn",
        alt=f"Three panels. Gradient norm by layer of {config.residual_depth} layers with Xavier's "
        "weights, relative to the last: by nonlinearity, sigmoid falling fastest; and with ReLU, "
        "falling without BN, growing towards the first layer with BN and in residual networks. "
        "Third, each layer's relative update at the start of training, for sigmoid and ReLU.",
    )
    study.figure(
        "dying",
        lambda: draw_dying(config, dead),
        title="At a high rate ReLU units die, leaky ones cannot",
        alt="Two panels against the learning rate, for ReLU and leaky ReLU: the share of units "
        "whose slope is 0 on every image, which only ReLU has, and the test accuracy. Networks "
        "that are no longer finite count as without dead units and as of chance accuracy.",
    )
    study.figure(
        "residual",
        lambda: draw_residual(config, skipped),
        title="Plain networks cease to learn as they get deeper, residual ones go on",
        alt="Test accuracy against the learning rate after equally many steps, of plain and "
        f"residual networks of {config.depth} and {config.residual_depth} layers, without BN and "
        "with.",
    )


Parts = Mapping[str, np.ndarray]


def report_start(study: Study, shallow: Parts, deeper: Parts, field: Parts) -> None:
    """Report what there is before training."""

    def per_layer(name: str, init: str) -> np.ndarray:
        # From the first block on: the scale of what the first layer sums is of its own.
        norms = of_init(shallow[f"{name}_gradient"], init)[:, 1:]
        return factor(norms[:, 0], norms[:, -1], layers_between(norms))

    def forwards(name: str, init: str) -> np.ndarray:
        squares = of_init(shallow[f"{name}_square"], init)
        return factor(squares[:, -1], squares[:, 0], layers_between(squares))

    sigmoid = of_init(shallow["sigmoid_none_gradient"], "Xavier")
    relu_bn = of_init(deeper["relu_batch_gradient"], "He")[:, -26:]  # 25 blocks, where there are.
    by_scale = [per_layer("relu_batch", init) for init in ("10 He", "He / 10")]
    for metric, values in {
        "sigmoid_factor": per_layer("sigmoid_none", "Xavier"),
        "tanh_factor": per_layer("tanh_none", "Xavier"),
        "sigmoid_ends": sigmoid[:, 0] / sigmoid[:, -1],
        "relu_he_factor": per_layer("relu_none", "He"),
        "relu_xavier_factor": per_layer("relu_none", "Xavier"),
        "relu_over_sigmoid": per_layer("relu_none", "Xavier") / per_layer("sigmoid_none", "Xavier"),
        "relu_large_factor": per_layer("relu_none", "twice He"),
        "bn_sigmoid_factor": per_layer("sigmoid_batch", "Xavier"),
        "bn_relu_factor": per_layer("relu_batch", "He"),
        "bn_factor_by_scale": by_scale[0] / by_scale[1],
        "bn_relu_growth_50": relu_bn[:, 0] / relu_bn[:, -1],
        "bn_relu_squared": mean_factor(field["relu"], GROUPS),
        "bn_linear_squared": mean_factor(field["linear"], GROUPS),
        "he_variance": forwards("relu_none", "He"),
        "xavier_variance": forwards("linear_none", "Xavier"),
        "xavier_tanh_variance": forwards("tanh_none", "Xavier"),
    }.items():
        study.report(metric, estimates.ratio(values))


def report_dying(study: Study, dead: Parts, config: Config) -> None:
    """Report at the highest rate at which every ReLU network is finite to the end."""
    steady = np.flatnonzero(dead["relu_finite"].all(1))
    high = steady[-1] if len(steady) else 0
    study.report("dying_rate", estimates.exact(config.dying_rates[high]))
    study.report("dead_relu", estimates.mean(dead["relu_dead"][high]))
    study.report("dead_leaky", estimates.mean(dead["leaky_dead"][high]))
    leaky, relu = dead["leaky_accuracy"][high], dead["relu_accuracy"][high]
    study.report("leaky_gain", estimates.paired(leaky, relu))


def report_first_steps(study: Study, steps: Parts, config: Config) -> None:
    """Report what early layers learn, and who diverges; and whether who does not learns."""
    for kind, metric in {"sigmoid": "first_update", "relu": "first_update_relu"}.items():
        updates = steps[f"{kind}_updates"]
        study.report(metric, estimates.ratio(updates[:, 0] / updates[:, -1]))
    norms = steps["clipped_norms"]
    largest = norms[np.isfinite(norms)].max(initial=0)
    study.report("clipped_norm", estimates.exact(largest / config.clip_norm))
    study.report("diverged_unclipped", estimates.share(steps["large_diverged"]))
    study.report("diverged_clipped", estimates.share(steps["clipped_diverged"]))
    study.report("clipped_accuracy", estimates.mean(steps["clipped_accuracy"]))


def report_residual(
    study: Study, shallow: Parts, deeper: Parts, skipped: Parts, config: Config
) -> None:
    """Report residual networks against plain ones, of the same weights."""
    for name, found in {"20": shallow, "56": deeper}.items():
        ends = [
            of_init(found[f"relu_{of}_gradient"], "Xavier")[:, 0] for of in ("residual", "none")
        ]
        study.report(f"residual_gain_{name}", estimates.ratio(ends[0] / ends[1]))
    depths = {"20": config.depth, "56": config.residual_depth}
    for (name, depth), norm in itertools.product(depths.items(), (None, "batch")):
        ours, theirs = (
            training.at_best_rate(skipped[training.name_of(depth, norm, skip)])
            for skip in (True, False)
        )
        metric = f"residual_accuracy_{name}" + ("_bn" if norm else "")
        study.report(metric, estimates.paired(ours, theirs))


# ---- Figures -------------------------------------------------------------------------------------

NAMES = {"sigmoid": "sigmoid", "tanh": "tanh", "relu": "ReLU", "leaky": "leaky", "linear": "linear"}


def draw_layers(shallow: Parts) -> Figure:
    """Draw the heat maps."""
    made = plotting.figure(3, width=3.6, height=5.6)
    cmap = mpl.colormaps[plotting.SEQUENTIAL].with_extremes(bad="white")
    titles = {"none": "plain", "batch": "with BN", "residual": "residual"}
    image: Any = None
    for axes, (architecture, title) in zip(made.axes, titles.items(), strict=True):
        rows = [
            np.mean(of_init(shallow[f"{activation}_{architecture}_gradient"], init), 0)
            for activation, init in itertools.product(ACTIVATIONS, SHOWN)
        ]
        norms = np.stack(rows)
        logs = np.log10(norms, where=norms > 0, out=np.full(norms.shape, np.nan))
        layers, height = layers_between(norms) + 1, len(rows)
        image = axes.imshow(
            logs,
            aspect="auto",
            cmap=cmap,
            vmin=-9,
            vmax=3,
            extent=(0, layers + 1, height, 0),
            interpolation="nearest",
        )
        axes.set(title=title, xlabel="layer", xticks=_layer_ticks(layers))
        axes.set_yticks(np.arange(height) + 0.5)
        axes.set_yticklabels([])
        axes.grid(visible=False)
        axes.hlines(np.arange(len(SHOWN), height, len(SHOWN)), 0, layers + 1, "black", lw=1)
    made.axes[0].set_yticklabels(
        [f"{NAMES[a]}, {init}" for a, init in itertools.product(ACTIVATIONS, SHOWN)], fontsize=8
    )
    made.colorbar(
        image,
        ax=made.axes,
        label="log10 of the gradient's norm (white: 0)",
        extend="both",
        aspect=40,
    )
    return made


def _layer_ticks(layers: int) -> list[int]:
    return [1, *range(5, layers + 1, 5 if layers < 30 else 10)]


def draw_depth(config: Config, deeper: Parts, steps: Parts) -> Figure:
    """Draw gradients and relative updates, layer by layer."""
    made = plotting.figure(3, width=3.8)
    by_activation, by_architecture, of_update = made.axes

    def gradient(axes: Axes, name: str, method: str) -> None:
        norms = of_init(deeper[f"{name}_gradient"], "Xavier").T
        layers = 1 + 2 * np.arange(len(norms))
        plotting.band(axes, layers, norms / norms[-1:], method)

    for activation in ("sigmoid", "tanh", "relu", "leaky"):
        gradient(by_activation, f"{activation}_none", activation)
    for architecture in ("none", "batch", "residual"):
        gradient(by_architecture, f"relu_{architecture}", architecture)
    for activation in ("sigmoid", "relu"):
        runs = steps[f"{activation}_updates"].T
        plotting.band(of_update, 2 + np.arange(len(runs)), runs, activation)
    by_activation.set(title=f"Xavier, {config.residual_depth} layers")
    by_architecture.set(title=f"ReLU, Xavier, {config.residual_depth} layers")
    of_update.set(title=f"first {config.first_steps} steps, {config.depth} layers")
    for axes in (by_activation, by_architecture):
        axes.set(ylabel="gradient norm / that of the last layer")
    of_update.set(ylabel="relative update |dW| / |W| per step")
    for axes in made.axes:
        axes.set(yscale="log", xlabel="layer")
        axes.legend()
    return made


def draw_dying(config: Config, dead: Parts) -> Figure:
    """Draw dead units and accuracy against the rate."""
    made = plotting.figure(2, width=4.2)
    words = {"dead": "share of dead units", "accuracy": "test accuracy"}
    for axes, (what, label) in zip(made.axes, words.items(), strict=True):
        for method in ("relu", "leaky"):
            plotting.band(axes, np.array(config.dying_rates), dead[f"{method}_{what}"], method)
        _against_rate(axes, config.dying_rates)
        axes.set(ylabel=label, ylim=(-0.03, 1.03))
        axes.legend()
    return made


def draw_residual(config: Config, skipped: Parts) -> Figure:
    """Draw the accuracy of plain and residual networks against the rate."""
    made = plotting.figure(2, 2, width=4.0, height=2.9)
    kinds = itertools.product((config.depth, config.residual_depth), (None, "batch"))
    for axes, (depth, norm) in zip(made.axes, kinds, strict=True):
        for skip, method in ((False, "none"), (True, "residual")):
            accuracy = skipped[training.name_of(depth, norm, skip)][..., 1]
            plotting.band(axes, np.array(config.residual_rates), accuracy, method)
        _against_rate(axes, config.residual_rates)
        axes.set(title=f"{depth} layers, {'with' if norm else 'without'} BN")
        axes.set(ylabel="test accuracy", ylim=(0, 1))
    made.axes[0].legend(made.axes[0].lines, ["plain", "residual"])
    return made


def _against_rate(axes: Axes, rates: Sequence[float]) -> None:
    axes.set(xscale="log", xlabel="learning rate")
    axes.set_xticks(rates, [f"{rate:g}" for rate in rates])
    axes.minorticks_off()
