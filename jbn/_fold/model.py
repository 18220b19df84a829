"""Fold every batch norm of a Flax model into the dense or convolutional layer next to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, overload

from jbn._arguments import check_flag
from jbn._inputs import describe

if TYPE_CHECKING:
    import flax.linen
    from flax import nnx

NnxModel = TypeVar("NnxModel", bound="nnx.Module")


@overload
def fold_model(
    model: flax.linen.Module,
    *args: Any,
    variables: Mapping[str, Any],
    layers: Sequence[str] | None = None,
    keep_norms: bool = False,
    **kwargs: Any,
) -> dict[str, Any]: ...


@overload
def fold_model(
    model: NnxModel,
    *args: Any,
    variables: None = None,
    layers: Sequence[str] | None = None,
    keep_norms: bool = False,
    **kwargs: Any,
) -> NnxModel: ...


def fold_model(
    model: Any,
    *args: Any,
    variables: Any = None,
    layers: Sequence[str] | None = None,
    keep_norms: bool = False,
    **kwargs: Any,
) -> Any:
    """Fold the batch norms of a Flax model into its dense and convolutional layers.

    Supports linen (`Dense`, `Conv`, `ConvTranspose`, `DenseGeneral`, `Einsum` with one contraction)
    and nnx (`Linear`, `Conv`, `ConvTranspose`, `LinearGeneral`, `Einsum`), with any groups. Any
    layer with statistics mean and var and an epsilon counts as a batch norm, including Flax's and
    jbn's. The folded model equals the original in inference, up to rounding; see `fold` for the
    formula.

    A batch norm is folded into the layer before it, or otherwise into the layer after it, unless
    that is a `ConvTranspose` or pads its input with zeros. Between the two there may be reshapes
    and averages over space (`nn.avg_pool`, means), zero-padded only if the zeros are not counted.

    Args:
      model: linen or nnx module; it is not modified.
      args, kwargs: arguments of the model's call in inference, without `mutable`; arrays or
        `jax.ShapeDtypeStruct`, since only shapes matter.
      variables: variables of a linen model, `{"params": ..., "batch_stats": ..., ...}`, both not
        empty.
      layers: names of the batch norms to fold, such as ["block_0/norm"]; None folds all.
      keep_norms: keep the batch norms as identities, so that the same model can be applied; those
        with an epsilon above 1 divide by its square root, which the folded layers compensate. If
        False, they are removed.

    Returns:
      linen: variables without those of the folded batch norms, in which each layer that was folded
      into has a bias. They fit the model built without norms and with biases (such as
      `MLP(norm=None)`). With `keep_norms` they keep their structure; the shift of a layer without
      bias is then in the mean of the batch norm after it.
      nnx: a model whose folded batch norms are `Identity` layers, ready to be called. If code
      depends on the type of a norm, use `keep_norms`.

    Raises:
      ValueError: names every batch norm that cannot be folded, and why: an activation, another
        kind of layer or anything else on both sides; an output, parameter or layer used twice;
        zero padding of the input of the layer after it; features that do not match the layer's;
        training mode; a custom `__call__` or `dot_general`; another feature axis; lifted transforms
        (`nn.scan`, `nn.remat`) that change its variables; a place inside `nnx.bridge.ToNNX` or
        `ToLinen`. Also if variables lack a collection.
      TypeError: a model that is neither linen nor nnx, or linen inside `nnx.bridge.ToNNX`; linen
        without `variables` or with shapes only; a call with `mutable`; `layers` that are not a list
        of names.
      ImportError: Flax is not installed.

    Example:
      >>> import jax, jax.numpy as jnp, jbn
      >>> from jbn.linen import BatchNorm
      >>> from jbn.models import MLP
      >>> x, model = jnp.ones((8, 5)), MLP(hidden=(4,), norm=BatchNorm)
      >>> variables = model.init(jax.random.key(0), x, training=False)
      >>> folded = jbn.fold_model(model, x, variables=variables, training=False)
      >>> MLP(hidden=(4,), norm=None).apply(folded, x, training=False).shape
      (8, 10)

    References:
      Ioffe, Szegedy, "Batch Normalization", 2015, Algorithm 2, line 11.
    """
    try:
        import flax.linen
        from flax import nnx
    except ModuleNotFoundError as error:
        raise ImportError(
            "Expected Flax to be installed, whose models fold_model folds, got none. Run pip "
            "install 'jbn[flax]', or fold single layers with jbn.fold."
        ) from error

    _check_layers(layers)
    keep_norms = check_flag("keep_norms", keep_norms)
    if isinstance(model, flax.linen.Module):
        from jbn._fold.linen import fold_linen

        if variables is None:
            raise TypeError(
                "Expected `variables` with a linen model, got None. Pass those of model.init or of "
                "training: fold_model(model, x, variables=variables)."
            )
        return fold_linen(model, variables, args, kwargs, layers, keep_norms)
    if isinstance(model, nnx.bridge.ToNNX):
        raise TypeError(
            "Expected a model of flax.linen or flax.nnx, got one of linen inside nnx.bridge.ToNNX, "
            "which hides its layers. Fold the linen model, with variables={'params': ..., "
            "'batch_stats': ...}."
        )
    if isinstance(model, nnx.Module):
        from jbn._fold.nnx import fold_nnx

        if variables is not None:
            raise TypeError(
                "Expected no `variables` with an nnx model, which holds them, got some. Leave "
                "them out."
            )
        return fold_nnx(model, args, kwargs, layers, keep_norms)
    raise TypeError(
        f"Expected a model of flax.linen or flax.nnx, got {describe(model)}. Make an instance of "
        "its class first, or fold single layers with jbn.fold."
    )


def _check_layers(layers: Any) -> None:
    """Require a list of names; a single string would be read as one name per character."""
    is_list = isinstance(layers, Sequence) and not isinstance(layers, str)
    if layers is not None and not (is_list and all(isinstance(name, str) for name in layers)):
        example = layers if isinstance(layers, str) else "block_0/norm"
        raise TypeError(
            f"Expected `layers` as a list of names, got {describe(layers)}. Pass "
            f"layers=[{example!r}]."
        )
