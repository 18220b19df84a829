"""Measurements and reports of the study `gradients`."""

import functools
import itertools

import flax.linen as nn
import numpy as np
from jaxtyping import Float

from experiments.plotting import counted, describe_data, describe_layers, describe_runs
from experiments.stats import estimates
from experiments.studies.gradients import deep, training
from experiments.studies.gradients.backprop import backprop_errors
from experiments.studies.gradients.config import Config, name_of
from experiments.studies.gradients.deep import ACTIVATIONS, ARCHITECTURES, of_depth
from experiments.studies.gradients.factors import factor, layers_between, mean_factor, of_init
from experiments.studies.gradients.figures import (
    Parts,
    plot_depth,
    plot_dying,
    plot_layers,
    plot_residual,
)
from experiments.study import Study
from jbn import diagnostics

GROUPS = 5  # Groups of networks to average squares over.
LINEAR_BATCH = 6  # So small that (B - 2) / (B - 3) is far from 1.


# ---- At initialization ---------------------------------------------------------------------------


def mean_field(config: Config) -> dict[str, Float[np.ndarray, "networks L"]]:
    """Measure squared gradients through BN, under the assumptions of its mean field theory."""
    make = functools.partial(of_depth, config.depth, config.field_width, norm="batch")
    measure = functools.partial(deep.mean_field, seeds=config.field_networks)
    return {
        "relu": measure(make(), batch_size=config.field_batch),
        "linear": measure(make(activation=ACTIVATIONS["linear"]), batch_size=LINEAR_BATCH),
    }


# ---- The experiment ------------------------------------------------------------------------------


def measure(config: Config, study: Study) -> None:
    """Measure all parts, report the numbers and draw the figures."""
    data = functools.cache(
        lambda: training.sample_examples(config, study)
    )  # Only if a part is not kept already.
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

    units = f"hidden layers of {config.width} units"
    seeds, few = describe_runs(config.seeds), describe_runs(config.residual_seeds)
    images = describe_data(study.dataset(config.dataset).name)
    study.figure(
        "layers",
        lambda: plot_layers(shallow),
        title="Only some initial weights keep the gradient, unless BN or a sum does",
        caption=f"Gaussian inputs, random labels; {units}; colors: means over "
        f"{counted(config.seeds, 'seed')}. White: a gradient of 0.",
        alt="Three heat maps, without BN, with BN and residual, of networks of "
        f"{config.depth} layers before training: the norm of the gradient by layer, for five "
        "nonlinearities with five kinds of initial weights each. Without BN most rows fade towards "
        "the first layer, sigmoid and small weights soonest, and large weights make it grow. With "
        "BN the change from layer to layer does not depend on the scale of the weights.",
    )
    study.figure(
        "depth",
        lambda: plot_depth(config, deeper, steps),
        title="From layer to layer: the gradient before training, and what the layers then learn",
        caption=f"Gradients: Gaussian inputs; updates: {images}; {units}. {seeds} The means are "
        "geometric.",
        alt=f"Three panels. Gradient norm by layer of {config.residual_depth} layers with Xavier's "
        "weights, relative to the last: by nonlinearity, sigmoid falling fastest; and with ReLU, "
        "falling without BN, growing towards the first layer with BN and in residual networks. "
        "Third, each layer's relative update at the start of training, for sigmoid and ReLU.",
    )
    study.figure(
        "dying",
        lambda: plot_dying(config, dead),
        title="At a high rate ReLU units die, leaky ones cannot",
        caption=f"{images}, {describe_layers((config.width,) * 3)}. {seeds}",
        alt="Two panels against the learning rate, for ReLU and leaky ReLU: the share of units "
        "whose slope is 0 on every image, which only ReLU has, and the test accuracy. Networks "
        "that are no longer finite count as without dead units and as of chance accuracy.",
    )
    study.figure(
        "residual",
        lambda: plot_residual(config, skipped),
        title="Plain networks cease to learn as they get deeper, residual ones go on",
        caption=f"{images}, hidden layers of {config.residual_width} ReLUs, after "
        f"{counted(config.residual_steps, 'step')}. {few}",
        alt="Test accuracy against the learning rate after equally many steps, of plain and "
        f"residual networks of {config.depth} and {config.residual_depth} layers, without BN and "
        "with.",
    )


def report_start(study: Study, shallow: Parts, deeper: Parts, field: Parts) -> None:
    """Report the numbers measured before training."""

    def per_layer(name: str, init: str) -> np.ndarray:
        # From the first block on, since the gain does not scale the first layer's weights.
        norms = of_init(shallow[f"{name}_gradient"], init)[:, 1:]
        return factor(norms[:, 0], norms[:, -1], layers_between(norms))

    def forwards(name: str, init: str) -> np.ndarray:
        squares = of_init(shallow[f"{name}_square"], init)
        return factor(squares[:, -1], squares[:, 0], layers_between(squares))

    sigmoid = of_init(shallow["sigmoid_none_gradient"], "Xavier")
    relu_bn = of_init(deeper["relu_batch_gradient"], "He")[:, -26:]  # At most 25 blocks.
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
    """Report the highest rate at which every ReLU network stays finite, and the results there."""
    steady = np.flatnonzero(dead["relu_finite"].all(1))
    high = steady[-1] if len(steady) else 0
    study.report("dying_rate", estimates.exact(config.dying_rates[high]))
    study.report("dead_relu", estimates.mean(dead["relu_dead"][high]))
    study.report("dead_leaky", estimates.mean(dead["leaky_dead"][high]))
    leaky, relu = dead["leaky_accuracy"][high], dead["relu_accuracy"][high]
    study.report("leaky_gain", estimates.paired(leaky, relu))


def report_first_steps(study: Study, steps: Parts, config: Config) -> None:
    """Report how much early layers learn, which networks diverge, and accuracy with clipping."""
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
    """Report residual networks against plain ones with the same weights."""
    for name, profile in {"20": shallow, "56": deeper}.items():
        ends = [
            of_init(profile[f"relu_{of}_gradient"], "Xavier")[:, 0] for of in ("residual", "none")
        ]
        study.report(f"residual_gain_{name}", estimates.ratio(ends[0] / ends[1]))
    depths = {"20": config.depth, "56": config.residual_depth}
    for (name, depth), norm in itertools.product(depths.items(), (None, "batch")):
        ours, theirs = (
            training.at_best_rate(skipped[name_of(depth, norm, skip)]) for skip in (True, False)
        )
        metric = f"residual_accuracy_{name}" + ("_bn" if norm else "")
        study.report(metric, estimates.paired(ours, theirs))
