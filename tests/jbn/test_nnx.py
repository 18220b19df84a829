"""jbn.nnx.BatchNorm against flax.nnx.BatchNorm, which it replaces."""

import functools
import inspect

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from flax import nnx
from nnx_layers import LAYERS, Network, arrays, call, close, sample

import jbn
from jbn.nnx import BatchNorm

# Both compute in float32, in different orders (bf16 and fp16: y is rounded to 8 and 11 bits). If
# Flax first rounds x and the statistics to `dtype`, the error is Flax's: an |x - mean| of 10 times
# 2^-8.
TOLERANCE = {"float32": 2e-5, "bfloat16": 4e-2, "float16": 4e-3, "int32": 2e-5}


@nnx.jit
def train_and_evaluate(layers, x):
    """Call each layer in both modes; return both outputs, and the arrays after training."""
    trained = [(layer(x), arrays(layer)) for layer in layers]
    for layer in layers:
        layer.eval()
    evaluated = [layer(x) for layer in layers]
    for layer in layers:
        layer.train()
    return *zip(*trained, strict=True), evaluated


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
        chex.assert_trees_all_equal(arrays(ours), moved[1])  # Evaluation updates nothing.


@pytest.mark.parametrize("options", [{}, {"param_dtype": jnp.complex64}])
def test_complex_has_a_complex_mean(options):
    """Flax's layer drops the imaginary part of the running mean, with a FutureWarning."""
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
    """Flax's layer supports only one; sizes are given per axis, as in `jbn.init`."""
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


@pytest.mark.parametrize("layer", LAYERS)
def test_mode_is_switched_as_in_flax(layer):
    model, x = Network(layer, nnx.Rngs(0)), sample((8, 3))
    fresh = arrays(model)
    model.eval()
    assert model.norm.use_running_average is True
    model(x)
    chex.assert_trees_all_equal(arrays(model), fresh)
    model.norm(x + np.float32(1), use_running_average=False)  # The call's mode wins.
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
    x = sample((7, 17))  # A shape that nothing else is compiled for.
    layer = BatchNorm(17, rngs=nnx.Rngs(0))
    call(layer, x[:1])  # Compiles the placeholder for the missing count.
    with (
        jax.transfer_guard("disallow"),
        jax.log_compiles(),
        caplog.at_level("WARNING", logger="jax"),
    ):
        layer(x)
        layer(x)
    compiled = [r.getMessage() for r in caplog.records if r.getMessage().startswith("Compiling")]
    assert [name for name in compiled if "operation" not in name and "_no_count" not in name] == []
