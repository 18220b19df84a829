"""One-line messages about errors in a command line, with the correct way to type it.

A parser's own messages for wrong values speak in terms of the parser and of Python. This module
uses only the standard library and checks only types.
"""

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from experiments.checks import did_you_mean

KINDS = {int: "a whole number", float: "a number", bool: "True or False"}


def refuse_empty(arguments: Sequence[str]) -> None:
    """Refuse an option with an empty value, which as a path would mean the current folder.

    Raises:
      ValueError: names the option and how to type it.

    Example:
      >>> from experiments.option_errors import refuse_empty
      >>> refuse_empty(["--runs", "runs"])
      >>> refuse_empty(["--runs", ""])
      Traceback (most recent call last):
      ValueError: Expected --runs with a value, got an empty one. Type one, or leave --runs out.
    """
    for option, values in _given(arguments):
        if "" in values and option == "--resume":
            raise ValueError(
                "Expected --resume alone or with a run, got an empty name. Type --resume alone to "
                "resume the newest run with these options."
            )
        if "" in values:
            raise ValueError(
                f"Expected {option} with a value, got an empty one. Type one, or leave {option} "
                "out."
            )


def explain(arguments: Sequence[str], kind: type) -> str:
    """Say in one line which value is invalid or missing; empty if no such error is found.

    Args:
      arguments: the words after the command.
      kind: a dataclass whose fields are the options, or dataclasses of further options.

    Example:
      >>> import dataclasses
      >>> from experiments.option_errors import explain
      >>> @dataclasses.dataclass
      ... class Options:
      ...     sizes: tuple[int, ...] = (2, 8)
      >>> explain(["--sizes", "x"], Options)
      "Expected --sizes to be a whole number, got 'x'."
      >>> explain(["--sizes", "2, 8"], Options)
      "Expected each value of --sizes as a separate word, got '2, 8'. Type: --sizes 2 8"
    """
    hints = options_of(kind)
    for option, values in _given(arguments):
        if option in hints and hints[option] is not bool:  # A flag takes no value.
            if line := _too_few(option, values, hints[option]):
                return line
            # An option of one value does not own the words after that value.
            for value in values if get_origin(hints[option]) is tuple else values[:1]:
                if line := _wrong(option, value, hints[option]):
                    return line
    return ""


def lacking(arguments: Sequence[str], kind: type) -> str:
    """Say in one line which required option is missing; empty if none is.

    Args:
      arguments: the words after the command.
      kind: a dataclass whose fields are the options.

    Example:
      >>> import dataclasses
      >>> from experiments.option_errors import lacking
      >>> @dataclasses.dataclass
      ... class Options:
      ...     output: str
      ...     steps: int = 10
      >>> lacking(["--steps", "3"], Options)
      'Expected --output as well, got none.'
    """
    given = {option for option, _ in _given(arguments)}
    for field in fields(kind):
        option = f"--{field.name.replace('_', '-')}"
        if field.default is MISSING and field.default_factory is MISSING and option not in given:
            return f"Expected {option} as well, got none."
    return ""


def options_of(kind: type) -> dict[str, Any]:
    """Return the options of a dataclass and their types, nested dataclasses included."""
    options = {}
    for name, hint in get_type_hints(kind).items():
        if is_dataclass(hint) and isinstance(hint, type):
            options |= options_of(hint)
        else:
            options[f"--{name.replace('_', '-')}"] = hint
    return options


def apart(option: str, value: str) -> str:
    """Say how to type several values that were given as one word; empty for a single value.

    Example:
      >>> from experiments.option_errors import apart
      >>> apart("--only", "titanic batches")
      "Expected each value of --only as a separate word, got 'titanic batches'. Type: --only ..."
    """
    values = [each for each in re.split(r"[\s,;\[\]()]+", value) if each]
    if not values or values == [value]:
        return ""
    typed = shlex.join([option, *values])
    return f"Expected each value of {option} as a separate word, got {value!r}. Type: {typed}"


def _given(arguments: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield the given options, each with the words after it."""
    option, values = "", []
    for word in arguments:
        if word.startswith("--"):
            if option:
                yield option, values
            name, equals, value = word.partition("=")
            option, values = name.replace("_", "-"), [value] if equals else []
        else:
            values.append(word)
    if option:
        yield option, values


def _too_few(option: str, values: Sequence[str], hint: Any) -> str:
    """Say that an option has too few values; empty if it has enough."""
    kinds = get_args(hint) if get_origin(hint) is tuple else ()
    count, got = max(len(kinds), 1), len(values) or "none"
    if Ellipsis in kinds or len(values) >= count:
        return ""
    if count > 1:
        return f"Expected {option} with {count} values, got {got}."
    one, *others = (
        {hint} if get_origin(hint) is Literal else set(get_args(hint)) - {NoneType} or {hint}
    )
    expected = "" if others else _expected(one)
    return f"Expected {option} with {expected or 'a value'}, got none."


def _wrong(option: str, value: str, hint: Any) -> str:
    """Say what is wrong with one value; empty if it is valid."""
    is_one = get_origin(hint) in (None, Literal)
    kinds = {hint} if is_one else set(get_args(hint)) - {Ellipsis}
    if NoneType in kinds and value == "None":
        return ""
    kind, *others = kinds - {NoneType}
    expected = "" if others else _expected(kind)
    if not expected or _can_be(value, kind):
        return ""
    split = apart(option, value) if get_origin(hint) is tuple else ""
    hint_at = did_you_mean(value, map(str, get_args(kind)))
    return split or f"Expected {option} to be {expected}, got {value!r}.{hint_at}"


def _expected(kind: Any) -> str:
    """Describe the valid values in words; empty if any word is valid."""
    if get_origin(kind) is not Literal:
        kinds: Mapping[Any, str] = KINDS
        return kinds.get(kind, "")
    *names, last = map(str, get_args(kind))
    return f"{', '.join(names)} or {last}" if names else last


def _can_be(value: str, kind: Any) -> bool:
    if get_origin(kind) is Literal:
        return value in map(str, get_args(kind))
    if kind is bool:
        return value in ("True", "False")
    try:
        kind(value)
    except ValueError:
        return False
    return True
