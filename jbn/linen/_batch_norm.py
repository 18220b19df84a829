"""BatchNorm for Flax linen: a drop-in for `flax.linen.BatchNorm`, with jbn's arithmetic."""

from jbn import _flax as _flax

# isort: split

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Shaped

from jbn._arguments import check_flag
from jbn._batch_norm import batch_norm
from jbn._dtypes import promote_types, result_dtype, wide_dtype
from jbn._inputs import as_array
from jbn._moments import feature_axes
from jbn._population import State, check_step, in_order
from jbn._population_calls import (
    Tally,
    check_momentum,
    population_by_call,
    weight_of_call,
    zero_momentum,
)
from jbn._schedules import Schedule
from jbn._types import BatchNormParams, BatchNormState

Initializer = Callable[..., Array]


class BatchNorm(nn.Module):
    """Normalize by batch statistics in training, by running statistics otherwise.

    y = scale * (x - mean) / sqrt(var + epsilon) + bias, by `jbn.batch_norm`. Arguments, defaults
    and variables (`params`: scale, bias; `batch_stats`: mean, var) are those of
    `flax.linen.BatchNorm`, so a checkpoint of one loads in the other. As in Flax, `init` needs no
    named axis and does not update the statistics.

    Differences: one value per feature in training is an error; a batch with every position masked
    does not give NaN; named axes are pooled by count; float masks are weights.

    Attributes:
      use_running_average: normalize by the statistics in `batch_stats`, without updating them.
      axis: feature axis or axes; all others are reduced.
      momentum: weight of the *old* statistics (PyTorch's momentum is 1 - this), or a schedule of
        it such as `jbn.cumulative`. With a schedule, `batch_stats` also has an int32 `count`; add
        it to a checkpoint without one before you resume training. `lax.pmean` turns it into a
        float, which the next step rounds back to int32; `jbn.synchronize` keeps it int32.
      epsilon: added to var.
      dtype: dtype of y; None infers it from x and the parameters.
      param_dtype: dtype of scale and bias.
      use_bias, use_scale: whether to use a bias (beta) and a scale (gamma).
      bias_init, scale_init: their initializers.
      axis_name: mapped axis or axes to pool over; leave it None under jit over sharded arrays.
      axis_index_groups: partition of the indices along `axis_name`.
      use_fast_variance: accepted for compatibility and ignored: the variance is always exact, in
        one pass.
      force_float32_reductions: if False, mean and var are stored in `param_dtype`; computation is
        always in at least float32.
      unbiased: apply Bessel's correction n / (n - 1) to the running var, as in the paper. Flax does
        not, hence the default.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jbn.linen import BatchNorm
      >>> layer = BatchNorm(momentum=0.9)
      >>> x = jnp.arange(8.0).reshape(4, 2)
      >>> variables = layer.init(jax.random.key(0), x, use_running_average=False)
      >>> y, moved = layer.apply(
      ...     variables, x, use_running_average=False, mutable=["batch_stats"])
      >>> [round(float(m), 3) for m in moved["batch_stats"]["mean"]]
      [0.3, 0.4]

    References:
      Ioffe, Szegedy, "Batch Normalization", 2015, Algorithms 1 and 2.
    """

    use_running_average: bool | None = None
    axis: int | Sequence[int] = -1
    momentum: ArrayLike | Schedule = 0.99
    epsilon: float = 1e-5
    dtype: Any = None
    param_dtype: Any = jnp.float32
    use_bias: bool = True
    use_scale: bool = True
    bias_init: Initializer = nn.initializers.zeros
    scale_init: Initializer = nn.initializers.ones
    axis_name: str | Sequence[str] | None = None
    axis_index_groups: Any = None
    use_fast_variance: bool = True
    force_float32_reductions: bool = True
    unbiased: bool = False

    @nn.compact
    def __call__(
        self,
        x: Shaped[ArrayLike, "..."],
        use_running_average: bool | None = None,
        *,
        mask: ArrayLike | None = None,
    ) -> Array:
        """Normalize x; in training, move the statistics in `batch_stats`, which must be mutable.

        Args:
          x: the batch, any rank.
          use_running_average: overrules none: give it here or in the constructor.
          mask: boolean, or weights, broadcastable to x: what is masked counts for nothing in the
            statistics; y is still computed there.

        Returns:
          y, of x's shape.

        Raises:
          TypeError: `use_running_average` traced, or no bool.
          ValueError: `use_running_average` given twice or not at all; in training, a schedule and
            statistics without their count. See also `jbn.batch_norm`.
        """
        training = not check_flag(
            "use_running_average",
            nn.merge_param("use_running_average", self.use_running_average, use_running_average),
        )
        initializing = self.is_initializing()
        operation = self._operation()
        x = as_array("x", x)
        features = feature_axes(self.axis, x.ndim)
        shape = tuple(x.shape[a] for a in features)

        # Statistics have x's precision from the start, since scan requires a fixed dtype.
        dtype = wide_dtype(x.dtype)
        kept = dtype if self.force_float32_reductions else self.param_dtype
        is_fresh = initializing or not self.has_variable("batch_stats", "mean")
        mean = self.variable("batch_stats", "mean", jnp.zeros, shape, kept)
        var = self.variable("batch_stats", "var", jnp.ones, shape, jnp.finfo(kept).dtype)
        count = None
        if self._has_schedule():
            if is_fresh or self.has_variable("batch_stats", "count"):
                count = self.variable("batch_stats", "count", jnp.zeros, (), jnp.int32)
            elif training:
                keys = "".join(f'["{name}"]' for name in self.path)
                raise ValueError(missing_count(f'batch_stats{keys}["count"] = jnp.int32(n)'))
        scale = bias = None
        if check_flag("use_scale", self.use_scale):
            scale = self.param("scale", self.scale_init, shape, self.param_dtype)
        if check_flag("use_bias", self.use_bias):
            bias = self.param("bias", self.bias_init, shape, self.param_dtype)

        y_dtype = result_dtype(x, scale, bias, dtype=self.dtype)
        if initializing and mask is None:
            mask = jnp.ones((1,) * x.ndim, bool)  # In init, a batch of one is not an error.
        y, state = apply_batch_norm(
            operation,
            x,
            BatchNormParams(scale, bias),
            BatchNormState(mean.value, var.value, as_count(None if count is None else count.value)),
            kept=kept,
            y_dtype=y_dtype,
            training=training,
            axis=features,
            momentum=self.momentum,
            epsilon=self.epsilon,
            unbiased=self.unbiased,
            mask=mask,
            axis_name=None if initializing else self.axis_name,
            axis_index_groups=None if initializing else self.axis_index_groups,
        )
        if training and not initializing:
            mean.value, var.value = state.mean, state.var
            if count is not None:
                count.value = state.count
        return y

    # Flax would record wrapped methods as calls of the layer, but these return no arrays.

    @nn.nowrap
    def _operation(self) -> Callable[..., tuple[Array, BatchNormState]]:
        """Return the function that normalizes; variants override this."""
        return batch_norm

    @nn.nowrap
    def _has_schedule(self) -> bool:
        """Tell whether anything here depends on the count."""
        return callable(self.momentum)


def population(step: Callable[[State, Any], State], batch_stats: State, batches: Any) -> State:
    """Recompute `batch_stats` as averages over batches and calls (Algorithm 2, precise BN).

    Like `jbn.population`, but exact also for layers that are called several times in one forward
    pass, and for batches of different sizes. The average is over all calls in all batches, each
    weighted by its number of values per feature, or with a mask by the mask's sum: mean =
    sum_i n_i mean_i / sum_i n_i is the mean of all values, and var the same average of the
    variances (with Bessel's correction if the layer applies it). It works for layers of `jbn.linen`
    and of Flax, and any other layer with `momentum`, and `mean` or `var` in `batch_stats`; calls of
    a layer without `axis` all have the same weight. The model and its parameters do not change.

    Args:
      step: `(batch_stats, batch) -> batch_stats`, one forward pass in training mode.
      batch_stats: the collection.
      batches: an array or a pytree of arrays (tuple, NamedTuple, dict, ...) with a leading axis of
        K batches; or an iterable of any number of batches of any size, such as a generator, a torch
        DataLoader or a list (which is never taken for a pytree of stacked arrays). Each batch is a
        pytree of arrays or CPU tensors, and is released once it has been averaged.

    Returns:
      A collection of the same structure. Statistics that no call updated are unchanged, and so is
      everything other than mean, var and integer counts.

    Raises:
      TypeError: arguments in the wrong order; batches that are neither arrays nor an iterable.
      ValueError: no batches; different leading axes; a single batch x that is not passed as x[None]
        or [x]; a step that returns another tree; statistics without `momentum`.

    Example:
      >>> import flax.linen as nn, jax, jax.numpy as jnp
      >>> from jbn.linen import population
      >>> model = nn.BatchNorm(use_running_average=False)  # Flax's own
      >>> batches = jnp.array([[[0.0], [2.0]], [[4.0], [8.0]]])
      >>> variables = model.init(jax.random.key(0), batches[0])
      >>> def step(batch_stats, x):
      ...     variables_now = {**variables, "batch_stats": batch_stats}
      ...     return model.apply(variables_now, x, mutable="batch_stats")[1]["batch_stats"]
      >>> stats = population(step, variables["batch_stats"], batches)
      >>> float(stats["mean"][0]), float(stats["var"][0])
      (3.5, 2.5)
      >>> stats = population(step, stats, [batches[0], jnp.array([[7.0], [7.0], [7.0], [7.0]])])
      >>> float(stats["mean"][0])  # (0 + 2 + 4 * 7) / 6
      5.0

    References:
      Ioffe, Szegedy, "Batch Normalization", 2015, Algorithm 2, lines 7 to 10.
    """

    def step_apart(batch_stats: State, batch: Any) -> State:
        outside = _Outside()
        with nn.intercept_methods(_apart), nn.intercept_methods(outside.keep):
            try:
                return step(batch_stats, batch)
            finally:
                outside.restore()

    order = "step, batch_stats, batches"
    check_step(step, order)
    with in_order(order, batch_stats, batches):
        return population_by_call(step_apart, batch_stats, batches)


def _apart(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
    """Run one call on sentinels with momentum 0, and add the statistics it leaves to tallies."""
    module = context.module
    tallies = _tallies(module)
    if context.method_name == "setup" or not tallies:
        return call(*args, **kwargs)
    check_momentum(module, tallies)
    x, mask = args[0] if args else kwargs.get("x"), kwargs.get("mask")
    if mask is not None and isinstance(module, nn.BatchNorm):
        mask = jnp.asarray(mask, bool)
    sentinels = {name: tally.sentinel() for name, tally in tallies.items()}
    for name, sentinel in sentinels.items():
        module.put_variable("batch_stats", name, sentinel)
    momentum = module.momentum
    # Bypasses `__setattr__`, since bound modules are frozen; the momentum is restored below.
    object.__setattr__(module, "momentum", zero_momentum(momentum))
    try:
        y = call(*args, **kwargs)
        for name, tally in tallies.items():
            left = module.get_variable("batch_stats", name)
            if left is not sentinels[name]:  # Otherwise the layer is not in training mode.
                tallies[name] = tally.enter(left, weight_of_call(tally.average, module, x, mask))
    finally:
        object.__setattr__(module, "momentum", momentum)
        for name, tally in tallies.items():
            module.put_variable("batch_stats", name, tally)
    return y


def _tallies(module: nn.Module) -> dict[str, Tally]:
    """Return the module's own tallies; statistics of models outside the step are left out."""
    if module.scope is None:
        return {}
    found = {name: module.get_variable("batch_stats", name) for name in ("mean", "var")}
    return {name: value for name, value in found.items() if isinstance(value, Tally)}


class _Outside:
    """Restores statistics of modules bound outside a step, where calls leave traced values."""

    def __init__(self):
        self.found: dict[int, tuple[Any, dict[str, Any]]] = {}

    def keep(self, call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        scope = context.module.scope
        if scope is not None and id(scope) not in self.found and not _tallies(context.module):
            own = context.module.variables.get("batch_stats", {})
            values = {k: v for k, v in own.items() if not isinstance(v, Mapping)}
            self.found[id(scope)] = scope, values
        return call(*args, **kwargs)

    def restore(self) -> None:
        for scope, values in self.found.values():
            # Scopes of an `apply` inside the step are invalid after it.
            if not scope.root.invalid and scope.is_mutable_collection("batch_stats"):
                for name, value in values.items():
                    scope.put_variable("batch_stats", name, value)


def apply_batch_norm(
    operation: Callable[..., tuple[Array, BatchNormState]],
    x: Shaped[Array, "..."],
    params: BatchNormParams,
    state: BatchNormState,
    *,
    kept: Any,
    y_dtype: Any,
    mask: ArrayLike | None,
    **options: Any,
) -> tuple[Array, BatchNormState]:
    """Call the operation with the rules for dtypes and masks that Flax's layers share.

    Args:
      operation: `jbn.batch_norm` or a variant.
      x: the batch; may be integers.
      params: scale and bias.
      state: running statistics. Those of a checkpoint may be less precise than x, or real where x
        is complex.
      kept: minimum dtype of the mean.
      y_dtype: dtype of y.
      mask: boolean or float weights as in `jbn.batch_norm`; other dtypes are converted to bool.
      options: further arguments of the operation.

    Returns:
      y in `y_dtype`, and the state.
    """
    real = jnp.finfo(kept).dtype
    state = BatchNormState(
        mean=_cast(state.mean, promote_types(state.mean.dtype, kept)),
        var=_cast(state.var, promote_types(state.var.dtype, real)),
        count=state.count,
    )
    x = _cast(x, promote_types(x.dtype, y_dtype))
    mask = None if mask is None else _as_mask(mask, x.shape)
    y, state = operation(x, params, state, mask=mask, **options)
    return _cast(y, y_dtype), state


def as_count(count: Any) -> Array:
    """Return a stored count as an integer, or 0 if there is none.

    Averaging states, for example with `lax.pmean`, makes the count a float. It is rounded, since
    float32 cannot represent every whole number; if its value is known, a fraction is an error.
    """
    if count is None:
        return _no_count()
    if jnp.issubdtype(jnp.result_type(count), jnp.integer):
        return count if hasattr(count, "dtype") else jnp.int32(count)
    if not isinstance(count, jax.core.Tracer) and np.any(np.asarray(count) % 1 != 0):
        raise ValueError(
            f"Expected `count` to be a whole number of batches, got {count}. If you average "
            "several states, average only mean and var, and keep the count of one state, such as "
            "the newest."
        )
    return jnp.round(count).astype(jnp.int32)


def missing_count(remedy: str) -> str:
    """Say that training needs a count."""
    return (
        "Expected a `count` next to mean and var, since the layer has a schedule, got none: a "
        "checkpoint of Flax's layer, or of one without a schedule, has none. Set it to the number "
        f"of batches that the statistics have absorbed, or to 0 to restart them: {remedy}."
    )


@jax.jit
def _no_count() -> Array:
    """Make a count of 0 under jit: a constant would be transferred at every call."""
    return jnp.zeros((), jnp.int32)


def _cast(array: Array, dtype: Any) -> Array:
    return array if array.dtype == dtype else array.astype(dtype)


def _as_mask(mask: ArrayLike, shape: tuple[int, ...]) -> Array:
    """Apply Flax's rules for masks: any dtype, and missing axes are leading ones.

    A mask that does not fit keeps its shape, so that the operation's error shows it as given.
    """
    array = as_array("mask", mask)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        array = _cast(array, jnp.dtype(bool))
    missing = len(shape) - array.ndim
    fits = missing >= 0 and all(
        m in (1, n) for m, n in zip(array.shape, shape[missing:], strict=True)
    )
    return array.reshape((1,) * missing + array.shape) if missing and fits else array
