"""jbn.linen.BatchNorm against flax.linen.BatchNorm, whose place it takes."""

import dataclasses
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

import jbn
from jbn.linen import BatchNorm

# Both compute in float32 (bf16 and fp16: y rounded to 8 and 11 bits), in another order.
TOLERANCE = {"float32": 2e-5, "bfloat16": 2e-2, "float16": 2e-3, "complex64": 2e-5, "int32": 2e-5}


def sample(shape, dtype="float32", seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(1, 2, shape)
    if dtype == "complex64":
        x = x + 1j * rng.normal(0, 1, shape)
    if dtype == "int32":
        x = 5 * x
    return jnp.asarray(x, dtype)


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


def both(case):
    shape, dtype, options = CASES[case]
    theirs, ours = nn.BatchNorm(**options), BatchNorm(**options)
    x, key = sample(shape, dtype), jax.random.key(7)
    variables = [layer.init(key, x, use_running_average=True) for layer in (theirs, ours)]
    tolerance = TOLERANCE[dtype]
    if any(d == jnp.bfloat16 for d in (options.get("dtype"), options.get("param_dtype"))):
        tolerance = TOLERANCE["bfloat16"]
    return theirs, ours, x, *variables, tolerance


@pytest.mark.parametrize("case", CASES)
def test_init_makes_flaxs_variables(case):
    _, _, _, expected, got, _ = both(case)
    if case == "complex":  # Flax's mean turns complex at the first update; ours is so at once.
        expected["batch_stats"]["mean"] = expected["batch_stats"]["mean"].astype(jnp.complex64)
    chex.assert_trees_all_equal_shapes_and_dtypes(got, expected)
    chex.assert_trees_all_equal(got, expected)


@pytest.mark.parametrize("case", CASES)
def test_training_and_inference_equal_flaxs(case):
    theirs, ours, x, expected, got, tolerance = both(case)
    for step in range(3):
        x = x + jnp.asarray(step, x.dtype)
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

        return jax.grad(loss, argnums=(0, 1))(variables["params"], x)

    expected = gradients(nn.BatchNorm(use_running_average=False))
    got = gradients(BatchNorm(use_running_average=False))
    chex.assert_trees_all_close(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [bool, jnp.int32, jnp.float32])
def test_mask_equals_flaxs(dtype):
    x = sample((8, 5, 3))
    mask = (sample((8, 5, 1), seed=2) > 0).astype(dtype)
    results = []
    for layer in (nn.BatchNorm(use_running_average=False), BatchNorm(use_running_average=False)):
        variables = layer.init(jax.random.key(0), x)
        results.append(layer.apply(variables, x, mask=mask, mutable=["batch_stats"]))
    chex.assert_trees_all_close(results[1], results[0], rtol=2e-5, atol=2e-5)


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
        x = nn.Dense(4)(x)
        x = self.norm(use_running_average=not training, name="BatchNorm_0")(x)
        return nn.Dense(2)(nn.relu(x))


@pytest.mark.parametrize(
    ("writer", "reader"), [(nn.BatchNorm, BatchNorm), (BatchNorm, nn.BatchNorm)]
)
def test_checkpoint_of_one_loads_in_the_other(writer, reader):
    x = sample((16, 3))
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
    x = sample((16, 3))
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

    x = sample((4, 3))
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
        layer.init(jax.random.key(0), sample((4, 3)), use_running_average=True)
    with pytest.raises(ValueError, match="use_running_average"):
        BatchNorm().init(jax.random.key(0), sample((4, 3)))


def test_schedule_keeps_its_count_beside_the_statistics():
    layer = BatchNorm(momentum=jbn.cumulative, unbiased=True)
    batches = sample((5, 8, 3))
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
    batches = sample((5, 8, 3))
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
    variables = layer.init(jax.random.key(0), x[0])
    y, moved = whole.apply(variables, x, mutable=["batch_stats"])

    def apply(x):
        return layer.apply(variables, x, mutable=["batch_stats"])

    mesh = Mesh(np.array(jax.devices()), "batch")
    rows, copies = PartitionSpec("batch"), PartitionSpec()
    sharded = jax.jit(
        jax.shard_map(apply, mesh=mesh, in_specs=rows, out_specs=(rows, copies), check_vma=False)
    )
    chex.assert_trees_all_close(sharded(x), (y, moved), rtol=2e-5, atol=2e-5)
    mapped_y, mapped = jax.vmap(apply, axis_name="batch")(x)
    chex.assert_trees_all_close(mapped_y, y, rtol=2e-5, atol=2e-5)
    first = jax.tree.map(lambda leaf: leaf[0], mapped)
    chex.assert_trees_all_close(first, moved, rtol=2e-5, atol=2e-5)


def test_groups_pool_apart():
    x = sample((8, 4, 3))
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
    chex.assert_trees_all_close(y, jnp.concatenate(expected), rtol=2e-5, atol=2e-5)


def test_frozen_statistics_are_an_error_in_training_as_in_flax():
    layer = BatchNorm(use_running_average=False)
    variables = layer.init(jax.random.key(0), sample((4, 3)))
    with pytest.raises(flax.errors.ModifyScopeVariableError):
        layer.apply(variables, sample((4, 3)))


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
    masked = {"mask": jnp.zeros((8, 1), bool), "mutable": ["batch_stats"]}
    y, moved = layer.apply(variables, sample((8, 3)), **masked)
    assert np.isfinite(y).all()
    chex.assert_trees_all_equal(moved["batch_stats"], variables["batch_stats"])


def test_sync_weighs_devices_by_their_counts():
    x = sample((8, 4, 3))
    mask = jnp.arange(4)[None, :, None] < jnp.array([0, 1, 2, 3, 4, 4, 1, 0])[:, None, None]
    layer = BatchNorm(use_running_average=False, axis_name="batch", momentum=0.0)
    variables = layer.init(jax.random.key(0), x[0])

    def apply(x, mask):
        return layer.apply(variables, x, mask=mask, mutable=["batch_stats"])

    y, moved = jax.vmap(apply, axis_name="batch")(x, mask)
    mean, var, _ = oracles.moments(x, mask=mask)
    np.testing.assert_allclose(moved["batch_stats"]["mean"][3], mean, rtol=1e-5)
    np.testing.assert_allclose(moved["batch_stats"]["var"][3], var, rtol=1e-5)
    oracles.assert_close(y, oracles.normalize(x, mean, var), 1e-5)


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


def train(model, variables, x, **options):
    """Return loss, gradient and what moved."""

    def loss(params):
        (y, _), moved = model.apply(
            {**variables, "params": params}, x, mutable=["batch_stats"], **options
        )
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
    variables = stack.init(jax.random.key(0), x)
    assert counts(variables) == [[0] * 4]
    _, _, got = train(stack, variables, x)
    assert counts(got) == [[1] * 4]
    y = x
    for i in range(4):
        one = jax.tree.map(lambda leaf, i=i: leaf[i], variables)
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
    variables = ensemble.init(jax.random.key(0), x)
    _, _, got = train(ensemble, variables, x)
    assert counts(got) == [[1] * 4]
    one = jax.tree.map(lambda leaf: leaf[2], variables)
    _, _, want = train(Block(), one, x)
    part = jax.tree.map(lambda leaf: leaf[2], got)
    chex.assert_trees_all_close(part, want, rtol=2e-5, atol=2e-5)


def test_vmap_over_shards_pools_them_and_moves_once():
    x = sample((4, 8, 3))
    shards = nn.vmap(
        Block,
        variable_axes={"params": None, "batch_stats": None},
        split_rngs={"params": False},
        axis_name="batch",
    )(axis_name="batch")
    variables = Block().init(jax.random.key(0), x[0])
    want = train(Block(), variables, x)
    got = train(shards, variables, x)
    chex.assert_trees_all_close(got, want, rtol=1e-4, atol=1e-4)
    assert counts(got[2]) == [1]
