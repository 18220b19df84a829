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
# # Why do gradients vanish in deep networks, and how does batch normalization help?
#
# Backpropagation multiplies: the gradient that reaches a layer is the gradient at the output times
# the slopes of all layers in between. A product of many numbers below one vanishes, and a product
# of many numbers above one explodes. Here we watch both, layer by layer, in networks with twenty
# layers at initialization. Then we train such a network with and without batch normalization (BN).

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

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import jbn
from jbn.models import MLP

LAYERS, WIDTH, BATCH = 20, 100, 256

# %% [markdown]
# ## The gradient, layer by layer
#
# Each layer multiplies its input u by weights W and applies a nonlinearity g: it computes g(Wu), or
# g(BN(Wu)) with BN. We take the gradient of the loss with respect to Wu in every layer. Between
# layers of equal width, Xavier initialization (Glorot & Bengio, 2010) gives the weights a variance
# of 1 / width, and He initialization (He et al., 2015) twice that: He's weights are Xavier's times
# the square root of two.
#
# For each network, we print the factor by which the norm of this gradient changes from one layer to
# the layer before it (the geometric mean over the network). Ideally, it is one.


# %%
of_x, of_w, of_last, of_labels = jax.random.split(jax.random.key(0), 4)
x = jax.random.normal(of_x, (BATCH, WIDTH))
weights = WIDTH**-0.5 * jax.random.normal(of_w, (LAYERS, WIDTH, WIDTH))
last = WIDTH**-0.5 * jax.random.normal(of_last, (WIDTH, 10))
labels = jax.random.randint(of_labels, (BATCH,), 0, 10)
params, state = jbn.init(WIDTH)


@functools.partial(jax.jit, static_argnames=("activation", "norm"))
def norms(activation, scale=1.0, norm=False):
    """Return |dL/d(Wu)| of each layer, first to last."""

    def layer(x, of_layer):
        weight, change = of_layer
        sums = x @ weight + change
        if norm:
            sums, _ = jbn.batch_norm(sums, params, state, training=True)
        return activation(sums), None

    def loss(changes):  # Zeros added to Wu, so their gradient is that of Wu.
        outputs, _ = jax.lax.scan(layer, x, (scale * weights, changes))
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(outputs @ last, labels))

    gradient = jax.grad(loss)(jnp.zeros((LAYERS, BATCH, WIDTH)))
    return jnp.sqrt(jnp.sum(gradient**2, (1, 2)))


def factor(norms):
    """Return the factor by which the norm changes from each layer to the one before it."""
    return float(norms[0] / norms[-1]) ** (1 / (len(norms) - 1))


he = 2**0.5
networks = {
    "sigmoid, Xavier": norms(nn.sigmoid),
    "tanh, Xavier": norms(nn.tanh),
    "ReLU, Xavier": norms(nn.relu),
    "ReLU, He": norms(nn.relu, he),
    "ReLU, twice He": norms(nn.relu, 2 * he),
    "sigmoid, Xavier, BN": norms(nn.sigmoid, norm=True),
    "ReLU, twice He, BN": norms(nn.relu, 2 * he, norm=True),
}
for name, values in networks.items():
    print(f"{name:22} times {factor(values):.3f} per layer")

# %%
figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
looks = zip(networks.items(), ("s--", "D-.", "v:", "o-", "^--", "P-", "X-"), strict=True)
for (name, values), look in looks:
    axes.semilogy(range(1, LAYERS + 1), values, look, label=name, markersize=4)
axes.set(xlabel="layer, from the input", ylabel="norm of the gradient", xticks=range(1, 21, 3))
axes.set_title("At initialization: 20 layers of 100, one batch of 256 random inputs")
axes.legend(fontsize="small", ncols=2)
plt.show()

# %% [markdown]
# The slope of the sigmoid is at most 1/4, so the gradient vanishes within a few layers. The slope
# of tanh is 1 at zero, which nearly preserves the gradient. ReLU preserves it only with He's
# weights: smaller weights shrink it, larger ones blow it up. With BN, the factor stays near one
# even for the sigmoid and for the large weights. (With sigmoids and BN, the gradient drops only at
# the first layer: BN divides the gradient by the standard deviation of Wu, which is about 1 there,
# but about 0.2 in the layers above, whose input comes from a sigmoid.)
#
# The scale of the weights cancels, because BN(aWu) = BN(Wu) for every a > 0. Next, we scale all
# weights.
#
# ## The scale of the weights

# %%
scales = (0.2, 0.5, 1.0, 2.0, 5.0)
plain = [factor(norms(nn.relu, scale * he)) for scale in scales]
normalized = [factor(norms(nn.relu, scale * he, norm=True)) for scale in scales]

figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
axes.loglog(scales, plain, "s--", label="without BN")
axes.loglog(scales, normalized, "o-", label="with BN")
axes.set(xlabel="scale of the weights, He's being 1", ylabel="factor per layer")
axes.set_title("Gradient at initialization, 20 layers of 100 ReLUs")
for set_ticks in (axes.set_xticks, axes.set_yticks):
    set_ticks(scales, scales)
    set_ticks([], minor=True)
axes.legend()
plt.show()

# %% [markdown]
# With BN, the factor is 1.17 at every scale. It does not depend on the scale, but it is not one.
# For wide layers and large batches it is the square root of pi/(pi-1), 1.21, as
# [Yang et al., 2019](https://arxiv.org/abs/1902.08129) derive. Over hundreds of layers even that
# makes the gradient explode, unless the network has skip connections, as a ResNet does.
#
# ## Does it matter for training?
#
# Here is a task for twenty layers of sigmoids: in which of the eight octants does a point lie, that
# is, what are the signs of its three coordinates? We take 300 steps of Adam, each on all 512
# points, with one seed. Without BN, almost no gradient reaches the first layers, and the loss stays
# at the level of guessing.

# %%
points = jax.random.normal(jax.random.key(7), (512, 3))
regions = (points > 0) @ jnp.array([1, 2, 4])


def train(norm, steps=300):
    xavier = nn.initializers.glorot_normal()
    model = MLP(hidden=(32,) * LAYERS, outputs=8, kernel_init=xavier, norm=norm)
    variables = model.init(jax.random.key(0), points, training=False)
    optimizer = optax.adam(1e-2)

    def loss(params):
        collections = {**variables, "params": params}
        # Drop the new running statistics: only evaluation needs them, and there is none here.
        logits, _ = model.apply(collections, points, training=True, mutable=["batch_stats"])
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, regions))

    def step(carry, _):
        params, opt_state = carry
        value, gradient = jax.value_and_grad(loss)(params)
        updates, opt_state = optimizer.update(gradient, opt_state)
        return (optax.apply_updates(params, updates), opt_state), value

    start = variables["params"], optimizer.init(variables["params"])
    return np.asarray(
        jax.jit(lambda start: jax.lax.scan(step, start, None, length=steps))(start)[1]
    )


losses = {"without BN": train(None), "with BN": train("batch")}
figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
for (name, values), look in zip(losses.items(), ("--", "-"), strict=True):
    axes.plot(values, look, label=name)
axes.axhline(np.log(8), color="gray", linestyle=":", label="a guess: log 8")
axes.set(xlabel="steps", ylabel="training cross-entropy (nats)")
axes.set_title("Octants of 512 points: 20 layers of 32 sigmoids, one seed")
axes.legend()
plt.show()

# %% [markdown]
# ## Exercises
#
# 1. The sigmoid is a tanh in disguise: tanh(z) = 2 sigmoid(2z) - 1. Yet the gradient vanishes with
#    one and is nearly preserved with the other. Is the reason the slope of the sigmoid, 1/4 at
#    zero, or that its values are not centered at zero? Try 4 sigmoid(z), sigmoid(z) - 1/2, and both
#    changes at once, without and with BN.
# 2. In 100 layers of ReLUs with BN, how many times larger is the gradient at the first layer than
#    at the last? And with skip connections, where each layer returns u + g(BN(Wu))?
#
# ## Answers
#
# <details>
# <summary>Open</summary>
#
# 1. It is both. Fixing only the slope gives a factor of 0.64, centering alone 0.25, and both
#    together 0.94, close to tanh. If the values are around 2 instead of 0, the sums Wu of the next
#    layer are large, and the sigmoid is flat there. With BN, centering makes no difference: a
#    constant added to the output of a layer shifts each sum of the next layer by a constant, and BN
#    subtracts it along with the mean.
# 2. Without skip connections it is tens of millions of times larger. With them, it is about a
#    hundred times larger, and the ten layers next to the input account for a factor of about nine.
#    The sum that is passed on grows with every layer, and BN divides by its standard deviation. So
#    the later a layer, the less it adds relative to the sum, and the gradient mostly takes the skip
#    connection.
#
# The next cell computes both.
#
# </details>

# %%
forms = {
    "sigmoid(z)": nn.sigmoid,
    "4 sigmoid(z)": lambda z: 4 * nn.sigmoid(z),
    "sigmoid(z) - 1/2": lambda z: nn.sigmoid(z) - 0.5,
    "4 sigmoid(z) - 2": lambda z: 4 * nn.sigmoid(z) - 2,
}
without = {name: factor(norms(form)) for name, form in forms.items()}
centered_by_bn = {name: factor(norms(form, norm=True)) for name, form in forms.items()}
for name in forms:
    print(f"{name:17} {without[name]:.2f} per layer, {centered_by_bn[name]:.2f} with BN")

deep = WIDTH**-0.5 * jax.random.normal(jax.random.key(1), (100, WIDTH, WIDTH))


@jax.jit
def norms_of_deep(skip):
    """Return |dL/du| of each of 100 layers; skip is 1 with skip connections, 0 without."""

    def layer(u, of_layer):
        weight, change = of_layer
        u = u + change
        normalized, _ = jbn.batch_norm(u @ weight, params, state, training=True)
        return skip * u + nn.relu(normalized), None

    def loss(changes):
        outputs, _ = jax.lax.scan(layer, x, (deep, changes))
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(outputs @ last, labels))

    gradient = jax.grad(loss)(jnp.zeros((len(deep), BATCH, WIDTH)))
    return jnp.sqrt(jnp.sum(gradient**2, (1, 2)))


no_skips, skips = norms_of_deep(0.0), norms_of_deep(1.0)
for name, values in {"without skips": no_skips, "with skips": skips}.items():
    print(
        f"{name:13} layer 1 has {values[0] / values[-1]:.1e} times the gradient of layer 100, "
        f"layer 11 {values[10] / values[-1]:.1e} times"
    )

# %% [markdown]
# ## Answer
#
# The slopes of the layers multiply, and twenty layers are enough to lose the gradient. Batch
# normalization removes the scale of the weights and of the nonlinearity's input from this product.
# The factor per layer then stays near one, and the network learns.

# %%
assert factor(networks["sigmoid, Xavier"]) < 0.35
assert 0.8 < factor(networks["tanh, Xavier"]) < 1
assert 0.85 < factor(networks["ReLU, He"]) < 1.15
assert factor(networks["ReLU, Xavier"]) < 0.8
assert factor(networks["ReLU, twice He"]) > 1.7
assert 0.7 < factor(networks["sigmoid, Xavier, BN"]) < 1.4
assert np.ptp(np.log(normalized)) < 0.05 < np.ptp(np.log(plain))
assert abs(normalized[0] - (np.pi / (np.pi - 1)) ** 0.5) < 0.1
assert losses["without BN"][-1] > 0.9 * np.log(8)
assert losses["with BN"][-1] < 0.5 * np.log(8)
assert without["4 sigmoid(z)"] < 0.75
assert without["sigmoid(z) - 1/2"] < 0.35
assert 0.85 < without["4 sigmoid(z) - 2"] < 1.05
assert abs(centered_by_bn["4 sigmoid(z)"] - centered_by_bn["4 sigmoid(z) - 2"]) < 1e-3
assert abs(centered_by_bn["sigmoid(z)"] - centered_by_bn["sigmoid(z) - 1/2"]) < 1e-3
assert no_skips[0] > 1e7 * no_skips[-1]
assert skips[0] < 300 * skips[-1]
assert skips[0] > 5 * skips[10]
assert factor(skips[50:]) < 1.01
