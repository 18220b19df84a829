# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Do eight devices give the same numbers as one?
#
# Each device sees only its part of the batch. If it normalizes by that part alone, the result
# depends on the number of devices and on which device gets which example. Here, eight virtual
# devices on one CPU share 256 of the 1,797 small digits that come with scikit-learn, sorted by
# class. This is the worst case: each device sees only two or three of the ten classes.

# %%
# Install jbn if it is missing (as on Colab) from its repository, or from a wheel or clone nearby.
import importlib.util
import subprocess
import sys
from pathlib import Path

if importlib.util.find_spec("jbn") is None:
    REPOSITORY = ""  # The URL of jbn's repository. On Colab, fill it in if it is empty.
    places = [p / "jbn" / "__init__.py" for p in (Path.cwd(), *Path.cwd().parents)]
    places += [*Path.cwd().glob("*/jbn/__init__.py"), *Path.cwd().glob("jbn-*.whl")]
    nearby = [p.parents[1] if p.name == "__init__.py" else p for p in places if p.is_file()]
    if not (REPOSITORY or nearby):
        raise ImportError("Expected jbn, got none. Set REPOSITORY, or put its wheel or clone here.")
    source = f"jbn[flax,export] @ git+{REPOSITORY}" if REPOSITORY else f"{nearby[0]}[flax,export]"
    print(f"installing {source}")
    pip = [sys.executable, "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, source, "ipywidgets", "matplotlib", "scikit-learn"], check=True)

# %%
import functools

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from sklearn.datasets import load_digits

import jbn

jax.config.update("jax_num_cpu_devices", 8)  # With real devices, drop this and edit the next line.
DEVICES = jax.devices("cpu")[:8]
mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=DEVICES)
split, whole = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())

digits = load_digits()
order = np.argsort(digits.target, kind="stable")[::7][:256]
labels = jnp.asarray(digits.target[order])
images = jnp.asarray(digits.data[order] / 16, jnp.float32)
kernel = jax.random.normal(jax.random.key(0), (64, 16)) / 8
x = images @ kernel  # 256 examples with 16 features.
params, state = jbn.init(16)
want_y, want_state = jbn.batch_norm(x, params, state, training=True)  # On one device.


def error(got, want):
    """Return the largest absolute difference between two arrays."""
    return float(np.abs(np.asarray(got) - np.asarray(want)).max())


# %% [markdown]
# ## `jit` over a sharded array: nothing to add
#
# The batch is one global array that is spread over eight devices. `batch_norm` is called as on one
# device, and XLA adds the communication.

# %%
sharded = jax.device_put(x, split)
y, new = jax.jit(lambda x: jbn.batch_norm(x, params, state, training=True))(sharded)
print(
    len(sharded.sharding.device_set), "devices, each with", sharded.addressable_shards[0].data.shape
)
by_jit = error(y, want_y), error(new.var, want_state.var)
print("y and state are those of one device, to 1e-5:", max(by_jit) < 1e-5)

# %% [markdown]
# ## `shard_map`: name the axis
#
# In `shard_map`, the function sees only one device's part. For statistics of the whole batch, pass
# the name of the mesh axis that the batch is split along. The new state is the same on every
# device, hence `out_specs=P()`.


# %%
def forward(x, axis_name):
    return jbn.batch_norm(x, params, state, training=True, axis_name=axis_name)


def on_devices(function, out_specs):
    return jax.jit(jax.shard_map(function, mesh=mesh, in_specs=P("data"), out_specs=out_specs))


named = functools.partial(forward, axis_name="data")
y, new = on_devices(named, (P("data"), P()))(sharded)
by_name = error(y, want_y), error(new.var, want_state.var)
print("y and state are those of one device, to 1e-5:", max(by_name) < 1e-5)


def alone(x):
    y, new = forward(x, axis_name=None)
    return y, jax.tree.map(lambda leaf: leaf[None], new)  # Each device's own state, stacked.


y, local = on_devices(alone, P("data"))(sharded)
without_name = error(y, want_y)
print(f"without the name y is off by {without_name:.1f}")

# %% [markdown]
# ## Unequal parts
#
# Now there are 201 examples on eight devices: six have 32 each, one has 9, and one has none. The
# padding, here NaN, is masked. `jbn` pools the moments by count. The mean of the devices' means
# would give nine examples the weight of 32, and it is not even defined for the device that has
# none.

# %%
COUNT = 201
is_there = np.arange(256)[:, None] < COUNT
mask = jax.device_put(is_there, split)
padded = jax.device_put(np.where(is_there, x, np.nan), split)


def masked(x, mask):
    own = jbn.moments(x, mask=mask)  # Moments of this device's part alone.
    y, new = jbn.batch_norm(x, params, state, training=True, mask=mask, axis_name="data")
    return y, new, jax.tree.map(lambda leaf: leaf[None], own)


y, new, parts = on_devices(masked, (P("data"), P(), P("data")))(padded, mask)
few_y, few_state = jbn.batch_norm(x[:COUNT], params, state, training=True)
by_count = error(y[:COUNT], few_y), error(new.var, few_state.var)
print("examples by device:", np.asarray(parts.count[:, 0], int))
print("y and state are those of the 201 on one device, to 1e-5:", max(by_count) < 1e-5)

own_mean, own_var = np.asarray(parts.mean[:7]), np.asarray(parts.var[:7])
exact_mean, exact_var = np.asarray(x[:COUNT]).mean(0), np.asarray(x[:COUNT]).var(0)
pooled = jbn.merge_moments(*(jbn.Moments(*rows) for rows in zip(*parts, strict=True)))

figure, axes = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
axes[0].plot(own_mean[:, :3], "o", label=[f"feature {i}" for i in range(3)])
axes[0].set(xlabel="device", title="means per device; classes differ")
axes[0].legend()
axes[1].plot(exact_var, own_var.mean(0), "x", label="mean of the variances")
axes[1].plot(exact_var, pooled.var, "o", mfc="none", label="pooled, jbn")
axes[1].axline((0, 0), slope=1, color="gray", linewidth=1)
axes[1].set(xlabel="variance of all examples", title="variances over all devices")
axes[1].legend()
plt.show()
share = float(np.mean(own_var.mean(0) / exact_var))
print(f"the mean of the variances is {share:.0%} of the variance; the rest is between devices")

# %% [markdown]
# ## Local statistics, synchronized at the end
#
# If each device has enough examples, it may normalize by its own part, without any communication.
# The running statistics of the eight devices then differ, and `jbn.synchronize` merges them before
# evaluation. The merged variance covers the variance within devices and the variance between them.
# By default, the weight of each device is the number of batches its state has absorbed; other
# weights can be passed as an argument.


# %%
def train_locally(x):
    moments = jbn.moments(x)
    return jax.tree.map(
        lambda leaf: leaf[None], jbn.update(state, moments, momentum=jbn.cumulative, unbiased=False)
    )


def together(states):
    own = jax.tree.map(lambda leaf: leaf[0], states)
    return jbn.synchronize(own, axis_name="data")


local = on_devices(train_locally, P("data"))(sharded)
merged = on_devices(together, P())(local)
agreed = jbn.is_synchronized(local, stacked=True), jbn.is_synchronized(merged)
after = error(merged.mean, x.mean(0)), error(merged.var, x.var(0))
print("synchronized before and after:", *agreed)
print("mean and variance are those of all 256 examples, to 1e-5:", max(after) < 1e-5)

# %% [markdown]
# ## Training steps
#
# We train a dense layer, a batch norm and a classifier for 30 steps, on one device and on eight.
# Each device computes the gradient of its share of the loss, and one `pmean` turns these into the
# gradient of the whole loss. Parameters and state stay equal to those on one device.

# %%
start = {
    "kernel": kernel,
    "bn": params,
    "output": jax.random.normal(jax.random.key(1), (16, 10)) / 4,
}


def step(carry, batch, axis_name=None):
    params, state = carry
    x, labels = batch

    def loss(params):
        y, new = jbn.batch_norm(
            x @ params["kernel"], params["bn"], state, training=True, axis_name=axis_name
        )
        logits = jax.nn.relu(y) @ params["output"]
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels)), new

    # Each device's own copy: if they stay replicated, JAX itself sums the gradient over devices.
    own = params if axis_name is None else jax.lax.pcast(params, axis_name, to="varying")
    (value, new), gradient = jax.value_and_grad(loss, has_aux=True)(own)
    if axis_name is not None:
        value, gradient = jax.lax.pmean((value, gradient), axis_name)
    return (jax.tree.map(lambda p, g: p - 0.5 * g, params, gradient), new), value


def train(step, batch):
    return jax.lax.scan(lambda carry, _: step(carry, batch), (start, state), None, length=30)


(one_params, one_state), one_losses = jax.jit(functools.partial(train, step))((images, labels))
(all_params, all_state), all_losses = on_devices(
    functools.partial(train, functools.partial(step, axis_name="data")), P()
)(jax.device_put((images, labels), split))
by_training = max(
    error(a, b)
    for a, b in zip(
        jax.tree.leaves((all_params, all_state)),
        jax.tree.leaves((one_params, one_state)),
        strict=True,
    )
)
print(f"loss {one_losses[0]:.2f} -> {one_losses[-1]:.2f} on one, {all_losses[-1]:.2f} on eight")
print("parameters and statistics are the same, to 1e-4:", by_training < 1e-4)

# %% [markdown]
# ## Exercises
#
# 1. With `check_vma=False`, JAX does not check that `out_specs=P()` is true. Forget `axis_name`
#    there: what comes back as the running mean? What reveals the mistake?
# 2. Between local and global statistics: let devices 0 to 3 share statistics, and devices 4 to 7. A
#    mesh with two axes does this, without another argument. Which calls on one device give the same
#    numbers?
#
# ## Answers
#
# <details>
# <summary>Open</summary>
#
# 1. The copy of the first device is read as if it were everyone's, and no error is raised. But the
#    copies differ, and `jbn.is_synchronized` compares them.
# 2. Name the axis of length four. On one device, the first half of the batch alone gives the y of
#    devices 0 to 3, and the second half alone that of devices 4 to 7.
#
# </details>

# %%
forgotten = jax.jit(
    jax.shard_map(
        lambda x: forward(x, axis_name=None)[1],
        mesh=mesh,
        in_specs=P("data"),
        out_specs=P(),
        check_vma=False,
    )
)(sharded)
noticed = not jbn.is_synchronized(forgotten)
first_mean = 0.01 * x[:32].mean(0)  # Momentum .99, starting from 0.
of_first = error(forgotten.mean, first_mean)
print("copies differ:", noticed)
print("what is read is the first device's mean, to 1e-6:", of_first < 1e-6)

grid = jax.make_mesh(
    (2, 4), ("group", "member"), axis_types=(jax.sharding.AxisType.Auto,) * 2, devices=DEVICES
)
parts_of_grid = P(("group", "member"))
by_group = jax.jit(
    jax.shard_map(
        lambda x: forward(x, axis_name="member")[0],
        mesh=grid,
        in_specs=parts_of_grid,
        out_specs=parts_of_grid,
    )
)(x)
halves = jnp.concatenate([forward(half, axis_name=None)[0] for half in jnp.split(x, 2)])
of_groups = error(by_group, halves)
print("two groups give the y of two halves, to 1e-5:", of_groups < 1e-5)

# %% [markdown]
# ## Answer
#
# Yes, if the function knows about the other devices. `jit` over sharded arrays needs nothing more;
# in `shard_map`, pass `axis_name`. docs/devices.md has more, including groups, hosts and a table of
# errors.

# %%
assert len(DEVICES) == 8
assert max(*by_jit, *by_name, *by_count) < 1e-5
assert without_name > 1
assert share < 0.8
assert error(pooled.var, exact_var) < 1e-5
assert agreed == (False, True)
assert max(after) < 1e-5
assert one_losses[-1] < 0.6 * one_losses[0]
assert by_training < 1e-4
assert noticed
assert of_first < 1e-6
assert of_groups < 1e-5
