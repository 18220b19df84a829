"""`imagenet --compile`: the cost of a step is counted, stored and reported; option errors."""

import dataclasses
import importlib.util
import json

import jax
import pytest

from experiments.__main__ import main
from experiments.studies.imagenet import network as networks
from experiments.studies.imagenet import scale, scale_page
from experiments.studies.imagenet.config import PRESETS
from experiments.studies.imagenet.data import photographs
from experiments.studies.imagenet.scale_page import Kept, Loader, Row
from experiments.training import machines

TINY = dataclasses.replace(
    PRESETS["smoke"], variant="bn_x5", blocks=1, size=8, batch_size=4, statistics="global"
)
LOADER = Loader(200.0, 190.0, 210.0, 110_000, "a CPU", 2)
ROW = Row(
    machine="v5e:16x16",
    chips=256,
    hosts=64,
    batch_size=32,
    variant="bn_x5",
    statistics="device",
    remat=False,
    versions={"jax": "0.10"},
    arguments=300_000_000,
    temporary=900_000_000,
    output=100_000_000,
    aliased=99_000_000,
    collectives={"all-reduce": (2, 45_000_000)},
    cycles=30_000_000,
)


def test_a_step_is_compiled_for_devices_and_counted():
    row = scale.measure(TINY, "v5e:2x4", jax.devices(), classes=10)
    assert (row.chips, row.hosts, row.batch_size) == (8, 1, 4)
    model = networks.make_model(TINY, TINY.variants()["bn_x5"], 10)
    optimizer = networks.make_optimizer(TINY, TINY.variants()["bn_x5"], 8)
    network = jax.eval_shape(lambda: networks.init(model, optimizer, jax.random.key(0), TINY.size))
    sizes = {
        name: sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(part))
        for name, part in network._asdict().items()
    }
    # Uint8 images, labels and the key; each device has those of its own batch.
    batch = 4 * (8 * 8 * 3 + 4)
    assert sum(sizes.values()) + batch <= row.arguments <= sum(sizes.values()) + batch + 16
    # The gradient, the loss, and the sums of both passes of each layer.
    names = set(row.collectives)
    assert names <= {"all-reduce", "all-gather"}
    assert sum(size for _, size in row.collectives.values()) > sizes["params"]
    assert row.temporary > 0
    assert row.cycles is None  # XLA does not estimate cycles for a CPU.


def test_what_is_estimated_follows_from_cycles():
    assert ROW.seconds == pytest.approx(0.02)
    assert ROW.rate == pytest.approx(1600)
    assert ROW.memory == 1_201_000_000
    text = scale_page.summary(ROW)
    assert "30.0 million, at 1.5 GHz 20.0 ms. Not a measurement" in text
    assert "all-reduce: 2, 45.0 MB" in text
    assert "1,600 images/s per chip, 6,400 to each of 64 hosts, 409,600 in total" in text
    gpu = dataclasses.replace(ROW, machine="h100:1x8", cycles=None)
    assert (gpu.seconds, gpu.rate) == (None, None)
    assert "cycles" not in scale_page.summary(gpu)


def test_the_page_says_which_cells_were_compiled(tmp_path):
    full = dataclasses.replace(ROW, batch_size=256, no_room="Used 20G of 16G", cycles=None)
    kept = Kept({"one": ROW, "other": full}, LOADER)
    scale.write(tmp_path, kept)
    assert scale.read(tmp_path) == kept
    text = (tmp_path / "scale.md").read_text()
    assert "Compiled: 2 of 16 cells (jax 0.10)" in text
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in text.splitlines()
        if line.startswith("| ")
    ]
    assert ["32", "8", *[""] * 8] in rows
    assert ["256", "256", "", "does not fit", *[""] * 6] in rows
    assert ["32", "256", "64", "1,600", "6,400", "409,600", "32", "2,048"] in rows
    assert "**200 images/s**" in text


def test_what_is_known_of_no_row_has_no_column():
    gpu = dataclasses.replace(ROW, machine="h100:32x8", cycles=None)
    text = scale_page.page(Kept({"one": gpu}, None))
    assert "collectives, MB" in text
    assert "million cycles" not in text
    full = dataclasses.replace(ROW, no_room="Used 20G of 16G", cycles=None)
    text = scale_page.page(Kept({"one": full}, None))
    assert "does not fit" in text
    assert "images/s per chip" not in text


def test_rows_that_are_kept_stay(tmp_path, monkeypatch, capsys):
    compiled = []

    def measure(config, machine, devices):
        compiled.append(config.batch_size)
        return dataclasses.replace(ROW, batch_size=config.batch_size)

    monkeypatch.setattr(machines, "devices_named", lambda name: jax.devices())
    monkeypatch.setattr(scale, "measure", measure)
    monkeypatch.setattr(scale, "measure_loader", lambda config: LOADER)
    monkeypatch.setattr(machines, "look_for_no_device", lambda: None)
    command = ["imagenet", "--compile", "v5e:16x16", "--output", str(tmp_path), "--batch-sizes"]
    assert main([*command, "32"]) == 0
    assert main([*command, "32", "128"]) == 0
    assert compiled == [32, 128]
    rows = json.loads((tmp_path / "scale.json").read_text())["rows"]
    assert list(rows) == ["v5e:16x16, 32, bn_x5, device", "v5e:16x16, 128, bn_x5, device"]
    assert f"bn_x5, device: kept in {tmp_path}" in capsys.readouterr().out
    (tmp_path / "scale.json").write_text('{"rows": {"a": {}}, "loader": null}')
    assert main([*command, "32"]) == 1
    assert "scale.json is damaged" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--compile", "v9:2x2"], "Expected a v5e or h100 machine, such as v5e:16x16 or"),
        (["--compile", "v5e"], "Expected the shape of a machine as well, such as v5e:16x16, got"),
        (["--compile", "h100:8"], "such as h100:1x8, hosts and cards of each, got 'h100:8'"),
        (["--compile", "v5e:2x2", "--variant", "all"], "Expected a single --variant"),
        (["--compile", "v5e:2x2", "--batch-sizes", "1"], "Expected `batch_size` to be at least 2"),
        (["--compile", "v5e:2x2", "--statistics", "x"], "`statistics` to be device, global or"),
        (["--compile", "v5e:2x2", "--steps", "3"], "Expected options of imagenet, got '--steps'"),
        (["--compile", "h100:1x8"], "no module jax_cuda12_plugin. Install it with pip install"),
        (["--compile=v5e:2x2"], "no module libtpu. Install it with pip install 'jbn[tpu-compile]'"),
    ],
)
def test_messages(options, message, monkeypatch, capsys):
    monkeypatch.setattr(machines, "installed", lambda module: False)
    monkeypatch.setattr(machines, "look_for_no_device", lambda: None)
    assert main(["imagenet", *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("imagenet: Expected ")
    assert message in line


def test_photographs_are_as_large_as_those_of_imagenet(tmp_path, monkeypatch):
    monkeypatch.setattr(scale, "PHOTOGRAPHS", 2)
    monkeypatch.setattr(scale, "ROUNDS", 1)
    size = photographs.make_folder(tmp_path, 2)
    assert 90_000 < size < 130_000
    loader = scale.measure_loader(TINY, seconds=0.0)
    assert loader.file_bytes == pytest.approx(size, rel=0.05)


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
def test_a_step_is_compiled_for_a_tpu(monkeypatch):
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    row = scale.measure(TINY, "v5e:16x16", machines.devices_named("v5e:16x16"), classes=10)
    assert (row.chips, row.hosts) == (256, 64)
    assert row.cycles > 0
    assert row.collectives
    with pytest.raises(ValueError, match="that its compiler knows, got 'v5e:3x5'"):
        machines.devices_named("v5e:3x5")
