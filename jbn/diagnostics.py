"""What batch normalization does inside a network: pure functions on pytrees, and one table of them.

Layers are named by their path in the pytree, as "block_0/norm". Statistics may be `BatchNormState`
or dicts with `mean` and `var`, as in a Flax `batch_stats` collection.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TextIO

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from jbn._arguments import as_scalar, check_epsilon
from jbn._diagnostic_checks import (
    as_inexact,
    check_batch,
    check_count,
    check_loss,
    check_momentum,
    check_number,
    check_single,
    precise,
)
from jbn._dtypes import wide_dtype
from jbn._inputs import as_array, describe, describe_result
from jbn._sharding import gathered
from jbn._types import BatchNormState, is_statistics

Activation = Callable[[Array], Array]
Loss = Callable[[Any], Float[Array, ""]]


# ---- The gap between training and evaluation -----------------------------------------------------


class Gap(NamedTuple):
    """How far a layer's running statistics are from what they stand for.

    All are numbers, `()`, the worst over the layer's features.

    - mean: |running mean - true mean| in units of the true standard deviation.
    - std: |log2(running std / true std)|: 1 where one is twice the other.
    - noise: the same two, taken together, between the batch and the truth, where both are given.
    - digits: bits that E[x^2] - E[x]^2 would lose of the 24 that float32 has, log2(1 + mean^2/var).
    - batches: `effective_batches` that the running statistics rest on.
    - stale: `initial_weight`, what they still have of the initial 0 and 1.
    """

    mean: Float[Array, ""]
    std: Float[Array, ""]
    noise: Float[Array, ""]
    digits: Float[Array, ""]
    batches: Float[Array, ""]
    stale: Float[Array, ""]


def train_eval_gap(
    running: Any,
    batch: Any,
    population: Any | None = None,
    *,
    epsilon: ArrayLike = 1e-5,
    momentum: ArrayLike | None = None,
    count: ArrayLike | None = None,
) -> dict[str, Gap]:
    """Compare running statistics with those that training uses, layer by layer.

    Training normalizes by the batch, evaluation by the running statistics. Where `population` is
    given (from `jbn.population`) it is the truth, and the batch is compared with it as well; else
    the batch is.

    Args:
      running: pytree of statistics, as training left them.
      batch: of the same structure, from one batch: statistics moved with momentum 0.
      population: of the same structure, averaged over many batches; None has none.
      epsilon: that of the layers, added to every variance.
      momentum: that of the layers, in [0, 1); None leaves `batches` and `stale` NaN.
      count: batches that running statistics absorbed, for those that do not count themselves; None
        leaves the same two NaN there.

    Returns: name of each layer -> Gap.

    Raises:
      ValueError: other layers, or other shapes, in one than in another; no statistics at all;
        epsilon, momentum or count out of range.
      TypeError: a momentum or count that is no number, such as a schedule.

    Example:
      >>> import jax.numpy as jnp
      >>> from jbn import diagnostics
      >>> trained = {"norm": {"mean": jnp.array([1.0]), "var": jnp.array([4.0])}}
      >>> batch = {"norm": {"mean": jnp.array([5.0]), "var": jnp.array([16.0])}}
      >>> gap = diagnostics.train_eval_gap(trained, batch)["norm"]
      >>> round(float(gap.mean), 3), round(float(gap.std), 3)
      (1.0, 1.0)
    """
    check_epsilon(epsilon)
    if momentum is not None:
        check_momentum(momentum, below_one=True)
    if count is not None:
        check_count(count)
    layers = statistics(running)
    batches = _same_layers(layers, statistics(batch), "batch")
    truths = batches
    if population is not None:
        truths = _same_layers(layers, statistics(population), "population")
    gaps = {}
    for name, (mean, var, absorbed) in layers.items():
        true_mean, true_var, _ = truths[name]
        absorbed = count if absorbed is None else absorbed
        here, seen, true = (mean, var), batches[name][:2], (true_mean, true_var)
        shift, scale, noise, lost = _distances(here, seen, true, as_scalar(epsilon, mean))
        effective = stale = _as_float32(np.nan)
        if absorbed is not None and momentum is not None:
            effective = effective_batches(absorbed, momentum)
            stale = initial_weight(absorbed, momentum)
        gaps[name] = Gap(shift, scale, noise, lost, effective, stale)
    return gaps


def effective_batches(count: ArrayLike, momentum: ArrayLike) -> Float[Array, ""]:
    """Compute how many batches an exponential average rests on, were they weighed alike.

    (sum w)^2 / sum w^2 over the weights w_i = (1 - momentum) momentum^(count - i) of the batches
    absorbed: (1 + momentum) / (1 - momentum) in the end, 199 for .99.

    Args: count: batches absorbed. momentum: weight of the old value, in [0, 1).
    Returns: float32; 0 at count 0. What is not traced is computed in double precision.
    Raises: ValueError: a known count below 0, or momentum outside [0, 1). TypeError: no numbers.

    Example:
      >>> from jbn import diagnostics
      >>> [round(float(diagnostics.effective_batches(t, 0.5)), 3) for t in (0, 1, 2, 100)]
      [0.0, 1.0, 1.8, 3.0]

    References: Kish, "Survey Sampling", 1965, section 8.2.
    """
    check_count(count)
    check_momentum(momentum, below_one=True)
    m, t = precise(momentum, count)
    kept = m**t
    return _as_float32((1 - kept) * (1 + m) / ((1 + kept) * (1 - m)))


def initial_weight(count: ArrayLike, momentum: ArrayLike) -> Float[Array, ""]:
    """Compute the weight that the initial mean 0, var 1 still has: momentum^count.

    Running statistics are stale while it is large: at momentum .99 it is .37 after 100 batches.

    Args: count: batches absorbed. momentum: weight of the old value, in [0, 1].
    Returns: float32, in [0, 1]. What is not traced is computed in double precision.
    Raises: ValueError: a known count below 0, or momentum outside [0, 1]. TypeError: no numbers.

    Example:
      >>> from jbn import diagnostics
      >>> round(float(diagnostics.initial_weight(100, 0.99)), 3)
      0.366
    """
    check_count(count)
    check_momentum(momentum, below_one=False)
    m, t = precise(momentum, count)
    return _as_float32(m**t)


def _as_float32(value: Any) -> Array:
    return value if isinstance(value, jax.Array) else jax.device_put(np.float32(value))


class Statistics(NamedTuple):
    """One layer's, wherever they were; count None where they do not count."""

    mean: Array
    var: Array
    count: Array | None


def statistics(tree: Any) -> dict[str, Statistics]:
    """Find mean, var and count of every layer in a pytree, by its name.

    Raises: ValueError: there are none; a mean and var of no or of different shapes. TypeError: a
      mean or var that is no array.
    """
    found = {}
    for path, node in jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_statistics)[0]:
        if is_statistics(node):
            fields = node._asdict() if isinstance(node, BatchNormState) else node
            found[_name(path)] = _one_layer(_name(path), fields)
    if not found:
        raise ValueError(
            "Expected BatchNormState or dicts with `mean` and `var`, found none. Pass the "
            "statistics, such as variables['batch_stats'], not the parameters."
        )
    return found


def _one_layer(name: str, fields: Mapping[str, Any]) -> Statistics:
    remedy = "Pass one layer's running statistics, a value per feature."
    mean, var = (
        as_array(f"{key} of layer {name!r}", fields[key], remedy) for key in ("mean", "var")
    )
    if mean.shape != var.shape or not mean.size:
        raise ValueError(
            f"Expected mean and var of one shape in layer {name!r}, got {mean.shape} and "
            f"{var.shape}. {remedy}"
        )
    count = fields.get("count")
    if count is not None and np.shape(count) != ():
        raise ValueError(
            f"Expected one count in layer {name!r}, got shape {np.shape(count)}. Take one "
            "device's copy of replicated statistics."
        )
    return Statistics(mean, var, count)


def _name(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/") or "layer"


def _same_layers(
    layers: Mapping[str, Any], others: dict[str, Statistics], what: str
) -> dict[str, Statistics]:
    if layers.keys() != others.keys():
        raise ValueError(
            f"Expected `{what}` with the layers {sorted(layers)}, got {sorted(others)}. "
            "Take both from the same model."
        )
    for name, other in others.items():
        if other.mean.shape != layers[name].mean.shape:
            raise ValueError(
                f"Expected `{what}` with shape {layers[name].mean.shape} in layer {name!r}, got "
                f"{other.mean.shape}. Take both from the same model."
            )
    return others


@jax.jit
def _distances(
    here: tuple[Array, Array],
    seen: tuple[Array, Array],
    true: tuple[Array, Array],
    epsilon: ArrayLike,
) -> tuple[Array, Array, Array, Array]:
    """Compute the first four of a layer's `Gap`."""
    shift, scale = _distance(here, true, epsilon)
    noise = jnp.maximum(*_distance(seen, true, epsilon))
    mean, var = true
    return shift, scale, noise, jnp.log2(1 + jnp.max(jnp.abs(mean) ** 2 / (var + epsilon)))


def _distance(
    one: tuple[Array, Array], true: tuple[Array, Array], epsilon: ArrayLike
) -> tuple[Array, Array]:
    """Compare means in units of the true std, and stds as |log2| of their ratio; the worst."""
    std, true_std = (jnp.sqrt(var + epsilon) for _, var in (one, true))
    shift = jnp.max(jnp.abs(one[0] - true[0]) / true_std)
    return shift, jnp.max(jnp.abs(jnp.log2(std / true_std)))


# ---- Gradients and activations -------------------------------------------------------------------


def gradient_norms(gradient: Any, *, depth: int = 1) -> dict[str, Float[Array, ""]]:
    """Compute the L2 norm of the gradient of every layer.

    Args:
      gradient: pytree like the parameters.
      depth: how many keys of the path name a layer: 1 for `params["dense_0"]`, leaves beyond.
    Returns: name -> norm, float32 at least.
    Raises: ValueError: no arrays, or a depth below 1. TypeError: leaves that are no gradients.

    Example:
      >>> import jax.numpy as jnp
      >>> from jbn import diagnostics
      >>> norms = diagnostics.gradient_norms({"a": {"w": jnp.array([3.0]), "b": jnp.array([4.0])}})
      >>> float(norms["a"])
      5.0
    """
    if isinstance(depth, bool) or not isinstance(depth, int) or depth < 1:
        raise ValueError(
            f"Expected `depth` as an int of at least 1, got {describe(depth)}. It is the number of "
            "keys that name a layer: 1 for gradient['dense_0']."
        )
    layers: dict[str, list[Array]] = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(gradient)[0]:
        array = as_inexact(f"gradient of {_name(path)}", leaf, "Pass what jax.grad returned.")
        wide = array.astype(wide_dtype(array.dtype))
        layers.setdefault(_name(path[:depth]), []).append(wide)
    if not layers:
        raise ValueError(
            f"Expected a pytree of gradients, got {describe(gradient)} without arrays. Pass what "
            "jax.grad returned."
        )
    return {name: _norm(leaves) for name, leaves in layers.items()}


@jax.jit
def _norm(leaves: list[Array]) -> Array:
    """Compute the L2 norm of all together, scaled: the square of 1e-25 is 0 in float32."""
    largest = jnp.max(jnp.stack([jnp.max(jnp.abs(leaf), initial=0) for leaf in leaves]))
    unit = jnp.where(largest > 0, largest, 1)
    return unit * jnp.sqrt(sum(jnp.sum(jnp.abs(leaf / unit) ** 2) for leaf in leaves))


def slopes(x: Float[ArrayLike, "..."], activation: Activation) -> Float[Array, "..."]:
    """Compute |activation'(x)|, value by value.

    Args:
      x: floating, any shape.
      activation: elementwise. One that mixes values, such as softmax, has no slope of each.
    Returns: slopes, of x's shape.
    Raises: TypeError: integer x; an activation that is no function, or returns no floats.
      ValueError: an activation that returns another shape.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jbn import diagnostics
      >>> diagnostics.slopes(jnp.array([-1.0, 2.0]), jax.nn.relu).tolist()
      [0.0, 1.0]
    """
    x = as_inexact("x", x, "Pass x.astype(jnp.float32), then the activation.")
    if not callable(activation):
        raise TypeError(
            f"Expected `activation` as a function, got {describe(activation)}. Pass one such as "
            "jax.nn.relu after x."
        )
    y = jax.eval_shape(activation, x)
    if not (hasattr(y, "dtype") and jnp.issubdtype(y.dtype, jnp.inexact)):
        raise TypeError(
            f"Expected an activation that returns floats, got {describe_result(y)}. Without a "
            "derivative there is no slope."
        )
    if y.shape != x.shape:
        raise ValueError(
            f"Expected an elementwise activation, which returns x.shape={x.shape}, got {y.shape}. "
            "Apply what changes the shape before."
        )
    return jnp.abs(jax.jvp(activation, (x,), (jnp.ones_like(x),))[1])


def saturation(
    x: Float[ArrayLike, "N ..."], activation: Activation, *, threshold: float = 0.01
) -> Float[Array, ""]:
    """Compute the share of values at which the nonlinearity is flat: |activation'(x)| < threshold.

    Args: x: what enters the nonlinearity. activation: elementwise. threshold: of the slope,
      positive.
    Returns: share, in [0, 1].
    Raises: ValueError: empty x; a threshold that is not positive, or several. See also `slopes`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jbn import diagnostics
      >>> float(diagnostics.saturation(jnp.array([0.0, 9.0, -9.0, 1.0]), jax.nn.sigmoid))
      0.5
    """
    check_number(
        "threshold",
        threshold,
        np.nextafter(0, 1),
        np.finfo(float).max,
        "positive and finite",
        "No slope is below 0, and a flat one is 0.",
    )
    check_single("threshold", threshold, "Call saturation for each, or compare `slopes` with them.")
    slope = slopes(x, activation)
    check_batch(slope, 0)
    return jnp.mean(slope < threshold)


def dead_units(x: Float[ArrayLike, "N ... C"], activation: Activation) -> Float[Array, ""]:
    """Compute the share of units (last axis) whose slope is 0 for every value of the batch.

    Args: x: what enters the nonlinearity, `(N, ..., C)`. activation: elementwise.
    Returns: share, in [0, 1].
    Raises: ValueError: empty x, or x without a batch axis. See also `slopes`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jbn import diagnostics
      >>> float(diagnostics.dead_units(jnp.array([[1.0, -1.0], [2.0, -3.0]]), jax.nn.relu))
      0.5
    """
    slope = slopes(x, activation)
    check_batch(slope, 2)
    return jnp.mean(jnp.all(slope == 0, axis=tuple(range(slope.ndim - 1))))


def percentiles(
    x: Float[ArrayLike, "N ... C"], q: Sequence[float] = (15, 50, 85)
) -> Float[Array, "Q C"]:
    """Compute percentiles of each unit (last axis) over the batch: a row of Fig. 1 (b, c).

    Args: x: `(N, ..., C)`. q: percentages, Q of them, each in [0, 100].
    Returns: `(Q, C)`.
    Raises: ValueError: empty x, or x without a batch axis; q that is no list of percentages.
      TypeError: integer x, or a q that is no list of numbers.

    Example:
      >>> import jax.numpy as jnp
      >>> from jbn import diagnostics
      >>> diagnostics.percentiles(jnp.array([[0.0], [1.0], [4.0]]), (0, 50, 100)).tolist()
      [[0.0], [1.0], [4.0]]

    References: Ioffe, Szegedy, "Batch Normalization", 2015, section 4.1.
    """
    remedy = "Pass a list such as (15, 50, 85)."
    x = as_inexact("x", x, "Pass x.astype(jnp.float32).")
    check_batch(x, 2)
    check_number("q", q, 0, 100, "percentages in [0, 100]", remedy, kind="a list of numbers")
    shares = q if isinstance(q, jax.Array) else jax.device_put(np.asarray(q, np.float32))
    if shares.ndim != 1 or not shares.size:
        raise ValueError(f"Expected `q` as a list of percentages, got {describe(q)}. {remedy}")
    return _percentiles(x, shares.astype(jnp.finfo(x.dtype).dtype))


@jax.jit
def _percentiles(x: Array, shares: Array) -> Array:
    rows = gathered(x, range(x.ndim))  # It sorts, which JAX does not along a sharded axis.
    return jnp.percentile(rows.reshape(-1, x.shape[-1]), shares, axis=0)


# ---- Shift ---------------------------------------------------------------------------------------


class Drift(NamedTuple):
    """How the distribution of each unit's input moves over training: means over units, `()`.

    - median: largest |median - first median|.
    - spread: largest / smallest distance from the lowest to the highest percentile.
    """

    median: Float[Array, ""]
    spread: Float[Array, ""]


def drift(over_training: Float[ArrayLike, "K Q C"]) -> Drift:
    """Measure internal covariate shift as Ioffe & Szegedy show it: by percentiles over training.

    Args: over_training: K rows of `percentiles`, Q odd, the median in the middle.
    Returns: Drift; spread is inf where the percentiles of a unit fall together once.
    Raises: ValueError: an even number of percentiles, which has no median in the middle, or none.
      TypeError: integers.

    References: Ioffe, Szegedy, "Batch Normalization", 2015, section 4.1, Fig. 1 (b, c).
    """
    remedy = "Stack rows of percentiles(x, (15, 50, 85))."
    values = as_inexact("over_training", over_training, remedy)
    if values.ndim != 3 or values.shape[1] % 2 == 0 or not values.size:
        raise ValueError(
            f"Expected percentiles of shape (K, Q, C) with Q odd, got {values.shape}. {remedy}"
        )
    median, spread = values[:, values.shape[1] // 2], values[:, -1] - values[:, 0]
    return Drift(
        jnp.mean(jnp.max(jnp.abs(median - median[:1]), axis=0)),
        jnp.mean(jnp.max(spread, axis=0) / jnp.min(spread, axis=0)),
    )


class GradientShift(NamedTuple):
    """Change of a layer's gradient when the layers before it take their step.

    - distance: ||G - G'||, and relative to ||G||: `relative`.
    - cosine: of the angle between them: 1 where the earlier layers change nothing.
    """

    distance: Float[Array, ""]
    relative: Float[Array, ""]
    cosine: Float[Array, ""]


def gradient_shift(
    loss: Loss, params: Mapping[str, Any], moved: Mapping[str, Any], layers: Sequence[str]
) -> dict[str, GradientShift]:
    """Measure internal covariate shift as Santurkar et al. define it, layer by layer.

    G is the gradient of the loss with respect to layer i; G' the same with the layers before it
    already moved. Their difference is what layer i could not know of.

    Args:
      loss: params -> loss, on one batch.
      params: before the step, a dict by layer.
      moved: after it, of the same structure.
      layers: names, from the input to the output.

    Returns: name -> GradientShift; for the first layer there is none before it: 0, 0 and 1.

    Raises:
      ValueError: a name that params do not have; a layer of another structure in `moved`.
      TypeError: a loss that is no function of params to one number; params that are no dicts;
        `layers` as one string.

    References: Santurkar, Tsipras, Ilyas, Madry, "How Does Batch Normalization Help
      Optimization?", 2018, Definition 2.1.
    """
    for what, tree in (("params", params), ("moved", moved)):
        if not isinstance(tree, Mapping):
            raise TypeError(
                f"Expected `{what}` as a dict by layer, got {describe(tree)}. The order is loss, "
                "params, moved, layers."
            )
    if isinstance(layers, str) or not isinstance(layers, Sequence):
        name = layers if isinstance(layers, str) else "dense_0"
        raise TypeError(
            f"Expected `layers` as a list of names, got {describe(layers)}. Pass layers=[{name!r}]."
        )
    for tree in (params, moved):
        missing = [name for name in layers if name not in tree]
        if missing:
            raise ValueError(
                f"Expected layers among {sorted(tree)}, got {missing}. Name those of params and "
                "moved."
            )
    for name in layers:
        if _shapes(params[name]) != _shapes(moved[name]):
            raise ValueError(
                f"Expected `moved` with the arrays of params in layer {name!r}, got "
                f"{_shapes(moved[name])} for {_shapes(params[name])}. Take both from one model."
            )
    check_loss(loss, dict(params))
    here = jax.grad(loss)(dict(params))
    shifts = {}
    for i, name in enumerate(layers):
        ahead = {**params, **{before: moved[before] for before in layers[:i]}}

        def of_layer(own: Any, ahead: Any = ahead, name: str = name) -> Array:
            return loss({**ahead, name: own})

        g, g_ahead = jax.tree.leaves(here[name]), jax.tree.leaves(jax.grad(of_layer)(params[name]))
        size, size_ahead = _norm(g), _norm(g_ahead)
        distance = _norm([a - b for a, b in zip(g, g_ahead, strict=True)])
        tiny = jnp.finfo(size.dtype).tiny
        products = [
            jnp.sum((a / jnp.maximum(size, tiny)) * (b / jnp.maximum(size_ahead, tiny)))
            for a, b in zip(g, g_ahead, strict=True)
        ]
        cosine = jnp.sum(jnp.stack(products))
        shifts[name] = GradientShift(distance, distance / jnp.maximum(size, tiny), cosine)
    return shifts


def _shapes(tree: Any) -> Any:
    return jax.tree.map(np.shape, tree)


class Landscape(NamedTuple):
    """The loss along one step: `(S,)` for S step sizes, and the effective smoothness, `()`.

    - loss: at params - size * gradient.
    - gradient_change: ||gradient there - gradient here||.
    - smoothness: largest gradient_change / distance moved: a Lipschitz constant along the step.
    """

    loss: Float[Array, "S"]
    gradient_change: Float[Array, "S"]
    smoothness: Float[Array, ""]


def landscape(loss: Loss, params: Any, sizes: Float[ArrayLike, "S"]) -> Landscape:
    """Look along the gradient: how the loss and its gradient vary within one step.

    Args:
      loss: params -> loss, on one batch.
      params: pytree.
      sizes: step sizes, positive.
    Returns: Landscape; smoothness is NaN where the gradient is 0.
    Raises: ValueError: sizes that are not positive, or no list. TypeError: a loss that is no
      function of params to one number, or params of integers.

    Example:
      >>> import jax.numpy as jnp
      >>> from jbn import diagnostics
      >>> seen = diagnostics.landscape(lambda w: 2 * w**2, jnp.float32(1), jnp.array([0.1, 0.5]))
      >>> [round(float(v), 3) for v in seen.loss], round(float(seen.smoothness), 3)
      ([0.72, 2.0], 4.0)

    References: Santurkar et al., "How Does Batch Normalization Help Optimization?", 2018, Fig. 4.
    """
    remedy = "Pass a list such as (0.01, 0.1)."
    check_number(
        "sizes",
        sizes,
        np.nextafter(0, 1),
        np.finfo(float).max,
        "positive and finite",
        remedy,
        kind="a list of numbers",
    )
    check_loss(loss, params)
    steps = jnp.asarray(sizes)
    if steps.ndim != 1 or not steps.size:
        raise ValueError(f"Expected `sizes` as a list of steps, got {describe(sizes)}. {remedy}")
    gradient = jax.grad(loss)(params)
    length = _norm(jax.tree.leaves(gradient))

    def along(size: Array) -> tuple[Array, Array]:
        there = jax.tree.map(lambda p, g: p - size * g, params, gradient)
        value, other = jax.value_and_grad(loss)(there)
        change = jax.tree.map(lambda a, b: a - b, other, gradient)
        return value, _norm(jax.tree.leaves(change))

    steps = steps.astype(length.dtype)
    # One after the other: params may be large. At the prompt `map` would compile at every call.
    if isinstance(length, jax.core.Tracer):
        values, changes = jax.lax.map(along, steps)
    else:
        values, changes = map(jnp.stack, zip(*map(along, steps), strict=True))
    return Landscape(values, changes, jnp.max(changes / (steps * length)))


# ---- The table -----------------------------------------------------------------------------------


def summarize(*, file: TextIO | None = None, **reports: Mapping[str, Any]) -> None:
    """Print a table: a line for each layer, a column for each number.

    Args:
      file: where to; None is standard output.
      **reports: by the name of their columns. Each gives a layer a number, or a NamedTuple of
        numbers, such as `train_eval_gap`, `gradient_norms` and `gradient_shift` return.
    Raises: TypeError: a report that is no dict by layer, or has something else than numbers.

    Example:
      >>> import jax.numpy as jnp
      >>> from jbn import diagnostics
      >>> norms = diagnostics.gradient_norms({"a": jnp.ones(4), "b": jnp.ones(9)})
      >>> diagnostics.summarize(gradient=norms, dead={"b": 0.25})
      layer  gradient  dead
      a             2
      b             3  0.25
    """
    columns: dict[str, dict[str, str]] = {}
    for name, report in reports.items():
        if not isinstance(report, Mapping):
            raise TypeError(
                f"Expected `{name}` as a dict by layer, got {describe(report)}. Pass what "
                "gradient_norms or train_eval_gap returned, or {'layer': number}."
            )
        for layer, values in report.items():
            fields = values._asdict() if hasattr(values, "_asdict") else {"": values}
            for field, value in fields.items():
                header = f"{name}.{field}" if field else name
                columns.setdefault(header, {})[str(layer)] = _cell(f"{header} of {layer}", value)
    layers = dict.fromkeys(str(layer) for report in reports.values() for layer in report)
    lines = [["layer", *columns]]
    lines += [[layer, *(column.get(layer, "") for column in columns.values())] for layer in layers]
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    for first, *rest in lines:
        cells = [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
        print("  ".join([first.ljust(widths[0]), *cells]).rstrip(), file=file or sys.stdout)


def _cell(name: str, value: Any) -> str:
    try:
        return f"{float(value):.3g}"
    except (TypeError, ValueError):
        raise TypeError(
            f"Expected a number for {name}, got {describe(value)}. Reduce it to one, outside jit."
        ) from None
