"""The linen part of `fold_model`: an interceptor sees the calls; variables are nested dicts."""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import unfreeze
from flax.nnx.bridge import ToLinen
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array

from jbn._fold import kernels
from jbn._fold.pairs import (
    CHANGED,
    NO_BIAS,
    OWN_CALL,
    SEVERAL_AXES,
    TRAINING,
    Interceptor,
    LayerCall,
    Pair,
    calls_as_written,
    find_pairs,
    hidden_in,
    is_last_axis,
    split_input,
)
from jbn._inputs import describe
from jbn._types import BatchNormParams, BatchNormState

# Exactly these types: a subclass may do more than multiply and add.
_LINEAR = {
    nn.Dense: kernels.dense,
    nn.Conv: kernels.conv,
    nn.ConvTranspose: kernels.conv_transpose,
    nn.DenseGeneral: kernels.dense_general,
    nn.Einsum: kernels.einsum,
}
_INPUTS = ("x", "inputs", "lhs")


def fold_linen(
    model: nn.Module,
    variables: Mapping[str, Any],
    args: tuple,
    kwargs: dict,
    layers: Sequence[str] | None,
    keep_norms: bool,
) -> dict[str, Any]:
    """Implement `fold_model` for linen."""
    _check_variables(variables)
    for option in ("mutable", "capture_intermediates"):
        if kwargs.pop(option, False):
            raise TypeError(
                f"Expected no `{option}` in the call of a model to be folded, got some: the call "
                "is that of inference, which updates nothing, and folding keeps only its outputs. "
                "Leave it out."
            )
    variables = nn.meta.unbox(unfreeze(dict(variables)))
    flat = flatten_dict(variables)
    modules: dict[str, nn.Module] = {}
    hidden: dict[str, str] = {}

    def run(hook: Interceptor, variables: dict[str, Any], args: tuple, kwargs: dict) -> Any:
        def intercept(next_fun, args, kwargs, context):
            module = context.module
            if context.method_name != "__call__":
                return next_fun(*args, **kwargs)
            name = "/".join(module.path)
            is_norm = _is_norm(module)
            if isinstance(module, ToLinen):
                inside = flatten_dict(dict(module.variables.get("batch_stats", {})))
                for *owner, leaf in inside:
                    if leaf == "mean" and (*owner, "var") in inside:
                        hidden["/".join((*module.path, *owner))] = hidden_in("ToLinen")
            if not is_norm and type(module) not in _LINEAR:
                other = LayerCall(name, is_norm, other=type(module).__name__)
                return hook(other, lambda _: next_fun(*args, **kwargs), None)
            x, with_input, rest, options = split_input(args, kwargs, _INPUTS)

            def call_next(x: Any) -> Any:
                args, kwargs = with_input(x)
                return next_fun(*args, **kwargs)

            modules[name] = module
            if is_norm:
                problem = _norm_problem(module, x, rest, options)
                if not problem and _changed(module, variables, "params", "batch_stats"):
                    problem = CHANGED.format("variables")
                return hook(LayerCall(name, is_norm, problem), call_next, x)
            problem = kernels.own_arithmetic(module)
            if _changed(module, variables, "params"):
                problem = CHANGED.format("kernel")
            call = LayerCall(name, is_norm, problem)
            if problem is None:
                shape = module.variables["params"]["kernel"].shape
                layout = _LINEAR[type(module)](module, x, shape, rest, options)
                if keep_norms and not module.use_bias:
                    layout = layout._replace(not_before=NO_BIAS)
                call = call._replace(kernel=layout)
            return hook(call, call_next, x)

        with nn.intercept_methods(intercept):
            return model.apply(variables, *args, **kwargs)

    pairs = find_pairs(
        run,
        variables,
        args,
        kwargs,
        layers,
        collections=True,
        foldable=tuple(_LINEAR),
        hidden=hidden,
    )
    for pair in pairs:
        layer, norm = modules[pair.layer], modules[pair.norm]
        _fold_pair(flat, pair, layer, norm, keep_norms)
    return unflatten_dict(flat)


def _check_variables(variables: Any) -> None:
    if not isinstance(variables, Mapping):
        raise TypeError(
            f"Expected `variables` as a dict of collections, got {describe(variables)}. Pass what "
            "model.init returned, or {'params': ..., 'batch_stats': ...}."
        )
    collections = ("params", "batch_stats")
    if not all(variables.get(name) for name in collections):
        empty = [name for name in collections if name in variables and not variables[name]]
        hold = "hold" if len(empty) > 1 else "holds"
        of_them = f", of which {' and '.join(map(repr, empty))} {hold} nothing" if empty else ""
        raise ValueError(
            "Expected `variables` with the collections 'params' and 'batch_stats', got "
            f"{describe(variables)}{of_them}. Pass all that model.init returned, as "
            "{'params': ..., 'batch_stats': ...}; a model without batch norms has nothing to fold."
        )
    shapes = [x for x in jax.tree.leaves(dict(variables)) if isinstance(x, jax.ShapeDtypeStruct)]
    if shapes:
        raise TypeError(
            f"Expected arrays in `variables`, got {describe(shapes[0])}. Pass the arrays, or fold "
            "inside jax.eval_shape."
        )
    trees = (BatchNormParams, BatchNormState)
    for leaf in jax.tree.leaves(dict(variables), is_leaf=lambda node: isinstance(node, trees)):
        if isinstance(leaf, trees):
            raise TypeError(
                f"Expected dicts of arrays in `variables`, as linen has them, got {describe(leaf)}."
                " Make the layer's part with jbn.convert.to_linen(params, state)."
            )


def _fold_pair(flat: dict, pair: Pair, layer: Any, norm: Any, keep_norm: bool) -> None:
    """Fold one pair in flat variables, in place."""
    here, there = ("params", *layer.path), ("params", *norm.path)
    stats = ("batch_stats", *norm.path)
    mean, var = flat[(*stats, "mean")], flat[(*stats, "var")]
    fold = kernels.fold_before if pair.norm_first else kernels.fold_after
    kernel, bias = fold(
        pair.kernel,
        flat[(*here, "kernel")],
        flat.get((*here, "bias")),
        BatchNormParams(flat.get((*there, "scale")), flat.get((*there, "bias"))),
        BatchNormState(mean, var, jnp.zeros((), jnp.int32)),
        epsilon=norm.epsilon,
    )
    kept_var, factor = kernels.identity_variance(norm.epsilon)
    if keep_norm and factor != 1:
        kernel, bias = kernel * factor, bias if pair.norm_first else bias * factor
    flat[(*here, "kernel")] = kernel
    if not keep_norm:
        flat[(*here, "bias")] = bias
        for top in (there, stats):
            for path in [path for path in flat if path[: len(top)] == top]:
                del flat[path]
        return
    if (*here, "bias") in flat:
        flat[(*here, "bias")], shift = bias, jnp.zeros_like(mean)
    else:  # The norm subtracts its mean, so the mean can hold the shift.
        shift = -bias.reshape(-1)[: mean.size].astype(mean.dtype)
    flat[(*stats, "mean")], flat[(*stats, "var")] = shift, jnp.full_like(var, kept_var)
    for name, neutral in (("scale", jnp.ones_like), ("bias", jnp.zeros_like)):
        if (*there, name) in flat:
            flat[(*there, name)] = neutral(flat[(*there, name)])


def _is_norm(module: nn.Module) -> bool:
    stats = module.variables.get("batch_stats", {})
    return {"mean", "var"} <= set(stats) and hasattr(module, "epsilon")


def _norm_problem(module: Any, x: Array, rest: tuple, kwargs: dict) -> str | None:
    if not calls_as_written(module):
        return OWN_CALL
    average = rest[0] if rest else kwargs.get("use_running_average")
    average = module.use_running_average if average is None else average
    if not average:
        return TRAINING
    return None if is_last_axis(module.axis, x.ndim) else SEVERAL_AXES


def _changed(module: nn.Module, variables: dict[str, Any], *collections: str) -> bool:
    """Tell whether a layer computes with arrays other than its own in the variables."""
    return any(
        array is not _at(variables.get(collection), (*module.path, name))
        for collection in collections
        for name, array in module.variables.get(collection, {}).items()
    )


def _at(tree: Any, path: tuple[str, ...]) -> Any:
    """Return what is at a path, or None."""
    for name in path:
        tree = tree.get(name) if isinstance(tree, Mapping) else None
    return tree
