"""jbn.nnx.BatchNorm against flax.nnx.BatchNorm, whose place it takes."""

import functools
import inspect
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from flax.nnx.nn import dtypes
from jax.sharding import Mesh, PartitionSpec

import jbn
from jbn.nnx import BatchNorm

LAYERS = (nnx.BatchNorm, BatchNorm)
# Both compute in float32 (bf16 and fp16: y rounded to 8 and 11 bits), in another order. Where Flax
# rounds x and the statistics to `dtype` first, it is Flax's error: |x - mean| of 10 times 2^-8.
TOLERANCE = {"float32": 2e-5, "bfloat16": 4e-2, "float16": 4e-3, "int32": 2e-5}


def sample(shape, dtype="float32", seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(1, 2, shape)
    if dtype == "complex64":
        x = x + 1j * rng.normal(0, 1, shape)
    if dtype == "int32":
        x = 5 * x
    return jax.device_put(x.astype(dtype))


def arrays(layer):
    return nnx.to_pure_dict(nnx.state(layer))


@nnx.jit
def call(layer, x, **options):
    return layer(x, **options)


@nnx.jit
def train_and_evaluate(layers, x):
    """Call each layer in both modes; return y of both, and the arrays between."""
    trained = [(layer(x), arrays(layer)) for layer in layers]
    for layer in layers:
        layer.eval()
    evaluated = [layer(x) for layer in layers]
    for layer in layers:
        layer.train()
    return *zip(*trained, strict=True), evaluated


def close(got, want, tolerance=2e-5):
    chex.assert_trees_all_close(got, want, rtol=tolerance, atol=tolerance)


CASES = {
    "default": ((8, 3), "float32", {}),
    "images": ((4, 5, 6, 3), "float32", {}),
    "channels first": ((4, 3, 5, 6), "float32", {"axis": 1}),
    "momentum and epsilon": ((8, 3), "float32", {"momentum": 0.5, "epsilon": 1e-3}),
    "no scale": ((8, 3), "float32", {"use_scale": False}),
    "no bias": ((8, 3), "float32", {"use_bias": False}),
    "neither": ((8, 3), "float32", {"use_bias": False, "use_scale": False}),
    "random parameters": (
        (8, 3),
        "float32",
        {
            "scale_init": nnx.initializers.normal(1.0),
            "bias_init": nnx.initializers.normal(1.0),
        },
    ),
    "half input": ((8, 3), "bfloat16", {}),
    "half input, no parameters": ((8, 3), "float16", {"use_bias": False, "use_scale": False}),
    "half input and output": ((8, 3), "bfloat16", {"dtype": jnp.bfloat16}),
    "half output": ((8, 3), "float32", {"dtype": jnp.float16}),
    "float output": ((8, 3), "bfloat16", {"dtype": jnp.float32}),
    "half parameters": ((8, 3), "float32", {"param_dtype": jnp.bfloat16}),
    "no promotion": ((8, 3), "bfloat16", {"promote_dtype": lambda args, dtype: args}),
    "integers": ((8, 3), "int32", {}),
}


@pytest.mark.lenient("promotion")
@pytest.mark.parametrize("case", CASES)
def test_training_and_inference_equal_flaxs(case):
    shape, dtype, options = CASES[case]
    width = shape[options.get("axis", -1)]
    theirs, ours = (layer(width, **options, rngs=nnx.Rngs(7)) for layer in LAYERS)
    chex.assert_trees_all_equal_shapes_and_dtypes(arrays(ours), arrays(theirs))
    chex.assert_trees_all_equal(arrays(ours), arrays(theirs))
    tolerance = max(TOLERANCE[dtype], TOLERANCE[jnp.dtype(options.get("dtype", dtype)).name])
    x = np.asarray(sample(shape, dtype))
    for step in range(3):
        x = x + np.asarray(step, x.dtype)
        y, moved, evaluated = train_and_evaluate([theirs, ours], x)
        for want, got in (y, evaluated):
            assert got.dtype == want.dtype
            close(got, want, tolerance)
        chex.assert_trees_all_equal_shapes_and_dtypes(arrays(ours), arrays(theirs))
        close(arrays(ours), arrays(theirs), tolerance)
        chex.assert_trees_all_equal(arrays(ours), moved[1])  # Evaluation moves nothing.


@pytest.mark.parametrize("options", [{}, {"param_dtype": jnp.complex64}])
def test_complex_has_a_complex_mean(options):
    """Flax's drops the imaginary part of the running mean, with a FutureWarning."""
    layer, x = BatchNorm(3, momentum=0.0, **options, rngs=nnx.Rngs(0)), sample((8, 3), "complex64")
    mean, var, _ = oracles.moments(x)
    y = layer(x)
    assert y.dtype == layer.mean.dtype == jnp.complex64
    assert layer.var.dtype == jnp.float32
    close((layer.mean[...], layer.var[...]), (mean.astype("complex64"), var.astype("float32")))
    layer.eval()
    want = oracles.normalize(x, mean, var).astype("complex64")
    close((y, layer(x)), (want, want))


def test_constructor_and_call_are_flaxs():
    for method in ("__init__", "__call__", "set_view"):
        ours, theirs = (
            inspect.signature(getattr(layer, method)).parameters for layer in (BatchNorm, LAYERS[0])
        )
        ours = {name: p for name, p in ours.items() if name != "unbiased"}
        assert [(p.name, p.kind, p.default) for p in ours.values()] == [
            (p.name, p.kind, p.default) for p in theirs.values()
        ]


@pytest.mark.parametrize("options", [{}, {"use_scale": False}, {"use_bias": False}])
def test_layers_made_afterwards_get_flaxs_keys(options):
    kernels = []
    for layer in LAYERS:
        rngs = nnx.Rngs(0)
        layer(3, **options, rngs=rngs)
        kernels.append(nnx.Linear(3, 2, rngs=rngs).kernel[...])
    chex.assert_trees_all_equal(*kernels)


def test_types_of_the_variables():
    layer = BatchNorm(3, momentum=jbn.cumulative, rngs=nnx.Rngs(0))
    assert sorted(nnx.to_pure_dict(nnx.state(layer, nnx.Param))) == ["bias", "scale"]
    assert sorted(nnx.to_pure_dict(nnx.state(layer, nnx.BatchStat))) == ["count", "mean", "var"]
    bare = BatchNorm(3, use_scale=False, use_bias=False, rngs=nnx.Rngs(0))
    assert bare.scale is None
    assert bare.bias is None
    assert sorted(arrays(bare)) == ["mean", "var"]


def test_several_feature_axes():
    """Flax's layer knows one; as in `jbn.init`, one size per axis."""
    x = sample((6, 4, 3))
    layer = BatchNorm((4, 3), axis=(1, 2), momentum=0.0, rngs=nnx.Rngs(0))
    layer(x)
    mean, var, _ = oracles.moments(x, axis=(1, 2))
    close(layer.mean[...], mean)
    close(layer.var[...], var)


def gradients(layer, transform):
    model = layer(3, rngs=nnx.Rngs(0))
    target = sample((8, 3), seed=1)
    of = transform(lambda model, x: jnp.sum((model(x) - target) ** 3))
    return nnx.jit(of)(model, sample((8, 3))), model


@pytest.mark.parametrize("name", ["grad", "value_and_grad"])
def test_gradients_equal_flaxs(name):
    transform = functools.partial(getattr(nnx, name), argnums=(0, 1))
    (want, theirs), (got, ours) = (gradients(layer, transform) for layer in LAYERS)
    want, got = jax.tree.leaves(want), jax.tree.leaves(got)
    close(got, want, 1e-4)
    close(arrays(ours), arrays(theirs))


def test_mask_equals_flaxs():
    x, mask = sample((8, 5, 3)), np.asarray(sample((8, 5, 1), seed=2)) > 0
    theirs = nnx.BatchNorm(3, rngs=nnx.Rngs(0))
    want = call(theirs, x, mask=mask)
    for dtype in (bool, np.int32, np.float32):
        ours = BatchNorm(3, rngs=nnx.Rngs(0))
        close(ours(x, mask=jax.device_put(mask.astype(dtype))), want)
        close(arrays(ours), arrays(theirs))


# The mode --------------------------------------------------------------------------------------


class Network(nnx.Module):
    """Two layers with one between."""

    def __init__(self, norm, rngs, **options):
        self.dense = nnx.Linear(3, 3, rngs=rngs)
        self.norm = norm(3, rngs=rngs, **options)
        self.output = nnx.Linear(3, 2, rngs=rngs)

    def __call__(self, x):
        return self.output(nnx.relu(self.norm(self.dense(x))))


@pytest.mark.parametrize("layer", LAYERS)
def test_mode_is_switched_as_in_flax(layer):
    model, x = Network(layer, nnx.Rngs(0)), sample((8, 3))
    fresh = arrays(model)
    model.eval()
    assert model.norm.use_running_average is True
    model(x)
    chex.assert_trees_all_equal(arrays(model), fresh)
    model.norm(x + np.float32(1), use_running_average=False)  # The call overrules.
    moved = arrays(model)
    assert not np.array_equal(moved["norm"]["mean"], fresh["norm"]["mean"])
    model.train()
    assert model.norm.use_running_average is False
    model.set_attributes(use_running_average=True)
    model(x)
    chex.assert_trees_all_equal(arrays(model), moved)
    view = nnx.view(model, use_running_average=False)
    view(x)  # It shares the variables, not the mode.
    assert model.norm.use_running_average is True
    assert not np.array_equal(arrays(model)["norm"]["mean"], moved["norm"]["mean"])


@pytest.mark.parametrize("layer", LAYERS)
def test_mode_must_be_given(layer):
    norm = layer(3, use_running_average=None, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="use_running_average"):
        norm(sample((8, 3)))
    norm(sample((8, 3)), use_running_average=False)


@pytest.mark.parametrize("mode", [np.True_, np.False_])
def test_a_numpy_bool_is_a_mode(mode):
    results = [
        BatchNorm(3, rngs=nnx.Rngs(0))(sample((8, 3)), use_running_average=kind(mode))
        for kind in (bool, np.bool_)
    ]
    chex.assert_trees_all_equal(*results)


def test_wrong_modes_and_inputs_say_what_was_expected():
    layer = BatchNorm(3, rngs=nnx.Rngs(0))
    apply = nnx.jit(lambda layer, mode: layer(sample((8, 3)), use_running_average=mode))
    with pytest.raises(TypeError, match=r"use_running_average.*static"):
        apply(layer, True)
    with pytest.raises(TypeError, match=r"use_running_average.*'no'"):
        layer(sample((8, 3)), use_running_average="no")
    with pytest.raises(TypeError, match="Expected `x` to be an array, got a dict"):
        layer({})
    chex.assert_trees_all_equal(layer(sample((8, 3)).tolist()), layer(sample((8, 3))))


def test_mask_of_lower_rank_broadcasts_as_in_flax():
    x, mask = sample((8, 5, 3)), np.array([1, 1, 0, 1, 0], bool)[:, None]
    theirs, ours = (layer(3, rngs=nnx.Rngs(0)) for layer in LAYERS)
    close(ours(x, mask=mask), call(theirs, x, mask=mask))
    close(arrays(ours), arrays(theirs))


def test_a_call_outside_jit_adds_no_program_to_the_operation(monkeypatch, caplog):
    @jax.jit
    def operation(x, params, state):
        return x, state

    monkeypatch.setattr("jbn.nnx.batch_norm", lambda x, p, s, **options: operation(x, p, s))
    x = sample((7, 17))  # A shape that nothing was compiled for.
    layer = BatchNorm(17, rngs=nnx.Rngs(0))
    call(layer, x[:1])  # Compiles the count that the layer does without.
    with (
        jax.transfer_guard("disallow"),
        jax.log_compiles(),
        caplog.at_level("WARNING", logger="jax"),
    ):
        layer(x)
        layer(x)
    compiled = [r.getMessage() for r in caplog.records if r.getMessage().startswith("Compiling")]
    assert [name for name in compiled if "operation" not in name and "_no_count" not in name] == []


# Beyond Flax -----------------------------------------------------------------------------------


def test_schedule_keeps_its_count_beside_the_statistics():
    layer = BatchNorm(3, momentum=jbn.cumulative, unbiased=True, rngs=nnx.Rngs(0))
    batches = np.asarray(sample((5, 8, 3)))
    for batch in batches:
        layer(batch)
    assert int(layer.count[...]) == 5
    values = oracles.exact(batches)
    oracles.assert_close(layer.mean[...], values.mean((0, 1)), 5e-6)
    oracles.assert_close(layer.var[...], values.var(1, ddof=1).mean(0), 5e-6)


def test_count_stays_int32_after_pmean():
    layer = BatchNorm(3, momentum=jbn.cumulative, rngs=nnx.Rngs(0))
    batches = np.asarray(sample((4, 8, 3)))
    for x in batches[:3]:
        layer(x)
    layer.count.set_value(jnp.float32(3))  # As lax.pmean leaves it.
    call(layer, batches[3])
    assert layer.count[...].dtype == jnp.int32
    assert int(layer.count[...]) == 4
    close(layer.mean[...], batches.mean((0, 1)))


def test_schedule_without_a_count():
    """As where the momentum is set to a schedule later: training needs one, evaluation does not."""
    layer = BatchNorm(3, rngs=nnx.Rngs(0))
    layer.momentum = jbn.cumulative
    layer(sample((8, 3)), use_running_average=True)
    with pytest.raises(ValueError, match=re.escape("layer.count = nnx.BatchStat(jnp.int32(n))")):
        layer(sample((8, 3)))
    layer.count = nnx.BatchStat(jnp.int32(1))
    layer(sample((8, 3)))
    assert int(layer.count[...]) == 2


def test_state_of_flaxs_leaves_the_count_to_be_set():
    theirs = nnx.BatchNorm(3, rngs=nnx.Rngs(0))
    theirs(sample((8, 3)))
    layer = BatchNorm(3, momentum=jbn.cumulative, rngs=nnx.Rngs(0))
    nnx.update(layer, nnx.state(theirs))
    layer.count[...] = jnp.int32(1)
    layer(sample((8, 3), seed=1))
    want = (np.asarray(theirs.mean[...]) + np.asarray(sample((8, 3), seed=1)).mean(0)) / 2
    close(layer.mean[...], want)


def test_batch_without_weight_leaves_everything_as_it_was():
    layer = BatchNorm(3, momentum=jbn.debiased(0.9), rngs=nnx.Rngs(0))
    layer(sample((8, 3)))
    before = arrays(layer)
    y = layer(sample((8, 3), seed=1), mask=np.zeros((8, 1), bool))
    assert np.isfinite(y).all()
    chex.assert_trees_all_equal(arrays(layer), before)


def test_weights_equal_repetition():
    """But for Bessel's factor, which tells eight weighed values from 28."""
    x, weights = np.asarray(sample((8, 3))), np.arange(8, dtype=np.float32)[:, None]
    weighted, plain = (BatchNorm(3, rngs=nnx.Rngs(0)) for _ in range(2))
    times = np.arange(8)
    y = np.asarray(weighted(x, mask=weights))
    close(np.repeat(y, times, 0), plain(np.repeat(x, times, 0)))
    close(arrays(weighted), arrays(plain))


def test_large_mean_is_no_nan():
    """Flax's default gives NaN here (PEERS.md)."""
    x = np.float32(1e5) + np.asarray(sample((1024, 3)))
    layer = BatchNorm(3, rngs=nnx.Rngs(0))
    oracles.assert_close(layer(x), oracles.normalize(x, *oracles.moments(x)[:2]), 4e-6)


def test_output_dtype_does_not_round_the_statistics():
    """Flax rounds the running mean to bf16: 100.3 to 100.5 (PEERS.md)."""
    layer = BatchNorm(3, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    layer.mean[...] = jnp.full(3, 100.3)
    layer.eval()
    y = layer(jnp.full((2, 3), 101.3))
    assert y.dtype == jnp.bfloat16
    close(y, jnp.ones((2, 3), jnp.bfloat16), 2.0**-8)


def test_promote_dtype_decides_ys_dtype():
    def to_half(args, dtype):
        assert dtype is None
        return dtypes.promote_dtype(args, dtype=jnp.float16)

    layer = BatchNorm(3, promote_dtype=to_half, rngs=nnx.Rngs(0))
    assert layer(sample((8, 3))).dtype == jnp.float16
    assert layer.mean.dtype == jnp.float32


def test_batch_of_one_in_training_is_an_error():
    layer = BatchNorm(3, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="more than one value per feature"):
        layer(sample((1, 3)))
    layer.eval()
    layer(sample((1, 3)))


@pytest.mark.parametrize("num_features", [0, 2.5])
def test_number_of_features_is_checked(num_features):
    with pytest.raises((ValueError, TypeError), match="num_features"):
        BatchNorm(num_features, rngs=nnx.Rngs(0))


def test_sync_weighs_devices_by_their_counts():
    x = sample((8, 4, 3))
    mask = np.arange(4)[None, :, None] < np.array([0, 1, 2, 3, 4, 4, 1, 0])[:, None, None]
    layer = BatchNorm(3, axis_name="batch", momentum=0.0, rngs=nnx.Rngs(0))
    whole = BatchNorm(3, momentum=0.0, rngs=nnx.Rngs(0))
    want = whole(x, mask=mask)
    graphdef, state = nnx.split(layer)

    def apply(x, mask):
        layer = nnx.merge(graphdef, state, copy=True)
        return layer(x[0], mask=mask[0])[None], nnx.to_pure_dict(nnx.state(layer))

    rows, copies = PartitionSpec("batch"), PartitionSpec()
    mesh = Mesh(np.array(jax.devices()), "batch")
    sharded = jax.shard_map(apply, mesh=mesh, in_specs=rows, out_specs=(rows, copies))
    y, moved = jax.jit(sharded)(x, mask)
    close(y, want)
    close(moved, arrays(whole))

    mean, var, _ = oracles.moments(x, mask=mask)
    close(moved["mean"], mean)
    close(moved["var"], var)


def test_groups_pool_apart():
    x = np.asarray(sample((4, 5, 3)))
    groups = [[0, 1], [2, 3]]
    layer = BatchNorm(3, axis_name="batch", axis_index_groups=groups, rngs=nnx.Rngs(0))
    graphdef, state = nnx.split(layer)
    apply = jax.vmap(lambda x: nnx.merge(graphdef, state, copy=True)(x), axis_name="batch")
    y = jax.jit(apply)(x)
    whole = BatchNorm(3, rngs=nnx.Rngs(0))
    close(y, np.concatenate([whole(x[:2]), whole(x[2:])]))


# Checkpoints -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("writer", "reader"), [LAYERS, LAYERS[::-1]])
def test_orbax_checkpoint_of_one_restores_in_the_other(writer, reader, tmp_path):
    x = sample((8, 3))
    written = Network(writer, nnx.Rngs(0))
    written(x)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", nnx.state(written))
        checkpointer.wait_until_finished()
        blank = Network(reader, nnx.Rngs(1))
        target = nnx.state(nnx.eval_shape(lambda: Network(reader, nnx.Rngs(1))))
        nnx.update(blank, checkpointer.restore(tmp_path / "state", target))
    chex.assert_trees_all_equal(arrays(blank), arrays(written))
    for model in (written, blank):
        model.eval()
    close(blank(x), written(x))
    for model in (written, blank):  # And training goes on alike.
        model.train()
    close(blank(x), written(x))
    close(arrays(blank), arrays(written))


def test_orbax_checkpoint_of_a_schedule_has_its_count(tmp_path):
    model = Network(BatchNorm, nnx.Rngs(0), momentum=jbn.cumulative)
    model(sample((8, 3)))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", nnx.state(model))
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "state", nnx.state(model))
    assert int(restored["norm"]["count"][...]) == 1


# Transforms: statistics move once per forward pass ----------------------------------------------


def loss(model, x):
    return jnp.mean(model(x) ** 2)


def merged(model, x):
    graphdef, params, stats, rest = nnx.split(model, nnx.Param, nnx.BatchStat, ...)

    @jax.jit
    def step(params, stats, x):
        def of(params):
            model = nnx.merge(graphdef, params, stats, rest, copy=True)
            return loss(model, x), nnx.state(model, nnx.BatchStat)

        (_, moved), _ = jax.value_and_grad(of, has_aux=True)(params)
        return moved

    nnx.update(model, step(params, stats, x))


FORWARDS = {
    "call": loss,
    "nnx.jit": nnx.jit(loss),
    "nnx.grad": nnx.grad(loss),
    "nnx.jit of nnx.value_and_grad": nnx.jit(nnx.value_and_grad(loss)),
    "nnx.remat": nnx.remat(loss),
    "nnx.grad of nnx.remat": nnx.grad(nnx.remat(loss)),
    "jax.jit of split and merge": merged,
}


@pytest.mark.parametrize("how", FORWARDS)
def test_statistics_move_once_under(how):
    plain, model = (Network(BatchNorm, nnx.Rngs(0), momentum=jbn.debiased(0.9)) for _ in range(2))
    for seed in range(2):
        x = sample((8, 3), seed=seed)
        call(plain, x)
        FORWARDS[how](model, x)
    assert int(model.norm.count[...]) == 2
    close(arrays(model), arrays(plain))


def test_scan_over_batches_moves_once_per_batch():
    batches = np.asarray(sample((5, 8, 3)))
    plain, model = (Network(BatchNorm, nnx.Rngs(0), momentum=jbn.cumulative) for _ in range(2))
    want = [plain(x) for x in batches]

    @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=(nnx.Carry, 0))
    def forward(model, x):
        return model, model(x)

    model, got = forward(model, batches)
    assert int(model.norm.count[...]) == 5
    close(got, np.stack(want))
    close(arrays(model), arrays(plain))


class Block(nnx.Module):
    """One of a stack of layers, as wide as its input."""

    def __init__(self, rngs):
        self.dense = nnx.Linear(3, 3, rngs=rngs)
        self.norm = BatchNorm(3, momentum=jbn.cumulative, rngs=rngs)

    def __call__(self, x):
        return self.norm(self.dense(x))


@nnx.jit
def stack(rngs):
    return nnx.split_rngs(splits=4)(nnx.vmap(Block))(rngs)


def test_scan_over_layers_moves_each_once():
    blocks, x = stack(nnx.Rngs(0)), sample((8, 3))
    graphdef, state = nnx.split(blocks)
    each, want = [], x
    for i in range(4):
        block = nnx.merge(graphdef, jax.tree.map(lambda leaf, i=i: np.asarray(leaf)[i], state))
        want = block(want)
        each.append(arrays(block))
    forward = nnx.scan(lambda block, x: block(x), in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
    got = forward(blocks, x)
    assert blocks.norm.count[...].tolist() == [1, 1, 1, 1]
    close(got, want)
    close(arrays(blocks), jax.tree.map(lambda *leaves: np.stack(leaves), *each))


def test_vmap_over_an_ensemble_moves_each_once():
    blocks, x = stack(nnx.Rngs(0)), sample((8, 3))
    graphdef, state = nnx.split(blocks)
    one = nnx.merge(graphdef, jax.tree.map(lambda leaf: np.asarray(leaf)[2], state))
    want = one(x)
    got = nnx.vmap(lambda block, x: block(x), in_axes=(0, None))(blocks, x)
    assert blocks.norm.count[...].tolist() == [1, 1, 1, 1]
    close(np.asarray(got)[2], want)
    close(jax.tree.map(lambda leaf: np.asarray(leaf)[2], arrays(blocks)), arrays(one))


def test_vmap_over_examples_pools_them_and_moves_once():
    x = sample((8, 3))
    plain, model = (
        BatchNorm(3, momentum=jbn.cumulative, axis_name=name, rngs=nnx.Rngs(0))
        for name in (None, "batch")
    )
    want = plain(x)
    apply = nnx.vmap(
        lambda model, x: model(x),
        in_axes=(nnx.StateAxes({...: None}), 0),
        axis_name="batch",
        graph=True,
        graph_updates=True,
    )
    close(apply(model, x), want)
    assert int(model.count[...]) == 1
    close(arrays(model), arrays(plain))


def test_many_steps_are_one_trace():
    model = Network(BatchNorm, nnx.Rngs(0), momentum=jbn.debiased(0.9))

    @nnx.jit
    @chex.assert_max_traces(1)
    def step(model, x):
        return model(x)

    for seed in range(3):
        step(model, sample((8, 3), seed=seed))
    assert int(model.norm.count[...]) == 3


def test_nothing_of_what_moved_takes_part_in_the_derivative():
    """As in Flax: the running statistics are written aside."""
    for layer in LAYERS:
        norm = layer(3, rngs=nnx.Rngs(0))

        def of_mean(x, norm=norm):
            copy = nnx.clone(norm)
            copy(x)
            return copy.mean[...].sum()

        gradient = jax.jit(jax.grad(of_mean))(sample((8, 3)))
        np.testing.assert_array_equal(gradient, np.zeros((8, 3)))
