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
# # What changes between training and inference?
#
# In training, batch normalization (BN) uses the statistics of the batch. In inference there may be
# no batch, so it uses statistics kept from training. This notebook shows which statistics to use,
# what goes wrong in the wrong mode, how BN can be folded into the layer before it, and how several
# devices share a batch. It uses the 1,797 small digits that come with scikit-learn and a network
# with three layers.

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
import itertools

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import load_digits

import jbn

jax.config.update("jax_num_cpu_devices", 4)  # Virtual devices, for the last section.

digits = load_digits()
order = np.random.default_rng(0).permutation(len(digits.target))
images = jnp.asarray(digits.data[order] / 16, jnp.float32)
labels = jnp.asarray(digits.target[order])
train_x, train_y, test_x, test_y = images[:1400], labels[:1400], images[1400:], labels[1400:]

# %% [markdown]
# ## A network as functions
#
# The parameters are in one pytree and the running statistics in another. Every step returns new
# ones.

# %%
WIDTHS = (64, 100, 100, 10)


def init(key):
    params, state = [], []
    for fan_in, fan_out in itertools.pairwise(WIDTHS):
        key, own = jax.random.split(key)
        bn_params, bn_state = jbn.init(fan_out)
        kernel = jax.random.normal(own, (fan_in, fan_out)) * fan_in**-0.5
        params.append({"kernel": kernel, "bn": bn_params})
        state.append(bn_state)
    return params, state


def apply(params, state, x, *, training, momentum=0.99, axis_name=None, mask=None):
    moved = []
    for i, (layer, bn_state) in enumerate(zip(params, state, strict=True)):
        x, bn_state = jbn.batch_norm(
            x @ layer["kernel"],
            layer["bn"],
            bn_state,
            training=training,
            momentum=momentum,
            axis_name=axis_name,
            mask=None if mask is None else mask[:, None],
        )
        x = jax.nn.relu(x) if i < len(params) - 1 else x
        moved.append(bn_state)
    return x, moved


def loss(params, state, x, y):
    logits, state = apply(params, state, x, training=True)
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, y)), state


@jax.jit
def step(params, state, x, y):
    gradient, state = jax.grad(loss, has_aux=True)(params, state, x, y)
    return jax.tree.map(lambda p, g: p - 0.3 * g, params, gradient), state


@jax.jit
def accuracy(params, state):
    logits, _ = apply(params, state, test_x, training=False)
    return jnp.mean(logits.argmax(-1) == test_y)


params, state = init(jax.random.key(0))
batches = np.random.default_rng(1).integers(0, 1400, (150, 60))
exponential, population = [], []


@jax.jit
def averaged(params, state):
    """Average the statistics of twenty batches with fixed parameters."""

    def absorb(state, x):  # Update the statistics with one batch.
        return apply(params, state, x, training=True)[1]

    return jbn.population(absorb, state, train_x[batches[:20]])


for i, rows in enumerate(batches):
    params, state = step(params, state, train_x[rows], train_y[rows])
    if i % 10 == 9:
        exponential.append(float(accuracy(params, state)))
        population.append(float(accuracy(params, averaged(params, state))))

# %% [markdown]
# ## Which statistics
#
# With a momentum of .99, an exponential average still gives the initial mean 0 and variance 1 a
# weight of .99^t after t steps, and it lags behind the parameters. Algorithm 2 of
# [the paper](https://arxiv.org/abs/1502.03167) recomputes the averages with the parameters held
# fixed. That is `jbn.population`, a single line for any pytree of statistics.

# %%
figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
steps = np.arange(10, 151, 10)
axes.plot(steps, population, "o-", label="population statistics (Algorithm 2)")
axes.plot(steps, exponential, "s--", label="exponential averages, momentum .99")
axes.set(xlabel="steps", ylabel="test accuracy", title="Same parameters, different statistics")
axes.legend()
plt.show()

# %% [markdown]
# ## The wrong mode
#
# With the statistics of test batches, the output for an image depends on the other images in its
# batch. In inference mode it does not: the output is the same, alone or in a batch.

# %%
state = averaged(params, state)
one_in_first, _ = apply(params, state, test_x[:8], training=True)
one_in_other, _ = apply(params, state, jnp.concatenate([test_x[:1], test_x[50:57]]), training=True)
wrong_mode = float(jnp.abs(one_in_first[0] - one_in_other[0]).max())
together, _ = apply(params, state, test_x, training=False)
alone = jnp.concatenate([apply(params, state, x[None], training=False)[0] for x in test_x[:20]])
right_mode = float(jnp.abs(together[:20] - alone).max())
print(f"the first image's outputs in two batches differ by {wrong_mode:.2f} in training mode,")
print(f"by {right_mode:.0e} in inference")

try:
    apply(params, state, test_x[:1], training=True)
    refused = ""
except ValueError as error:
    refused = str(error)
print("and a batch of one in training is an error:", refused)

# %% [markdown]
# ## Folding
#
# In inference, BN is an affine map, so it can be folded into the layer before it. The result is a
# network without BN.

# %%
x = test_x
for i, (layer, bn_state) in enumerate(zip(params, state, strict=True)):
    kernel, bias = jbn.fold(layer["kernel"], None, layer["bn"], bn_state)
    x = x @ kernel + bias[None]
    x = jax.nn.relu(x) if i < len(params) - 1 else x
folded = float(jnp.abs(x - together).max())
print(f"largest difference after folding: {folded:.0e}")

# %% [markdown]
# ## Several devices
#
# With `axis_name`, the statistics are those of the whole batch, weighted by the number of examples
# on each device. Here, 58 examples are spread over four devices, and two rows of padding on the
# last device are masked.

# %%
DEVICES = jax.devices("cpu")[:4]
batch, padding = train_x[:58], 2
padded = jnp.pad(batch, ((0, padding), (0, 0))).reshape(4, 15, 64)
mask = (jnp.arange(60) < 58).reshape(4, 15)


def forward(x, mask):
    return apply(params, state, x, training=True, axis_name="devices", mask=mask)


on_four, state_of_four = jax.pmap(forward, axis_name="devices", devices=DEVICES)(padded, mask)
on_one, state_of_one = apply(params, state, batch, training=True)
devices_y = float(jnp.abs(on_four.reshape(60, 10)[:58] - on_one).max())
devices_state = max(
    float(jnp.abs(a[d] - b).max())
    for a, b in zip(jax.tree.leaves(state_of_four), jax.tree.leaves(state_of_one), strict=True)
    for d in range(4)
)
print(
    f"{len(DEVICES)} devices against one: outputs {devices_y:.0e}, statistics {devices_state:.0e}"
)

# %% [markdown]
# ## Exercises
#
# 1. Evaluate the test images in training mode in ten batches of 30, once with the classes mixed and
#    once with a single class per batch. What is the accuracy? Which of the three layers is to
#    blame?
# 2. `momentum` is the weight of the old statistics. What are the running statistics after the first
#    twenty batches with momentum 0, and with momentum 1? Is there a momentum, possibly different
#    for each batch, that makes them equal to the averages of Algorithm 2?
#
# ## Answers
#
# <details>
# <summary>Open</summary>
#
# 1. With the classes mixed, it is a few points lower than in inference. With a single class per
#    batch, it drops to about a tenth, no better than guessing. A single layer in training mode,
#    whichever it is, already brings it down to .16 or less: over the batch, the mean of each of its
#    features is the bias, whatever the images show. What the images have in common, their class, is
#    subtracted.
# 2. With momentum 0, they are the statistics of the last batch. With momentum 1, they are still the
#    initial ones, and no error says so. With t / (t + 1) for batch t, counted from 0, all batches
#    so far have the same weight, and the statistics equal those of `jbn.population` up to rounding.
#    The schedule `jbn.cumulative`, passed as the momentum, does exactly this.
#
# The next cell computes both.
#
# </details>


# %%
@functools.partial(jax.jit, static_argnames="in_training")
def accuracy_in_parts(parts, in_training):
    """Return the accuracy if these layers use the statistics of each part."""

    def right(rows):
        u = test_x[rows]
        for i, (layer, bn_state) in enumerate(zip(params, state, strict=True)):
            u = u @ layer["kernel"]
            u, _ = jbn.batch_norm(u, layer["bn"], bn_state, training=i in in_training)
            u = jax.nn.relu(u) if i < len(params) - 1 else u
        return u.argmax(-1) == test_y[rows]

    return jnp.mean(jax.vmap(right)(parts))


mixed = jnp.arange(300).reshape(10, 30)
by_class = jnp.stack([jnp.flatnonzero(test_y == digit)[:30] for digit in range(10)])
choices = {"none": (), "first": (0,), "second": (1,), "third": (2,), "all": (0, 1, 2)}
company = {
    name: {layers: float(accuracy_in_parts(parts, own)) for layers, own in choices.items()}
    for name, parts in {"mixed": mixed, "one class in each": by_class}.items()
}
print("accuracy, by the layers in training mode")
for name, accuracies in company.items():
    print(f"{name:17}", ", ".join(f"{layers} {value:.2f}" for layers, value in accuracies.items()))

initial = [jbn.init(width)[1] for width in WIDTHS[1:]]


@jax.jit
def absorb(state, x, momentum):
    return apply(params, state, x, training=True, momentum=momentum)[1]


def running(momentum, rows_of_batches):
    """Return the running statistics; momentum is a function of the batch number."""
    moved = initial
    for t, rows in enumerate(rows_of_batches):
        moved = absorb(moved, train_x[rows], momentum(t))
    return moved


def difference(one, other):
    return max(
        float(jnp.abs(jnp.stack([a.mean - b.mean, a.var - b.var])).max())
        for a, b in zip(one, other, strict=True)
    )


twenty = batches[:20]
at_zero = difference(running(lambda t: 0.0, twenty), running(lambda t: 0.0, twenty[-1:]))
at_one = difference(running(lambda t: 1.0, twenty), initial)
at_average = difference(running(lambda t: t / (t + 1), twenty), averaged(params, state))
print("momentum 0: those of the last batch, to 1e-6:", at_zero < 1e-6)
print("momentum 1: the initial ones:", at_one == 0)
print("momentum t / (t + 1): those of jbn.population, to 1e-5:", at_average < 1e-5)

# %% [markdown]
# ## Answer
#
# Only the statistics change. Population statistics are right from the first step on. With them, the
# output for an image depends on that image alone. Once they are folded into the layer before, they
# cost nothing.

# %%
assert population[0] > exponential[0] + 0.2
assert abs(population[-1] - exponential[-1]) < 0.3
assert population[-1] > 0.9
assert wrong_mode > 0.1
assert right_mode < 1e-4
assert "batch of one" in refused or "one value" in refused
assert folded < 1e-4
assert len(DEVICES) == 4
assert devices_y < 1e-4
assert devices_state < 1e-4
assert min(accuracies["none"] for accuracies in company.values()) > 0.95
assert 0.9 < company["mixed"]["all"] < company["mixed"]["none"] - 0.01
assert max(company["one class in each"][name] for name in ("first", "second", "third", "all")) < 0.3
assert at_zero < 1e-6
assert at_one == 0
assert at_average < 1e-5
