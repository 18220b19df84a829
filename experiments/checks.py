"""Checks of all options: values of the type that the field declares, and numbers within bounds.

Standard library only, so that errors are reported before anything slow is imported.
"""

import difflib
import math
import types
from collections.abc import Iterable
from dataclasses import fields
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

COUNT, POSITIVE = "[1, inf)", "(0, inf)"


def check(config: Any, **bounds: str) -> None:
    """Refuse a config with a value of the wrong type or out of bounds.

    Args:
      config: a dataclass whose fields are integers, floats, strings, or tuples of these; no tuple
        may be empty.
      bounds: field -> interval of its numbers, such as "[0, 1)"; by default integers must be at
        least 1, and floats positive and finite.

    Raises:
      ValueError: a value of the wrong type or out of bounds.

    Example:
      >>> import dataclasses
      >>> from experiments.checks import check
      >>> @dataclasses.dataclass
      ... class Config:
      ...     steps: int = 10
      ...     momentum: float = 0.9
      >>> check(Config(), momentum="[0, 1)")
      >>> check(Config(momentum=1.5), momentum="[0, 1)")
      Traceback (most recent call last):
      ValueError: Expected `momentum` in [0, 1), got 1.5.
    """
    check_types(config)
    for field in fields(config):
        value = getattr(config, field.name)
        if value == ():
            raise ValueError(f"Expected at least one value in `{field.name}`, got none.")
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, int | float) and not isinstance(number, bool):
                usual = COUNT if _is_whole(type(config), field.name) else POSITIVE
                _check_number(field.name, number, bounds.get(field.name, usual))


def check_types(config: Any) -> None:
    """Refuse a dataclass with a value of the wrong type, as may be read from a file.

    Raises:
      ValueError: names the first such field.
    """
    for name, hint in get_type_hints(type(config)).items():
        value = getattr(config, name)
        if not _fits(value, hint):
            what = hint.__name__ if isinstance(hint, type) and not get_args(hint) else hint
            raise ValueError(f"Expected `{name}` of type {what}, got {value!r}.")


def check_divides(divisor: str, number: str, config: Any) -> None:
    """Refuse a config in which one field does not divide another.

    Raises:
      ValueError: the division leaves a remainder.
    """
    by, whole = getattr(config, divisor), getattr(config, number)
    if whole % by:
        raise ValueError(f"Expected `{divisor}` to divide {whole}, the `{number}`, got {by}.")


def did_you_mean(word: str, names: Iterable[str]) -> str:
    """Suggest the name that is closest to a word; empty if none is close.

    Example:
      >>> from experiments.checks import did_you_mean
      >>> did_you_mean("mnits", ["mnist", "digits"])
      ' Did you mean mnist?'
    """
    near = difflib.get_close_matches(word.lower(), list(names), n=1)
    return f" Did you mean {near[0]}?" if near else ""


def _is_whole(kind: type, name: str) -> bool:
    hint = get_type_hints(kind)[name]
    return int in (hint, *get_args(hint))


def _check_number(name: str, number: float, interval: str) -> None:
    low, high = (float(end) for end in interval[1:-1].split(","))
    above = low <= number if interval[0] == "[" else low < number
    below = number <= high if interval[-1] == "]" else number < high
    if above and below:  # Both are False for NaN.
        return
    expected = f"in {interval}"
    if interval[0] == "[" and high == math.inf:
        expected = f"to be at least {low:g}" + " and finite" * (number == high)
    elif (low, high) == (-math.inf, math.inf):
        expected = "to be finite"
    elif interval == POSITIVE:
        expected = "to be positive and finite"
    raise ValueError(f"Expected `{name}` {expected}, got {number}.")


def _fits(value: Any, hint: Any) -> bool:
    of, arguments = get_origin(hint), get_args(hint)
    if of in (Union, types.UnionType):
        return any(_fits(value, each) for each in arguments)
    if of is Literal:
        return any(value == each and type(value) is type(each) for each in arguments)
    if of is tuple:
        if not isinstance(value, tuple):
            return False
        hints = arguments[:1] * len(value) if arguments[-1] is Ellipsis else arguments
        return len(value) == len(hints) and all(map(_fits, value, hints))
    if isinstance(value, bool):  # In Python, bool is a subclass of int.
        return hint is bool
    return isinstance(value, (int, float) if hint is float else hint)
