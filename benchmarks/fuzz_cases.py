"""The cases that `benchmarks/fuzz.py` draws: data, the call of the library, the exact result."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

import jbn
from benchmarks import exact, exact_parts
from benchmarks.exact import Truth
from benchmarks.exact_parts import Known, Values
from benchmarks.fuzz_signatures import SIGNATURES, STATEFUL, WITHOUT_PARAMS, Arrays, Signature
from benchmarks.modes_spreads import DEVICES, mesh
from jbn import BatchNormParams, BatchNormState

# ---- The library ---------------------------------------------------------------------------------


def call(signature: Signature, arrays: Arrays) -> dict[str, Array]:
    """Call the function on one device; return the differentiable outputs."""
    function = getattr(jbn, signature.function)
    x, axis, epsilon = arrays["x"], signature.axis, arrays.get("epsilon")
    names: dict[str, Any] = {}
    if signature.spread:
        names = {"axis_name": "d", "axis_index_groups": signature.spread.groups}
    if signature.function == "moments":
        return function(x, axis=axis, mask=arrays.get("mask"), **names)._asdict()
    if signature.function == "whiten":
        whitened = function(
            x, axis=axis, groups=signature.parts, epsilon=epsilon, method=signature.method
        )
        return {"y": whitened[0]}
    if signature.function == "weight_norm":
        return {"y": function(x, arrays["scale"], axis=axis)}
    params = BatchNormParams(arrays["scale"], arrays["bias"])
    if signature.function in STATEFUL:
        if signature.function == "ghost_batch_norm":
            names = {"batch_size": signature.parts}
        if signature.function == "batch_renorm":
            names |= {"r_max": arrays["r_max"], "d_max": arrays["d_max"]}
        y, state = function(
            x,
            params,
            BatchNormState(arrays["mean"], arrays["var"], jnp.int32(3)),
            training=True,
            axis=axis,
            momentum=arrays["momentum"],
            epsilon=epsilon,
            mask=arrays.get("mask"),
            **names,
        )
        return {"y": y, "mean": state.mean, "var": state.var}
    if signature.function == "normalize":
        y = function(x, arrays["mean"], arrays["var"], params, axis=axis, epsilon=epsilon)
        return {"y": y}
    groups = {"groups": signature.parts} if signature.function == "group_norm" else {}
    return {"y": function(x, params, axis=axis, epsilon=epsilon, **groups)}


@functools.cache
def program(signature: Signature) -> Callable[[Arrays, Arrays, Arrays], tuple[Arrays, Arrays]]:
    """Compile (differentiated, fixed, cotangents) -> (outputs, gradients)."""

    def run(floats: Arrays, fixed: Arrays, cotangents: Arrays) -> tuple[Arrays, Arrays]:
        outputs, pull = jax.vjp(lambda floats: spread_out(signature, {**floats, **fixed}), floats)
        zeros = {name: jnp.zeros_like(value) for name, value in outputs.items()}
        return outputs, pull({**zeros, **cotangents})[0]

    return jax.jit(run)


def spread_out(signature: Signature, arrays: Arrays) -> dict[str, Array]:
    """Call the function on all devices; outputs have a leading device axis."""
    each = functools.partial(call, signature)
    if not signature.spread:
        return each(arrays)
    split = {name: 0 if name in ("x", "mask") else None for name in arrays}
    if signature.spread.transform == "shard_map":
        return jax.shard_map(
            lambda arrays: {
                name: value[None]
                for name, value in each(
                    {k: v if split[k] is None else v[0] for k, v in arrays.items()}
                ).items()
            },
            mesh=mesh(("d", DEVICES)),
            in_specs=({name: P() if axis is None else P("d") for name, axis in split.items()},),
            out_specs=P("d"),
        )(arrays)
    transform = {"vmap": jax.vmap, "pmap": jax.pmap}[signature.spread.transform]
    return transform(each, axis_name="d", in_axes=(split,))(arrays)


# ---- Cases ---------------------------------------------------------------------------------------


class Labels(NamedTuple):
    """For each value: the statistic that normalizes it, the one for the state, its feature."""

    statistic: Values
    pooled: Values
    feature: Values


def labels(signature: Signature) -> Labels:
    """Number the statistics and features of every value of x."""
    shape, axes = signature.shape, signature.feature_axes
    feature = exact.numbered(shape, axes)
    count = int(feature.max()) + 1
    others = tuple(a for a in range(len(shape)) if a not in axes)
    example = exact.numbered(shape, (0,))
    if signature.spread:
        pooled = signature.spread.group_of()[example] * count + feature
        return Labels(pooled, pooled, feature)
    if signature.function == "ghost_batch_norm":
        return Labels(example // signature.parts * count + feature, feature, feature)
    if signature.function == "layer_norm":
        each = exact.numbered(shape, others)
        return Labels(each, each, feature)
    if signature.function == "group_norm":
        each = example * signature.parts + feature // (count // signature.parts)
        return Labels(each, each, feature)
    if signature.function == "instance_norm":
        each = exact.numbered(shape, (0, *axes))
        return Labels(each, each, feature)
    return Labels(feature, feature, feature)


class Case(NamedTuple):
    """The arguments and cotangents of one call, with the scale of x and where it is garbage."""

    seed: int
    signature: Signature
    arrays: Arrays
    cotangents: Arrays
    scale: float
    garbage: Values


def draw(seed: int) -> Case:
    """Draw the case of a seed."""
    signature = SIGNATURES[seed % len(SIGNATURES)]
    rng = np.random.default_rng(seed)
    dtype = np.dtype(jnp.dtype(signature.dtype))
    wide = np.dtype(jnp.promote_types(dtype, jnp.float32))
    half = signature.dtype == "float16"
    label = labels(signature)
    count, features = int(label.statistic.max()) + 1, int(label.feature.max()) + 1

    usual = rng.random() < 0.3
    exponent = rng.uniform(-2, 2) if usual else rng.uniform(-30, 30)
    scale = 10.0 ** (rng.uniform(-4, 2) if half else exponent)
    ratio = 0.0 if rng.random() < 0.2 else 10.0 ** rng.uniform(-1, 7)
    scale = min(scale, (1e4 if half else 1e36) / max(1.0, ratio))
    own = np.ones(count)
    if rng.random() < 0.2:  # Give every statistic its own scale.
        own = 10.0 ** rng.uniform(-3, 0, count)
    far = ratio * rng.choice([-1, 1], count) * (rng.uniform(0, 1, count) if usual else 1)
    noise = normal(rng, label.statistic.shape, wide)
    if signature.spread:  # Let the devices' means differ.
        apart = normal(rng, (signature.spread.devices,), wide) * rng.choice([0, 1, 100])
        noise = noise + apart.reshape(-1, *(1,) * (noise.ndim - 1))
    if signature.function == "whiten":
        noise = noise @ (np.eye(features) + 0.3 * rng.normal(size=(features, features)))
    x = scale * own[label.statistic] * (far[label.statistic] + noise)

    arrays: Arrays = {}
    garbage = unseen = np.zeros(x.shape, bool)
    if signature.mask:
        mask = draw_mask(rng, signature, label)
        arrays["mask"] = mask
        if rng.random() < 0.5:
            garbage = np.broadcast_to(mask == 0, x.shape)
            x = np.where(garbage, rng.choice([np.nan, np.inf, -np.inf, 1e30], x.shape), x)
        # A single value has variance 0, so y of the masked values is scaled by 1 / sqrt(epsilon).
        left = np.bincount(label.statistic.ravel(), np.broadcast_to(mask > 0, x.shape).ravel())
        unseen = garbage | (np.broadcast_to(mask == 0, x.shape) & (left[label.statistic] == 1))
    epsilon = np.float32(1e-5 if rng.random() < 0.4 else 10.0 ** rng.uniform(-30, -3))
    rstd = 1 / math.hypot(scale, math.sqrt(epsilon))
    if signature.function != "moments":
        arrays |= {"epsilon": epsilon}
    if signature.function not in WITHOUT_PARAMS:
        learned = rng.random() < 0.7
        arrays["scale"] = 1 + 0.5 * learned * normal(rng, features, wide)
        arrays["bias"] = learned * normal(rng, features, wide)
    if signature.function in (*STATEFUL, "normalize"):
        mean = np.zeros(features, wide)
        mean[label.feature] = (scale * own * far)[label.statistic]
        arrays["mean"] = mean + scale * normal(rng, features, wide)
        arrays["var"] = np.minimum(scale**2 * rng.uniform(0.5, 2, features), 1e37)
        arrays["momentum"] = np.float32(rng.choice([0, 1, 0.99, rng.random()]))
    if signature.function == "batch_renorm":
        arrays["r_max"] = np.float32(rng.choice([1, 3, 1 + 10 * rng.random()]))
        arrays["d_max"] = np.float32(rng.choice([0, 5, 10 * rng.random()]))
    with np.errstate(over="ignore", under="ignore"):
        arrays = {name: rounded(signature, name, value, wide) for name, value in arrays.items()}
        arrays["x"] = x.astype(dtype)

        cotangents: Arrays = {}
        part = rng.choice(["y", "state", "both"], p=[0.6, 0.2, 0.2])
        of_y = part != "state" or signature.function not in STATEFUL
        of_state = part != "y" or signature.function == "moments"
        if signature.function != "moments":
            dy = of_y * normal(rng, x.shape, wide)
            cotangents["y"] = np.where(unseen, 0, dy).astype(dtype)
        if signature.function in (*STATEFUL, "moments"):
            state = signature.feature_shape
            if signature.spread:
                state = (signature.spread.devices, *state)
            size = of_state * np.clip([rstd, rstd**2], 1e-30, 1e30)
            size[1] *= scale > 1e-17  # Below that, float32 cannot hold the variance.
            cotangents["mean"] = (size[0] * normal(rng, state, wide)).astype(wide)
            cotangents["var"] = (size[1] * rng.normal(size=state)).astype(np.float32)
    if signature.function == "weight_norm":
        del arrays["bias"], arrays["epsilon"]
    return Case(seed, signature, arrays, cotangents, scale, garbage)


def normal(rng: np.random.Generator, shape: Any, dtype: np.dtype[Any]) -> Values:
    """Draw from N(0, 1), complex if the dtype is."""
    values = rng.normal(size=shape)
    if np.issubdtype(dtype, np.complexfloating):
        return (values + 1j * rng.normal(size=shape)) / math.sqrt(2)
    return values


def rounded(signature: Signature, name: str, value: Values, wide: np.dtype[Any]) -> Values:
    """Convert an argument to the dtype and shape that the library is given."""
    if name in ("scale", "bias", "mean", "var"):
        value = value.reshape(signature.feature_shape)
    if name == "mask" and value.dtype == bool:
        return value
    return value.astype(wide if name in ("scale", "bias", "mean") else np.float32)


def draw_mask(rng: np.random.Generator, signature: Signature, label: Labels) -> Values:
    """Draw a mask that varies along all axes, or along the rows only."""
    shape = signature.shape
    if "rows" in str(signature.mask):
        shape = tuple(1 if a in signature.feature_axes else n for a, n in enumerate(shape))
    keep = rng.random(shape) < rng.choice([0.5, 0.8, 1.0])
    special, whole = rng.random(), shape == signature.shape
    if special < 0.1 and signature.spread:  # Some devices are fully masked.
        keep &= (rng.random(shape[0]) < 0.7).reshape(-1, *(1,) * (len(shape) - 1))
    elif special < 0.1:
        keep[:] = False
    elif special < 0.2 and whole:  # One statistic has no value.
        keep &= label.statistic != 0
    elif special < 0.3 and whole:  # One statistic has a single value.
        first = np.argmax(label.pooled == 0)
        keep = np.where(label.pooled == 0, np.arange(keep.size).reshape(shape) == first, keep)
    if "bool" in str(signature.mask):
        return keep
    weights = keep * rng.uniform(0.2, 2, shape)
    kind = rng.random()
    if kind < 0.2:  # Weights that sum to 1, like a softmax.
        return weights / max(1e-9, weights.sum())
    return weights * (10.0 ** rng.uniform(-30, 30) if kind < 0.4 else 1)


# ---- The exact result ---------------------------------------------------------------------------


def truth(case: Case) -> Truth:
    """Compute outputs and gradients in float64, flattened."""
    signature, label = case.signature, labels(case.signature)
    array = {name: widened(value) for name, value in case.arrays.items()}
    array |= {f"d{name}": widened(value) for name, value in case.cotangents.items()}
    for name in {"scale", "bias", "mean", "var"} & set(array):
        array[name] = array[name].reshape(-1)
    x, mask = array["x"], case.arrays.get("mask")
    if signature.function == "weight_norm":
        return exact.weight_norm(x, label.feature, array["scale"], array["dy"])
    if signature.function == "whiten":
        return exact.whiten(x, signature.parts, float(array["epsilon"]), signature.method)
    if signature.function == "normalize":
        normalized = exact_parts.Normalized(
            x,
            label.feature,
            label.feature,
            array["mean"],
            array["var"],
            float(array["epsilon"]),
            array["scale"],
            array["bias"],
        )
        return exact.normalize(normalized, array["dy"])
    weights = np.ones(x.shape) if mask is None else np.broadcast_to(array["mask"], x.shape)
    counted = mask is None or mask.dtype == bool
    batch = exact_parts.Batch(x, label.statistic, weights, counted)
    if signature.function not in (*STATEFUL, "moments"):
        return exact.standardize(batch, label.feature, array)
    pooled = exact_parts.Batch(x, label.pooled, weights, counted)
    features = int(label.feature.max()) + 1
    state_features = np.arange(pooled.count.size) % features
    for name in ("dmean", "dvar"):
        array[name] = by_group(array[name], signature)
    if signature.function == "moments":
        found = exact.moments(pooled, array["dmean"], array["dvar"])
    else:
        found = exact.train(batch, pooled, label.feature, state_features, array)
    outputs = {
        name: value if name == "y" else on_devices(value, signature, features)
        for name, value in found.values.items()
    }
    if "y" in outputs:  # NaN skips y of garbage, which only must not affect gradients.
        y = outputs["y"]
        garbage = case.garbage.reshape(y.value.shape)
        outputs["y"] = y._replace(value=np.where(garbage, np.nan, y.value))
    return Truth(outputs, found.gradients)


def widened(value: Values) -> Values:
    """Convert to float64 or complex128."""
    return value.astype(np.complex128 if np.iscomplexobj(value) else np.float64)


def by_group(cotangent: Values, signature: Signature) -> Values:
    """Sum the cotangents of all devices in a group for the statistics they share."""
    if not signature.spread:
        return cotangent.reshape(-1)
    group_of = signature.spread.group_of()
    own = np.zeros((int(group_of.max()) + 1, *signature.feature_shape), cotangent.dtype)
    np.add.at(own, group_of, cotangent)
    return own.reshape(-1)


def on_devices(known: Known, signature: Signature, features: int) -> Known:
    """Repeat a group's values for each of its devices."""
    if not signature.spread:
        return known
    index = signature.spread.group_of()[:, None] * features + np.arange(features)
    return known.at(index)
