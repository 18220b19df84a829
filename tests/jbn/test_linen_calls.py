"""Arguments that users pass to jbn.linen.BatchNorm, calls outside jit, and errors."""

import subprocess
import sys

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from linen_layers import counting, sample, trained, with_each_mask

import jbn
from jbn.linen import BatchNorm
from jbn.linen._batch_norm import as_count

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


WRONG = {  # name: (call, error, words in the message)
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


@pytest.mark.parametrize(("n", "c"), [(3, 3), (4, 3)])
def test_mask_of_features_is_one_of_features_whatever_n(n, c):
    """`(C,)` aligns with the features even if N == C, as in Flax."""
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


# Outside jit: nothing but one dispatch of the operation -----------------------------------------


@pytest.mark.parametrize("momentum", [0.9, jbn.debiased(0.9)])
def test_a_call_outside_jit_adds_no_program_to_the_operation(momentum, monkeypatch, caplog):
    @jax.jit
    def operation(x, params, state):
        return x, state

    ours = "jbn.linen._batch_norm.batch_norm"
    monkeypatch.setattr(ours, lambda x, p, s, **options: operation(x, p, s))
    x, mask = sample((7, 13)), jnp.ones((7, 1), bool)  # A shape that nothing else is compiled for.
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
    assert len(compiled) <= 1, compiled  # The operation is compiled by init or here.
