"""BatchNorm for Flax nnx: a drop-in for `flax.nnx.BatchNorm`, with jbn's arithmetic."""

from jbn import _flax as _flax

# isort: split

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn import dtypes
from jaxtyping import Array, ArrayLike, Shaped

from jbn._arguments import check_flag
from jbn._batch_norm import batch_norm, init
from jbn._dtypes import result_dtype, wide_dtype
from jbn._inputs import as_array, describe
from jbn._moments import feature_axes
from jbn._population import check_step
from jbn._population_calls import (
    Tally,
    check_momentum,
    population_by_call,
    weight_of_call,
    zero_momentum,
)
from jbn._schedules import Schedule
from jbn._types import BatchNormParams, BatchNormState
from jbn.linen._batch_norm import (
    Initializer,
    apply_batch_norm,
    as_count,
    missing_count,
)


class BatchNorm(nnx.Module):
    """Normalize by batch statistics in training, by running statistics otherwise.

    y = scale * (x - mean) / sqrt(var + epsilon) + bias, by `jbn.batch_norm`. Arguments, defaults
    and variables (`Param`: scale, bias; `BatchStat`: mean, var) are those of `flax.nnx.BatchNorm`,
    so a checkpoint of one loads in the other; `train`, `eval`, `set_attributes` and `nnx.view`
    switch the mode in the same way.

    Differences: one value per feature in training is an error; a batch with every position masked
    does not give NaN; named axes are pooled by count; float masks are weights; statistics are
    never rounded to `dtype`.

    Args:
      num_features: C, or one size per feature axis, in the order of x's axes.
      use_running_average: normalize by the stored statistics, without updating them.
      axis: feature axis or axes; all others are reduced.
      momentum: weight of the *old* statistics (PyTorch's momentum is 1 - this), or a schedule of
        it such as `jbn.cumulative`. With a schedule the layer also has an int32 `count`.
        `nnx.update` with a state without one, such as Flax's, does not change it. Then set it,
        `layer.count[...] = jnp.int32(n)`: at 0, training discards the statistics it starts from.
      epsilon: added to var.
      dtype: dtype of y; None infers it from x, the statistics and the parameters.
      param_dtype: dtype of scale and bias.
      use_bias, use_scale: whether to use a bias (beta) and a scale (gamma).
      bias_init, scale_init: their initializers.
      axis_name: mapped axis or axes to pool over; leave it None under jit over sharded arrays.
      axis_index_groups: partition of the indices along `axis_name`.
      use_fast_variance: accepted for compatibility and ignored: the variance is always exact, in
        one pass.
      promote_dtype: Flax's rule for the dtype of y; called with `(x, mean, var, scale, bias)` and
        `dtype`. Only the dtypes of its results are used: computation is always in at least float32.
      unbiased: apply Bessel's correction n / (n - 1) to the running var, as in the paper. Flax does
        not, hence the default.
      rngs: keys for the initializers.
      bias_metadata, scale_metadata: metadata of the two variables.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from jbn.nnx import BatchNorm
      >>> layer = BatchNorm(2, momentum=0.9, rngs=nnx.Rngs(0))
      >>> y = layer(jnp.arange(8.0).reshape(4, 2))
      >>> [round(float(m), 3) for m in layer.mean[...]]
      [0.3, 0.4]

    References:
      Ioffe, Szegedy, "Batch Normalization", 2015, Algorithms 1 and 2.
    """

    def __init__(
        self,
        num_features: int | Sequence[int],
        *,
        use_running_average: bool | None = False,
        axis: int | Sequence[int] = -1,
        momentum: ArrayLike | Schedule = 0.99,
        epsilon: float = 1e-5,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        use_bias: bool = True,
        use_scale: bool = True,
        bias_init: Initializer = nnx.initializers.zeros,
        scale_init: Initializer = nnx.initializers.ones,
        axis_name: str | Sequence[str] | None = None,
        axis_index_groups: Any = None,
        use_fast_variance: bool = True,
        promote_dtype: Callable[..., Any] = dtypes.promote_dtype,
        unbiased: bool = False,
        rngs: nnx.Rngs,
        bias_metadata: Mapping[str, Any] = MappingProxyType({}),
        scale_metadata: Mapping[str, Any] = MappingProxyType({}),
    ):
        _, state = init(num_features, param_dtype=param_dtype)
        shape = state.mean.shape
        self.mean: nnx.BatchStat[Array] = nnx.BatchStat(state.mean)
        self.var: nnx.BatchStat[Array] = nnx.BatchStat(state.var)
        if callable(momentum):
            self.count: nnx.BatchStat[Array] = nnx.BatchStat(state.count)
        # Scale before bias, one key each: layers made after this one get the keys they get in Flax.
        self.scale: nnx.Param[Array] | None = nnx.data(None)
        if check_flag("use_scale", use_scale):
            value = scale_init(rngs.params(), shape, param_dtype)
            self.scale = nnx.Param(value, **scale_metadata)
        self.bias: nnx.Param[Array] | None = nnx.data(None)
        if check_flag("use_bias", use_bias):
            value = bias_init(rngs.params(), shape, param_dtype)
            self.bias = nnx.Param(value, **bias_metadata)

        self.num_features = num_features
        self.use_running_average = use_running_average
        self.axis = axis
        self.momentum = momentum
        self.epsilon = epsilon
        self.dtype = dtype
        self.param_dtype = param_dtype
        self.use_bias = use_bias
        self.use_scale = use_scale
        self.axis_name = axis_name
        self.axis_index_groups = axis_index_groups
        self.use_fast_variance = use_fast_variance
        self.promote_dtype = promote_dtype
        self.unbiased = unbiased

    def __call__(
        self,
        x: Shaped[ArrayLike, "..."],
        use_running_average: bool | None = None,
        *,
        mask: ArrayLike | None = None,
    ) -> Array:
        """Normalize x; in training, also update the statistics.

        Args:
          x: the batch, any rank.
          use_running_average: overrides the layer's setting; one of the two must be given.
          mask: boolean mask or weights, broadcastable to x. Masked values are excluded from the
            statistics; y is still computed for them.

        Returns:
          y, of x's shape.

        Raises:
          TypeError: `use_running_average` traced or not a bool.
          ValueError: no `use_running_average` given; in training, a schedule without a count. See
            also `jbn.batch_norm`.
        """
        if use_running_average is None:
            use_running_average = self.use_running_average
        if use_running_average is None:
            raise ValueError(
                "Expected `use_running_average` to be True or False, got None in the constructor "
                "and in the call. Give it in one of them, or call model.train() or model.eval()."
            )
        training = not check_flag("use_running_average", use_running_average)
        counted = callable(self.momentum)
        count = getattr(self, "count", None) if counted else None
        if counted and count is None and training:
            raise ValueError(missing_count("layer.count = nnx.BatchStat(jnp.int32(n))"))
        x = as_array("x", x)
        mean, var = self.mean[...], self.var[...]
        scale = None if self.scale is None else self.scale[...]
        bias = None if self.bias is None else self.bias[...]
        promoted = (x, mean, var, scale, bias)
        if self.promote_dtype is dtypes.promote_dtype:  # Only the dtype: nothing is converted.
            y_dtype = result_dtype(*promoted, dtype=self.dtype)
        else:
            with jax.numpy_dtype_promotion("standard"):  # Flax's rules, even under "strict".
                promoted = self.promote_dtype(promoted, dtype=self.dtype)
            y_dtype = result_dtype(promoted[0], promoted[3], promoted[4], dtype=self.dtype)
        y, state = apply_batch_norm(
            batch_norm,
            x,
            BatchNormParams(scale, bias),
            BatchNormState(mean, var, as_count(None if count is None else count[...])),
            kept=wide_dtype(x.dtype),
            y_dtype=y_dtype,
            training=training,
            axis=feature_axes(self.axis, x.ndim),
            momentum=self.momentum,
            epsilon=self.epsilon,
            unbiased=self.unbiased,
            mask=mask,
            axis_name=self.axis_name,
            axis_index_groups=self.axis_index_groups,
        )
        if training:
            # As in Flax, stored statistics are not differentiated: the variable may outlive the
            # function whose gradient is taken. Use `set_value`, since mean[...] = mean would cast
            # a complex or float64 mean to the stored dtype.
            self.mean.set_value(jax.lax.stop_gradient(state.mean))
            self.var.set_value(jax.lax.stop_gradient(state.var))
            if count is not None:
                count.set_value(state.count)
        return y

    def set_view(self, use_running_average: bool | None = None) -> None:
        """Set the mode of a copy that `nnx.view` makes.

        Args:
          use_running_average: if True, normalize by the stored statistics, without updating them.
        """
        if use_running_average is not None:
            self.use_running_average = use_running_average


def population(
    forward: Callable[[Any, Any], Any], model: nnx.Module, batches: Any
) -> nnx.State[Any, Any]:
    """Recompute a model's `BatchStat` as averages over batches and calls (Algorithm 2, precise BN).

    The average is over all calls in all batches, so a layer that the model calls several times is
    averaged correctly. Each call is weighted by its number of values per feature, or with a mask by
    the mask's sum: mean = sum_i n_i mean_i / sum_i n_i is the mean of all values, and var the same
    average of the variances (with Bessel's correction if the layer applies it). It works for layers
    of `jbn.nnx` and of Flax, and any other module with `momentum`, and `mean` or `var` of type
    `BatchStat`; calls of a module without `axis` all have the same weight. It runs on copies: the
    model changes only when you update it with the result.

    Args:
      forward: `(model, batch)`, one forward pass of a copy in training mode; its return value is
        ignored.
      model: model in training mode, or that `forward` puts into training mode.
      batches: an array or a pytree of arrays (tuple, NamedTuple, dict, ...) with a leading axis of
        K batches; or an iterable of any number of batches of any size, such as a generator, a torch
        DataLoader or a list (which is never taken for a pytree of stacked arrays). Each batch is a
        pytree of arrays or CPU tensors, and is released once it has been averaged.

    Returns:
      The state for `nnx.update(model, state)`. Statistics that no call updated are unchanged, and
      so is every BatchStat other than mean, var and integer counts.

    Raises:
      TypeError: arguments in the wrong order; batches that are neither arrays nor an iterable; a
        linen model wrapped in `nnx.bridge.ToNNX`.
      ValueError: no batches; different leading axes; a single batch x that is not passed as x[None]
        or [x]; statistics without `momentum`.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from jbn.nnx import population
      >>> model = nnx.BatchNorm(1, rngs=nnx.Rngs(0))  # Flax's own
      >>> batches = jnp.array([[[0.0], [2.0]], [[4.0], [8.0]]])
      >>> nnx.update(model, population(lambda model, x: model(x), model, batches))
      >>> float(model.mean[0]), float(model.var[0])
      (3.5, 2.5)

    References:
      Ioffe, Szegedy, "Batch Normalization", 2015, Algorithm 2, lines 7 to 10.
    """
    check_step(forward, "forward, model, batches")
    if isinstance(forward, nnx.Module) and not isinstance(model, nnx.Module):
        raise TypeError(
            "Expected population(forward, model, batches) with a model second, got a "
            f"{type(model).__name__}. Give the arguments in this order."
        )
    _check_model(model)
    graphdef, state, rest = nnx.split(model, nnx.BatchStat, ...)

    def step(stats: Any, batch: Any) -> Any:
        copy = nnx.merge(graphdef, _filled(state, stats), rest, copy=True)
        for _, module in nnx.iter_modules(copy):
            _keep_calls_apart(module)
        forward(copy, batch)
        return _values(nnx.state(copy, nnx.BatchStat))

    return _filled(state, population_by_call(step, _values(state), batches))


def _check_model(model: Any) -> None:
    """Reject what contains no nnx module, such as a state, and models that wrap linen layers."""
    if isinstance(model, nnx.Module):
        for path, module in nnx.iter_modules(model):
            if isinstance(module, nnx.bridge.ToNNX) and jax.tree.leaves(
                nnx.state(module, nnx.BatchStat)
            ):
                where = ".".join(map(str, path)) or "the model"
                raise TypeError(
                    f"Expected layers of nnx in the model, got one of linen: {where} is an "
                    "nnx.bridge.ToNNX. Average its statistics with jbn.linen.population, as "
                    "docs/nnx.md shows."
                )
        return
    is_tree = not isinstance(model, type) and not isinstance(model, nnx.State | nnx.GraphDef)
    if not is_tree or not any(isinstance(node, nnx.Module) for _, node in nnx.iter_graph(model)):
        raise TypeError(
            "Expected population(forward, model, batches) with an nnx.Module as `model`, got "
            f"{describe(model)}. Pass the model itself; if you split it, pass "
            "nnx.merge(graphdef, state)."
        )


def _values(state: nnx.State) -> dict[str, Any]:
    """Return the arrays of a state, as they are stored."""
    return nnx.to_pure_dict(state, lambda variable: variable.get_raw_value())


def _filled(state: nnx.State, values: dict[str, Any]) -> nnx.State:
    """Put arrays into a copy of the state, since its variables may be the model's own."""
    copy = jax.tree.map(lambda leaf: leaf, state)
    nnx.replace_by_pure_dict(copy, values)
    return copy


def _keep_calls_apart(module: Any) -> None:
    """Give a layer with statistics momentum 0, and a class that adds each call to the tallies."""
    if tallies := _tallies(module):
        check_momentum(module, tallies)
        module.momentum = zero_momentum(module.momentum)
        module.__class__ = _entering(type(module))


def _tallies(module: Any) -> dict[str, Tally]:
    found = {name: getattr(module, name, None) for name in ("mean", "var")}
    values = {k: v.get_raw_value() for k, v in found.items() if isinstance(v, nnx.BatchStat)}
    return {name: value for name, value in values.items() if isinstance(value, Tally)}


def _entering(kind: type) -> Any:
    """Make a subclass of a layer's class that adds what each call leaves to the tallies.

    It is made once per class and then found among the subclasses, since Flax never releases a
    class once it is registered.
    """
    for subclass in (kind, *kind.__subclasses__()):
        if "_enters_calls" in vars(subclass):
            return subclass

    def call(self, *args: Any, **kwargs: Any) -> Any:
        tallies = _tallies(self)
        x, mask = args[0] if args else kwargs.get("x"), kwargs.get("mask")
        sentinels = {name: tally.sentinel() for name, tally in tallies.items()}
        for name, sentinel in sentinels.items():
            getattr(self, name).set_raw_value(sentinel)
        y = kind.__call__(self, *args, **kwargs)
        for name, tally in tallies.items():
            left = getattr(self, name).get_raw_value()
            if left is not sentinels[name]:  # Else the layer is not in training mode.
                tally = tally.enter(left, weight_of_call(tally.average, self, x, mask))
            getattr(self, name).set_raw_value(tally)
        return y

    return type(kind.__name__, (kind,), {"__call__": call, "_enters_calls": True})
