"""The cost of a training step on machines that are not here, as compiled for them by XLA.

Memory and collectives are those of the compiled program. Cycles are XLA's estimate for its kernels
on a TPU, and milliseconds are these cycles at the chip's clock rate: an estimate, not a
measurement. Collectives and asynchronous copies have no cycles and are not included. The estimate
gives the number of images that must be read per second; how many one core reads is measured here.

Each row is saved as soon as it is compiled. Rows that are already saved are not compiled again.
"""

import dataclasses
import json
import os
import statistics
import tempfile
import time
from collections import defaultdict
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import tyro
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from experiments import checks, environment, run_dir
from experiments.run_dir import Damaged
from experiments.studies.imagenet import network as networks
from experiments.studies.imagenet import scale_page
from experiments.studies.imagenet.config import PRESETS, Config, Name
from experiments.studies.imagenet.data import photographs
from experiments.studies.imagenet.data.folder import FolderSource
from experiments.studies.imagenet.data.rate import measure_rate
from experiments.studies.imagenet.network import Batch
from experiments.studies.imagenet.scale_page import Kept, Loader, Row
from experiments.studies.imagenet.variants import Variant
from experiments.training import machines, traffic

CLASSES = 1_000
RESULTS = Path(__file__).parents[3] / "docs" / "results" / "imagenet"
NAME = "scale"
PHOTOGRAPHS, ROUNDS = 64, 5


@dataclasses.dataclass(frozen=True)
class Options:
    """Compile the training step of the preset imagenet for a machine that need not be here."""

    compile: Annotated[str, tyro.conf.arg(metavar="MACHINE")]
    """v5e:2x2 to v5e:16x16, chips; h100:1x8, hosts and cards of each"""
    batch_sizes: tuple[int, ...] = (32,)
    """images in a batch of one device"""
    variant: Name = "bn_x5"
    """a row of Fig. 3"""
    statistics: str = "device"
    """devices that share batch statistics: device, global, or the number of devices in a group"""
    remat: bool = False
    """keep only the outputs of blocks, and recompute the rest for the gradient"""
    output: Annotated[Path, tyro.conf.arg(metavar="DIR")] = RESULTS
    """folder for scale.json and scale.md, and the rows that are kept"""

    def check(self) -> None:
        """Refuse options that cannot be compiled.

        Raises:
          ValueError: the message says in one line what is wrong.
        """
        machines.split_name(self.compile)
        if self.variant == "all":
            raise ValueError("Expected a single --variant, got all.")
        for batch_size in self.batch_sizes:
            self.config(batch_size)
        if not self.batch_sizes:
            raise ValueError("Expected at least one value for --batch-sizes, got none.")

    def config(self, batch_size: int) -> Config:
        """Return the config of a run.

        Raises:
          ValueError: invalid statistics, or a batch of one image.
        """
        return dataclasses.replace(
            PRESETS["imagenet"],
            variant=self.variant,
            batch_size=batch_size,
            statistics=self.statistics,
            remat=self.remat,
        )


def main(options: Options) -> Kept:
    """Compile, print and save the rows that are not saved yet; return all saved results.

    Raises:
      ValueError: invalid options; the compiler is not installed, or does not know the machine.
      OSError: results cannot be written.
    """
    options.check()
    devices = machines.devices_named(options.compile)
    kept = read(options.output)
    for batch_size in options.batch_sizes:
        config = options.config(batch_size)
        networks.make_mesh(devices, config.statistics)  # Refuses invalid groups.
        key = f"{options.compile}, {batch_size}, {config.variant}, {config.statistics}"
        key += ", remat" * config.remat
        if key in kept.rows:
            print(f"{key}: kept in {options.output}", flush=True)
        else:
            row = measure(config, options.compile, devices)
            kept = read(options.output)  # Another process may have added rows meanwhile.
            kept.rows[key] = row
            write(options.output, kept)
        print(scale_page.summary(kept.rows[key]), flush=True)
    if kept.loader is None:
        kept = kept._replace(loader=measure_loader(options.config(options.batch_sizes[0])))
        write(options.output, kept)
    print(f"\n{scale_page.page(kept)}\nwritten: {options.output / NAME}.json, .md")
    return kept


# ---- One row -------------------------------------------------------------------------------------


def measure(config: Config, machine: str, devices: list[Any], classes: int = CLASSES) -> Row:
    """Compile a step for some devices, and return its memory, collectives and cycles.

    Args:
      config: config with a single variant.
      machine: name of the machine.
      devices: its devices, which may be virtual or those of a topology.
      classes: number of classes.
    """
    began = time.monotonic()
    (variant,) = config.variants().values()
    row = Row(
        machine=machine,
        chips=len(devices),
        hosts=len({device.process_index for device in devices}),
        batch_size=config.batch_size,
        variant=config.variant,
        statistics=config.statistics,
        remat=config.remat,
        versions=_versions(),
    )
    try:
        compiled = lower(config, variant, devices, classes).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        seconds = time.monotonic() - began
        return dataclasses.replace(row, compile_seconds=seconds, no_room=_first_line(error))
    memory = compiled.memory_analysis()
    found = traffic.traffic(compiled.as_text(), loops_once=True)
    collectives: dict[str, list[int]] = defaultdict(list)
    for name, size in found.collectives:
        collectives[name].append(size)
    return dataclasses.replace(
        row,
        compile_seconds=time.monotonic() - began,
        arguments=memory.argument_size_in_bytes,
        temporary=memory.temp_size_in_bytes,
        output=memory.output_size_in_bytes,
        aliased=memory.alias_size_in_bytes,
        collectives={name: (len(sizes), sum(sizes)) for name, sizes in collectives.items()},
        in_other_branches=len(found.in_other_branches),
        bytes=found.bytes,
        cycles=found.cycles or None,
    )


def lower(config: Config, variant: Variant, devices: list[Any], classes: int) -> Any:
    """Lower the training step for some devices, with one program per device (shard_map)."""
    mesh = networks.make_mesh(devices, config.statistics)
    made: Any = networks.make_step(config, variant, classes, mesh, "shard_map")
    step, spread = made
    model = networks.make_model(config, variant, classes)
    optimizer = networks.make_optimizer(config, variant, mesh.size)

    def begin() -> tuple[Any, Any]:
        key = jax.random.key(0)
        return networks.init(model, optimizer, key, config.size), key

    def placed(tree: Any, sharding: NamedSharding) -> Any:
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree
        )

    images = config.batch_size * mesh.size
    shape = (images, config.size, config.size, 3)
    image: Any = jax.ShapeDtypeStruct(shape, jnp.uint8)
    label: Any = jax.ShapeDtypeStruct((images,), jnp.int32)
    network, key = placed(jax.eval_shape(begin), NamedSharding(mesh, P()))
    return step.lower(network, placed(Batch(image, label), spread), key)


def _versions() -> dict[str, str]:
    found = {}
    for package in ("jax", "libtpu", "jax-cuda12-plugin"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _first_line(error: Exception) -> str:
    """Return the line of the error that says how much memory the step needs."""
    lines = str(error).splitlines()
    return next((line for line in lines if "Used" in line), lines[0]).strip()


# ---- Reading images ------------------------------------------------------------------------------


def measure_loader(config: Config, seconds: float = 2.0) -> Loader:
    """Measure how many images per second of CPU time one core of this machine reads."""
    (variant,) = config.variants().values()
    with tempfile.TemporaryDirectory() as folder:
        size = photographs.make_folder(Path(folder), PHOTOGRAPHS)
        source = FolderSource(Path(folder), "train")
        rates = [
            measure_rate(
                source,
                size=config.size,
                strength=config.strength[0 if variant.distortion else 1],
                lighting=config.lighting,
                min_area=config.min_area,
                seed=seed,
                seconds=seconds,
                clock=time.process_time,
            )
            for seed in range(ROUNDS)
        ]
    machine = environment.describe()["machine"]
    return Loader(
        statistics.median(rates), min(rates), max(rates), size, machine["cpu"], os.cpu_count() or 1
    )


# ---- What is kept --------------------------------------------------------------------------------


def read(output: Path) -> Kept:
    """Read the saved results.

    Raises:
      Damaged: the file is damaged or of another version.
    """
    path = output / f"{NAME}.json"
    if not path.exists():
        return Kept({}, None)
    values = run_dir.read_json(path)
    try:
        rows = {key: _row(row) for key, row in values["rows"].items()}
        loader = None if values["loader"] is None else Loader(**values["loader"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise Damaged(
            f"{path} is damaged or from another version: {error}. Remove it to start over."
        ) from None
    return Kept(rows, loader)


def _row(values: dict[str, Any]) -> Row:
    collectives = {name: tuple(each) for name, each in values.pop("collectives").items()}
    row = Row(**values, collectives=collectives)
    checks.check_types(row)
    return row


def write(output: Path, kept: Kept) -> None:
    """Write `scale.json` and its page, each atomically."""
    output.mkdir(parents=True, exist_ok=True)
    content = {
        "rows": {key: dataclasses.asdict(row) for key, row in kept.rows.items()},
        "loader": kept.loader._asdict() if kept.loader else None,
    }
    with run_dir.replacing(output / f"{NAME}.json") as partial:
        partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    with run_dir.replacing(output / f"{NAME}.md") as partial:
        partial.write_text(scale_page.page(kept), encoding="utf-8")
