"""Checks of a network's attributes when it is made.

A misspelled one would silently build another network, or fail deep inside Flax.
"""

import difflib
import functools
from collections.abc import Iterable, Sequence
from typing import Any

import flax.linen as nn
import numpy as np

from jbn._arguments import check_flag, check_number, check_size
from jbn._inputs import as_index, describe, is_inexact


def check_shared(model: nn.Module) -> None:
    """Check the attributes that all networks have.

    Raises:
      TypeError: outputs that are not an int; a norm, activation or kernel_init that is not a
        function; a dtype that is not floating; a use_bias that is not a bool.
      ValueError: outputs below 1; an unknown placement.
    """
    attributes: Any = model
    check_size("outputs", attributes.outputs, "Pass the number of classes.")
    check_norm(attributes.norm)
    check_choice("placement", attributes.placement, ("before", "after"))
    check_function("activation", attributes.activation, "jax.nn.relu")
    check_function("kernel_init", attributes.kernel_init, "jax.nn.initializers.he_normal()")
    if attributes.use_bias is not None:
        check_flag("use_bias", attributes.use_bias)
    for name in ("dtype", "param_dtype"):
        dtype = getattr(attributes, name)
        if dtype is not None and not is_inexact(dtype):
            raise TypeError(
                f"Expected `{name}` to be a floating dtype or None, got {describe(dtype)}. Pass "
                "one such as jnp.bfloat16."
            )


def check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    """Check that an attribute is one of a few words.

    Raises:
      ValueError: anything else.
    """
    if isinstance(value, str) and value in choices:
        return
    *others, last = map(repr, choices)
    raise ValueError(
        f"Expected `{name}` {', '.join(others)} or {last}, got {describe(value)}."
        f"{did_you_mean(value, choices)}"
    )


def did_you_mean(value: Any, choices: Iterable[str]) -> str:
    """Suggest the choice spelled most like the value, after a space; "" if none is close."""
    close = difflib.get_close_matches(value, choices, n=1) if isinstance(value, str) else []
    return f" Did you mean {close[0]!r}?" if close else ""


def check_sizes(name: str, values: Any) -> tuple[int, ...]:
    """Check that an attribute is a sequence of positive ints; return them.

    Raises:
      TypeError: not a sequence.
      ValueError: an element that is not a positive int.
    """
    if isinstance(values, str) or not isinstance(values, Sequence | np.ndarray):
        example = f"({values},)" if as_index(values) is not None else "(16, 32)"
        raise TypeError(
            f"Expected `{name}` as a sequence of positive ints, got {describe(values)}. Pass "
            f"{name}={example}."
        )
    sizes = [as_index(value) for value in values]
    if not all(size is not None and size > 0 for size in sizes):
        raise ValueError(
            f"Expected `{name}` as a sequence of positive ints, got {values!r}. Pass one such as "
            f"{name}=(16, 32)."
        )
    return tuple(size for size in sizes if size is not None)


def check_function(name: str, value: Any, example: str, *, optional: bool = True) -> None:
    """Check that an attribute is a function, or None if `optional`.

    Raises:
      TypeError: anything else.
    """
    if not (callable(value) or (optional and value is None)):
        raise TypeError(
            f"Expected `{name}` as a function, got {describe(value)}. Pass one such as {example}."
        )


def check_norm(norm: Any) -> None:
    """Check that a norm is None, a name, or makes a layer of linen; names are not looked up.

    Raises:
      TypeError: an instance of a layer, a class of nnx, or anything else.
    """
    if norm is None or isinstance(norm, str):
        return
    if isinstance(norm, nn.Module):
        kind = type(norm).__name__
        raise TypeError(
            f"Expected `norm` as a name, or as a class or function that makes a layer, got a "
            f"{kind} that is made already. Pass {kind}, or functools.partial({kind}, ...) with its "
            "options: every layer has its own."
        )
    made = norm
    while isinstance(made, functools.partial):
        made = made.func
    is_class = isinstance(made, type)
    if not callable(norm) or (is_class and not issubclass(made, nn.Module)):
        got = f"the class {made.__module__}.{made.__name__}" if is_class else describe(norm)
        raise TypeError(
            f"Expected `norm` as a name, or as what makes a layer of flax.linen, got {got}. Pass "
            'norm="batch", jbn.linen.BatchNorm, or a functools.partial of it.'
        )


def check_share(name: str, value: Any) -> None:
    """Check that a number is in [0, 1).

    Raises:
      TypeError: not a number.
      ValueError: a number out of range.
    """
    known = check_number(name, value, "a number in [0, 1)")
    if known is not None and not 0 <= known < 1:
        raise ValueError(f"Expected `{name}` in [0, 1), got {value}. Pass the share to drop.")
