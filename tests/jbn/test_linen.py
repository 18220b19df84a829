"""jbn.linen.BatchNorm against flax.linen.BatchNorm, whose place it takes."""

import dataclasses
import functools
import inspect
import re
import subprocess
import sys

import chex
import flax.linen as nn
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import orbax.checkpoint as ocp
import pytest
from jax.sharding import Mesh, PartitionSpec

import jbn
from jbn.linen import BatchNorm
from jbn.linen._batch_norm import as_count

# Both compute in float32 (bf16 and fp16: y rounded to 8 and 11 bits), in another order.
TOLERANCE = {"float32": 2e-5, "bfloat16": 2e-2, "float16": 2e-3, "complex64": 2e-5, "int32": 2e-5}


def sample(shape, dtype="float32", seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(1, 2, shape)
    if dtype == "complex64":
        x = x + 1j * rng.normal(0, 1, shape)
    if dtype == "int32":
        x = 5 * x
    return jax.device_put(x.astype(dtype))


CASES = {
    "default": ((8, 3), "float32", {}),
    "images": ((4, 5, 6, 3), "float32", {}),
    "channels first": ((4, 3, 5, 6), "float32", {"axis": 1}),
    "two feature axes": ((6, 4, 3), "float32", {"axis": (-1, 1)}),
    "momentum and epsilon": ((8, 3), "float32", {"momentum": 0.5, "epsilon": 1e-3}),
    "momentum 0": ((8, 3), "float32", {"momentum": 0.0}),
    "no scale": ((8, 3), "float32", {"use_scale": False}),
    "no bias": ((8, 3), "float32", {"use_bias": False}),
    "neither": ((8, 3), "float32", {"use_bias": False, "use_scale": False}),
    "two-pass variance": ((8, 3), "float32", {"use_fast_variance": False}),
    "random parameters": (
        (8, 3),
        "float32",
        {"scale_init": nn.initializers.normal(1.0), "bias_init": nn.initializers.normal(1.0)},
    ),
    "half input": ((8, 3), "bfloat16", {}),
    "half input, no parameters": ((8, 3), "float16", {"use_bias": False, "use_scale": False}),
    "half input and output": ((8, 3), "bfloat16", {"dtype": jnp.bfloat16}),
    "half output": ((8, 3), "float32", {"dtype": jnp.bfloat16}),
    "float output": ((8, 3), "bfloat16", {"dtype": jnp.float32}),
    "half parameters": ((8, 3), "float32", {"param_dtype": jnp.bfloat16}),
    "all half": ((8, 3), "bfloat16", {"param_dtype": jnp.bfloat16, "dtype": jnp.bfloat16}),
    "integers": ((8, 3), "int32", {}),
    "complex": ((8, 3), "complex64", {}),
}


@functools.cache
def both(case):
    shape, dtype, options = CASES[case]
    theirs, ours = nn.BatchNorm(**options), BatchNorm(**options)
    x, key = sample(shape, dtype), jax.random.key(7)
    variables = [layer.init(key, x, use_running_average=True) for layer in (theirs, ours)]
    tolerance = TOLERANCE[dtype]
    if any(d == jnp.bfloat16 for d in (options.get("dtype"), options.get("param_dtype"))):
        tolerance = TOLERANCE["bfloat16"]
    return theirs, ours, x, *variables, tolerance


@pytest.mark.lenient("promotion")
@pytest.mark.parametrize("case", CASES)
def test_init_makes_flaxs_variables(case):
    _, _, _, expected, got, _ = both(case)
    if case == "complex":  # Flax's mean turns complex at the first update; ours is so at once.
        stats = expected["batch_stats"]
        expected = with_stats(expected, mean=stats["mean"].astype(jnp.complex64))
    chex.assert_trees_all_equal_shapes_and_dtypes(got, expected)
    chex.assert_trees_all_equal(got, expected)


@pytest.mark.lenient("promotion")
@pytest.mark.parametrize("case", CASES)
def test_training_and_inference_equal_flaxs(case):
    theirs, ours, x, expected, got, tolerance = both(case)
    x = np.asarray(x)
    for step in range(3):
        x = x + np.asarray(step, x.dtype)
        y, results = [], []
        for layer, variables in ((theirs, expected), (ours, got)):
            out, moved = layer.apply(
                variables, x, use_running_average=False, mutable=["batch_stats"]
            )
            y.append(out)
            results.append({**variables, **moved})
        expected, got = results
        assert y[1].dtype == y[0].dtype
        chex.assert_trees_all_close(y[1], y[0], rtol=tolerance, atol=tolerance)
        chex.assert_trees_all_close(got, expected, rtol=tolerance, atol=tolerance)
    y_expected = theirs.apply(expected, x, use_running_average=True)
    y_got = ours.apply(got, x, use_running_average=True)
    assert y_got.dtype == y_expected.dtype
    chex.assert_trees_all_close(y_got, y_expected, rtol=tolerance, atol=tolerance)


def test_gradients_equal_flaxs():
    x, target = sample((8, 3)), sample((8, 3), seed=1)

    def gradients(layer):
        variables = layer.init(jax.random.key(0), x)

        def loss(params, x):
            y, _ = layer.apply({**variables, "params": params}, x, mutable=["batch_stats"])
            return jnp.sum((y - target) ** 3)

        return jax.jit(jax.grad(loss, argnums=(0, 1)))(variables["params"], x)

    expected = gradients(nn.BatchNorm(use_running_average=False))
    got = gradients(BatchNorm(use_running_average=False))
    chex.assert_trees_all_close(got, expected, rtol=1e-4, atol=1e-4)


def test_mask_equals_flaxs():
    x, mask = sample((8, 5, 3)), np.asarray(sample((8, 5, 1), seed=2)) > 0
    masks = [mask.astype(dtype) for dtype in ("bool", "int32", "float32")]
    got, want = (with_each_mask(kind, x, masks) for kind in (BatchNorm, nn.BatchNorm))
    chex.assert_trees_all_close(got, want, rtol=2e-5, atol=2e-5)


def test_constructor_and_call_begin_as_flaxs():
    fields = [dataclasses.fields(kind) for kind in (BatchNorm, nn.BatchNorm)]
    ours, theirs = ([(f.name, f.default) for f in kind] for kind in fields)
    ours = [field for field in ours if field[0] != "unbiased"]
    assert ours == theirs
    calls = [inspect.signature(kind.__call__).parameters for kind in (BatchNorm, nn.BatchNorm)]
    assert [(p.name, p.kind, p.default) for p in calls[0].values()] == [
        (p.name, p.kind, p.default) for p in calls[1].values()
    ]


class Network(nn.Module):
    """Two layers, for checkpoints."""

    norm: type[nn.Module]

    @nn.compact
    def __call__(self, x, training):
        x = nn.Dense(3)(x)
        x = self.norm(use_running_average=not training, name="BatchNorm_0")(x)
        return nn.Dense(2)(nn.relu(x))


@pytest.mark.parametrize(
    ("writer", "reader"), [(nn.BatchNorm, BatchNorm), (BatchNorm, nn.BatchNorm)]
)
def test_checkpoint_of_one_loads_in_the_other(writer, reader):
    x = sample((8, 3))
    variables = Network(writer).init(jax.random.key(0), x, training=False)
    _, moved = Network(writer).apply(variables, x, training=True, mutable=["batch_stats"])
    variables = {**variables, **moved}
    blank = Network(reader).init(jax.random.key(1), x, training=False)
    restored = flax.serialization.from_bytes(blank, flax.serialization.to_bytes(variables))
    chex.assert_trees_all_equal(restored, variables)
    expected = Network(writer).apply(variables, x, training=False)
    got = Network(reader).apply(restored, x, training=False)
    chex.assert_trees_all_close(got, expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(
    ("writer", "reader"), [(nn.BatchNorm, BatchNorm), (BatchNorm, nn.BatchNorm)]
)
def test_orbax_checkpoint_of_one_restores_in_the_other(writer, reader, tmp_path):
    x = sample((8, 3))
    variables = Network(writer).init(jax.random.key(0), x, training=False)
    _, moved = Network(writer).apply(variables, x, training=True, mutable=["batch_stats"])
    variables = {**variables, **moved}
    blank = Network(reader).init(jax.random.key(1), x, training=False)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "variables", variables)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "variables", blank)
    chex.assert_trees_all_equal(restored, variables)
    for training in (False, True):  # Values are equal, and training goes on alike.
        results = [
            Network(norm).apply(tree, x, training=training, mutable=["batch_stats"])
            for norm, tree in ((writer, variables), (reader, restored))
        ]
        chex.assert_trees_all_close(*results, rtol=2e-5, atol=2e-5)


def test_automatic_name_is_flaxs():
    class Plain(nn.Module):
        norm: type[nn.Module]

        @nn.compact
        def __call__(self, x):
            return self.norm(use_running_average=True)(x)

    x = sample((8, 3))
    trees = [Plain(norm).init(jax.random.key(0), x) for norm in (BatchNorm, nn.BatchNorm)]
    assert jax.tree.structure(trees[0]) == jax.tree.structure(trees[1])


@pytest.mark.parametrize("shape", [(8, 3), (1, 3)])
def test_init_moves_nothing_and_needs_neither_axis_nor_batch(shape):
    layer = BatchNorm(use_running_average=False, axis_name="batch", momentum=jbn.cumulative)
    variables = layer.init(jax.random.key(0), sample(shape))
    expected = {"mean": jnp.zeros(3), "var": jnp.ones(3), "count": jnp.zeros((), jnp.int32)}
    chex.assert_trees_all_equal(variables["batch_stats"], expected)


def test_init_output_equals_flaxs():
    x = sample((8, 3))
    layers = (nn.BatchNorm(use_running_average=False), BatchNorm(use_running_average=False))
    y = [layer.init_with_output(jax.random.key(0), x)[0] for layer in layers]
    chex.assert_trees_all_close(y[1], y[0], rtol=2e-5, atol=2e-5)


def test_batch_of_one_in_training_is_an_error():
    layer = BatchNorm(use_running_average=False)
    variables = layer.init(jax.random.key(0), sample((1, 3)))
    with pytest.raises(ValueError, match="more than one value per feature"):
        layer.apply(variables, sample((1, 3)), mutable=["batch_stats"])


def test_mode_is_given_once():
    layer = BatchNorm(use_running_average=False)
    with pytest.raises(ValueError, match="use_running_average"):
        layer.init(jax.random.key(0), sample((8, 3)), use_running_average=True)
    with pytest.raises(ValueError, match="use_running_average"):
        BatchNorm().init(jax.random.key(0), sample((8, 3)))


def test_schedule_keeps_its_count_beside_the_statistics():
    layer = BatchNorm(momentum=jbn.cumulative, unbiased=True)
    batches = np.asarray(sample((5, 8, 3)))
    variables = layer.init(jax.random.key(0), batches[0], use_running_average=False)
    for batch in batches:
        _, moved = layer.apply(variables, batch, use_running_average=False, mutable=["batch_stats"])
        variables = {**variables, **moved}
    stats = variables["batch_stats"]
    assert int(stats["count"]) == 5
    values = np.asarray(batches, np.float64)
    np.testing.assert_allclose(stats["mean"], values.mean(1).mean(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(stats["var"], values.var(1, ddof=1).mean(0), rtol=1e-5)


def test_population_of_batch_stats_is_algorithm_2():
    layer = BatchNorm(unbiased=True)
    batches = np.asarray(sample((5, 8, 3)))
    variables = layer.init(jax.random.key(0), batches[0], use_running_average=False)

    def step(batch_stats, batch):
        moved = layer.apply(
            {**variables, "batch_stats": batch_stats},
            batch,
            use_running_average=False,
            mutable=["batch_stats"],
        )[1]
        return moved["batch_stats"]

    stats = jbn.population(step, variables["batch_stats"], batches)
    values = np.asarray(batches, np.float64)
    np.testing.assert_allclose(stats["mean"], values.mean(1).mean(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(stats["var"], values.var(1, ddof=1).mean(0), rtol=1e-5)


def test_named_axis_pools_the_devices():
    x = sample((8, 4, 3))
    layer = BatchNorm(use_running_average=False, axis_name="batch")
    whole = BatchNorm(use_running_average=False)
    variables = layer.init(jax.random.key(0), sample((4, 3)))
    y, moved = whole.apply(variables, x, mutable=["batch_stats"])

    def apply(x):
        return layer.apply(variables, x, mutable=["batch_stats"])

    mesh = Mesh(np.array(jax.devices()), "batch")
    rows, copies = PartitionSpec("batch"), PartitionSpec()
    sharded = jax.jit(
        jax.shard_map(apply, mesh=mesh, in_specs=rows, out_specs=(rows, copies), check_vma=False)
    )
    chex.assert_trees_all_close(sharded(x), (y, moved), rtol=2e-5, atol=2e-5)
    mapped_y, mapped = jax.jit(jax.vmap(apply, axis_name="batch"))(x)
    chex.assert_trees_all_close(mapped_y, y, rtol=2e-5, atol=2e-5)
    first = jax.tree.map(lambda leaf: np.asarray(leaf)[0], mapped)
    chex.assert_trees_all_close(first, moved, rtol=2e-5, atol=2e-5)


def test_groups_pool_apart():
    x = np.asarray(sample((8, 4, 3)))
    groups = [[0, 1, 2, 3], [4, 5, 6, 7]]
    layer = BatchNorm(use_running_average=False, axis_name="batch", axis_index_groups=groups)
    variables = layer.init(jax.random.key(0), x[0])
    whole = BatchNorm(use_running_average=False)
    mesh = Mesh(np.array(jax.devices()), "batch")
    rows = PartitionSpec("batch")

    def apply(x):
        return layer.apply(variables, x, mutable=["batch_stats"])[0]

    y = jax.jit(jax.shard_map(apply, mesh=mesh, in_specs=rows, out_specs=rows))(x)
    expected = [whole.apply(variables, part, mutable=["batch_stats"])[0] for part in (x[:4], x[4:])]
    chex.assert_trees_all_close(y, np.concatenate(expected), rtol=2e-5, atol=2e-5)


def test_frozen_statistics_are_an_error_in_training_as_in_flax():
    layer = BatchNorm(use_running_average=False)
    variables = layer.init(jax.random.key(0), sample((8, 3)))
    with pytest.raises(flax.errors.ModifyScopeVariableError):
        layer.apply(variables, sample((8, 3)))


def test_many_steps_are_one_trace():
    layer = BatchNorm(use_running_average=False, momentum=jbn.debiased(0.9))
    x = sample((8, 3))
    variables = layer.init(jax.random.key(0), x)

    @jax.jit
    @chex.assert_max_traces(1)
    def step(variables, x):
        _, moved = layer.apply(variables, x, mutable=["batch_stats"])
        return {**variables, **moved}

    for _ in range(3):
        moved = step(variables, x)
        chex.assert_trees_all_equal_shapes_and_dtypes(moved, variables)
        variables = moved


def test_batch_without_weight_leaves_everything_as_it_was():
    layer = BatchNorm(use_running_average=False, momentum=jbn.debiased(0.9))
    variables = layer.init(jax.random.key(0), sample((8, 3)))
    masked = {"mask": np.zeros((8, 1), bool), "mutable": ["batch_stats"]}
    y, moved = layer.apply(variables, sample((8, 3)), **masked)
    assert np.isfinite(y).all()
    chex.assert_trees_all_equal(moved["batch_stats"], variables["batch_stats"])


def test_sync_weighs_devices_by_their_counts():
    x = sample((8, 4, 3))
    mask = np.arange(4)[None, :, None] < np.array([0, 1, 2, 3, 4, 4, 1, 0])[:, None, None]
    layer = BatchNorm(use_running_average=False, axis_name="batch", momentum=0.0)
    variables = layer.init(jax.random.key(0), sample((4, 3)))

    def apply(x, mask):
        return layer.apply(variables, x, mask=mask, mutable=["batch_stats"])

    y, moved = jax.jit(jax.vmap(apply, axis_name="batch"))(x, mask)
    mean, var, _ = oracles.moments(x, mask=mask)
    stats = jax.tree.map(np.asarray, moved["batch_stats"])
    np.testing.assert_allclose(stats["mean"][3], mean, rtol=1e-5)
    np.testing.assert_allclose(stats["var"][3], var, rtol=1e-5)
    oracles.assert_close(y, oracles.normalize(x, mean, var), 1e-5)


# The count -------------------------------------------------------------------------------------


def counting(momentum=jbn.cumulative, steps=3):
    """Return a layer with a schedule, its variables after some steps, and the next batch."""
    layer, batches = BatchNorm(momentum=momentum), np.asarray(sample((steps + 1, 8, 3)))
    variables = layer.init(jax.random.key(0), batches[0], use_running_average=False)
    for x in batches[:-1]:
        variables = trained(layer, variables, x)
    return layer, variables, batches[-1]


def trained(layer, variables, x):
    moved = layer.apply(variables, x, use_running_average=False, mutable=["batch_stats"])[1]
    return {**variables, **moved}


def with_stats(variables, **stats):
    return {**variables, "batch_stats": {**variables["batch_stats"], **stats}}


def without_count(variables):
    stats = {k: v for k, v in variables["batch_stats"].items() if k != "count"}
    return {**variables, "batch_stats": stats}


def test_count_stays_int32_after_pmean():
    """Flax's ImageNet example averages batch_stats over devices, which makes the count a float."""
    layer, variables, x = counting()
    copies = jax.tree.map(lambda leaf: np.stack([leaf] * 4), variables["batch_stats"])
    mean = jax.jit(jax.vmap(lambda stats: jax.lax.pmean(stats, "d"), axis_name="d"))(copies)
    mean = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)[0]), mean)
    averaged = {**variables, "batch_stats": mean}
    assert averaged["batch_stats"]["count"].dtype == jnp.float32
    traces = []

    @jax.jit
    def step(variables, x):
        traces.append(x)
        return trained(layer, variables, x)

    want = step(variables, x)
    for _ in range(3):  # Once more for the float count; then no matter how often it is averaged.
        got = step(step(averaged, x), x)
    chex.assert_trees_all_close(got, step(want, x), rtol=1e-6)
    chex.assert_trees_all_equal_shapes_and_dtypes(got, variables)
    assert int(got["batch_stats"]["count"]) == 5
    assert len(traces) == 2
    last, _ = jax.lax.scan(lambda v, x: (trained(layer, v, x), None), got, np.stack([x, x]))
    assert int(last["batch_stats"]["count"]) == 7


def test_training_without_a_count_is_an_error_that_shows_how_to_give_it():
    layer, variables, x = counting()
    bare = without_count(variables)  # As Flax keeps them.
    message = re.escape('batch_stats["count"] = jnp.int32(n)')
    for apply in (trained, jax.jit(trained, static_argnums=0)):
        with pytest.raises(ValueError, match=message):
            apply(layer, bare, x)
    given = with_stats(bare, count=jnp.int32(3))
    chex.assert_trees_all_equal(trained(layer, given, x), trained(layer, variables, x))
    given = with_stats(bare, count=3)  # A Python number, too.
    chex.assert_trees_all_equal(trained(layer, given, x), trained(layer, variables, x))


def test_a_missing_count_is_named_by_its_path():
    class Outer(nn.Module):
        @nn.compact
        def __call__(self, x):
            return BatchNorm(momentum=jbn.cumulative, use_running_average=False, name="norm")(x)

    x = sample((8, 3))
    variables = Outer().init(jax.random.key(0), x)
    del variables["batch_stats"]["norm"]["count"]
    with pytest.raises(ValueError, match=re.escape('batch_stats["norm"]["count"]')):
        Outer().apply(variables, x, mutable=["batch_stats"])


@pytest.mark.parametrize("mutable", [False, ["batch_stats"]])
def test_evaluation_needs_no_count(mutable):
    layer, variables, x = counting()
    bare = without_count(variables)
    got = layer.apply(bare, x, use_running_average=True, mutable=mutable)
    got = got[0] if mutable else got
    chex.assert_trees_all_equal(got, layer.apply(variables, x, use_running_average=True))
    if mutable:
        moved = layer.apply(bare, x, use_running_average=True, mutable=mutable)[1]
        chex.assert_trees_all_equal(moved["batch_stats"], bare["batch_stats"])


def test_statistics_made_by_apply_have_a_count():
    """As in Flax, a layer without any statistics makes them where they are mutable."""
    layer, variables, x = counting(steps=0)
    bare = {"params": variables["params"]}
    chex.assert_trees_all_equal(trained(layer, bare, x), trained(layer, variables, x))


def test_a_count_that_is_an_average_of_several_is_an_error_where_it_is_known():
    layer, variables, x = counting()
    averaged = with_stats(variables, count=jnp.float32(0.3))
    with pytest.raises(ValueError, match=r"whole number.*0\.3"):
        trained(layer, averaged, x)
    got = jax.jit(trained, static_argnums=0)(layer, averaged, x)  # Nobody knows: rounded.
    assert int(got["batch_stats"]["count"]) == 1


def test_a_float_count_ends_where_int32_does():
    layer, variables, x = counting(jbn.debiased(0.9))
    last = with_stats(variables, count=jnp.float32(2**31))
    moved = layer.apply(last, x, use_running_average=True, mutable=["batch_stats"])[1]
    assert float(moved["batch_stats"]["count"]) == 2**31  # Evaluation leaves it.
    assert as_count(last["batch_stats"]["count"]) == 2**31 - 1


# What users pass -------------------------------------------------------------------------------


def called(x=None, training=True, **call):
    x = sample((4, 5, 3)) if x is None else x
    layer = BatchNorm()
    variables = layer.init(jax.random.key(0), sample((4, 5, 3)), use_running_average=True)
    call.setdefault("use_running_average", not training)
    return layer.apply(variables, x, mutable=["batch_stats"], **call)


@pytest.mark.parametrize("flag", [np.True_, np.False_])
def test_a_numpy_bool_is_a_mode(flag):
    chex.assert_trees_all_equal(
        called(use_running_average=flag), called(use_running_average=bool(flag))
    )


WRONG = {  # name: (call, error, words of the message)
    "mode, traced": (
        lambda: jax.jit(lambda mode: called(use_running_average=mode))(True),
        TypeError,
        ["use_running_average", "static"],
    ),
    "mode, array": (
        lambda: called(use_running_average=jnp.array(True)),
        TypeError,
        ["use_running_average", "bool("],
    ),
    "mode, str": (lambda: called(use_running_average="no"), TypeError, ["'no'", "True or False"]),
    "mode, not given": (
        lambda: called(use_running_average=None),
        ValueError,
        ["use_running_average", "constructor"],
    ),
    "x, str": (lambda: called("abc"), TypeError, ["Expected `x`", "abc"]),
    "x, dict": (lambda: called({"x": 1}), TypeError, ["Expected `x`", "dict"]),
    "mask, str": (lambda: called(mask="abc"), TypeError, ["`mask`", "abc"]),
    "mask, too long": (lambda: called(mask=np.ones((4,), bool)), ValueError, ["`mask`", "(4,)"]),
    "mask, rank": (
        lambda: called(mask=np.ones((1, 4, 5, 1), bool)),
        ValueError,
        ["`mask`", "(1, 4, 5, 1)"],
    ),
    "momentum": (
        lambda: trained(BatchNorm(momentum=1.5), *counting(steps=1)[1:]),
        ValueError,
        ["`momentum`", "1.5"],
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_calls_say_what_was_expected(name):
    call, error, words = WRONG[name]
    with pytest.raises(error) as raised:
        call()
    assert all(word in str(raised.value) for word in words), raised.value


def test_x_may_be_a_list():
    x = sample((4, 5, 3))
    chex.assert_trees_all_equal(called(x.tolist()), called(x))


def test_mask_of_lower_rank_broadcasts_as_in_flax():
    x, rng = sample((4, 5, 3)), np.random.default_rng(1)
    masks = [rng.random(shape) > 0.3 for shape in [(), (1,), (5, 1), (5, 3), (1, 5, 1)]]
    masks = [mask | ~mask.any() for mask in masks]
    got, want = (with_each_mask(kind, x, masks) for kind in (BatchNorm, nn.BatchNorm))
    chex.assert_trees_all_close(got, want, rtol=2e-5, atol=2e-5)


@functools.partial(jax.jit, static_argnums=0)
def with_each_mask(kind, x, masks):
    layer = kind(use_running_average=False)
    variables = layer.init(jax.random.key(0), x)
    return [layer.apply(variables, x, mask=mask, mutable=["batch_stats"]) for mask in masks]


@pytest.mark.parametrize(("n", "c"), [(3, 3), (4, 3)])
def test_mask_of_features_is_one_of_features_whatever_n(n, c):
    """`(C,)` lines up with the features, also where N == C: so it does in Flax."""
    x, mask = np.asarray(sample((n, c))), np.array([True, False, True])
    _, moved = called_once(x, mask)
    stats = jax.tree.map(np.asarray, moved["batch_stats"])
    np.testing.assert_allclose(stats["mean"][1], 0)
    np.testing.assert_allclose(stats["mean"][0], 0.01 * x[:, 0].mean(), rtol=1e-5)


def called_once(x, mask):
    layer = BatchNorm(use_running_average=False)
    return layer.apply(layer.init(jax.random.key(0), x), x, mask=mask, mutable=["batch_stats"])


def test_without_flax_the_error_says_what_to_install():
    code = """
import sys
sys.modules["flax"] = None
import jbn
for name in ("linen", "nnx", "models"):
    try:
        __import__("jbn." + name)
    except ImportError as error:
        assert "pip install 'jbn[flax]'" in str(error), error
    else:
        raise SystemExit(name)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


# The prompt: nothing beside one dispatch of the operation ---------------------------------------


@pytest.mark.parametrize("momentum", [0.9, jbn.debiased(0.9)])
def test_a_call_outside_jit_adds_no_program_to_the_operation(momentum, monkeypatch, caplog):
    @jax.jit
    def operation(x, params, state):
        return x, state

    ours = "jbn.linen._batch_norm.batch_norm"
    monkeypatch.setattr(ours, lambda x, p, s, **options: operation(x, p, s))
    x, mask = sample((7, 13)), jnp.ones((7, 1), bool)  # A shape that nothing was compiled for.
    layer = BatchNorm(momentum=momentum, use_running_average=False)
    variables = layer.init(jax.random.key(0), x)
    as_count(None)
    with (
        jax.transfer_guard("disallow"),
        jax.log_compiles(),
        caplog.at_level("WARNING", logger="jax"),
    ):
        caplog.clear()
        layer.apply(variables, x, mask=mask, mutable=["batch_stats"])
        layer.apply(variables, x, mask=mask, mutable=["batch_stats"])
    compiled = [r.getMessage() for r in caplog.records if r.getMessage().startswith("Compiling")]
    assert len(compiled) <= 1, compiled  # By init or here.


# Transforms: statistics move once per forward pass ----------------------------------------------


class Block(nn.Module):
    """As wide as its input; gives the carry and nothing else, as scan asks."""

    axis_name: str | None = None

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(3)(x)
        norm = BatchNorm(
            use_running_average=False, momentum=jbn.cumulative, axis_name=self.axis_name
        )
        return norm(x), None


@functools.partial(jax.jit, static_argnums=0)
def train(model, variables, x):
    """Return loss, gradient and what moved."""

    def loss(params):
        (y, _), moved = model.apply({**variables, "params": params}, x, mutable=["batch_stats"])
        return jnp.sum(y**3), moved["batch_stats"]

    (value, moved), gradient = jax.value_and_grad(loss, has_aux=True)(variables["params"])
    return value, gradient, moved


def counts(batch_stats):
    paths = jax.tree_util.tree_leaves_with_path(batch_stats)
    return [leaf.tolist() for path, leaf in paths if path[-1].key == "count"]


@pytest.mark.parametrize("transform", [nn.remat, nn.jit])
def test_statistics_move_once_under(transform):
    """Recomputing the forward pass for the gradient does not move them again."""
    x = sample((8, 3))
    # The automatic name of a lifted class tells how it was lifted; the block is the model here.
    variables = Block().init(jax.random.key(0), x)
    want = train(Block(), variables, x)
    got = train(transform(Block)(), variables, x)
    chex.assert_trees_all_close(got, want, rtol=2e-5, atol=2e-5)
    assert counts(got[2]) == [1]


def test_scan_over_layers_moves_each_once():
    x = sample((8, 3))
    axes = {"params": 0, "batch_stats": 0}
    stack = nn.scan(Block, variable_axes=axes, split_rngs={"params": True}, length=4)()
    variables = jax.jit(stack.init)(jax.random.key(0), x)
    assert counts(variables) == [[0] * 4]
    _, _, got = train(stack, variables, x)
    assert counts(got) == [[1] * 4]
    y, got = x, jax.tree.map(np.asarray, got)
    for i in range(4):
        one = jax.tree.map(lambda leaf, i=i: np.asarray(leaf)[i], variables)
        (y, _), moved = Block().apply(one, y, mutable=["batch_stats"])
        part = jax.tree.map(lambda leaf, i=i: leaf[i], got)
        chex.assert_trees_all_close(part, moved["batch_stats"], rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("remat", [False, True])
def test_scan_over_steps_moves_once_per_step(remat):
    """A shared layer whose statistics are carried: three calls, three moves."""
    x = sample((8, 3))
    kind = nn.remat(Block, prevent_cse=False) if remat else Block
    steps = nn.scan(
        kind,
        variable_broadcast="params",
        variable_carry="batch_stats",
        split_rngs={"params": False},
        length=3,
    )()
    variables = Block().init(jax.random.key(0), x)
    _, _, got = train(steps, variables, x)
    assert counts(got) == [3]
    y, stats = x, variables["batch_stats"]
    for _ in range(3):
        tree = {**variables, "batch_stats": stats}
        (y, _), moved = Block().apply(tree, y, mutable=["batch_stats"])
        stats = moved["batch_stats"]
    chex.assert_trees_all_close(got, stats, rtol=2e-5, atol=2e-5)


def test_vmap_over_an_ensemble_moves_each_once():
    x = sample((8, 3))
    ensemble = nn.vmap(
        Block,
        in_axes=None,
        axis_size=4,
        variable_axes={"params": 0, "batch_stats": 0},
        split_rngs={"params": True},
    )()
    variables = jax.jit(ensemble.init)(jax.random.key(0), x)
    _, _, got = train(ensemble, variables, x)
    assert counts(got) == [[1] * 4]
    one, part = (jax.tree.map(lambda leaf: np.asarray(leaf)[2], tree) for tree in (variables, got))
    _, _, want = train(Block(), one, x)
    chex.assert_trees_all_close(part, want, rtol=2e-5, atol=2e-5)


def test_vmap_over_shards_pools_them_and_moves_once():
    x = sample((4, 8, 3))
    shards = nn.vmap(
        Block,
        variable_axes={"params": None, "batch_stats": None},
        split_rngs={"params": False},
        axis_name="batch",
    )(axis_name="batch")
    variables = Block().init(jax.random.key(0), sample((8, 3)))
    want = train(Block(), variables, x)
    got = train(shards, variables, x)
    chex.assert_trees_all_close(got, want, rtol=1e-4, atol=1e-4)
    assert counts(got[2]) == [1]
