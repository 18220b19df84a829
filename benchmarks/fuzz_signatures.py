"""The signatures that `benchmarks/fuzz.py` draws from: function, dtype, layout, mask, devices."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarks.exact_parts import Values
from benchmarks.modes_spreads import DEVICES


class Spread(NamedTuple):
    """A named axis: how it is mapped, over how many devices, and which share statistics."""

    transform: str
    devices: int = DEVICES
    groups: Sequence[Sequence[int]] | None = None

    def group_of(self) -> Values:
        """Return the group of each device."""
        groups = self.groups or [range(self.devices)]
        of = {device: number for number, group in enumerate(groups) for device in group}
        return np.array([of[device] for device in range(self.devices)])


UNEQUAL = ((6, 0, 3), (1, 2, 4, 7, 5))
SPREADS = {
    "vmap": Spread("vmap"),
    "vmap of groups": Spread("vmap", groups=UNEQUAL),
    "vmap of 72": Spread("vmap", 72),  # Too many to gather: the moments are summed.
    "shard_map": Spread("shard_map"),
    "shard_map of groups": Spread("shard_map", groups=UNEQUAL),
    "pmap": Spread("pmap"),
}
LAYOUTS: dict[str, tuple[tuple[int, ...], int | tuple[int, ...]]] = {
    "rows": ((48, 6), -1),
    "few rows": ((7, 5), -1),
    "images": ((5, 4, 3, 6), -1),
    "channels first": ((5, 6, 4, 3), 1),
    "two axes": ((6, 20, 3), (0, -1)),
    "first axis": ((5, 60), 0),
}


@dataclasses.dataclass(frozen=True)
class Signature:
    """Everything that one compiled program depends on.

    With a named axis, shape and axis are those of one device.
    """

    function: str
    dtype: str
    layout: str = "rows"
    mask: str | None = None
    names: str | None = None
    parts: int = 0
    """examples of a ghost batch, or groups of features"""
    method: str = ""

    @property
    def local(self) -> tuple[int, ...]:
        """Shape of x on one device."""
        return LAYOUTS[self.layout][0]

    @property
    def axis(self) -> int | tuple[int, ...]:
        """Feature axis or axes."""
        return LAYOUTS[self.layout][1]

    @property
    def spread(self) -> Spread | None:
        """Named axis."""
        return SPREADS[self.names] if self.names else None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of x on all devices, with the devices as first axis."""
        return (self.spread.devices, *self.local) if self.spread else self.local

    @property
    def feature_axes(self) -> tuple[int, ...]:
        """Feature axes of `shape`."""
        axes = self.axis if isinstance(self.axis, tuple) else (self.axis,)
        lead = len(self.shape) - len(self.local)
        return tuple(sorted(lead + a % len(self.local) for a in axes))

    @property
    def feature_shape(self) -> tuple[int, ...]:
        """Shape of the parameters."""
        return tuple(self.shape[a] for a in self.feature_axes)

    def __str__(self) -> str:
        """Describe it in one line."""
        more = [self.mask, self.names, self.method, f"parts {self.parts}" if self.parts else None]
        return " ".join([self.function, self.dtype, self.layout, *(m for m in more if m)])


ALL = ("float32", "bfloat16", "float16", "complex64")
REAL = ALL[:3]
# (function, dtypes, other fields): every combination is one compiled program.
TABLE: tuple[tuple[str, Sequence[str], dict[str, Any]], ...] = (
    ("batch_norm", ALL, {}),
    ("batch_norm", ALL, {"layout": "images", "mask": "bool"}),
    ("batch_norm", ALL, {"layout": "channels first", "mask": "weights"}),
    ("batch_norm", ALL[:2], {"layout": "two axes", "mask": "bool rows"}),
    ("batch_norm", ALL, {"names": "vmap"}),
    ("batch_norm", ALL, {"layout": "few rows", "mask": "weights", "names": "vmap"}),
    ("batch_norm", ALL[:2], {"layout": "few rows", "mask": "bool", "names": "vmap of groups"}),
    ("batch_norm", ALL[:1], {"layout": "first axis", "mask": "weights rows"}),
    ("batch_norm", ALL[:1], {"layout": "few rows", "mask": "weights", "names": "shard_map"}),
    ("batch_norm", ALL[:1], {"layout": "few rows", "names": "shard_map of groups"}),
    ("batch_norm", ALL[:1], {"layout": "few rows", "mask": "weights", "names": "vmap of 72"}),
    ("batch_norm", ALL[:1], {"layout": "few rows", "mask": "bool", "names": "pmap"}),
    ("moments", ALL, {}),
    ("moments", ALL[:2], {"layout": "images", "mask": "weights"}),
    ("moments", ALL[:2], {"layout": "few rows", "mask": "weights", "names": "vmap"}),
    ("ghost_batch_norm", ALL, {"parts": 20}),  # The last ghost batch has 8 examples.
    ("ghost_batch_norm", ALL[:2], {"layout": "images", "mask": "weights", "parts": 2}),
    ("batch_renorm", REAL, {}),
    ("batch_renorm", REAL[:2], {"layout": "channels first", "mask": "weights"}),
    ("batch_renorm", REAL[:1], {"layout": "few rows", "mask": "bool", "names": "vmap"}),
    ("layer_norm", ALL, {}),
    ("layer_norm", ALL[:2], {"layout": "two axes"}),
    ("group_norm", ALL, {"layout": "images", "parts": 2}),
    ("instance_norm", ALL, {"layout": "channels first"}),
    ("normalize", ALL, {"layout": "images"}),
    ("weight_norm", ALL, {}),
    ("whiten", REAL[:2], {"parts": 2, "method": "zca"}),
    ("whiten", REAL[:1], {"parts": 1, "method": "cholesky"}),
)
SIGNATURES = tuple(
    Signature(function, dtype, **more) for function, dtypes, more in TABLE for dtype in dtypes
)
Arrays = dict[str, Any]
STATEFUL = ("batch_norm", "ghost_batch_norm", "batch_renorm")
WITHOUT_PARAMS = ("moments", "whiten")


def differentiated(signature: Signature) -> tuple[str, ...]:
    """Name the arguments that have a gradient."""
    if signature.function == "whiten":
        return ()
    if signature.function == "weight_norm":
        return ("x", "scale")
    names = ["x"]
    if signature.mask and "weights" in signature.mask:
        names.append("mask")
    if signature.function == "moments":
        return tuple(names)
    names += ["scale", "bias", "epsilon"]
    if signature.function in STATEFUL:
        names += ["mean", "var", "momentum"]
    if signature.function == "normalize":
        names += ["mean", "var"]
    return tuple(names)
