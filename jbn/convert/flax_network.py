"""The ResNets of Flax's ImageNet example, and of Haiku."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from jbn._inputs import describe
from jbn.convert._likely_cause import other_source
from jbn.convert._network import Format, Options, Source, model_kind
from jbn.convert._read_network import read_network
from jbn.convert._resnet_names import FLAX, HAIKU, resnet_names
from jbn.convert.common import ConversionError

_FLAX = Format(
    where="Flax network",
    affine={"kernel": "/kernel", "bias": "/bias"},
    norm={name: f"/{name}" for name in ("scale", "bias", "mean", "var", "count")},
)
_HAIKU = Format(
    where="Haiku network",
    affine={"kernel": "/w", "bias": "/b"},
    norm={
        "scale": "/scale",
        "bias": "/offset",
        "mean": "/~/mean_ema/average",
        "var": "/~/var_ema/average",
        "count": "/~/mean_ema/counter",
    },
)
# Other arrays in the state of Haiku's averages.
_BESIDE = ("/~/mean_ema/hidden", "/~/var_ema/hidden", "/~/var_ema/counter")


def network_from_flax(
    model: Any,
    variables: Mapping[str, Any],
    *,
    head: bool = True,
    count: int | None = None,
    epsilon: float | None = None,
    activation: Callable[..., Any] | None = None,
) -> dict[str, Any]:
    """Convert the variables of a ResNet of Flax's ImageNet example.

    That network pads strided 3x3 convolutions and the max pool as XLA's "SAME" does, which with
    even image sizes starts one pixel later, so make the model with `padding="same"`. Its momentum
    is 0.9:

        norm = functools.partial(jbn.linen.BatchNorm, momentum=0.9)
        model = jbn.models.resnet50(norm=norm, padding="same")

    Args:
      model: a `ResNet` of `jbn.models` with batch norm and the same blocks and widths.
      variables: `{"params": ..., "batch_stats": ...}`; of a `TrainState`, its params and
        batch_stats.
      head: also convert the last dense layer. If False, for example for another number of classes,
        the result lacks `params["output"]`; add your own.
      count: number of batches absorbed, for a model whose momentum is a schedule, since Flax keeps
        no count.
      epsilon, activation: those of the source, if they are not the original's 1e-5 and relu; its
        variables hold neither.

    Returns:
      `{"params": ..., "batch_stats": ...}` for `model.apply`. Arrays are copies, in the model's
      dtypes.

    Raises:
      ConversionError: lists everything that does not fit: missing, unexpected and unreadable
        arrays, wrong shapes, and attributes of the model that would change its output, such as the
        activation and the norms' epsilon.
      TypeError: a model of another class; options or variables of another type.

    References:
      https://github.com/google/flax/blob/main/examples/imagenet/models.py
    """
    model_kind(_FLAX.where, model, "ResNet")
    from flax.traverse_util import flatten_dict

    tops = ("params", "batch_stats")
    trees = [variables.get(top) for top in tops] if isinstance(variables, Mapping) else []
    if not (trees and all(isinstance(tree, Mapping) for tree in trees)):
        other = other_source(filter(_is_name, variables)) if isinstance(variables, Mapping) else ""
        if hasattr(variables, "params") and hasattr(variables, "batch_stats"):
            other = "Pass {'params': state.params, 'batch_stats': state.batch_stats}."
        raise TypeError(
            f"Expected `variables` as a mapping with the keys {' and '.join(tops)}, got "
            f"{describe(variables)}. "
            f"{other or 'Pass the two parts of the TrainState by these names.'}"
        )
    arrays: dict[str, Any] = {}
    for tree in trees:
        for path, value in flatten_dict(tree).items():
            arrays["/".join(map(str, path))] = value
    source = Source(_FLAX, resnet_names(model, FLAX), FLAX.attributes, FLAX)
    return read_network(model, arrays, source, Options(head, count, epsilon, activation))


def _is_name(key: Any) -> bool:
    return isinstance(key, str)


def network_from_haiku(
    model: Any,
    params: Mapping[str, Any],
    state: Mapping[str, Any],
    *,
    head: bool = True,
    epsilon: float | None = None,
    activation: Callable[..., Any] | None = None,
) -> dict[str, Any]:
    """Convert the variables of `hk.nets.ResNet18` to `200`, without `resnet_v2`.

    Haiku pads as XLA's "SAME" does, including the first convolution, which with even image sizes
    starts one pixel later, so make the model with `padding="same", stem_padding="same"`. Its
    running statistics are debiased, by default with decay 0.9:

        norm = functools.partial(jbn.linen.BatchNorm, momentum=jbn.debiased(0.9))
        model = jbn.models.resnet50(norm=norm, padding="same", stem_padding="same")

    Args:
      model: a `ResNet` of `jbn.models` with batch norm and the same blocks and widths.
      params, state: params and state of the transformed function, holding only this network.
      head: also convert the last dense layer. If False, for example for another number of classes,
        the result lacks `params["output"]`; add your own.
      epsilon, activation: those of the source, if they are not the original's 1e-5 and relu; its
        trees hold neither.

    Returns:
      `{"params": ..., "batch_stats": ...}` for `model.apply`. Arrays are copies, in the model's
      dtypes.

    Raises:
      ConversionError: lists everything that does not fit: missing, unexpected and unreadable
        arrays, wrong shapes, and attributes of the model that would change its output, such as the
        activation and the norms' epsilon.
      TypeError: a model of another class; options, params or state of another type; params and
        state swapped.

    References:
      https://dm-haiku.readthedocs.io/en/latest/api.html#resnet
    """
    model_kind(_HAIKU.where, model, "ResNet")
    arrays: dict[str, Any] = {}
    for what, tree in (("params", params), ("state", state)):
        if not isinstance(tree, Mapping) or not all(
            isinstance(below, Mapping) for below in tree.values()
        ):
            other = other_source(filter(_is_name, tree)) if isinstance(tree, Mapping) else ""
            raise TypeError(
                f"Expected `{what}` as a dict of modules, got {describe(tree)}. "
                f"{other or 'Pass what hk.transform_with_state(...).init returned.'}"
            )
        arrays |= {
            f"{name}/{key}": value for name, below in tree.items() for key, value in below.items()
        }
    if any(str(name).endswith("/mean_ema") for name in params):
        raise TypeError(
            "Expected `params` before `state`, got the averages of batch norms in params. Swap the "
            "two."
        )
    end = HAIKU.stem.format(root="") + _HAIKU.affine["kernel"]
    roots = [key.removesuffix(end) for key in arrays if key.endswith(end)]
    if len(roots) != 1:
        there = ", ".join(map(repr, roots)) or "none"
        other = "" if roots else other_source(arrays)
        raise ConversionError(
            [
                f"{_HAIKU.where}: expected one ResNet, a module that has '~/initial_conv', got "
                f"{there}. {other or 'Pass params and state of one network.'}"
            ],
            "network",
        )
    names = resnet_names(model, HAIKU, *roots)
    ignored = frozenset(theirs + end for theirs in names.values() for end in _BESIDE)
    source = Source(_HAIKU, names, HAIKU.attributes, HAIKU, roots[0])
    options = Options(head, None, epsilon, activation)
    return read_network(model, arrays, source, options, ignored=ignored)
