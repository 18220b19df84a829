"""Measurements of the study `identities`."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

import jbn
from experiments import sampling
from experiments.plotting import counted, describe_runs
from experiments.stats import estimates
from experiments.studies.identities.config import BATCH_SIZES, Config
from experiments.studies.identities.figures import EQUALITIES, plot_bessel, plot_errors
from experiments.study import Study

MAPS, SCALES = 7, (0.1, 10.0, 100.0)


def measure(config: Config, study: Study) -> None:
    """Measure every identity, and plot the errors."""
    layer = study.part("layer", lambda: over_draws(config, "layer", layer_errors, wide=True))
    for name, errors in layer.items():
        study.report(name, estimates.exact(np.max(errors)))
    single = study.part("identity_map", lambda: over_draws(config, "identity map", identity_errors))
    for name, errors in single.items():
        study.report(name, estimates.exact(np.max(errors)))
    for name, value in study.part("arithmetic", arithmetic).items():
        study.report(name, estimates.exact(value))

    bessel = study.part(
        "bessel", lambda: over_draws(config, "batches", lambda key: batch_variances(config, key))
    )
    for m in (2, 60):
        study.report(f"corrected_{m}", estimates.mean(bessel[f"corrected_{m}"]))
    study.report("uncorrected_2", estimates.mean(bessel["uncorrected_2"]))
    variances = study.part(
        "initial", lambda: over_draws(config, "weights", lambda key: initial_variances(config, key))
    )
    for name in ("glorot_normal", "glorot_uniform", "he_normal"):
        study.report(name, estimates.mean(variances[name]))
    difference = estimates.paired(variances["glorot_uniform"], variances["glorot_normal"])
    study.report("variance_difference", difference)

    equalities = {**layer, **single}
    equalities.pop("parameters_per_map")
    study.figure(
        "errors",
        lambda: plot_errors({name: np.max(errors) for name, errors in equalities.items()}),
        title="What should be equal, and by how much it is not",
        caption="One layer on Gaussian inputs: the largest error over "
        f"{counted(config.draws, 'draw')}; in float64, but for those of input and output, "
        "which are in float32.",
        alt="The largest error of each equality over all draws, on a logarithmic scale: "
        + "; ".join(f"{EQUALITIES[name]}: {np.max(of):.0e}" for name, of in equalities.items())
        + ".",
    )
    study.figure(
        "bessel",
        lambda: plot_bessel(bessel),
        title="The batch variance, corrected and not, against the true one (Bessel's correction)",
        caption="Gaussian values, no network. "
        + describe_runs(config.draws, "Points", "bars", of="draw"),
        alt="Mean of the batch variance over the true variance, against the size of the batch: "
        "uncorrected it is (m - 1) / m, half at batches of 2; corrected it is 1 throughout.",
    )


def over_draws(
    config: Config,
    purpose: str,
    function: Callable[[Array], dict[str, Array]],
    *,
    wide: bool = False,
) -> dict[str, np.ndarray]:
    """Call the function for every draw, with keys for this purpose, in float64 if `wide`."""
    with jax.enable_x64(wide):
        keys = sampling.keys(range(config.draws), purpose)
        return jax.tree.map(np.asarray, jax.jit(jax.vmap(function))(keys))


# ---- The layer -----------------------------------------------------------------------------------


def batch_norm(
    x: Array, params: jbn.BatchNormParams | None = None, *, epsilon: float = 1e-12
) -> Array:
    """Normalize by the batch, with epsilon as small as float64 allows, so that scale cancels."""
    ours, state = jbn.init(x.shape[-1], param_dtype=x.dtype)
    return jbn.batch_norm(x, params or ours, state, training=True, epsilon=epsilon)[0]


def layer_errors(key: Array) -> dict[str, Array]:
    """Compute the errors of the layer's equalities, in float64."""
    keys = iter(jax.random.split(key, 8))

    def normal(*shape: int) -> Array:
        return jax.random.normal(next(keys), shape, jnp.float64)

    u, w, b, dy = normal(32, 9), normal(9, MAPS), 3 * normal(MAPS), normal(32, MAPS)
    scale, bias = normal(MAPS), normal(MAPS)
    params = jbn.BatchNormParams(scale, bias)

    def loss(w: Array, b: Array, bias: Array = bias) -> Array:
        return jnp.sum(batch_norm(u @ w + b[None], jbn.BatchNormParams(scale, bias)) * dy)

    dw, db, dbias = jax.grad(loss, (0, 1, 2))(w, b, bias)

    def scaled(a: Array) -> tuple[Array, Array]:
        return largest(batch_norm(u @ (a * w)) - batch_norm(u @ w)), a * jax.grad(loss)(a * w, b)

    errors, gradients = jax.vmap(scaled)(jnp.asarray(SCALES))
    images = normal(6, 4, 5, MAPS)
    dense = batch_norm(images.reshape(-1, MAPS), params).reshape(images.shape)
    return {
        "bias_effect": largest(batch_norm(u @ w + b[None]) - batch_norm(u @ w)),
        "bias_gradient": largest(db) / largest(dbias),
        "scaled_output": jnp.max(errors),
        "scaled_gradient": largest(gradients - dw[None]) / largest(dw),
        "radial_gradient": largest(jnp.sum(w * dw, 0)) / jnp.linalg.norm(w) / jnp.linalg.norm(dw),
        "convolution_difference": largest(batch_norm(images, params) - dense),
        "parameters_per_map": jnp.asarray(
            sum(leaf.size for leaf in jax.tree.leaves(jbn.init(MAPS)[0])) / MAPS
        ),
        "mean_of_gradients": mean_of_gradients(u, w, dy),
        **gradient_errors(u @ w, scale, bias, dy),
    }


def largest(x: Array) -> Array:
    """Compute the largest absolute value."""
    return jnp.max(jnp.abs(x))


def gradient_errors(x: Array, scale: Array, bias: Array, dy: Array) -> dict[str, Array]:
    """Compare gradients with the closed form of the paper, and with finite differences."""
    epsilon = 1e-5

    def loss(x: Array, scale: Array, bias: Array) -> Array:
        return jnp.sum(batch_norm(x, jbn.BatchNormParams(scale, bias), epsilon=epsilon) * dy)

    at = (x, scale, bias)
    ours = jax.grad(loss, (0, 1, 2))(*at)
    std = jnp.sqrt(jnp.var(x, 0) + epsilon)[None]
    xhat = (x - jnp.mean(x, 0)[None]) / std
    dx = dy - jnp.mean(dy, 0)[None] - xhat * jnp.mean(dy * xhat, 0)[None]
    closed = (scale[None] / std * dx, jnp.sum(dy * xhat, 0), jnp.sum(dy, 0))

    def central(argument: int) -> Array:
        shape, step = at[argument].shape, 1e-5

        def along(direction: Array) -> Array:
            def moved(sign: float) -> Array:
                there = list(at)
                there[argument] += sign * step * direction.reshape(shape)
                return loss(*there)

            return (moved(1.0) - moved(-1.0)) / (2 * step)

        return jax.vmap(along)(jnp.eye(at[argument].size)).reshape(shape)

    pairs = [(mine, closed[i], central(i)) for i, mine in enumerate(ours)]
    return {
        "closed_form_error": jnp.max(jnp.stack([largest(g - c) for g, c, _ in pairs])),
        "difference_error": jnp.max(jnp.stack([largest(g - d) for g, _, d in pairs])),
    }


def mean_of_gradients(u: Array, w: Array, dy: Array) -> Array:
    """Compare the mean of mini-batch gradients with the full gradient, without BN."""

    def gradient(u: Array, dy: Array) -> Array:
        return jax.grad(lambda w: jnp.mean(jnp.tanh(u @ w) * dy))(w)

    parts = jax.vmap(gradient)(u.reshape(4, 8, -1), dy.reshape(4, 8, -1))
    whole = gradient(u, dy)
    return largest(jnp.mean(parts, 0) - whole) / largest(whole)


def identity_errors(key: Array) -> dict[str, Array]:
    """Compute how far gamma and beta are from undoing the normalization, at the default epsilon."""
    x = 0.5 + 1.5 * jax.random.normal(key, (60, MAPS))
    mean, var, *_ = jbn.moments(x)

    def error(scale: Array) -> Array:
        return largest(batch_norm(x, jbn.BatchNormParams(scale, mean), epsilon=1e-5) - x)

    return {
        "identity_error": error(jnp.sqrt(var + 1e-5)),
        "identity_error_std": error(jnp.sqrt(var)),
    }


# ---- Arithmetic ----------------------------------------------------------------------------------


def arithmetic() -> dict[str, Any]:
    """Compute the numbers that involve no randomness."""
    values = jnp.array([100.0, 110.0, 130.0, 120.0, 140.0])
    average = np.asarray(jbn.moving_average(values, window=2))
    constant = np.full((8, 3), 7.25, np.float32)  # Its mean is exact, so its variance is 0.
    with np.errstate(invalid="ignore"):  # 0 / 0 is intended.
        by_zero = (constant - constant.mean(0)) / np.sqrt(constant.var(0))
    slope = jax.grad(jax.nn.sigmoid)
    slopes = jax.vmap(slope)(jnp.linspace(-10, 10, 2001))
    return {
        "finite_with_epsilon": np.isfinite(batch_norm(jnp.asarray(constant))).all(),
        "finite_without_epsilon": np.isfinite(by_zero).all(),
        "moving_average_error": np.abs(average - [100, 105, 120, 125, 130]).max(),
        "product_09": 0.9**100,
        "product_15": 1.5**100,
        "sigmoid_slope": slopes.max(),
        "sigmoid_slope_10": float(slopes.max()) ** 10,
    }


# ---- Random estimates ----------------------------------------------------------------------------


def batch_variances(config: Config, key: Array) -> dict[str, Array]:
    """Average corrected and uncorrected variances over many batches of each size; 1 is true."""
    variances = {}
    for m in BATCH_SIZES:
        x = jax.random.normal(jax.random.fold_in(key, m), (config.batches * 2 // m, m, 1))
        biased = jnp.mean(jax.vmap(lambda batch: jbn.moments(batch).var)(x))
        variances[f"uncorrected_{m}"] = biased
        variances[f"corrected_{m}"] = biased * m / (m - 1)
    return variances


def initial_variances(config: Config, key: Array) -> dict[str, Array]:
    """Divide the variance of initial weights by its formula."""
    shape = (config.fan, config.fan // 2)
    glorot, he = 2 / sum(shape), 2 / config.fan
    draws = {
        "glorot_normal": (nn.initializers.glorot_normal(), glorot),
        "glorot_uniform": (nn.initializers.glorot_uniform(), glorot),
        "he_normal": (nn.initializers.he_normal(), he),
    }
    keys = jax.random.split(key, len(draws))
    return {
        name: jnp.var(make(own, shape)) / formula
        for own, (name, (make, formula)) in zip(keys, draws.items(), strict=True)
    }
