"""Find the layer inputs of a traced model that are a layer's output, reshaped or averaged.

The model is traced with its layers' inputs and outputs marked, and its jaxpr is read backward from
each input to an output. Between the two, only operations that commute with a batch norm may occur:

- reshapes, which keep the order of the values, so that value i belongs to feature i mod C,
- means over axes other than the features', global or in windows, whose weights sum to 1. Zero
  padding that counts in the mean is excluded, since the zeros are not values of the features.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

_PREFIX = "jbn.fold_model"
_JIT = ("jit", "pjit")
_RESHAPES = ("reshape", "squeeze", "broadcast_in_dim", "convert_element_type", "name")


class Path(NamedTuple):
    """How an input is computed from an output."""

    output: int  # The number that the output was marked with.
    strides: tuple[int, ...]  # Row-major strides between the values that are averaged.

    def keeps(self, features: int) -> bool:
        """Tell whether values are averaged only with those of the same feature."""
        return all(stride % features == 0 for stride in self.strides)


def mark_input(x: Any, number: int) -> Any:
    """Mark the input of a call."""
    return checkpoint_name(x, f"{_PREFIX} input {number}")


def mark_output(y: Any, number: int) -> Any:
    """Mark the output of a call."""
    return checkpoint_name(y, f"{_PREFIX} output {number}")


def find_paths(jaxpr: Any) -> dict[int, Path]:
    """Find the path to each marked input that is, or is computed as above from, a marked output."""
    equations = _Equations()
    equations.read(jaxpr)
    paths = {}
    for number, place in equations.inputs.items():
        path = _path(equations, place)
        if path is not None:
            paths[number] = path
    return paths


class _Place(NamedTuple):
    """A variable or literal in one particular call, since several calls may share a jaxpr."""

    call: int
    atom: Any


class _Equations:
    """The equations of a jaxpr by their outputs, including those inside `jax.jit`."""

    def __init__(self) -> None:
        self.calls = itertools.count()
        self.same: dict[_Place, _Place] = {}
        self.by_output: dict[_Place, tuple[int, Any]] = {}
        self.inputs: dict[int, _Place] = {}

    def read(self, jaxpr: Any) -> int:
        call = next(self.calls)
        for equation in jaxpr.eqns:
            name = equation.primitive.name
            if name in _JIT:
                inner = equation.params["jaxpr"].jaxpr
                inside = self.read(inner)
                for variable, atom in zip(inner.invars, equation.invars, strict=True):
                    self.same[_Place(inside, variable)] = _Place(call, atom)
                for variable, atom in zip(equation.outvars, inner.outvars, strict=True):
                    self.same[_Place(call, variable)] = _Place(inside, atom)
                continue
            for variable in equation.outvars:
                self.by_output[_Place(call, variable)] = call, equation
            number = _number(equation, "input")
            if number is not None:
                self.inputs[number] = _Place(call, equation.invars[0])
        return call

    def value(self, place: _Place) -> float | None:
        """Return the value of a real scalar literal, or None."""
        place = self.origin(place)
        value = getattr(place.atom, "val", None)
        is_real = value is not None and jnp.ndim(value) == 0 and not jnp.iscomplexobj(value)
        return float(value) if is_real else None

    def origin(self, place: _Place) -> _Place:
        """Follow a variable out of and into `jax.jit`."""
        # Literals are not hashable.
        while not hasattr(place.atom, "val") and place in self.same:
            place = self.same[place]
        return place

    def of(self, place: _Place) -> tuple[Any, list[_Place]] | None:
        """Return the equation that computes a variable, and its operands, or None."""
        place = self.origin(place)
        if hasattr(place.atom, "val") or place not in self.by_output:
            return None
        call, equation = self.by_output[place]
        return equation, [_Place(call, atom) for atom in equation.invars]


def _path(equations: _Equations, place: _Place) -> Path | None:
    """Trace an input back to an output."""
    strides: list[int] = []
    weight = 1.0  # Total weight of the averaged values so far; a mean ends up at 1.
    window: Any = None  # The count of values per window divided by; the next sum must match it.
    while (found := equations.of(place)) is not None:
        equation, operands = found
        name, place = equation.primitive.name, operands[0]
        number = _number(equation, "output")
        if number is not None:
            # Use float32's precision for every dtype: with bfloat16's, a factor of .97 passes as 1.
            is_mean = abs(weight - 1) <= 4 * jnp.finfo(jnp.float32).eps
            return Path(number, tuple(strides)) if is_mean and window is None else None
        x, y = equation.invars[0].aval, equation.outvars[0].aval
        if window is not None and name not in ("reduce_window_sum", "name"):
            return None
        if name in _RESHAPES:
            if len(operands) > 1 or not _is_reshape(equation, x, y):
                return None
        elif name == "reduce_sum":
            axes = equation.params["axes"]
            strides += [math.prod(x.shape[a + 1 :]) for a in axes]
            weight *= math.prod(x.shape[a] for a in axes)
        elif name == "reduce_window_sum":
            sizes = equation.params["window_dimensions"]
            strides += [math.prod(x.shape[a + 1 :]) for a in _windowed(equation)]
            if window is not None:
                if not _same_windows(equation, window):
                    return None
                window = None
            elif _pads(equation):
                return None
            else:
                weight *= math.prod(sizes)
        elif name in ("div", "mul"):
            factors = [equations.value(operand) for operand in operands]
            if name == "mul" and factors[0] is not None:
                factors, place = factors[::-1], operands[1]
            factor = factors[1]
            if factor is not None:
                if not factor:
                    return None
                weight = weight / factor if name == "div" else weight * factor
            elif name == "div":
                window = _counted(equations, operands[1])
                if window is None:
                    return None
            else:
                return None
        else:
            return None
    return None


def _is_reshape(equation: Any, x: Any, y: Any) -> bool:
    """Tell whether an equation keeps all values in order."""
    if equation.params.get("dimensions") is not None and equation.primitive.name == "reshape":
        return False
    inexact = jnp.issubdtype(x.dtype, jnp.inexact) and jnp.issubdtype(y.dtype, jnp.inexact)
    return inexact and math.prod(x.shape) == math.prod(y.shape)


def _counted(equations: _Equations, place: _Place) -> Any:
    """Return the windowed sum of ones that gave an array, the count of values per window."""
    while (found := equations.of(place)) is not None:
        equation, (place, *_) = found
        name = equation.primitive.name
        if name == "reduce_window_sum":
            ones = equations.of(place)
            if ones is None or ones[0].primitive.name != "broadcast_in_dim":
                return None
            return equation if equations.value(ones[1][0]) == 1 else None
        if name not in ("broadcast_in_dim", "convert_element_type"):
            return None
    return None


def _windowed(equation: Any) -> list[int]:
    """Return the axes along which the windows are not simply the single values."""
    params = equation.params
    sizes, strides = params["window_dimensions"], params["window_strides"]
    windows = zip(sizes, strides, *zip(*params["padding"], strict=True), strict=True)
    return [axis for axis, window in enumerate(windows) if window != (1, 1, 0, 0)]


def _pads(equation: Any) -> bool:
    """Tell whether windows contain zeros from padding or dilation."""
    dilated = any(d != 1 for d in equation.params["base_dilation"])
    return dilated or any(p > 0 for pair in equation.params["padding"] for p in pair)


def _same_windows(equation: Any, other: Any) -> bool:
    """Tell whether two windowed sums have the same windows."""
    shapes = equation.invars[0].aval.shape, other.invars[0].aval.shape
    names = "window_dimensions", "window_strides", "padding", "base_dilation", "window_dilation"
    return (
        len(shapes[0]) == len(shapes[1])
        and all(equation.params[name] == other.params[name] for name in names)
        and all(shapes[0][a] == shapes[1][a] for a in _windowed(equation))
    )


def _number(equation: Any, kind: str) -> int | None:
    """Return the number of a mark, or None for any other equation."""
    name = equation.params.get("name")
    start = f"{_PREFIX} {kind} "
    if equation.primitive.name == "name" and isinstance(name, str) and name.startswith(start):
        return int(name.removeprefix(start))
    return None


def dependencies(jaxpr: Any) -> set[int]:
    """Return the indices of the inputs that a jaxpr's outputs depend on.

    Every output of an equation is assumed to depend on all of its inputs, even if the equation
    contains a jaxpr; only `jax.jit` is looked into. This may report a dependency that does not
    exist, but never misses one.
    """
    return set().union(*_dependencies_of_each(jaxpr))


def _dependencies_of_each(jaxpr: Any) -> list[set[int]]:
    """Return the indices of the inputs that each output depends on."""
    depends: dict[Any, set[int]] = {var: {i} for i, var in enumerate(jaxpr.invars)}

    def of(variables: Sequence[Any]) -> set[int]:
        # Literals are not hashable, and depend on nothing.
        known = [depends[v] for v in variables if not hasattr(v, "val") and v in depends]
        return set().union(*known)

    for equation in jaxpr.eqns:
        if equation.primitive.name in _JIT:
            # Per output, since `nnx.jit` returns all variables of a model, most of them unchanged.
            inside = _dependencies_of_each(equation.params["jaxpr"].jaxpr)
            found = [of([equation.invars[i] for i in inputs]) for inputs in inside]
        else:
            found = [of(equation.invars)] * len(equation.outvars)
        depends.update(zip(equation.outvars, found, strict=True))
    return [of([var]) for var in jaxpr.outvars]
