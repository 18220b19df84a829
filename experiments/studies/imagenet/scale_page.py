"""The page on the cost of a training step on many chips: `docs/results/imagenet/scale.md`."""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

from experiments.studies.imagenet.results import LABELS

# Hz, from 197 TFLOP/s (Google's TPU v5e page): each of four 128 x 128 matrix units does
# two operations per multiply-add.
CLOCKS = {"v5e": 1.5e9}
NAMES = {"v5e": "TPU v5e", "h100": "NVIDIA H100"}
BATCH_SIZES, CHIPS = (32, 64, 128, 256), (1, 8, 64, 256)
ROOM = {"v5e": 16e9, "h100": 80e9}

PROGRAM_COLUMNS = (
    "images per chip", "chips", "arguments, MB", "temporary, MB", "output, MB", "total, MB",
    "collectives", "collectives, MB", "million cycles", "ms",
)  # fmt: skip
IMAGE_COLUMNS = (
    "images per chip", "chips", "hosts", "images/s per chip", "per host", "total",
    "cores per host", "total",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Row:
    """A compiled step. Sizes are bytes on one device; None is unknown."""

    machine: str
    chips: int
    hosts: int
    batch_size: int
    variant: str
    statistics: str
    remat: bool
    versions: dict
    """versions of JAX and the compiler"""
    compile_seconds: float = 0.0
    arguments: int | None = None
    temporary: int | None = None
    output: int | None = None
    aliased: int | None = None
    """part of the output that reuses the memory of arguments"""
    collectives: dict = dataclasses.field(default_factory=dict)
    """name -> number of collectives, and bytes that a device sends into them"""
    in_other_branches: int = 0
    """number of collectives in branches that rarely run"""
    bytes: int | None = None
    """bytes read and written"""
    cycles: int | None = None
    no_room: str = ""
    """the compiler's message if the step does not fit into memory"""

    @property
    def target(self) -> str:
        """Return the kind of machine."""
        return self.machine.partition(":")[0]

    @property
    def seconds(self) -> float | None:
        """Return the estimated time of a step: cycles at the chip's clock rate."""
        clock = CLOCKS.get(self.target)
        return self.cycles / clock if self.cycles and clock else None

    @property
    def rate(self) -> float | None:
        """Return the estimated number of images per second on one device."""
        return self.batch_size / self.seconds if self.seconds else None

    @property
    def memory(self) -> int | None:
        """Return the total memory that a device needs."""
        if self.arguments is None or self.temporary is None or self.output is None:
            return None
        return self.arguments + self.temporary + self.output - (self.aliased or 0)

    @property
    def setting(self) -> tuple[str, str, str, bool]:
        """Return the values that the rows of one table share."""
        return self.target, self.variant, self.statistics, self.remat


class Loader(NamedTuple):
    """Images per second that one core reads: median, lowest and highest of several rounds."""

    rate: float
    lowest: float
    highest: float
    file_bytes: int
    cpu: str
    cores: int


class Kept(NamedTuple):
    """All saved results: rows by name, and how fast images are read here."""

    rows: dict[str, Row]
    loader: Loader | None


def summary(row: Row) -> str:
    """Summarize one row in a few lines."""
    title = f"{row.machine}, {row.chips} x {row.batch_size} images, {row.variant}"
    if row.no_room:
        return f"{title}: does not fit. {row.no_room}"
    lines = [
        f"{title}, statistics: {row.statistics}{', remat' * row.remat} "
        f"(compiled in {row.compile_seconds:.0f} s)",
        f"  memory per chip: arguments {_mega(row.arguments)}, temporary {_mega(row.temporary)}, "
        f"output {_mega(row.output)}, of which {_mega(row.aliased)} reuse that of the arguments",
    ]
    for name, (count, size) in row.collectives.items():
        lines.append(f"  {name}: {count}, {_mega(size)}")
    if not row.collectives:
        lines.append("  no collectives")
    if row.in_other_branches:
        lines.append(f"  in branches that rarely run: {row.in_other_branches} more collectives")
    if row.seconds is None or row.rate is None or row.cycles is None:
        return "\n".join(lines)
    clock = CLOCKS[row.target] / 1e9
    lines += [
        f"  cycles, as XLA estimates them: {row.cycles / 1e6:.1f} million, at {clock:g} GHz "
        f"{1e3 * row.seconds:.1f} ms. Not a measurement, and without collectives.",
        f"  the input pipeline must deliver {row.rate:,.0f} images/s per chip, "
        f"{row.rate * row.chips / row.hosts:,.0f} to each of {row.hosts} hosts, "
        f"{row.rate * row.chips:,.0f} in total",
    ]
    return "\n".join(lines)


def page(kept: Kept) -> str:
    """Return the page as Markdown."""
    parts = [
        "# A step of the ImageNet study on many chips",
        "XLA compiled the training step of the preset `imagenet` (224 x 224 images, bfloat16 with "
        "float32 weights and statistics, one program per device by `shard_map`) for machines that "
        "are not here: `python -m experiments imagenet --compile v5e:16x16 --batch-sizes 32 128` "
        "and similar commands. **Nothing was run on them.** Memory and collectives are those of "
        "the compiled programs. Cycles are XLA's own estimate, and milliseconds are these cycles "
        "at the chip's clock rate. They are not measurements, and do not include the time of "
        "collectives. Blank cells were not compiled.",
    ]
    for setting in dict.fromkeys(row.setting for row in kept.rows.values()):
        rows = [row for row in kept.rows.values() if row.setting == setting]
        parts += _section(rows, kept.loader)
    if kept.loader:
        parts += _reading(kept.loader)
    return "\n\n".join(parts) + "\n"


def _section(rows: list[Row], loader: Loader | None) -> list[str]:
    """Return the tables of one setting: every batch size with every number of chips."""
    first = rows[0]
    found = {(row.batch_size, row.chips): row for row in rows}
    cells = sorted({*itertools.product(BATCH_SIZES, CHIPS), *found})
    programs = [
        [f"{batch_size}", f"{chips}", *_program(found.get((batch_size, chips)))]
        for batch_size, chips in cells
    ]
    versions = sorted(
        {f"{name} {version}" for row in rows for name, version in row.versions.items()}
    )
    of = {"device": "each device", "global": "all devices"}.get(
        first.statistics, f"groups of {first.statistics}"
    )
    title = f"## {NAMES[first.target]}: {LABELS[first.variant]}, statistics of {of}"
    title += ", gradient checkpointing" * first.remat
    parts = [
        title,
        f"Compiled: {len(found)} of {len(cells)} cells ({', '.join(versions)}). Memory and "
        f"collectives are per chip; a chip has {ROOM[first.target] / 1e9:.0f} GB. The output "
        "reuses the memory of the arguments.",
        _table(PROGRAM_COLUMNS, programs),
    ]
    if first.target not in CLOCKS:
        return [*parts, "XLA does not estimate cycles for a GPU that is not there."]
    images = [
        [f"{batch_size}", f"{chips}", *_images(found[batch_size, chips], loader)]
        for batch_size, chips in sorted(found)
        if found[batch_size, chips].rate
    ]
    if not images:
        return parts
    return [
        *parts,
        "Images per second that the input pipeline must deliver if a step takes no longer than "
        "that. A host has up to 4 chips, as in libtpu's topologies; a host with 8 needs twice as "
        "many images. The number of cores assumes the rate of a core here, see below.",
        _table(IMAGE_COLUMNS, images),
    ]


def _program(row: Row | None) -> list[str]:
    if row is None or row.no_room:
        return ["", "does not fit" if row else "", *[""] * 6]
    counts = ", ".join(f"{count} {name}" for name, (count, _) in row.collectives.items())
    size = sum(size for _, size in row.collectives.values())
    return [
        *(_mega(each, "") for each in (row.arguments, row.temporary, row.output, row.memory)),
        counts or "none",
        _mega(size, ""),
        "" if row.cycles is None else f"{row.cycles / 1e6:.1f}",
        "" if row.seconds is None else f"{1e3 * row.seconds:.1f}",
    ]


def _images(row: Row, loader: Loader | None) -> list[str]:
    rate = row.rate or 0.0
    host, everywhere = rate * row.chips / row.hosts, rate * row.chips
    cores = [f"{math.ceil(each / loader.rate):,}" if loader else "" for each in (host, everywhere)]
    return [f"{row.hosts}", *(f"{each:,.0f}" for each in (rate, host, everywhere)), *cores]


def _reading(loader: Loader) -> list[str]:
    return [
        "## Reading images",
        f"One core reads **{loader.rate:,.0f} images/s** ({loader.lowest:,.0f} to "
        f"{loader.highest:,.0f} in several rounds, in CPU time). `data/rate.py` decodes, crops, "
        "mirrors and distorts JPEGs of 500 x 375 pixels of 1/f noise, generated for this "
        f"measurement, {loader.file_bytes / 1e3:,.0f} kB each, on {loader.cpu} with {loader.cores} "
        "cores. Other work on the machine lowers it, and other CPUs differ.",
    ]


def _mega(size: int | None, unit: str = " MB") -> str:
    return "" if size is None else f"{size / 1e6:,.1f}{unit}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format a Markdown table that reads well as plain text, without empty columns."""
    columns = [[title, *cells] for title, *cells in zip(header, *rows, strict=True) if any(cells)]
    header, *rows = zip(*columns, strict=True)
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        padded = [cell.rjust(width) for cell, width in zip(cells, widths, strict=True)]
        return f"| {' | '.join(padded)} |"

    rule = [f"{'-' * (width - 1)}:" for width in widths]
    return "\n".join([line(header), line(rule), *map(line, rows)])
