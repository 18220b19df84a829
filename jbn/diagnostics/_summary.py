"""A table of all diagnostics."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, TextIO

from jbn._inputs import describe


def summarize(*, file: TextIO | None = None, **reports: Mapping[str, Any]) -> None:
    """Print a table with a row for each layer and a column for each number.

    Args:
      file: file to print to; None is standard output.
      **reports: reports by column name. Each is a dict from layer to a number or a NamedTuple of
        numbers, as `train_eval_gap`, `gradient_norms` and `gradient_shift` return.

    Raises:
      TypeError: a report that is not a dict by layer, or contains anything but numbers.

    Example:
      >>> import jax.numpy as jnp
      >>> from jbn import diagnostics
      >>> norms = diagnostics.gradient_norms({"a": jnp.ones(4), "b": jnp.ones(9)})
      >>> diagnostics.summarize(gradient=norms, dead={"b": 0.25})
      layer  gradient  dead
      a             2
      b             3  0.25
    """
    columns: dict[str, dict[str, str]] = {}
    for name, report in reports.items():
        if not isinstance(report, Mapping):
            raise TypeError(
                f"Expected `{name}` to be a dict by layer, got {describe(report)}. Pass the result "
                "of gradient_norms or train_eval_gap, or {'layer': number}."
            )
        for layer, values in report.items():
            fields = values._asdict() if hasattr(values, "_asdict") else {"": values}
            for field, value in fields.items():
                header = f"{name}.{field}" if field else name
                columns.setdefault(header, {})[str(layer)] = _cell(f"{header} of {layer}", value)
    layers = dict.fromkeys(str(layer) for report in reports.values() for layer in report)
    lines = [["layer", *columns]]
    lines += [[layer, *(column.get(layer, "") for column in columns.values())] for layer in layers]
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    for first, *rest in lines:
        cells = [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
        print("  ".join([first.ljust(widths[0]), *cells]).rstrip(), file=file or sys.stdout)


def _cell(name: str, value: Any) -> str:
    try:
        return f"{float(value):.3g}"
    except (TypeError, ValueError):
        raise TypeError(
            f"Expected a number for {name}, got {describe(value)}. Reduce it to one, outside jit."
        ) from None
