"""Fine-tune a ResNet-18 with weights from PyTorch; export it as one file that needs only jax.

    python docs/examples/finetune.py --weights resnet18.safetensors --statistics train

Test accuracy on CIFAR-10, from random weights, all defaults, 6 min 7 s on two cores:

    last weights .462    averaged weights .477    folded and exported, run by predict.py .478

One seed. No ImageNet weights were available, so `frozen` and `population` have only been tested.
"""

import functools
import subprocess
import sys
from pathlib import Path
from typing import Literal

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
import tyro
from images import load, prepare
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from safetensors.numpy import load_file

import jbn.models


def main(
    weights: Path | None = None,  # state_dict of torchvision's or timm's resnet18
    data: str = "cifar10",  # or a folder with train/CLASS/*.jpg and test/CLASS/*.jpg
    statistics: Literal["train", "frozen", "population"] = "train",  # of batch; file; new images
    dtype: Literal["bfloat16", "float32"] = "bfloat16",  # of computation; variables are float32
    size: int = 32,  # pixels per side, after resizing
    steps: int = 200,
    batch_size: int = 128,  # a multiple of the number of devices
    rate: float = 0.02,  # peak learning rate, after a warmup
    out: Path = Path("finetuned"),  # the checkpoints and the exported model
) -> dict[str, float]:  # test accuracy
    # ---- Images, network, weights ----
    (x_train, y_train), (x_test, y_test) = load(data, size)
    network = functools.partial(jbn.models.resnet18, outputs=int(y_train.max()) + 1, dtype=dtype)
    model, mesh = network(norm="batch"), Mesh(jax.devices(), ("data",))
    split, whole = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
    inputs = functools.partial(prepare, size=size)
    one = inputs(x_train[:1])
    variables = jax.jit(functools.partial(model.init, training=False))(jax.random.key(0), one)
    if weights:  # All but the last layer, which was trained for other classes.
        theirs = jbn.convert.network_from_torch(model, load_file(weights), head=False)
        variables = {**theirs, "params": {**variables["params"], **theirs["params"]}}

    # ---- Statistics over given batches, with fixed weights ----
    @jax.jit
    def population(held, batches):
        def step(batch_stats, x):
            variables = held | {"batch_stats": batch_stats}
            _, new = model.apply(variables, inputs(x), training=True, mutable=["batch_stats"])
            return new["batch_stats"]

        return held | {"batch_stats": jbn.linen.population(step, held["batch_stats"], batches)}

    # ---- One step: SGD, weight decay on kernels only, a running average of the weights ----
    kernels = functools.partial(jax.tree.map_with_path, lambda path, _: path[-1].key == "kernel")
    schedule = optax.warmup_cosine_decay_schedule(0, rate, steps // 10, steps)
    optimizer = optax.chain(optax.add_decayed_weights(1e-4, mask=kernels), optax.sgd(schedule, 0.9))
    training = statistics == "train"

    @jax.jit
    def train_step(state, x, labels):
        variables, optimizer_state, average = state

        def loss(params):
            held = variables | {"params": params}
            logits, new = model.apply(held, inputs(x), training=training, mutable=["batch_stats"])
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), new

        gradient, new = jax.grad(loss, has_aux=True)(variables["params"])
        updates, optimizer_state = optimizer.update(gradient, optimizer_state, variables["params"])
        params = optax.apply_updates(variables["params"], updates)
        average = optax.incremental_update(params, average, 0.02)
        return {"params": params, **new}, optimizer_state, average

    # ---- Training over all devices; a restart resumes from the last checkpoint ----
    def batch(step):
        rows = np.random.default_rng([0, step]).choice(len(y_train), batch_size)
        return jax.device_put((x_train[rows], y_train[rows]), split)

    calibration = np.stack([batch(steps + i)[0] for i in range(10)])
    variables = population(variables, calibration) if statistics == "population" else variables
    state = variables, optimizer.init(variables["params"]), variables["params"]
    state = jax.device_put(state, whole)
    options = ocp.CheckpointManagerOptions(max_to_keep=1, save_interval_steps=100)
    with ocp.CheckpointManager((out / "checkpoints").absolute(), options=options) as saved:
        start = saved.latest_step() or 0
        state = saved.restore(start, args=ocp.args.StandardRestore(state)) if start else state
        for step in range(start, steps):
            state = train_step(state, *batch(step))
            saved.save(step + 1, args=ocp.args.StandardSave(state))

    # ---- The averaged weights with their own statistics: folded, exported, run by predict.py ----
    variables, _, average = state
    averaged = {**variables, "params": average}
    averaged = population(averaged, calibration) if training else averaged
    folded = jbn.fold_model(model, one, variables=averaged, training=False)
    predict = jax.jit(lambda x: network(norm=None).apply(folded, inputs(x), training=False))
    exported = jax.export.export(predict)(jax.export.symbolic_args_specs(x_test, "n, ..."))
    files = [out / name for name in ("model.jax", "images.npy", "logits.npy")]
    files[0].write_bytes(exported.serialize())
    np.save(files[1], x_test)
    subprocess.run([sys.executable, Path(__file__).with_name("predict.py"), *files], check=True)

    predict = jax.jit(lambda variables: model.apply(variables, inputs(x_test), training=False))
    logits = {"last": predict(variables), "averaged": predict(averaged)}
    logits["exported"] = np.load(files[2])
    return {name: float(np.mean(np.asarray(y).argmax(-1) == y_test)) for name, y in logits.items()}


print(tyro.cli(main))
