"""Whitening: the ideal that batch normalization approximates one feature at a time."""

from __future__ import annotations

import functools
import math
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from jbn._arguments import as_scalar, check_number
from jbn._axes import along_features, as_inexact, reduction_axes
from jbn._center import center, power_of_two
from jbn._dtypes import wide_dtype
from jbn._inputs import check_fields, describe
from jbn._norms import check_values, one_feature_axis, split_features
from jbn._sharding import gathered, like, on_all


class Whitening(NamedTuple):
    """The transform by `whiten`: y_i = sum_j matrix[g, i, j] (x_j - mean_j) in feature group g."""

    mean: Float[Array, "C"]
    matrix: Float[Array, "groups width width"]


def whiten(
    x: Float[ArrayLike, "..."],
    *,
    axis: int = -1,
    groups: int = 1,
    epsilon: ArrayLike = 1e-5,
    method: Literal["zca", "cholesky"] = "zca",
) -> tuple[Array, Whitening]:
    """Decorrelate the features of a batch: y = W (x - mean) has covariance I in each group.

    Batch norm approximates this one feature at a time. W^T W = (S + epsilon I)^-1, where S is the
    biased covariance of m values. With "zca", W is the symmetric root, which keeps y closest to x;
    with "cholesky", the triangular one, which is cheaper, and y_i depends on x_1 to x_i only.

    It costs O(m d^2 + d^3) for each group of d features; batch norm costs O(m d). If m <= d, S has
    rank at most m - 1 and no W makes the covariance I. In the directions in which the batch does
    not vary, y is 0 and W is 1 / sqrt(epsilon), which amplifies other data in these directions. In
    float32, rounding errors are 1e-7 of the largest eigenvalue; with a smaller epsilon and a
    singular S, "cholesky" gives NaN and "zca" gives noise.

    Args:
      x: the batch, floating, any rank.
      axis: the feature axis; all others are reduced.
      groups: number of groups of C / groups consecutive features, each decorrelated separately.
      epsilon: added to the eigenvalues of S, as batch norm adds it to var: the variance of y along
        an eigenvector is lambda / (lambda + epsilon). May be traced, or 0 where m > d.
      method: "zca" or "cholesky".

    Returns:
      `(y, Whitening)`: y of x's shape and dtype; mean and W for `apply_whitening`, in at least
      float32. First derivatives are finite even at equal eigenvalues; second derivatives of "zca"
      are not.

    Raises:
      TypeError: x not floating.
      ValueError: groups that do not divide C; a negative epsilon, or 0 with no more values than
        features in a group; an unknown method; one value per feature.

    Example:
      >>> import jax, jax.numpy as jnp, jbn
      >>> x = jax.random.normal(jax.random.key(0), (50, 3)) @ jnp.array(
      ...     [[2.0, 1.0, 0.0], [0.0, 1.0, 1.0], [0.0, 0.0, 0.5]])
      >>> y, _ = jbn.whiten(x, epsilon=1e-9)
      >>> bool(jnp.allclose(y.T @ y / 50, jnp.eye(3), atol=1e-4))
      True

    References:
      Kessy, Lewin, Strimmer, "Optimal Whitening and Decorrelation", 2018, section 2.
      Huang et al., "Decorrelated Batch Normalization", 2018, section 3 (groups, ZCA).
    """
    x = as_inexact(x)
    _check_real(x)
    feature = one_feature_axis(x, axis)
    groups, width = split_features(x.shape[feature], groups)
    if not isinstance(method, str) or method not in ("zca", "cholesky"):
        raise ValueError(
            f"Expected `method` to be 'zca' or 'cholesky', got {method!r}. Name one of the two."
        )
    known = check_number("epsilon", epsilon, "a number of at least 0")
    if known is not None and not known >= 0:
        raise ValueError(f"Expected `epsilon` of at least 0, got {epsilon}. The usual one is 1e-5.")
    values = check_values(x, (feature,))
    # A batch of symbolic size, in jax.export, is assumed to be large enough.
    if known == 0 and isinstance(values, int) and values <= width:
        raise ValueError(
            f"Expected more values than features in a group with epsilon=0, got {values} values of "
            f"{width} features: the covariance has at most rank {values - 1} and no inverse. Use "
            "a larger batch, more groups, or a positive epsilon."
        )
    return _whiten(x, as_scalar(epsilon, x), feature=feature, groups=groups, method=method)


@functools.partial(jax.jit, static_argnames=("feature", "groups", "method"))
def _whiten(
    x: Array, epsilon: ArrayLike, *, feature: int, groups: int, method: str
) -> tuple[Array, Whitening]:
    axes = reduction_axes(x, (feature,))
    centered = center(x, axes, None, None, 1.0)
    # Computed in units of the largest deviation, whose square may overflow.
    unit = jax.lax.stop_gradient(power_of_two(jnp.max(1 / centered.near_rstd)))
    scale = jnp.broadcast_to(1 / (centered.per_unit * unit), centered.pivot.shape)
    shift = -centered.remainder / unit
    rows = _rows(centered.scale_and_shift(scale, shift), feature, groups)
    # "highest", since accelerators multiply in fewer bits by default, and W is an inverse of this.
    values = math.prod(rows.shape[:-2])
    batch = "abcdefh"[: rows.ndim - 2]
    product = f"{batch}gi,{batch}gj->gij"
    covariance = jnp.einsum(product, rows, rows, precision="highest", out_sharding=on_all(rows))
    covariance = covariance / values
    # A positive epsilon must not underflow to 0: without it, a constant feature would be NaN.
    least = jnp.finfo(covariance.dtype).tiny
    epsilon = jnp.asarray(epsilon).astype(covariance.dtype)
    ridge = jnp.where(epsilon > 0, jnp.maximum(epsilon / unit / unit, least), 0)
    if method == "zca":
        matrix = _inverse_root(covariance, ridge)
    else:
        eye = jnp.broadcast_to(
            jnp.eye(covariance.shape[-1], dtype=covariance.dtype), covariance.shape
        )
        root = jnp.linalg.cholesky(covariance + ridge * eye)
        matrix = jax.lax.linalg.triangular_solve(root, eye, left_side=True, lower=True)
    y = _project(rows, matrix, x, feature)
    return y, Whitening(centered.moments.mean.reshape(-1), matrix / unit)


def apply_whitening(
    x: Float[ArrayLike, "..."], whitening: Whitening, *, axis: int = -1
) -> Float[Array, "..."]:
    """Whiten x with a transform that `whiten` computed on other data, as in inference.

    y = W (x - mean).

    Args:
      x: floating, any rank.
      whitening: result of `whiten`, or an average of several.
      axis: the feature axis.

    Returns:
      y, of x's shape and dtype; computed in at least float32.

    Raises:
      TypeError: x not floating.
      ValueError: a different number of features.

    Example:
      >>> import jax.numpy as jnp, jbn
      >>> _, found = jbn.whiten(jnp.array([[0.0, 1.0], [2.0, 1.0], [1.0, 3.0], [1.0, 0.0]]))
      >>> jbn.apply_whitening(found.mean[None], found).tolist()
      [[0.0, 0.0]]
    """
    x = as_inexact(x)
    _check_real(x)
    feature = one_feature_axis(x, axis)
    if not isinstance(whitening, Whitening):
        raise TypeError(
            f"Expected `whitening` to be jbn.Whitening, got {describe(whitening)}. Pass what "
            "jbn.whiten returned second: y, whitening = jbn.whiten(x)."
        )
    check_fields("whitening", whitening)
    groups, size = whitening.matrix.shape[:1], whitening.mean.size
    if whitening.matrix.shape not in [(g, size // g, size // g) for g in groups if g]:
        raise ValueError(
            "Expected `whitening.matrix` of shape (groups, C / groups, C / groups), got "
            f"{whitening.matrix.shape} for a mean of shape {whitening.mean.shape}. Pass what "
            "jbn.whiten returned."
        )
    if whitening.mean.shape != (x.shape[feature],):
        raise ValueError(
            f"Expected x with the {whitening.mean.shape[0]} features of `whitening`, got "
            f"x.shape={x.shape} with feature axis {axis}. Check `axis`."
        )
    return _apply_whitening(x, whitening, feature=feature)


@functools.partial(jax.jit, static_argnames="feature")
def _apply_whitening(x: Array, whitening: Whitening, *, feature: int) -> Array:
    mean = along_features(whitening.mean, x, (feature,)).astype(wide_dtype(x.dtype))
    rows = _rows(x.astype(mean.dtype) - mean, feature, whitening.matrix.shape[0])
    return _project(rows, whitening.matrix.astype(mean.dtype), x, feature)


@jax.custom_jvp
def _inverse_root(matrix: Array, ridge: Array) -> Array:
    """Compute (matrix + ridge I)^(-1/2) of symmetric positive semidefinite matrices.

    The derivative of the eigenvectors is infinite where eigenvalues are equal, but that of the root
    is not: in the eigenbasis, d root_ij = -d matrix_ij / (s_i s_j (s_i + s_j)), where s are the
    square roots of the eigenvalues (Daleckii, Krein; Higham, "Functions of Matrices", 2008,
    section 3.2).
    """
    return _root(*_eigen(matrix, ridge))


@_inverse_root.defjvp
def _inverse_root_jvp(primals, tangents):
    vectors, s = _eigen(*primals)
    dmatrix, dridge = tangents
    dmatrix = dmatrix + dridge * jnp.broadcast_to(
        jnp.eye(s.shape[-1], dtype=s.dtype), dmatrix.shape
    )
    rows, columns = s[..., :, None], s[..., None, :]
    inner = _congruence("...ki,...kl,...lj->...ij", vectors, dmatrix)
    inner = -inner / (rows * columns * (rows + columns))
    return _root(vectors, s), _congruence("...ik,...kl,...jl->...ij", vectors, inner)


def _eigen(matrix: Array, ridge: Array) -> tuple[Array, Array]:
    """Compute eigenvectors and sqrt(eigenvalue + ridge); rounding may make values negative."""
    values, vectors = jnp.linalg.eigh(matrix)
    return vectors, jnp.sqrt(jnp.maximum(values, 0) + ridge)


def _root(vectors: Array, s: Array) -> Array:
    return jnp.einsum("...ik,...k,...jk->...ij", vectors, 1 / s, vectors, precision="highest")


def _congruence(indices: str, vectors: Array, inner: Array) -> Array:
    return jnp.einsum(indices, vectors, inner, vectors, precision="highest")


def _rows(x: Array, feature: int, groups: int) -> Array:
    """Reshape x to (..., groups, width), with all features on each device."""
    x = jnp.moveaxis(gathered(x, (feature,)), feature, -1)
    return x.reshape(*x.shape[:-1], groups, x.shape[-1] // groups)


def _project(rows: Array, matrix: Array, x: Array, feature: int) -> Array:
    """Multiply each group by its matrix, and undo `_rows`."""
    y = jnp.einsum("...gj,gij->...gi", rows, matrix, precision="highest")
    y = y.reshape(*y.shape[:-2], x.shape[feature])
    return like(jnp.moveaxis(y, -1, feature).astype(x.dtype), x)


def _check_real(x: Array) -> None:
    if jnp.iscomplexobj(x):
        raise TypeError(
            f"Expected floating x, got {x.dtype}. Stack real and imaginary parts as features."
        )
