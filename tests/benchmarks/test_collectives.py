"""Number and size of collectives, with a gather, and with the two sums used for many devices."""

import functools
import json
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from environments import UNCACHED, own_environment
from meshes import DEVICES, gather_limit, spread
from strategies import values

import jbn
from benchmarks import collectives
from benchmarks.collectives import Collective, count, parse, payload
from benchmarks.collectives_steps import MAPPED, MODES, Layer, lower, with_jbn

LAYERS, FEATURES = 2, 16
SIZES = {"devices": DEVICES, "layers": LAYERS, "features": FEATURES}
PAIRS = [[0, 1], [2, 3], [4, 5], [6, 7]]
LIMIT = 2 * LAYERS + 1


@pytest.fixture
def two_sums():
    with gather_limit(2):
        yield


def collectives_of(mode, make):
    return len(parse(without_branches(lower(mode, make, **SIZES).compile().as_text())))


def without_branches(hlo):
    """Leave out what runs only if mean^2 > 2 var or if squares of x are out of range."""
    lists = re.findall(r"branch_computations=\{([^}]*)\}", hlo)
    branches = {name.strip() for names in lists for name in names.split(",")}
    assert all(f"\n{name} (" in hlo for name in branches)
    blocks = hlo.split("\n\n")
    return "\n\n".join(block for block in blocks if block.split(" ", 1)[0] not in branches)


# How many --------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"masked": True, "momentum": jbn.cumulative}])
@pytest.mark.parametrize("mode", MODES)
def test_collectives_of_a_training_step(mode, options):
    """At most one per pass and layer, and one for the gradient.

    Weights and schedules add none: weights are sent with the moments, and a schedule only needs the
    count, which every device has.
    """
    assert LAYERS < collectives_of(mode, functools.partial(with_jbn, **options)) <= LIMIT


@pytest.mark.parametrize("mode", MODES)
def test_the_count_of_collectives_counts(mode):
    """Two-pass statistics cost one more all-reduce per pass than jbn may use."""

    def two_pass(features, name):
        def apply(x, params, state):
            mean = x.mean(0, keepdims=True)
            mean = jax.lax.pmean(mean, name) if name else mean
            var = ((x - mean) ** 2).mean(0, keepdims=True)
            var = jax.lax.pmean(var, name) if name else var
            return (x - mean) / jnp.sqrt(var + 1e-5) * params.scale[None] + params.bias[None], state

        return Layer(*jbn.init(features), apply)

    assert collectives_of(mode, two_pass) > LIMIT


def test_parse_finds_each_collective_once():
    text = """
      %all-reduce.5 = (f32[8,2]{1,0:T(8,128)}, /*index=1*/bf16[3]{0}) all-reduce(%a, %b), channel_id=1
      %ag = c64[8,4]{1,0} all-gather(%a), channel_id=2, dimensions={0}
      %s = (f32[8]{0}, f32[8]{0}) all-reduce-start(%a), channel_id=3
      %d = f32[8]{0} all-reduce-done(%s)
      psum.1 = pred[] all-reduce(%a), channel_id=4
      ROOT %add = f32[8]{0} add(%all-reduce.5, %d), metadata={op_name="all-reduce"}
    """  # noqa: E501
    assert parse(text) == [
        Collective("all-reduce", "f32[8,2], bf16[3]", 4 * 16 + 2 * 3),
        Collective("all-gather", "c64[8,4]", 8 * 32),
        Collective("all-reduce", "f32[8]", 4 * 8),
        Collective("all-reduce", "pred[]", 1),
    ]


def test_parse_counts_a_function_as_often_as_it_is_called():
    """Layers of equal shape are one function until XLA inlines it."""
    layer = jax.jit(lambda x: jax.lax.psum(jnp.cos(x), "d"))

    def function(x, whole):
        return x, layer(layer(whole)) + layer(jnp.stack([whole] * 2)).sum(0)

    lowered = jax.jit(spread(function, "shard_map", replicated=True)).lower(
        values(0, (8, 4)), jnp.ones(4)
    )
    found = sorted(each.bytes for each in parse(lowered.as_text(dialect="hlo")))
    assert found == [16, 16, 32]


def test_inference_needs_no_collective():
    params, state = jbn.init(4)

    def function(x, whole):
        return jbn.batch_norm(x, params, state, training=False, axis_name="d")[0], whole

    run = jax.jit(spread(function, "shard_map", replicated=True))
    assert parse(run.lower(values(0, (16, 4)), ()).compile().as_text()) == []


# How large -------------------------------------------------------------------------------------


def counted(mode, make, devices=DEVICES, collectives_of_layer=None):
    """Return the payload of the statistics of one layer, from HLO."""
    found = count(mode, make, devices=devices, layers=1, features=FEATURES)
    if collectives_of_layer:
        assert len(found.collectives) == collectives_of_layer + 1  # 1 for the gradient.
    return found.forward, found.backward


def test_the_benchmark_runs(tmp_path):
    """Runs in its own process with its own devices; formula and compiled HLO agree at 8."""
    command = ["-m", "benchmarks.collectives", "--preset", "smoke", "--output", str(tmp_path)]
    subprocess.run(
        [sys.executable, *command], check=True, env=own_environment(**UNCACHED), timeout=300
    )
    rows = json.loads((tmp_path / "collectives.json").read_text())["rows"]
    measured = {
        (row["devices"], row["way"], row["mode"]): [row["forward"], row["backward"]]
        for row in rows
        if "formula" in row and "forward" in row
    }
    for row in rows:
        key = row["devices"], row["way"], row["mode"]
        if key in measured:
            assert measured[key] == row["formula"], key
    ways = ("jbn", "jbn, masked", collectives.GROUPED)
    assert {key for key in measured if key[0] == 8} == {
        (8, way, mode) for way in ways for mode in MAPPED
    }
    assert (4096, "jbn", "shard_map") in measured
    text = (tmp_path / "collectives.md").read_text()
    assert f"{len(measured)} of {len(measured)} cases" in text


# The sums are the same `psum` in every mode, so not every mode is tested with every option.
@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("shard_map", {}),
        ("shard_map", {"masked": True}),
        ("shard_map", {"groups": PAIRS}),
        ("pmap", {"masked": True}),
        ("shard_map, unchecked", {"groups": PAIRS}),
    ],
)
def test_two_sums_of_many_devices(mode, options, two_sums):
    """One collective more than with a gather, and the payload is that of the formula."""
    want = payload(
        FEATURES,
        DEVICES,
        masked=options.get("masked", False),
        groups=len(options.get("groups", [0])),
    )
    make = functools.partial(with_jbn, **options)
    assert counted(mode, make, collectives_of_layer=3) == want


@pytest.mark.parametrize("limit", [2, 64])
def test_payload_is_of_float32_for_half_precision(limit):
    def half(features, name):
        layer = with_jbn(features, name)
        return layer._replace(apply=lambda x, *rest: layer.apply(x.astype(jnp.bfloat16), *rest))

    with gather_limit(limit):
        want = payload(FEATURES, DEVICES, dtype="bfloat16")
        assert want == payload(FEATURES, DEVICES)
        assert counted("shard_map", half) == want


@pytest.mark.parametrize(
    ("mode", "masked"), [("pmap", False), ("shard_map", True), ("shard_map, unchecked", False)]
)
def test_payload_of_two_sums_does_not_grow_with_the_devices(mode, masked, two_sums):
    make = functools.partial(with_jbn, masked=masked)
    few = counted(mode, make, devices=4, collectives_of_layer=3)
    assert few == payload(FEATURES, DEVICES, masked=masked)


def test_payload_of_a_gather_grows_with_the_devices():
    few, many = (counted("shard_map", with_jbn, devices) for devices in (4, DEVICES))
    assert many == (2 * few[0], few[1])
