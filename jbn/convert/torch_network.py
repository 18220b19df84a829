"""Whole networks of PyTorch: torchvision's and timm's ResNets, the port of BN-Inception."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jbn._inputs import describe
from jbn.convert._arrays import CountError, as_count
from jbn.convert._inception_names import ATTRIBUTES, OUTPUTS, inception_names
from jbn.convert._network import Format, Network, Options, Path, Place, Source, model_kind
from jbn.convert._originals import Original, original_of_torch, plain_name
from jbn.convert._read_network import as_floating, read_network
from jbn.convert._resnet_names import TORCH, resnet_names
from jbn.convert.common import ConversionError
from jbn.convert.torch import _tensor

_FORM = Format(
    where="torch network",
    affine={"kernel": ".weight", "bias": ".bias"},
    norm={
        "scale": ".weight",
        "bias": ".bias",
        "mean": ".running_mean",
        "var": ".running_var",
        "count": ".num_batches_tracked",
    },
    outputs_first=True,
)
# Keys under which checkpoints keep the weights, the likeliest first.
_NESTED = ("state_dict", "model_state_dict", "model")
# `torch.optim.swa_utils.AveragedModel` keeps the number of models that it has averaged.
_IGNORED = frozenset({"n_averaged"})


def network_from_torch(
    model: Any,
    state_dict: Any,
    *,
    head: bool = True,
    count: int | None = None,
    epsilon: float | None = None,
    activation: Callable[..., Any] | None = None,
) -> dict[str, Any]:
    """Convert the weights of the same network in PyTorch.

    Supports the ResNets of torchvision and timm (18 to 152, and others with the same layers), and
    BN-Inception of pretrained-models.pytorch. Read a file with
    `safetensors.numpy.load_file(file)`, or with `torch.load(file, weights_only=True,
    map_location="cpu")`, which does not execute code from the file.

    In evaluation, the outputs are those of the torch network, up to float32 rounding. To continue
    training as in torch, also update the statistics as its layers do: its momentum of 0.1 is 0.9
    here, and its running variance has Bessel's correction:

        norm = functools.partial(jbn.linen.BatchNorm, momentum=0.9, unbiased=True, epsilon=1e-5)
        model = jbn.models.resnet50(norm=norm)

    The convolutions of BN-Inception have biases. They are subtracted from the running means, which
    leaves the output unchanged; a model made with use_bias=True keeps them. Make the model with
    padding="symmetric", since the port's strided convolutions pad 3 or 1 on both sides. Its max
    pools, in ceil mode, agree with those here if both sides of the images are multiples of 32. It
    expects BGR images in 0..255 minus (104, 117, 128), and its layers have torch's momentum 0.9,
    which is 0.1 here.

    Args:
      model: a `ResNet` or `InceptionNet` of `jbn.models` with batch norm and the same blocks and
        widths.
      state_dict: tensors, NumPy or JAX arrays by torch's names, or the module that holds them.
        Prefixes of `DataParallel` and `torch.compile` are removed, and a checkpoint's `state_dict`,
        `model_state_dict` or `model` is used; for other entries, such as averaged weights, pass for
        example checkpoint["state_dict_ema"].
      head: also convert the last dense layer. If False, for example for another number of classes,
        the result lacks `params["output"]`; add your own, as in the example.
      count: number of batches absorbed, for a model whose momentum is a schedule, if the file has
        no `num_batches_tracked`. Other models keep none.
      epsilon, activation: those of the source, if they are not the original's 1e-5 and relu, as in
        some networks of timm; the epsilon of a module is read from it.

    Returns:
      `{"params": ..., "batch_stats": ...}` for `model.apply`, with the structure of `model.init`.
      Arrays are copies in the model's dtypes: its `param_dtype`, and float32 for statistics.

    Raises:
      ConversionError: lists everything that does not fit: missing, unexpected and unreadable
        arrays, wrong shapes, and attributes of the model that would change its output, such as the
        activation and the norms' epsilon.
      TypeError: a model of another class; a state_dict or options of another type.

    Example:
      >>> import jax, jax.numpy as jnp, jbn
      >>> from jbn.models import ResNet
      >>> ours = ResNet(blocks=(1,), widths=(4,), norm="batch", outputs=3)
      >>> theirs, x = ours.copy(outputs=1000), jnp.ones((1, 8, 8, 3))
      >>> init = jax.jit(lambda model: model.init(jax.random.key(0), x, training=False),
      ...     static_argnums=0)
      >>> state_dict = jbn.convert.network_to_torch(theirs, init(theirs), tensors=False)
      >>> variables = jbn.convert.network_from_torch(ours, state_dict, head=False)
      >>> variables["params"]["output"] = init(ours)["params"]["output"]
      >>> ours.apply(variables, x, training=False).shape
      (1, 3)

    References:
      https://docs.pytorch.org/vision/stable/models/resnet.html
      https://github.com/Cadene/pretrained-models.pytorch
    """
    model_kind(_FORM.where, model, "ResNet", "InceptionNet")
    arrays, problems, original = _arrays(state_dict)
    source = _source(model, arrays, original)
    options = Options(head, count, epsilon, activation)
    return read_network(model, arrays, source, options, ignored=_IGNORED, problems=problems)


def network_to_torch(
    model: Any,
    variables: Mapping[str, Any],
    *,
    head: bool = True,
    tensors: bool = True,
    epsilon: float | None = None,
    activation: Callable[..., Any] | None = None,
) -> dict[str, Any]:
    """Make the state_dict of the same network in PyTorch, with torchvision's or the port's names.

    Inverts `network_from_torch` bit for bit, except for what the model does not hold: the biases of
    BN-Inception's convolutions, which become zeros, since they are part of the means;
    `num_batches_tracked`, which is 0 unless the momentum is a schedule; and precision lost to a
    smaller `param_dtype`.

    Args:
      model: a `ResNet` or `InceptionNet` of `jbn.models` with batch norm.
      variables: variables of the model, `{"params": ..., "batch_stats": ...}`.
      head: also convert the last dense layer.
      tensors: return tensors, which `load_state_dict` needs; False returns NumPy arrays, which
        `safetensors.numpy.save_file` takes, and does not import torch.
      epsilon, activation: those of the network that will load the state_dict, if they are not the
        original's 1e-5 and relu; a state_dict holds neither.

    Returns:
      The state_dict.

    Raises:
      ConversionError: lists everything that does not fit: missing and unexpected variables, wrong
        shapes, and attributes of the model that would change its output, such as the activation and
        the norms' epsilon.
      TypeError: a model of another class; variables that are not a mapping; options of another
        type.

    Example:
      >>> import functools, jax, jax.numpy as jnp, jbn
      >>> from jbn.models import ResNet
      >>> model = ResNet(blocks=(1,), widths=(4,), norm="batch")
      >>> variables = jax.jit(functools.partial(model.init, training=False))(
      ...     jax.random.key(0), jnp.ones((1, 8, 8, 3)))
      >>> state_dict = jbn.convert.network_to_torch(model, variables, tensors=False)
      >>> sorted(state_dict)[:3], state_dict["conv1.weight"].shape
      (['bn1.bias', 'bn1.num_batches_tracked', 'bn1.running_mean'], (4, 3, 3, 3))
    """
    from flax.traverse_util import flatten_dict

    source = _source(model, {}, Original())
    if not isinstance(variables, Mapping):
        raise TypeError(
            f"Expected `variables` as the mapping that model.init returns, got "
            f"{describe(variables)}. Pass the variables of the model."
        )
    given: dict[Path, Any] = dict(flatten_dict(variables))
    kernel: Any = given.get(("params", "stem", "kernel"), ())
    stem = np.shape(kernel)
    channels = stem[2] if len(stem) == 4 else 3
    options = Options(head, None, epsilon, activation)
    network, names = Network(model, source, options, channels=channels), source.names
    arrays: dict[str, np.ndarray] = {}
    for place in network.places():
        arrays[place.key] = _written(network, place, given.get(place.path))
        if place.leaf == "mean":
            arrays.setdefault(names[place.module] + _FORM.norm["count"], np.zeros((), np.int64))
    if names["stem"] != TORCH.stem:
        for key, mean in network.biases():
            arrays[key] = np.zeros_like(arrays[names[mean[1]] + _FORM.norm["mean"]])
    for path in given:
        if path not in network.target:
            text = f"{'/'.join(map(str, path))!r} has no place in the model."
            network.problem(text, "unexpected")
    several = len(network.problems) > 1 and sum(map(len, network.problems.values())) > 10
    network.finish("The variables are of another model. Pass those of this one." if several else "")
    return {key: _tensor(array) for key, array in arrays.items()} if tensors else arrays


def _written(network: Network, place: Place, value: Any) -> np.ndarray:
    """Return a variable in torch's layout; add a problem if it does not fit."""
    name, shape = "/".join(place.path), place.like.shape
    if place.leaf == "count":
        try:
            return np.array(as_count(value), np.int64)
        except CountError as error:
            network.problem(f"{name!r} is {error} Set it to the number of batches absorbed.")
            return np.zeros((), np.int64)
    if value is None:
        hint = " Pass head=False to leave it out." if place.module == "output" else ""
        network.problem(f"no {name!r}, expected {shape}, as the model has it.{hint}", "missing")
        return np.zeros(shape)
    array = as_floating(network, name, value, place.like, place.module)
    if array is None:
        array = np.zeros(shape)
    elif array.shape != shape:
        network.problem(
            f"{name!r} has shape {array.shape}, expected {shape}, as the model has it.", "misshapen"
        )
    elif array.ndim > 1:
        array = array.transpose(-1, -2, *range(array.ndim - 2))
    return np.array(array, order="C")


def _source(model: Any, arrays: Mapping[str, Any], original: Original) -> Source:
    """Return the names of the model's layers in torch, and the attributes it must have."""
    if model_kind(_FORM.where, model, "ResNet", "InceptionNet") == "ResNet":
        return Source(_FORM, resnet_names(model, TORCH), TORCH.attributes, TORCH, original=original)
    there = [name for name in OUTPUTS if f"{name}{_FORM.affine['kernel']}" in arrays]
    return Source(_FORM, inception_names(model, *there[:1]), ATTRIBUTES, original=original)


def _arrays(source: Any) -> tuple[dict[str, Any], list[str], Original]:
    """Return a state_dict's arrays by plain name, the problems, and what a module tells."""
    original = Original()
    if hasattr(source, "state_dict") and not isinstance(source, Mapping | type):
        original, source = original_of_torch(source), source.state_dict()
    nested: Any = source
    while isinstance(nested, Mapping):
        source, nested = nested, None
        for name in _NESTED:
            if nested is None and isinstance(source.get(name), Mapping):
                nested = source[name]
    if not isinstance(source, Mapping):
        remedy = (
            "Read the file first: safetensors.numpy.load_file(file), or torch.load(file, "
            "weights_only=True)."
        )
        if hasattr(source, "layers"):
            remedy = "Pass a Keras model to network_from_keras."
        elif getattr(source, "__name__", "") == "state_dict":
            remedy = "Call it: model.state_dict()."
        raise TypeError(
            f"Expected `state_dict` as a mapping of names to arrays, got {describe(source)}. "
            f"{remedy}"
        )
    if source.keys() & {"params", "batch_stats"}:
        raise _wrong("got variables of Flax. Pass them to network_from_flax, or to model.apply.")
    arrays: dict[str, Any] = {}
    problems, mappings = [], []
    for key, value in source.items():
        if not isinstance(key, str):
            raise _wrong(
                f"the keys are {type(key).__name__}, such as {key!r}, expected strings. Pass "
                "{key.decode(): value for key, value in state_dict.items()} if they are bytes."
            )
        if isinstance(value, Mapping) or hasattr(value, "state_dict"):
            mappings.append(key)
            continue
        name = plain_name(key)
        if name in arrays:
            problems.append(f"{name!r} is there twice, once as {key!r}. Drop one.")
        arrays[name] = value
    weights = [key for key in mappings if _holds_weights(source[key])]
    if weights and not _holds_weights(arrays):
        raise _wrong(
            f"the arrays are below {' and '.join(map(repr, weights))}. Pass "
            f"state_dict[{weights[0]!r}]."
        )
    problems += [
        f"{key!r} holds {describe(source[key])}, expected an array. Pass the weights alone: "
        "{key: value for key, value in state_dict.items() if hasattr(value, 'shape')}."
        for key in mappings
    ]
    return arrays, problems, original


def _wrong(text: str) -> ConversionError:
    return ConversionError([f"{_FORM.where}: {text}"], "network")


def _holds_weights(value: Any) -> bool:
    """Tell whether an entry of a checkpoint most likely holds the weights."""
    if hasattr(value, "state_dict") and not isinstance(value, Mapping):
        value = value.state_dict()
    arrays = [part for part in value.values() if hasattr(part, "shape")]
    return 0 < len(arrays) >= len(value) / 2
