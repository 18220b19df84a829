"""Which layer feeds which batch norm of a Flax model, and nothing else: what can be folded.

A tree of parameters does not say which layer feeds which batch norm, nor what happens in between.
The model does: it is traced, on shapes alone, and a batch norm is folded only if

- its input *is* the output of a dense or convolutional layer, the very same array, and
- nothing of the pair, neither that output nor a parameter, reaches the model's output otherwise.

The second is proved on the jaxpr of the model, with each batch norm cut out of it: whatever the
result still depends on is used elsewhere.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike

from jbn._fold.layer import fold
from jbn._types import BatchNormParams, BatchNormState

TRAINING = "is called in training mode. Call the model with running statistics."
SEVERAL_AXES = "its feature axis is not the last one. Fold it by jbn.fold."
OWN_CALL = "has a __call__ of its own, which may do more than normalize. Fold it by jbn.fold."
CHANGED = (
    "has its kernel changed or copied on the way, by a lifted transform such as nn.scan, nn.remat "
    "or WeightNorm. Trace the model without it."
)


class LayerCall(NamedTuple):
    """A call of a layer that matters, as an adapter for linen or nnx reports it."""

    name: str  # As in messages.
    is_norm: bool
    problem: str | None = None  # Why this call cannot be folded, whatever is around it.
    other: str | None = None  # The type of a layer that is neither a norm nor can be folded into.


class _Call(NamedTuple):
    site: LayerCall
    x: Any
    y: Any


class Pair(NamedTuple):
    """Names of a layer and of the batch norm that it is folded with."""

    layer: str
    norm: str


# An adapter runs the model with `hook(site, call_next, x)` in place of every layer's call:
# `run(hook, variables, args, kwargs) -> outputs`.
Interceptor = Callable[[LayerCall, Callable[[], Any], Any], Any]
Run = Callable[[Interceptor, Any, tuple, dict], Any]


def find_pairs(
    run: Run,
    variables: Any,
    args: tuple,
    kwargs: dict,
    layers: Sequence[str] | None,
    *,
    collections: bool,
    foldable: Sequence[type],
) -> list[Pair]:
    """Find the layer before each batch norm, or raise with everything that is in the way.

    `variables` are nested by the names of layers, below those of `collections` if there are any;
    `foldable` are the types of layers that can be folded into.
    """
    inputs, rebuild = _split_arrays((args, kwargs))
    calls: list[_Call] = []

    def record(site: LayerCall, call_next: Callable[[], Any], x: Any) -> Any:
        y = _called(site, call_next, x)
        calls.append(_Call(site, x, y))
        return y

    def traced(variables: Any, inputs: list) -> Any:
        args, kwargs = rebuild(inputs)
        return run(record, variables, args, kwargs)

    jax.eval_shape(traced, variables, inputs)
    pairs, shapes, problems = _match(calls, layers, [kind.__name__ for kind in foldable])
    problems += _used_elsewhere(run, variables, inputs, rebuild, pairs, shapes, collections)
    if problems:
        lines = "".join(f"\n  - {problem}" for problem in problems)
        raise ValueError(
            f"Cannot fold every batch norm of the model; in the way:{lines}\nName those that can "
            "be folded in `layers`, or change the model."
        )
    return pairs


def _called(site: LayerCall, call_next: Callable[[], Any], x: Any) -> Any:
    """Call the layer; but in training mode a norm would move statistics, which are frozen here."""
    return x if site.problem == TRAINING else call_next()


def _match(
    calls: list[_Call], layers: Sequence[str] | None, foldable: list[str]
) -> tuple[list[Pair], dict[str, Any], list[str]]:
    """Pair each batch norm with the layer whose output is its input."""
    norms = [call for call in calls if call.site.is_norm]
    names = list(dict.fromkeys(call.site.name for call in norms))
    pairs, shapes, problems = [], {}, []
    wanted = names if layers is None else list(dict.fromkeys(layers))
    for name in wanted:
        mine = [call for call in norms if call.site.name == name]
        if not mine:
            there = ", ".join(names) or "none"
            problems.append(f"{name}: the model calls no such batch norm, only {there}.")
            continue
        norm = mine[0]
        before = [c for c in calls[: calls.index(norm)] if not c.site.is_norm and not c.site.other]
        feeding = [c for c in before if c.y is norm.x]
        if norm.site.problem:
            problems.append(f"{name}: {norm.site.problem}")
        elif len(mine) > 1:
            problems.append(f"{name}: is called {len(mine)} times, expected once.")
        elif not feeding:
            others = [c for c in calls[: calls.index(norm)] if c.site.other]
            problems.append(f"{name}: {_what_feeds(norm, before, others, foldable)}")
        else:
            layer = feeding[-1].site
            times = sum(c.site.name == layer.name for c in calls)
            readers = [c.site.name for c in norms if c.x is norm.x]
            if times > 1:
                problems.append(
                    f"{name}: {layer.name} before it is called {times} times, expected once."
                )
            elif len(readers) > 1:
                problems.append(
                    f"{name}: {layer.name} before it feeds {' and '.join(readers)}, expected one."
                )
            elif layer.problem:
                problems.append(f"{name}: {layer.name} before it {layer.problem}")
            else:
                pairs.append(Pair(layer.name, name))
                shapes[layer.name] = jax.ShapeDtypeStruct(norm.x.shape, norm.x.dtype)
                shapes[name] = jax.ShapeDtypeStruct(norm.y.shape, norm.y.dtype)
    return pairs, shapes, problems


def _what_feeds(norm: _Call, before: list[_Call], others: list[_Call], foldable: list[str]) -> str:
    """Say what is before a batch norm instead of the output of a layer that can be folded into."""
    rule = f"Only {', '.join(foldable)}, and no type derived from them, can be folded into."
    for call in others:
        if call.y is norm.x:
            return f"its input is the output of {call.site.name}, of type {call.site.other}. {rule}"
    if before:
        return (
            "its input is not the output of a dense or convolutional layer. Something else, such "
            f"as an activation, is between {before[-1].site.name}, the last one called, and it."
        )
    if others:
        site = others[-1].site
        return f"the last layer before it is {site.name}, of type {site.other}. {rule}"
    return "no dense or convolutional layer is before it."


def _used_elsewhere(
    run: Run,
    variables: Any,
    inputs: list,
    rebuild: Callable[[list], tuple[tuple, dict]],
    pairs: list[Pair],
    shapes: dict[str, Any],
    collections: bool,
) -> list[str]:
    """Tell which parts of the pairs reach the output other than through their batch norm.

    The layer returns a probe; its batch norm, instead of reading it, returns something that depends
    on the layer's input alone. Then the output must depend on no probe and on no variable of them.
    """
    norm_of = {pair.layer: pair.norm for pair in pairs}
    probes = {pair.layer: shapes[pair.layer] for pair in pairs}

    def cut(variables: Any, probes: dict[str, Any], inputs: list) -> Any:
        fed: dict[str, Any] = {}

        def replace(site: LayerCall, call_next: Callable[[], Any], x: Any) -> Any:
            if site.name in norm_of:
                fed[norm_of[site.name]] = x
                return probes[site.name]
            if site.name in fed:
                y = shapes[site.name]
                return jnp.zeros(y.shape, y.dtype) + (0 * jnp.sum(fed[site.name])).astype(y.dtype)
            return _called(site, call_next, x)

        args, kwargs = rebuild(inputs)
        return run(replace, variables, args, kwargs)

    jaxpr = jax.make_jaxpr(cut)(variables, probes, inputs).jaxpr
    sources: list[tuple[str, str]] = []
    for path, _ in jax.tree_util.tree_leaves_with_path(variables):
        *owner, part = [str(key.key) for key in path if hasattr(key, "key")][collections:]
        sources.append(("/".join(owner), part))
    # Dicts flatten in the order of their keys.
    sources += [(name, "") for name in sorted(probes)] + [("", "")] * len(inputs)
    reaching = [sources[i] for i in sorted(_dependencies(jaxpr))]
    problems = []
    for pair in pairs:
        for name in pair:
            parts = list(dict.fromkeys(part for owner, part in reaching if owner == name))
            for part in parts:
                what = f"the {part} of {name}" if part else f"the output of {name}"
                problems.append(f"{pair.norm}: {what} is used elsewhere in the model, too.")
    return problems


def _dependencies(jaxpr: Any) -> set[int]:
    """Return the indices of the inputs that a jaxpr's outputs depend on.

    An equation's outputs depend on all of its inputs, also where it holds another jaxpr: that may
    find a use where there is none, never the reverse.
    """
    depends: dict[Any, set[int]] = {var: {i} for i, var in enumerate(jaxpr.invars)}

    def of(variables: Sequence[Any]) -> set[int]:
        # Literals are not hashable, and depend on nothing.
        known = [depends[v] for v in variables if not hasattr(v, "val") and v in depends]
        return set().union(*known)

    for equation in jaxpr.eqns:
        found = of(equation.invars)
        for var in equation.outvars:
            depends[var] = found
    return of(jaxpr.outvars)


def _split_arrays(tree: Any) -> tuple[list, Callable[[list], Any]]:
    """Split a call's arguments into arrays, to be traced, and the rest, such as `training`."""
    leaves, treedef = jax.tree.flatten(tree)
    is_array = [hasattr(leaf, "shape") and hasattr(leaf, "dtype") for leaf in leaves]

    def rebuild(arrays: list) -> Any:
        rest = iter(arrays)
        return treedef.unflatten(
            [next(rest) if a else leaf for a, leaf in zip(is_array, leaves, strict=True)]
        )

    return [leaf for a, leaf in zip(is_array, leaves, strict=True) if a], rebuild


def fold_pair(
    kernel: Array,
    bias: Array | None,
    params: BatchNormParams,
    state: BatchNormState,
    *,
    epsilon: ArrayLike,
    transposed: bool,
) -> tuple[Array, Array]:
    """Fold like `fold`; a `transposed` kernel has its output features on the last axis but one."""
    if transposed:
        kernel = jnp.swapaxes(kernel, -1, -2)
    kernel, bias = fold(kernel, bias, params, state, epsilon=epsilon)
    return (jnp.swapaxes(kernel, -1, -2) if transposed else kernel), bias


def calls_as_written(layer: Any) -> bool:
    """Tell whether a batch norm's `__call__` is Flax's or jbn's: another may do anything."""
    return type(layer).__call__.__module__.split(".")[0] in ("flax", "jbn")


def is_last_axis(axis: Any, ndim: int) -> bool:
    """Tell whether `axis` is the last one alone, where dense and convolutional layers write."""
    axes = axis if isinstance(axis, Sequence) else (axis,)
    return [a % ndim for a in axes] == [ndim - 1]
