"""jbn.linen.BatchNorm against flax.linen.BatchNorm, which it replaces."""

import dataclasses
import functools
import inspect

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
from linen_layers import sample, with_each_mask, with_stats

import jbn
from jbn.linen import BatchNorm

# Both compute in float32, in different orders (bf16 and fp16: y is rounded to 8 and 11 bits).
TOLERANCE = {"float32": 2e-5, "bfloat16": 2e-2, "float16": 2e-3, "complex64": 2e-5, "int32": 2e-5}
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
    if case == "complex":  # Flax's mean becomes complex at the first update; ours starts so.
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
    """Two dense layers with a norm between them, for checkpoints."""

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
    for training in (False, True):  # Outputs are equal, and training continues alike.
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
