"""Outside `jit`, a second call with other values traces and compiles nothing."""

import contextlib
import logging
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from oracles import F32_GRADIENT, assert_close
from prompt_calls import FUNCTIONS, LINEN, NNX, batch, layer_input, prompt, run, run_linen, run_nnx

import jbn
import jbn.linen
import jbn.nnx
from jbn import diagnostics

TRACE = "/jax/core/compile/jaxpr_trace_duration"
COMPILE = "/jax/core/compile/backend_compile_duration"
# Traces by JAX and Flax themselves. Outside `jit`, `shard_map` compiles every primitive, including
# a `jit`, at every call. Flax linen traces a parameter's initializer to check its shape.
SHARD_MAP = "<unnamed function>"
INITIALIZER = "<lambda>"


@contextlib.contextmanager
def counted():
    """List what is traced and compiled."""
    found = []

    def listen(event, seconds, *, fun_name=None, **more):
        if event in (TRACE, COMPILE):
            found.append(f"{event.rpartition('/')[2]} of {fun_name}")

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield found
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


@contextlib.contextmanager
def retraced():
    """List what is traced within another trace: it emits no event, but JAX's log explains it."""
    found = []
    handler = logging.Handler()
    handler.emit = lambda record: found.append(record.getMessage())
    logging.getLogger("jax").addHandler(handler)
    jax.config.update("jax_explain_cache_misses", True)
    try:
        yield found
    finally:
        jax.config.update("jax_explain_cache_misses", False)
        logging.getLogger("jax").removeHandler(handler)


PASSES = pytest.mark.parametrize("gradient", [False, True], ids=["forward", "gradient"])
# One of each kind of program, then others that share a kind.
KINDS = ("batch_norm", "batch_norm, weights", "batch_norm, vmap", "ghost_batch_norm",
         "batch_renorm", "moments", "layer_norm", "whiten")  # fmt: skip
COMPILED = (*KINDS, "batch_norm, numbers", "batch_norm, arrays", "batch_norm, cumulative",
            "batch_norm, debiased", "batch_norm, own schedule", "batch_norm, evaluation",
            "batch_norm, vmap of groups", "BatchNorm", "MLP")  # fmt: skip


def how_to_count(name, gradient):
    """Return how to call, what to count with, and parts of the lines that are always expected.

    A gradient is compiled again only if something in it is traced again. So most gradients are only
    traced, which takes a third of the time.
    """
    if not gradient or name in COMPILED:
        return prompt, counted, (SHARD_MAP, f"jaxpr_trace_duration of {INITIALIZER}")
    return jax.eval_shape, retraced, ("loss_of_call id=", "body id=")


def unexpected(found, expected):
    return [line for line in found if not any(part in line for part in expected)]


def test_what_is_counted():
    # JAX documents only the names of these events: a new function causes one of each.
    x = jnp.ones(3)
    double = jax.jit(lambda x: 2 * x)
    with counted() as found:
        double(x)
    assert [line.split()[0] for line in found] == [
        "jaxpr_trace_duration",
        "backend_compile_duration",
    ]
    with counted() as found:
        double(x)
    assert not found
    for function, expected in ((jax.jit(lambda x: 3 * x), 2), (double, 1)):
        with retraced() as found:
            jax.eval_shape(lambda x, f=function: f(x), x)
        assert len(found) == expected, found


@PASSES
@pytest.mark.parametrize("name", FUNCTIONS)
def test_function_compiles_once(name, gradient):
    first, second = batch(0), batch(1)
    how, count, expected = how_to_count(name, gradient)
    run(name, first, gradient, how)
    with count() as found:
        run(name, second, gradient, how)
    assert unexpected(found, expected) == []


@PASSES
@pytest.mark.parametrize("name", LINEN)
def test_linen_layer_compiles_once(name, gradient):
    first, x = (layer_input(name, batch(k)) for k in (0, 1))
    variables = LINEN[name]().init(jax.random.key(0), first)
    variables = {"params": {}, "batch_stats": {}, **variables}
    how, count, expected = how_to_count(name, gradient)
    run_linen(LINEN[name](), variables, first, gradient, how)
    with count() as found:
        run_linen(LINEN[name](), variables, x, gradient, how)
    assert unexpected(found, expected) == []


@PASSES
@pytest.mark.parametrize("name", NNX)
def test_nnx_layer_compiles_once(name, gradient):
    layer = jbn.nnx.BatchNorm(6, rngs=nnx.Rngs(0), **NNX[name])
    run_nnx(layer, batch(0).x, gradient)
    x = batch(1).x
    with counted() as found:
        run_nnx(layer, x, gradient)
    assert found == []


DIFFERENTIATED = {
    "batch_norm": lambda x, p, s: jbn.batch_norm(x, p, s, training=True)[0],
    "normalize": lambda x, p, s: jbn.normalize(x, s.mean, s.var, p),
    "moments": lambda x, p, s: jbn.moments(x).var,
    "layer_norm": lambda x, p, s: jbn.layer_norm(x, p),
    "weight_norm": lambda x, p, s: jbn.weight_norm(x, p.scale),
    "linen": lambda x, p, s: jbn.linen.BatchNorm(use_running_average=True).apply(
        {"params": p._asdict(), "batch_stats": s._asdict()}, x
    ),
    "nnx": lambda x, p, s: jbn.nnx.BatchNorm(46, use_running_average=True, rngs=nnx.Rngs(0))(x),
}


@pytest.mark.parametrize("name", DIFFERENTIATED)
def test_what_is_differentiated_is_not_converted(name):
    """`jnp.asarray` of an array is free, except under differentiation, where it is an operation."""
    size = 40 + list(DIFFERENTIATED).index(name)  # A size that no other test compiles for.
    x, (params, state) = jax.device_put(np.ones((3, size), np.float32)), jbn.init(size)
    DIFFERENTIATED[name](x, params, state)
    with counted() as found:
        y, pull_back = jax.vjp(lambda x: DIFFERENTIATED[name](x, params, state), x)
        pull_back(y)
    assert found
    assert [event for event in found if "convert_element_type" in event] == []


# Functions of x, parameters, one state, and the devices' states stacked. All have a size that
# nothing else is compiled for.
ALONE = {
    "batch_norm": lambda x, p, s, each: jbn.batch_norm(x, p, s, training=True),
    "normalize": lambda x, p, s, each: jbn.normalize(x, s.mean, s.var, p),
    "moments": lambda x, p, s, each: jbn.moments(x),
    "update": lambda x, p, s, each: jbn.update(s, jbn.Moments(s.mean, *s[:2]), momentum=0.9),
    "synchronize": lambda x, p, s, each: jax.vmap(
        lambda state: jbn.synchronize(state, axis_name="d"), axis_name="d"
    )(each),
    "is_synchronized": lambda x, p, s, each: jax.vmap(
        lambda state: jbn.is_synchronized(state, axis_name="d"), axis_name="d"
    )(each),
    "moving_average": lambda x, p, s, each: jbn.moving_average(x, window=2),
    "layer_norm": lambda x, p, s, each: jbn.layer_norm(x, p),
    "fold": lambda x, p, s, each: jbn.fold(x, None, p, s),
    "percentiles": lambda x, p, s, each: diagnostics.percentiles(x),
}


@pytest.mark.parametrize("name", ALONE)
def test_function_is_one_program(name):
    """Separate operations would each cost a dispatch at every call."""
    size = 60 + list(ALONE).index(name)
    x, scale, mean = (np.full(shape, 2, np.float32) for shape in ((3, size), size, (2, size)))
    states = jax.device_put(jbn.BatchNormState(mean, mean, np.ones(2, np.int32)))
    state = jax.device_put(jbn.BatchNormState(scale, scale, np.int32(1)))
    given = *jax.device_put((x, jbn.BatchNormParams(scale, scale))), state, states
    with counted() as found:
        ALONE[name](*given)
    compiled = [event for event in found if "backend_compile" in event]
    # From vmap itself, and from the check whether operations are being traced for a compiler.
    of_vmap = ("jit(broadcast_in_dim)", "jit(convert_element_type)")
    assert len([event for event in compiled if not event.endswith(of_vmap)]) == 1, compiled


@PASSES
@pytest.mark.parametrize("name", KINDS)  # Running each operation on its own is slow.
def test_disabled_jit_gives_the_same(name, gradient):
    v = batch(1)
    want = run(name, v, gradient)
    if name == "batch_norm, vmap":
        # Values are unknown under `vmap` anyway, and operations with its axis name are not cached.
        # So trace with jit disabled, and compile the whole.
        with jax.disable_jit():
            recorded = jax.jit(lambda v: run(name, types.SimpleNamespace(**v), gradient)).trace(
                vars(v)
            )
        assert "jit[" not in str(recorded.jaxpr)
        got = recorded.lower().compile()(vars(v))
    else:
        with jax.disable_jit():
            got = run(name, v, gradient)
    # The order of summation differs, also in the loss.
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        size = max(1.0, np.abs(b).max())
        assert_close(a / size, b / size, F32_GRADIENT)


# The guard rejects anything made on the host at each call: constants, defaults, Python numbers.
GUARDED = ("batch_norm", "batch_norm, arrays", "batch_norm, mask", "batch_norm, weights",
           "batch_norm, cumulative", "batch_norm, debiased", "batch_norm, evaluation",
           "ghost_batch_norm", "normalize", "moments", "layer_norm", "weight_norm")  # fmt: skip


@pytest.mark.parametrize("name", GUARDED)
def test_function_transfers_nothing(name):
    v = batch(0)
    run(name, v, gradient=False)
    with jax.transfer_guard("disallow"):
        run(name, v, gradient=False)


OTHERS = {
    "fold": lambda v: jbn.fold(v.kernel, None, v.params, v.state),
    "percentiles": lambda v: diagnostics.percentiles(v.x),
    "train_eval_gap": lambda v: diagnostics.train_eval_gap(
        {"a": v.state}, {"a": v.state}, momentum=0.9
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_others_transfer_and_compile_nothing(name):
    v = batch(0)
    OTHERS[name](v)
    with jax.transfer_guard("disallow"), counted() as found:
        OTHERS[name](v)
    assert found == []


def test_landscape_compiles_nothing_again():
    def measure():
        return diagnostics.landscape(loss, {"a": v.x}, (0.1, 0.2))

    def loss(params):
        return jnp.mean(params["a"] ** 2)

    v = batch(0)
    first = measure()
    with counted() as found:
        again = measure()
    assert [event for event in found if "compile" in event] == []
    np.testing.assert_array_equal(again.loss, first.loss)


@pytest.mark.parametrize("name", LINEN)
def test_linen_layer_transfers_nothing(name):
    if name == "MLP":
        pytest.skip("Flax's own Dense is the model's")
    x = layer_input(name, batch(0))
    layer = LINEN[name]()
    variables = layer.init(jax.random.key(0), x)
    layer.apply(variables, x, mutable=["batch_stats"])
    with jax.transfer_guard("disallow"):
        layer.apply(variables, x, mutable=["batch_stats"])


@pytest.mark.parametrize("name", NNX)
def test_nnx_layer_transfers_nothing(name):
    x = batch(0).x
    layer = jbn.nnx.BatchNorm(6, rngs=nnx.Rngs(0), **NNX[name])
    layer(x)
    with jax.transfer_guard("disallow"):
        layer(x)
