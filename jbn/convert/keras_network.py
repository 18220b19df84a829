"""Whole networks of Keras: `keras.applications.ResNet50`, `ResNet101` and `ResNet152`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jbn._inputs import describe
from jbn.convert._network import Format, Options, Source, model_kind
from jbn.convert._originals import original_of_keras
from jbn.convert._read_network import read_network
from jbn.convert._resnet_names import KERAS, resnet_names
from jbn.convert.common import ConversionError

_FORM = Format(
    where="Keras network",
    affine={"kernel": "/kernel", "bias": "/bias"},
    norm={"scale": "/gamma", "bias": "/beta", "mean": "/moving_mean", "var": "/moving_variance"},
    epsilon=1.001e-5,
)


def network_from_keras(
    model: Any,
    source: Any,
    *,
    head: bool = True,
    count: int | None = None,
    epsilon: float | None = None,
    activation: Callable[..., Any] | None = None,
) -> dict[str, Any]:
    """Convert the weights of the same ResNet in Keras.

    Keras' bottlenecks have their stride in the first 1x1 convolution, as in the paper, and ours in
    the 3x3, so make the model with `stride_in_1x1=True`. Keras' epsilon is 1.001e-5, its momentum
    0.99, and its running variance is biased. Our outputs are logits, as Keras' are with
    classifier_activation=None:

        norm = functools.partial(jbn.linen.BatchNorm, epsilon=1.001e-5, momentum=0.99)
        model = jbn.models.resnet50(norm=norm, stride_in_1x1=True)
        variables = jbn.convert.network_from_keras(model, keras.applications.ResNet50())

    Keras' convolutions have biases. They are subtracted from the running means, which leaves the
    output unchanged; a model made with use_bias=True keeps them. Preprocess images with
    `keras.applications.resnet.preprocess_input`.

    Args:
      model: a bottleneck `ResNet` of `jbn.models` with batch norm and the same blocks and widths.
      source: the Keras model.
      head: also convert the last dense layer. If False, for example for another number of classes
        or a source made with include_top=False, the result lacks `params["output"]`; add your own.
      count: number of batches absorbed, for a model whose momentum is a schedule, since Keras keeps
        no count.
      epsilon, activation: those of the source, if they differ from what its layers say. By default
        the epsilon is read from its batch norms (1.001e-5), and its activations have to be relu.

    Returns:
      `{"params": ..., "batch_stats": ...}` for `model.apply`. Arrays are copies, in the model's
      dtypes.

    Raises:
      ConversionError: lists everything that does not fit: missing, unexpected and unreadable
        arrays, wrong shapes, and attributes of the model that would change its output, such as the
        activation and the norms' epsilon.
      TypeError: a model of another class; a source that is not a Keras model; options of another
        type.

    References:
      https://keras.io/api/applications/resnet/
    """
    model_kind(_FORM.where, model, "ResNet")
    if not hasattr(source, "layers"):
        raise TypeError(
            f"Expected `source` as a Keras model, got {describe(source)}. Pass "
            "keras.applications.ResNet50(), or what model.get_layer(name) has of it; weights of "
            "other frameworks go to network_from_torch, network_from_flax or network_from_haiku."
        )
    for layer in source.layers:
        if any(inner.name == KERAS.stem for inner in getattr(layer, "layers", ())):
            name = repr(layer.name)
            problem = (
                f"the ResNet is inside {name}. Pass source.get_layer({name}), with head=False."
            )
            raise ConversionError([f"{_FORM.where}: {problem}"], "network")
    arrays = {
        f"{layer.name}/{weight.name}": weight for layer in source.layers for weight in layer.weights
    }
    source = Source(
        _FORM,
        resnet_names(model, KERAS),
        KERAS.attributes,
        KERAS,
        original=original_of_keras(source),
    )
    return read_network(model, arrays, source, Options(head, count, epsilon, activation))
