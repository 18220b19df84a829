"""Wrong calls of `jbn.diagnostics`, and their messages."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from diagnosed import X, loss, make_params, network

import jbn
from jbn import diagnostics


def one(mean=(4,), var=(4,), **fields):
    return {"norm": {"mean": jnp.zeros(mean), "var": jnp.ones(var), **fields}}


def gap(running=None, batch=None, **options):
    return diagnostics.train_eval_gap(running or one(), batch or one(), **options)


def shift(loss=loss, params=None, moved=None, layers=("a", "b")):
    params = make_params(0) if params is None else params
    return diagnostics.gradient_shift(loss, params, moved or make_params(1), layers)


def slope_of(x, activation=jax.nn.relu):
    return diagnostics.slopes(x, activation)


ONE = jnp.float32(1)
# name: (call, error, words in the message)
CASES = {
    # The gap.
    "gap of other shapes": (
        lambda: gap(one((3,), (3,)), one((1,), (1,))),
        ValueError,
        ["`batch`", "(3,)", "'norm'", "(1,)"],
    ),
    "population of other shapes": (
        lambda: gap(population=one((1,), (1,))),
        ValueError,
        ["`population`", "(4,)", "'norm'", "(1,)"],
    ),
    "mean and var of other shapes": (
        lambda: gap(one(var=(1,)), one(var=(1,))),
        ValueError,
        ["'norm'", "(4,) and (1,)"],
    ),
    "no features": (lambda: gap(one((0,), (0,))), ValueError, ["'norm'", "(0,)"]),
    "a count for each device": (
        lambda: gap(one(count=jnp.zeros(8, jnp.int32))),
        ValueError,
        ["one count", "'norm'", "(8,)"],
    ),
    "mean of None": (
        lambda: gap({"norm": {"mean": None, "var": None}}),
        TypeError,
        ["mean of layer 'norm'", "None"],
    ),
    "mean as a string": (
        lambda: gap({"norm": {"mean": "0", "var": "1"}}),
        TypeError,
        ["mean of layer 'norm'", "'0'"],
    ),
    "statistics of None": (
        lambda: diagnostics.train_eval_gap(None, one()),
        ValueError,
        ["found none", "not the parameters"],
    ),
    "epsilon of the gap": (lambda: gap(epsilon=-1e-3), ValueError, ["`epsilon`", "-0.001"]),
    "momentum of the gap": (lambda: gap(momentum=1.0), ValueError, ["`momentum`", "[0, 1)", "1.0"]),
    "count of the gap": (lambda: gap(count=-1), ValueError, ["`count`", "-1"]),
    "schedule for the gap": (
        lambda: gap(momentum=jbn.cumulative, count=1),
        TypeError,
        ["`momentum`", "schedule", "decay"],
    ),
    "swapped momentum and count": (
        lambda: diagnostics.effective_batches(0.99, 100),
        ValueError,
        ["`momentum`", "100", "`count` comes first"],
    ),
    "momentum of 1": (
        lambda: diagnostics.effective_batches(3, np.float32(1)),
        ValueError,
        ["`momentum`", "[0, 1)"],
    ),
    "momentum as a string": (
        lambda: diagnostics.initial_weight(3, "0.9"),
        TypeError,
        ["`momentum`", "'0.9'"],
    ),
    "momentum above 1": (
        lambda: diagnostics.initial_weight(3, jnp.float32(1.5)),
        ValueError,
        ["`momentum`", "[0, 1]", "1.5"],
    ),
    "count of None": (
        lambda: diagnostics.initial_weight(None, 0.9),
        TypeError,
        ["`count`", "None"],
    ),
    "negative count": (
        lambda: diagnostics.initial_weight(np.array(-1), 0.9),
        ValueError,
        ["`count`", "-1"],
    ),
    # Gradients.
    "no gradients": (lambda: diagnostics.gradient_norms({}), ValueError, ["gradients", "no keys"]),
    "gradient of None": (lambda: diagnostics.gradient_norms(None), ValueError, ["None"]),
    "function for a gradient": (
        lambda: diagnostics.gradient_norms(jax.grad(loss)),
        TypeError,
        ["gradient of", "jax.grad returned"],
    ),
    "integers for a gradient": (
        lambda: diagnostics.gradient_norms({"a": jnp.arange(3)}),
        TypeError,
        ["gradient of a", "int32"],
    ),
    **{
        f"depth of {depth}": (
            lambda depth=depth: diagnostics.gradient_norms({"a": ONE}, depth=depth),
            ValueError,
            ["`depth`", repr(depth)],
        )
        for depth in (0, -1, 1.5, "1", True)
    },
    # Activations.
    "integer x": (lambda: slope_of(jnp.arange(3)), TypeError, ["`x`", "int32", "astype"]),
    "swapped x and activation": (
        lambda: slope_of(jax.nn.relu, jnp.ones(3)),
        TypeError,
        ["`x`", "then the activation"],
    ),
    "x of None": (lambda: slope_of(None), TypeError, ["`x`", "None"]),
    "name for an activation": (
        lambda: slope_of(jnp.ones(3), "relu"),
        TypeError,
        ["`activation`", "'relu'", "jax.nn.relu"],
    ),
    "activation that sums": (
        lambda: slope_of(jnp.ones((2, 3)), jnp.sum),
        ValueError,
        ["elementwise", "(2, 3)", "()"],
    ),
    "activation that compares": (
        lambda: slope_of(jnp.ones(3), lambda x: x > 0),
        TypeError,
        ["bool", "slope"],
    ),
    "saturation of nothing": (
        lambda: diagnostics.saturation(jnp.zeros((0, 3)), jax.nn.relu),
        ValueError,
        ["(0, 3)"],
    ),
    **{
        f"threshold of {threshold}": (
            lambda threshold=threshold: diagnostics.saturation(
                jnp.ones(3), jax.nn.relu, threshold=threshold
            ),
            error,
            ["`threshold`", str(threshold)],
        )
        for threshold, error in (
            (0, ValueError),
            (-0.1, ValueError),
            (float("nan"), ValueError),
            (float("inf"), ValueError),
            ("0.01", TypeError),
            (None, TypeError),
        )
    },
    "dead units of an empty batch": (
        lambda: diagnostics.dead_units(jnp.zeros((0, 3)), jax.nn.relu),
        ValueError,
        ["(N, ..., C)", "(0, 3)"],
    ),
    "dead units of one example": (
        lambda: diagnostics.dead_units(jnp.ones(3), jax.nn.relu),
        ValueError,
        ["(N, ..., C)", "(3,)", "x[None]"],
    ),
    # Percentiles.
    "percentiles of an empty batch": (
        lambda: diagnostics.percentiles(jnp.zeros((0, 3))),
        ValueError,
        ["(0, 3)"],
    ),
    "percentiles of a number": (lambda: diagnostics.percentiles(ONE), ValueError, ["()"]),
    "percentiles of integers": (
        lambda: diagnostics.percentiles(jnp.ones((4, 3), jnp.int32)),
        TypeError,
        ["`x`", "int32"],
    ),
    **{
        f"threshold of {threshold}": (
            lambda threshold=threshold: diagnostics.saturation(
                jnp.ones((4, 2)), jnp.tanh, threshold=threshold
            ),
            error,
            ["`threshold` to be", came, "slope"],
        )
        for threshold, error, came in (
            (np.ones(3), ValueError, "an array of shape (3,)"),
            (jnp.ones(3), ValueError, "an array of shape (3,)"),
            ([1], ValueError, "a list of 1 (int)"),
            ([], ValueError, "an empty list"),
            ([[1], [1, 2]], TypeError, "a list of 2 (list)"),
            (None, TypeError, "None"),
        )
    },
    **{
        f"q of {q}": (
            lambda q=q: diagnostics.percentiles(jnp.ones((4, 3)), q),
            error,
            ["`q`", "a list" if error is TypeError else "percentages", "(15, 50, 85)"],
        )
        for q, error in (
            (200, ValueError),
            (50, ValueError),
            ((), ValueError),
            ((-1, 50, 101), ValueError),
            ("15", TypeError),
            (None, TypeError),
        )
    },
    "drift of an even number": (
        lambda: diagnostics.drift(jnp.ones((5, 2, 3))),
        ValueError,
        ["Q odd", "(5, 2, 3)"],
    ),
    "drift of one row": (lambda: diagnostics.drift(jnp.ones((3, 2))), ValueError, ["(3, 2)"]),
    "drift of no row": (lambda: diagnostics.drift(jnp.ones((0, 3, 2))), ValueError, ["(0, 3, 2)"]),
    "drift of integers": (
        lambda: diagnostics.drift(jnp.ones((5, 3, 2), jnp.int32)),
        TypeError,
        ["int32"],
    ),
    # Losses.
    "loss after params": (
        lambda: shift(make_params(0), loss),
        TypeError,
        ["`params`", "loss, params, moved, layers"],
    ),
    "loss as a number": (lambda: shift(1.0), TypeError, ["`loss`", "1.0"]),
    "loss of each example": (
        lambda: shift(lambda params: network(params, X)[:, 0]),
        TypeError,
        ["one number", "(20,)", "mean"],
    ),
    "layers as a string": (lambda: shift(layers="a"), TypeError, ["`layers`", "layers=['a']"]),
    "layers of None": (lambda: shift(layers=None), TypeError, ["`layers`", "None", "a list"]),
    "layer that is not there": (
        lambda: shift(layers=["d"]),
        ValueError,
        ["['d']", "'a', 'b', 'c'"],
    ),
    "layer that did not move": (
        lambda: shift(moved={"a": make_params(0)["a"]}),
        ValueError,
        ["['b']", "['a']"],
    ),
    "moved of other shapes": (
        lambda: shift(moved={**make_params(1), "b": {"w": jnp.ones((3, 1))}}),
        ValueError,
        ["`moved`", "'b'", "(3, 1)", "(3, 3)"],
    ),
    "moved as a list": (lambda: shift(moved=[1]), TypeError, ["`moved`", "a list of 1"]),
    "params of integers": (
        lambda: diagnostics.landscape(lambda w: w.sum() * 1.0, jnp.arange(3), [0.1]),
        TypeError,
        ["params", "int32"],
    ),
    "landscape, swapped": (
        lambda: diagnostics.landscape(ONE, lambda w: w, [0.1]),
        TypeError,
        ["`loss`", "Pass it first"],
    ),
    **{
        f"sizes of {sizes}": (
            lambda sizes=sizes: diagnostics.landscape(lambda w: w**2, ONE, sizes),
            error,
            ["`sizes`", "a list of numbers" if error is TypeError else "", "(0.01, 0.1)"],
        )
        for sizes, error in (
            (0.1, ValueError),
            ((), ValueError),
            ((0.1, 0.0), ValueError),
            ((-0.1,), ValueError),
            ("0.1", TypeError),
        )
    },
    # The table.
    "report as a number": (lambda: diagnostics.summarize(dead=0.5), TypeError, ["`dead`", "0.5"]),
    "report of arrays": (
        lambda: diagnostics.summarize(dead={"a": jnp.ones(3)}),
        TypeError,
        ["dead of a", "(3,)", "Reduce"],
    ),
    "report of words": (lambda: diagnostics.summarize(dead={"a": "no"}), TypeError, ["'no'"]),
}


@pytest.mark.parametrize("name", CASES)
def test_raises(name):
    call, error, words = CASES[name]
    with pytest.raises(error) as caught:
        call()
    for word in ["Expected", *words]:
        assert word in str(caught.value), f"does not say {word!r}: {caught.value}"


def test_summary_inside_jit():
    with pytest.raises(TypeError, match="outside jit"):
        jax.jit(lambda x: diagnostics.summarize(dead={"a": x}))(ONE)


def test_traced_arguments():
    """Traced values are unknown: they are not checked, and nothing waits for them."""
    batches = jax.jit(diagnostics.effective_batches)(7, 0.9)
    np.testing.assert_allclose(batches, diagnostics.effective_batches(7, 0.9), rtol=1e-5)
    share = jax.jit(lambda t: diagnostics.saturation(jnp.ones(3), jax.nn.relu, threshold=t))(0.5)
    assert float(share) == 0
    seen = jax.jit(lambda s: diagnostics.landscape(lambda w: w**2, ONE, [s, 2 * s]))(0.1)
    np.testing.assert_allclose(seen.loss, [0.64, 0.36], rtol=1e-5)
