"""Train a small network in Flax nnx, average its weights, fold its norms.

    python docs/examples/nnx_cifar.py

Tested at a small scale; no run with the defaults is on record. 20 steps at --width 8: accuracy .20.
"""

from functools import partial
from typing import Literal

import jax
import numpy as np
import optax
import tyro
from flax import nnx
from images import load, prepare

import jbn.nnx


def conv_norm_act(inputs, outputs, stride, *, dtype, rngs):  # Statistics stay float32.
    conv = nnx.Conv(inputs, outputs, (3, 3), stride, use_bias=False, dtype=dtype, rngs=rngs)
    norm = jbn.nnx.BatchNorm(outputs, momentum=0.9, dtype=dtype, rngs=rngs)
    return nnx.Sequential(conv, norm, nnx.relu)


def main(
    data: str = "cifar10",  # or a folder with train/CLASS/*.jpg and test/CLASS/*.jpg
    dtype: Literal["bfloat16", "float32"] = "bfloat16",  # of computation; variables are float32
    size: int = 32,  # pixels per side, after resizing
    width: int = 32,  # features of the first layer
    steps: int = 1000,
    batch_size: int = 128,
    rate: float = 0.1,  # peak learning rate, after a warmup
) -> dict[str, float]:  # test accuracy
    # ---- Images, and seven convolutions, some of which halve the image and double the width ----
    (x_train, y_train), (x_test, y_test) = load(data, size)
    rngs = nnx.Rngs(0)
    unit = partial(conv_norm_act, dtype=dtype, rngs=rngs)
    layers = [unit(3, width, 1)]
    for n in (2 * width, 4 * width, 8 * width):
        layers += [unit(n // 2, n, 2), unit(n, n, 1)]
    head = nnx.Linear(8 * width, int(y_train.max()) + 1, rngs=rngs)
    model = nnx.Sequential(*layers, partial(jax.numpy.mean, axis=(1, 2), dtype="float32"), head)
    forward = nnx.jit(lambda model, x: model(prepare(x, size)))

    # ---- One step: SGD, weight decay on kernels only, a running average of the weights ----
    decay = optax.add_decayed_weights(5e-4, mask=partial(jax.tree.map, lambda p: p.ndim > 1))
    sgd = optax.sgd(optax.warmup_cosine_decay_schedule(0, rate, steps // 10, steps), momentum=0.9)
    optimizer = nnx.Optimizer(model, optax.chain(decay, sgd), wrt=nnx.Param)

    def loss(model, x, labels):
        return optax.softmax_cross_entropy_with_integer_labels(forward(model, x), labels).mean()

    @nnx.jit
    def train_step(model, averaged, optimizer, x, labels):
        optimizer.update(model, nnx.grad(loss)(model, x, labels))
        params, average = (nnx.state(net, nnx.Param) for net in (model, averaged))
        nnx.update(averaged, optax.incremental_update(params, average, 0.02))

    def batch(step):
        rows = np.random.default_rng([0, step]).choice(len(y_train), batch_size)
        return x_train[rows], y_train[rows]

    averaged = nnx.clone(model)
    for step in range(steps):
        train_step(model, averaged, optimizer, *batch(step))

    # ---- The averaged weights with their own statistics, folded ----
    calibration = np.stack([batch(steps + i)[0] for i in range(10)])
    nnx.update(averaged, jbn.nnx.population(forward, averaged, calibration))
    last, averaged = (nnx.view(net, use_running_average=True) for net in (model, averaged))
    folded = jbn.fold_model(averaged, prepare(x_train[:1], size))
    models = {"last": last, "averaged": averaged, "folded": folded}
    logits = {name: forward(model, x_test) for name, model in models.items()}
    return {name: float(np.mean(np.asarray(y).argmax(-1) == y_test)) for name, y in logits.items()}


print(tyro.cli(main))
