"""Find the layer before or after each batch norm of a Flax model that it can be folded into.

A tree of parameters does not tell which layer feeds which batch norm, nor what happens in between.
So the model is traced, on shapes alone, and a batch norm is folded only if

- its input is the output of a dense or convolutional layer, or its output is the input of one,
  apart from reshapes and means over space in between (`jbn._fold.paths`), and
- neither the value passed from one to the other nor the parameters of the two reach the model's
  output in any other way.

The second condition is proved on the model's jaxpr with each batch norm cut out: whatever the
result still depends on is used elsewhere.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jbn._fold.kernels import Kernel
from jbn._fold.paths import Path, dependencies, find_paths, mark_input, mark_output

TRAINING = "is called in training mode. Call the model with running statistics."
SEVERAL_AXES = "its feature axis is not the last one. Fold it with jbn.fold."
OWN_CALL = "has a __call__ of its own, which may do more than normalize. Fold it with jbn.fold."
CHANGED = (
    "has its {} changed or copied on the way, by a lifted transform such as nn.scan, nn.remat or "
    "WeightNorm. Trace the model without it."
)
NO_BIAS = (
    "has no bias to take the shift that keep_norms leaves to it. Give it one with use_bias=True, "
    "or leave out keep_norms."
)


def hidden_in(bridge: str) -> str:
    """Say why a batch norm inside a Flax bridge cannot be folded."""
    return (
        f"is inside nnx.bridge.{bridge}, which hides the layers around it. Fold the wrapped model "
        "separately."
    )


class LayerCall(NamedTuple):
    """A layer's call, as reported by the adapter for linen or nnx."""

    name: str  # As shown in messages.
    is_norm: bool
    problem: str | None = None  # Why this call cannot be folded, whatever its neighbors.
    other: str | None = None  # The type of a layer that is neither a norm nor can be folded into.
    kernel: Kernel = Kernel((), (), ())  # That of a layer that can be folded into.

    @property
    def is_linear(self) -> bool:
        """Tell whether the layer is of a type that can be folded into."""
        return not self.is_norm and self.other is None


class _Call(NamedTuple):
    site: LayerCall
    x: Any
    y: Any


class Pair(NamedTuple):
    """A batch norm and the layer that it is folded into."""

    layer: str
    norm: str
    kernel: Kernel
    norm_first: bool

    @property
    def first(self) -> str:
        """Name of the one that is called first, and feeds the other."""
        return self.norm if self.norm_first else self.layer

    @property
    def second(self) -> str:
        """Name of the one that is called second."""
        return self.layer if self.norm_first else self.norm


# An adapter runs the model with `hook(site, call_next, x)` in place of every layer's call, where
# `call_next` takes the layer's input: `run(hook, variables, args, kwargs) -> outputs`.
Interceptor = Callable[[LayerCall, Callable[[Any], Any], Any], Any]
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
    hidden: Mapping[str, str],
) -> list[Pair]:
    """Find the layer to fold each batch norm into, or raise an error that lists every obstacle.

    This is the layer before the batch norm, or otherwise the layer after it.

    `variables` are nested by layer name, with `collections` below the name of a collection;
    `foldable` are the types of layers that can be folded into; `hidden` maps batch norms that
    report no calls to the reason why they cannot be folded, and is complete once the model has run.
    """
    inputs, rebuild = _split_arrays((args, kwargs))
    calls: list[_Call] = []

    def record(site: LayerCall, call_next: Callable[[Any], Any], x: Any) -> Any:
        if site.other:
            y = call_next(x)
            calls.append(_Call(site, x, y))
            return y
        number = len(calls)
        calls.append(_Call(site, x, None))  # Before the calls that this one makes.
        y = mark_output(_called(site, call_next, mark_input(x, number)), number)
        calls[number] = _Call(site, x, y)
        return y

    def traced(variables: Any, inputs: list) -> Any:
        args, kwargs = rebuild(inputs)
        return run(record, variables, args, kwargs)

    paths = find_paths(jax.make_jaxpr(traced)(variables, inputs).jaxpr)
    names = list(dict.fromkeys(call.site.name for call in calls if call.site.is_norm))
    wanted = [*names, *hidden] if layers is None else list(dict.fromkeys(layers))
    problems: dict[str, str] = {}
    pairs: dict[str, Pair] = {}

    def prove(found: dict[str, Pair]) -> None:
        """Keep the pairs that nothing else in the model uses."""
        used = _used_elsewhere(
            run, variables, inputs, rebuild, [*found.values()], calls, collections
        )
        for name in found.keys() - used.keys():
            pairs[name] = found[name]
            problems.pop(name, None)
        for name, problem in used.items():
            pairs.pop(name, None)
            problems[name] = f"{problems[name]} {problem}" if name in problems else problem

    found: dict[str, Pair] = {}
    for name in wanted:
        if name in hidden:
            problems[name] = hidden[name]
            continue
        pair = _layer_before(name, names, calls, paths, [kind.__name__ for kind in foldable])
        if isinstance(pair, Pair):
            found[name] = pair
        else:
            problems[name] = pair
    prove(found)
    found = {}
    for name in problems:
        pair = _layer_after(name, calls, paths)
        if isinstance(pair, Pair):
            found[name] = pair
        elif pair:
            problems[name] += f" {pair}"
    if found:
        prove(pairs | found)
    if problems:
        lines = "".join(f"\n  - {name}: {problems[name]}" for name in wanted if name in problems)
        raise ValueError(
            f"Cannot fold every batch norm of the model:{lines}\nName those that can be folded in "
            "`layers`, or change the model."
        )
    return [pairs[name] for name in wanted]


def _called(site: LayerCall, call_next: Callable[[Any], Any], x: Any) -> Any:
    """Call the layer, unless it is a norm in training mode: it would update frozen statistics."""
    return x if site.problem == TRAINING else call_next(x)


def _norm_call(name: str, calls: list[_Call]) -> _Call | str:
    """Find the call of a batch norm, or say why it cannot be folded into any layer."""
    mine = [call for call in calls if call.site.is_norm and call.site.name == name]
    if mine[0].site.problem:
        return mine[0].site.problem
    return mine[0] if len(mine) == 1 else f"is called {len(mine)} times, expected once."


def _layer_before(
    name: str, names: list[str], calls: list[_Call], paths: dict[int, Path], foldable: list[str]
) -> Pair | str:
    """Pair a batch norm with the layer whose output is its input, or say why there is none."""
    if name not in names:
        return f"the model calls no such batch norm, only {', '.join(names) or 'none'}."
    norm = _norm_call(name, calls)
    if isinstance(norm, str):
        return norm
    earlier = calls[: calls.index(norm)]
    before = [call for call in earlier if call.site.is_linear]
    feeding = [call for call in before if call.y is norm.x]
    path, features = paths.get(calls.index(norm)), norm.x.shape[-1]
    if not feeding and path and calls[path.output].site.is_linear and path.keeps(features):
        feeding = [calls[path.output]]
    if not feeding:
        others = [call for call in earlier if call.site.other]
        problem = _what_feeds(norm, before, others, foldable)
        readers = [calls[n].site for n, p in paths.items() if calls[p.output] is norm]
        if not any(site.is_linear for site in readers):
            problem += f" {_what_follows(norm, calls)}"
        return problem
    layer = feeding[-1].site
    readers = [call.site.name for call in calls if call.site.is_norm and call.x is norm.x]
    if (problem := _not_once(layer, calls)) is not None:
        return f"{layer.name} before it {problem}"
    if len(readers) > 1:
        return f"{layer.name} before it feeds {' and '.join(readers)}, expected one."
    if layer.problem or layer.kernel.not_after:
        return f"{layer.name} before it {layer.problem or layer.kernel.not_after}"
    if layer.kernel.output_size % features:
        return (
            f"it has {features} features, which do not divide the {layer.kernel.output_size} of "
            f"{layer.name} before it."
        )
    return Pair(layer.name, name, layer.kernel, norm_first=False)


def _layer_after(name: str, calls: list[_Call], paths: dict[int, Path]) -> Pair | str | None:
    """Pair a batch norm with the layer it feeds, or say why not; None if it feeds none."""
    if not any(call.site.is_norm and call.site.name == name for call in calls):
        return None
    norm = _norm_call(name, calls)
    if isinstance(norm, str):
        return None
    features = norm.y.shape[-1]
    fed = [
        calls[number].site
        for number, path in paths.items()
        if calls[path.output] is norm and calls[number].site.is_linear and path.keeps(features)
    ]
    if not fed:
        return None
    layer = fed[0]
    problem = layer.problem or layer.kernel.not_before or _not_once(layer, calls)
    if problem is not None:
        return f"{layer.name} after it {problem}"
    if len(fed) > 1:
        return f"It feeds {' and '.join(site.name for site in fed)}, expected one."
    if layer.kernel.input_size % features:
        return (
            f"It has {features} features, which do not divide the {layer.kernel.input_size} inputs "
            f"of {layer.name} after it."
        )
    return Pair(layer.name, name, layer.kernel, norm_first=True)


def _not_once(site: LayerCall, calls: list[_Call]) -> str | None:
    times = sum(call.site.name == site.name for call in calls)
    return None if times == 1 else f"is called {times} times, expected once."


def _what_feeds(norm: _Call, before: list[_Call], others: list[_Call], foldable: list[str]) -> str:
    """Say what precedes a batch norm, if that is not a layer that can be folded into."""
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


def _what_follows(norm: _Call, calls: list[_Call]) -> str:
    """Say what follows a batch norm whose output is not the input of a layer to fold into."""
    later = [
        call.site
        for call in calls[calls.index(norm) + 1 :]
        # Skip modules that contain the batch norm: they are recorded after it, when they return.
        if call.site.name and not norm.site.name.startswith(f"{call.site.name}/")
    ]
    if not later:
        return "No layer is called after it."
    site = later[0]
    if not site.is_linear:
        return f"After it comes {site.name}, {f'of type {site.other}' if site.other else 'a norm'}."
    return (
        f"After it comes {site.name}, but something else, such as an activation, is between them."
    )


def _used_elsewhere(
    run: Run,
    variables: Any,
    inputs: list,
    rebuild: Callable[[list], tuple[tuple, dict]],
    pairs: list[Pair],
    calls: list[_Call],
    collections: bool,
) -> dict[str, str]:
    """Find the parts of pairs that reach the output other than from the first to the second.

    The first of a pair is made to return a probe. The second does not read it, but returns a value
    that depends only on the first one's input. Then the output must depend neither on a probe nor
    on a variable of a pair.
    """
    second_of = {pair.first: pair.second for pair in pairs}
    shapes = {
        call.site.name: jax.ShapeDtypeStruct(call.y.shape, call.y.dtype)
        for call in calls
        if not call.site.other
    }
    probes = {pair.first: shapes[pair.first] for pair in pairs}

    def cut(variables: Any, probes: dict[str, Any], inputs: list) -> Any:
        fed: dict[str, Any] = {}

        def replace(site: LayerCall, call_next: Callable[[Any], Any], x: Any) -> Any:
            is_second = site.name in fed
            source = fed[site.name] if is_second else x
            if site.name in second_of:
                fed[second_of[site.name]] = source
                return probes[site.name]
            if is_second:
                y = shapes[site.name]
                return jnp.zeros(y.shape, y.dtype) + (0 * jnp.sum(source)).astype(y.dtype)
            return _called(site, call_next, x)

        args, kwargs = rebuild(inputs)
        return run(replace, variables, args, kwargs)

    jaxpr = jax.make_jaxpr(cut)(variables, probes, inputs).jaxpr
    sources: list[tuple[str, str]] = []
    for path, _ in jax.tree_util.tree_leaves_with_path(variables):
        *owner, part = [str(key.key) for key in path if hasattr(key, "key")][collections:]
        sources.append(("/".join(owner), part))
    # Dicts flatten in sorted key order.
    sources += [(name, "") for name in sorted(probes)] + [("", "")] * len(inputs)
    reaching = [sources[i] for i in sorted(dependencies(jaxpr))]
    problems: dict[str, str] = {}
    for pair in pairs:
        parts = [
            f"the {part} of {owner}" if part else f"the output of {owner}"
            for name in (pair.layer, pair.norm)
            for owner, part in dict.fromkeys(reaching)
            if owner == name
        ]
        if parts:
            verb = "is" if len(parts) == 1 else "are"
            problems[pair.norm] = f"{' and '.join(parts)} {verb} used elsewhere in the model, too."
    return problems


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


def calls_as_written(layer: Any) -> bool:
    """Tell whether a batch norm's `__call__` is Flax's or jbn's; a custom one may do anything."""
    return type(layer).__call__.__module__.split(".")[0] in ("flax", "jbn")


def split_input(
    args: tuple, kwargs: Mapping[str, Any], names: Sequence[str]
) -> tuple[Any, Callable[[Any], tuple[tuple, dict]], tuple, dict]:
    """Split a layer's arguments into its input, a function that replaces it, and the rest."""
    if args:
        return _as_input(args[0]), lambda x: ((x, *args[1:]), dict(kwargs)), args[1:], dict(kwargs)
    name = next(name for name in names if name in kwargs)
    rest = {key: value for key, value in kwargs.items() if key != name}
    return _as_input(kwargs[name]), lambda x: ((), {**rest, name: x}), (), rest


def _as_input(x: Any) -> Any:
    """Convert nested lists of numbers to an array, as Flax does."""
    return jnp.asarray(x) if isinstance(x, list | tuple) else x


def is_last_axis(axis: Any, ndim: int) -> bool:
    """Tell whether `axis` is only the last one, which has the features of dense and conv layers."""
    axes = axis if isinstance(axis, Sequence) else (axis,)
    return [a % ndim for a in axes] == [ndim - 1]
