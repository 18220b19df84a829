"""The nnx part of `fold_model`: run a copy of the model whose layers report their calls."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from jbn._fold import kernels
from jbn._fold.pairs import (
    CHANGED,
    OWN_CALL,
    SEVERAL_AXES,
    TRAINING,
    Interceptor,
    LayerCall,
    Run,
    calls_as_written,
    find_pairs,
    hidden_in,
    is_last_axis,
    split_input,
)
from jbn._types import BatchNormParams, BatchNormState

# Exactly these types: a subclass may do more than multiply and add.
_LINEAR = {
    nnx.Linear: kernels.dense,
    nnx.Conv: kernels.conv,
    nnx.ConvTranspose: kernels.conv_transpose,
    nnx.LinearGeneral: kernels.dense_general,
    nnx.Einsum: kernels.einsum,
}
_INPUTS = ("x", "inputs")


class Identity(nnx.Module):
    """Replaces a folded batch norm; returns its input."""

    def __call__(self, x: Array, *args: Any, **kwargs: Any) -> Array:
        """Return x; everything else is ignored."""
        return x


def fold_nnx(
    model: nnx.Module,
    args: tuple,
    kwargs: dict,
    layers: Sequence[str] | None,
    keep_norms: bool,
) -> nnx.Module:
    """Implement `fold_model` for nnx."""
    model = nnx.clone(model)
    modules = _modules(model)
    graphdef, state = nnx.split(model)
    run = _runner(graphdef, modules)
    pairs = find_pairs(
        run,
        state,
        args,
        kwargs,
        layers,
        collections=False,
        foldable=tuple(_LINEAR),
        hidden=_hidden(modules),
    )
    for pair in pairs:
        layer, norm = modules[pair.layer], modules[pair.norm]
        mean, var = norm.mean[...], norm.var[...]
        scale, shift = _value(norm, "scale"), _value(norm, "bias")
        fold = kernels.fold_before if pair.norm_first else kernels.fold_after
        kernel, bias = fold(
            pair.kernel,
            layer.kernel[...],
            _value(layer, "bias"),
            BatchNormParams(scale, shift),
            BatchNormState(mean, var, jnp.zeros((), jnp.int32)),
            epsilon=norm.epsilon,
        )
        kept_var, factor = kernels.identity_variance(norm.epsilon)
        if keep_norms and factor != 1:
            kernel, bias = kernel * factor, bias if pair.norm_first else bias * factor
        layer.kernel[...] = kernel
        if layer.bias is None:
            layer.bias, layer.use_bias = nnx.Param(bias), True
        else:
            layer.bias[...] = bias
        if keep_norms:
            norm.mean[...] = jnp.zeros_like(mean)
            norm.var[...] = jnp.full_like(var, kept_var)
            if scale is not None:
                norm.scale[...] = jnp.ones_like(scale)
            if shift is not None:
                norm.bias[...] = jnp.zeros_like(shift)
        else:
            _replace(model, norm, Identity())
            if any(module is norm for _, module in nnx.iter_modules(model)):
                raise ValueError(
                    f"Expected {pair.norm} as an attribute of a module, or in a list, tuple or "
                    "dict that is one, to be replaced, got it in another container. Hold it in an "
                    "nnx.List, or pass keep_norms=True."
                )
    return model


def _runner(graphdef: Any, modules: dict[str, Any]) -> Run:
    """Return a function that calls a copy of the model whose layers report to a hook."""
    owners = [id(v) for m in modules.values() for v in vars(m).values() if _is_variable(v)]
    shared = {
        name
        for name, module in modules.items()
        if any(owners.count(id(v)) > 1 for v in vars(module).values() if _is_variable(v))
    }

    def run(hook: Interceptor, state: Any, args: tuple, kwargs: dict) -> Any:
        model = nnx.merge(graphdef, state)
        for name, module in _modules(model).items():
            if callable(module) and any(map(_is_variable, vars(module).values())):
                # Only the copy's class is changed; Flax itself is not patched.
                copy: Any = module
                copy._report = _reporter(hook, name, copy, modules[name], name in shared)
                copy.__class__ = _reporting(type(copy))
        return model(*args, **kwargs)

    return run


def _reporter(hook: Interceptor, name: str, module: Any, original: Any, is_shared: bool) -> Any:
    """Return the function that passes a layer's calls to the hook."""
    kind, is_norm = type(module), _is_norm(module)
    calls_own = not calls_as_written(module)

    def report(self: Any, args: Any, kwargs: Any) -> Any:
        if not is_norm and kind not in _LINEAR:
            other = LayerCall(name, is_norm, other=kind.__name__)
            return hook(other, lambda _: kind.__call__(self, *args, **kwargs), None)
        x, with_input, rest, options = split_input(args, kwargs, _INPUTS)

        def call_next(x: Any) -> Any:
            args, kwargs = with_input(x)
            return kind.__call__(self, *args, **kwargs)

        problem = "shares a parameter with another layer." if is_shared else None
        if is_norm:
            problem = problem or (OWN_CALL if calls_own else _norm_problem(self, x, rest, options))
            problem = problem or kernels.own_arithmetic(self)
            return hook(LayerCall(name, is_norm, problem), call_next, x)
        # Inside nnx.vmap or nnx.scan, a layer holds a slice of the model's kernel.
        if self.kernel.shape != original.kernel.shape:
            problem = problem or CHANGED.format("kernel")
        problem = problem or kernels.own_arithmetic(self)
        layout = _LINEAR[kind](self, x, original.kernel.shape, rest, options)
        return hook(LayerCall(name, is_norm, problem, kernel=layout), call_next, x)

    return report


def _reporting(kind: type) -> Any:
    """Return the subclass of a layer's class that reports its calls.

    It is made once per class and then looked up among the class's subclasses, since Flax keeps
    every class registered permanently.
    """
    for subclass in kind.__subclasses__():
        if "_reports_calls" in vars(subclass):
            return subclass

    def call(self, *args: Any, **kwargs: Any) -> Any:
        return self._report(self, args, kwargs)

    return type(kind.__name__, (kind,), {"__call__": call, "_reports_calls": True})


def _modules(model: nnx.Module) -> dict[str, Any]:
    return {"/".join(map(str, path)): module for path, module in nnx.iter_modules(model)}


def _is_variable(value: Any) -> bool:
    return isinstance(value, nnx.Variable)


def _is_norm(module: Any) -> bool:
    return hasattr(module, "epsilon") and all(
        _is_variable(getattr(module, name, None)) for name in ("mean", "var")
    )


def _norm_problem(module: Any, x: Array, rest: tuple, kwargs: dict) -> str | None:
    average = rest[0] if rest else kwargs.get("use_running_average")
    average = module.use_running_average if average is None else average
    if not average:
        return TRAINING
    return None if is_last_axis(module.axis, x.ndim) else SEVERAL_AXES


def _value(module: Any, name: str) -> Array | None:
    variable = getattr(module, name, None)
    return None if variable is None else variable[...]


def _replace(model: nnx.Module, old: nnx.Module, new: nnx.Module) -> None:
    """Put `new` wherever the model holds `old`."""
    for _, module in list(nnx.iter_modules(model)):
        if isinstance(module, nnx.List):
            for i, item in enumerate(module):
                if item is old:
                    module[i] = new
        for name, value in list(vars(module).items()):
            if value is old:
                setattr(module, name, new)
            elif isinstance(value, list | tuple | dict):  # Wrapped in nnx.data.
                changed = _replaced(value, old, new)
                if changed is not value:
                    setattr(module, name, nnx.data(changed))


def _replaced(value: Any, old: nnx.Module, new: nnx.Module) -> Any:
    """Return a container with `new` in place of `old`, or the same object if it lacks `old`."""
    if value is old:
        return new
    if not isinstance(value, list | tuple | dict):
        return value
    keys = list(value) if isinstance(value, dict) else range(len(value))
    parts = [_replaced(value[key], old, new) for key in keys]
    if all(part is value[key] for key, part in zip(keys, parts, strict=True)):
        return value
    if isinstance(value, dict):
        return type(value)(zip(keys, parts, strict=True))
    return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)


def _hidden(modules: dict[str, Any]) -> dict[str, str]:
    """Find batch norms of linen models inside nnx.bridge.ToNNX; say why they cannot be folded."""
    hidden = {}
    for name, module in modules.items():
        if isinstance(module, nnx.bridge.ToNNX):
            paths = [path for path, _ in nnx.to_flat_state(nnx.state(module, nnx.BatchStat))]
            for *owner, leaf in paths:
                if leaf == "mean" and (*owner, "var") in paths:
                    hidden["/".join(map(str, filter(None, (name, *owner))))] = hidden_in("ToNNX")
    return hidden
