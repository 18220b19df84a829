"""Read from a torch or Keras network what its arrays do not tell, such as strides."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

# Prefixes that `DataParallel` and `torch.compile` add to names.
_WRAPPERS = frozenset({"module", "_orig_mod"})


class Original(NamedTuple):
    """Attributes of the original network, by layer name; empty if only its arrays are given."""

    epsilons: Mapping[str, float] = {}
    strides: Mapping[str, tuple[int, ...]] = {}
    dilated: tuple[str, ...] = ()
    activations: tuple[str, ...] = ()  # Those other than relu.


class Epsilon(NamedTuple):
    """An epsilon of the model's batch norms that differs from the source's."""

    got: float
    wanted: float
    is_known: bool  # Whether `wanted` was read from the source itself.


def plain_name(key: str) -> str:
    """Remove the prefixes of wrappers from a torch name."""
    return ".".join(part for part in key.split(".") if part not in _WRAPPERS)


def original_of_torch(module: Any) -> Original:
    """Read a torch module; the result is empty for anything else."""
    if not hasattr(module, "named_modules"):
        return Original()
    layers = {plain_name(name): layer for name, layer in module.named_modules()}
    return Original(
        {
            name: float(layer.eps)
            for name, layer in layers.items()
            if hasattr(layer, "running_mean") and hasattr(layer, "eps")
        },
        {name: layer.stride for name, layer in layers.items() if _is_conv(layer)},
        tuple(n for n, layer in layers.items() if _is_conv(layer) and max(layer.dilation) > 1),
        tuple(
            {
                type(layer).__name__: None
                for layer in layers.values()
                if type(layer).__module__ == "torch.nn.modules.activation"
                and type(layer).__name__ != "ReLU"
            }
        ),
    )


def _is_conv(layer: Any) -> bool:
    return hasattr(layer, "stride") and hasattr(layer, "in_channels")


def original_of_keras(model: Any) -> Original:
    """Read a Keras model."""
    layers = {layer.name: layer for layer in model.layers}
    convs = {name: layer for name, layer in layers.items() if hasattr(layer, "dilation_rate")}
    activations = dict.fromkeys(
        name for layer in layers.values() for name in _keras_activation(layer)
    )
    return Original(
        {n: float(layer.epsilon) for n, layer in layers.items() if hasattr(layer, "moving_mean")},
        {name: tuple(layer.strides) for name, layer in convs.items()},
        tuple(name for name, layer in convs.items() if max(layer.dilation_rate) > 1),
        tuple(activations),
    )


def _keras_activation(layer: Any) -> Iterator[str]:
    """Name the activation of a layer that has no weights, if it is not relu."""
    kind = type(layer).__name__
    if kind == "Activation":
        name = getattr(layer.activation, "__name__", str(layer.activation))
        if name != "relu":
            yield name
    elif kind == "ReLU" and (layer.max_value is not None or layer.negative_slope):
        yield f"ReLU(max_value={layer.max_value}, negative_slope={layer.negative_slope})"
    elif kind in ("LeakyReLU", "PReLU", "ELU"):
        yield kind


def other_epsilons(
    model: Mapping[str, float],
    original: Original,
    names: Mapping[str, str],
    usual: float,
    given: float | None,
) -> list[Epsilon]:
    """Find the epsilons of the model's batch norms, by our names, that differ from the source's.

    The source's epsilon is the one given by the caller, or else read from the original network, or
    else the usual one.
    """
    different = {}
    for name, got in model.items():
        known = original.epsilons.get(names.get(name, "")) if given is None else None
        wanted = next(value for value in (given, known, usual) if value is not None)
        if not math.isclose(got, wanted, rel_tol=1e-6):
            different[Epsilon(got, wanted, known is not None)] = None
    return list(different)


def computes_the_same(activation: Callable[..., Any], other: Callable[..., Any]) -> bool:
    """Tell whether two nonlinearities have the same values, even if they are not one function."""
    if activation is other:
        return True
    x = np.concatenate([np.linspace(-8, 8, 129), [-1e3, -30, 30, 1e3]]).astype(np.float32)
    with np.errstate(all="ignore"):
        return np.allclose(activation(x), other(x), rtol=1e-6, atol=1e-6)
