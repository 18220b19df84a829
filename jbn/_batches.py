"""Fold a step over batches, either stacked in arrays or one at a time."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from jbn._inputs import describe

Carry = TypeVar("Carry")


def fold(absorb: Callable[[Carry, Any], Carry], carry: Carry, batches: Any) -> Carry:
    """Run carry = absorb(carry, batch) over all batches.

    `absorb` is compiled anew in each call, once per batch shape. What it closes over is therefore
    read during the call, may be traced, and is not kept afterwards.

    Args:
      absorb: `(carry, batch) -> carry`, of the same shapes and dtypes.
      carry: any pytree of arrays.
      batches: an array or a pytree of arrays (tuple, NamedTuple, dict, ..., but not a list) with a
        leading axis of K batches, run as one scan; or an iterable of batches, which are pytrees.

    Returns:
      The last carry.

    Raises:
      TypeError: batches that are neither.
      ValueError: no batches; leading axes that differ; one batch without its leading axis.
    """
    if _is_stacked(batches):
        return _fold_stacked(absorb, carry, jax.tree.map(_as_array, batches))
    step = jax.jit(absorb)
    is_first = True
    for batch in _iterate(batches):
        batch = jax.tree.map(_as_array, batch)
        if is_first and _is_example(absorb, carry, batch):
            raise ValueError(
                "Expected an iterable of batches, got what looks like one of examples: `step` "
                f"takes several arrays of shape {_shapes(batch)} as one batch. Pass one batch x "
                "as the list [x], or as x[None]; put single examples together into batches."
            )
        with _explained(batch) if is_first else contextlib.nullcontext():
            carry = step(carry, batch)
        is_first = False
    if is_first:
        raise ValueError(
            f"Expected `batches` with one or more batches, got none from {_name(batches)}. "
            "An iterator can be read only once: make a new one for each call."
        )
    return carry


@contextlib.contextmanager
def _explained(batch: Any) -> Iterator[None]:
    """If the step fails and the batch has no arrays but scalars, say that it holds no examples."""
    try:
        yield
    except jax.errors.JaxRuntimeError:  # Not caused by shapes.
        raise
    except Exception as error:
        leaves = jax.tree.leaves(batch)
        if any(leaf.ndim for leaf in leaves):
            raise
        came = f"one with numbers alone, {describe(leaves[0])}" if leaves else "one without arrays"
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(
            f"Expected each of `batches` to hold arrays with an axis of examples, got {came}. Pass "
            f"the arrays that `step` takes, such as [x] for one batch x. It raised {reason}"
        ) from error


def _fold_stacked(absorb: Callable[[Carry, Any], Carry], carry: Carry, batches: Any) -> Carry:
    lengths = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(batches)}
    if len(lengths) != 1 or lengths & {(), (0,)}:
        raise ValueError(
            "Expected `batches` with one leading axis of K >= 1 batches on every array, got "
            f"leading axes {sorted(lengths)}. Stack the batches, jnp.stack([batch, ...]), or pass "
            "them one at a time, in a list or another iterable; one batch x alone is [x]."
        )
    whole = _with_shapes(lambda shape: shape, batches)
    row = _with_shapes(lambda shape: shape[1:], batches)
    one_batch = (
        "Expected `batches` with a leading axis of K batches, got what looks like one batch "
        f"without it: `step` takes arrays of shape {_shapes(whole)} as one batch, and not their "
        f"rows of shape {_shapes(row)}. Pass one batch x as x[None], or as the list [x]."
    )
    if _is_example(absorb, carry, row):
        raise ValueError(one_batch)

    @jax.jit
    def scan(carry: Carry, batches: Any) -> Carry:
        return jax.lax.scan(lambda carry, row: (absorb(carry, row), None), carry, batches)[0]

    try:
        return scan(carry, batches)
    except jax.errors.JaxRuntimeError:  # Not caused by shapes.
        raise
    except Exception as error:
        if not _takes(absorb, carry, whole):
            raise
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(f"{one_batch} A row raises {reason}") from error


def _is_example(absorb: Callable[[Carry, Any], Carry], carry: Carry, batch: Any) -> bool:
    """Tell a single example from a batch, even if layers accept it without an error.

    A batch may have one more example; an example may not have one more feature, but several
    examples can be stacked into a batch. Arrays of two or more axes are assumed to be batches.
    """
    if max((jnp.ndim(leaf) for leaf in jax.tree.leaves(batch)), default=0) != 1:
        return False
    longer = _with_shapes(lambda shape: tuple(n + 1 for n in shape), batch)
    several = _with_shapes(lambda shape: (2, *shape), batch)
    return not _takes(absorb, carry, longer) and _takes(absorb, carry, several)


def _takes(absorb: Callable[[Carry, Any], Carry], carry: Carry, batch: Any) -> bool:
    try:
        jax.eval_shape(absorb, carry, batch)
    except Exception:
        return False
    return True


def _is_stacked(batches: Any) -> bool:
    if isinstance(batches, list):
        return False
    is_node = not jax.tree_util.all_leaves([batches])
    return is_node or hasattr(batches, "__array__") or isinstance(batches, jax.Array)


def _iterate(batches: Any) -> Iterator[Any]:
    if not isinstance(batches, (str, bytes, Mapping)):
        if hasattr(batches, "__iter__"):
            return iter(batches)
        if hasattr(batches, "__next__"):
            return _rest(batches)
        if hasattr(batches, "__getitem__") and hasattr(batches, "__len__"):
            return (batches[i] for i in range(len(batches)))
    raise TypeError(
        "Expected `batches` to be an array, tuple or dict of arrays with a leading axis of K "
        f"batches, or an iterable of batches, got {_name(batches)}. Pass a list of batches, or a "
        "loader such as a torch DataLoader."
    )


def _rest(batches: Iterator[Any]) -> Iterator[Any]:
    try:
        while True:
            yield next(batches)
    except StopIteration:
        return


def _as_array(leaf: Any) -> Any:
    """Convert what a loader yields, such as a torch tensor, to an array that `jax.jit` accepts."""
    if isinstance(leaf, jax.Array):
        return leaf
    array = np.asarray(leaf)
    if array.dtype.kind in "OSU":
        raise TypeError(
            f"Expected `batches` of arrays of numbers, got {_name(leaf)} in one. "
            "Pass what the step needs: drop names and other objects from each batch."
        )
    return array


def _with_shapes(change: Callable[[tuple[int, ...]], tuple[int, ...]], tree: Any) -> Any:
    """Describe the arrays of a tree with their shapes changed."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(change(leaf.shape), jax.typeof(leaf).dtype), tree
    )


def _shapes(tree: Any) -> str:
    return ", ".join(str(leaf.shape) for leaf in jax.tree.leaves(tree))


def _name(value: Any) -> str:
    return f"a {type(value).__name__}"
