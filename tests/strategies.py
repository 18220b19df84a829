"""Random test cases: shapes, axes, masks and dtypes, and arrays made from a seed."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

MASKS = ("none", "example", "position", "feature", "full", "scalar", "trailing")
DTYPES = ("float32", "bfloat16", "float16", "float64", "complex64")


def values(seed: int, shape, dtype="float32", mean=0.0, std=1.0):
    """Return normal values in `dtype`; complex ones have an imaginary part."""
    rng = np.random.default_rng(seed)
    x = rng.normal(mean, std, shape)
    if jnp.issubdtype(dtype, jnp.complexfloating):
        x = x + 1j * rng.normal(-mean, 2 * std, shape)
    return jax.device_put(x.astype(dtype))  # `jnp.asarray` would compile a program per shape.


def make_mask(full: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return the corner of the mask `full` with shape `shape`, broadcastable to `full`."""
    return full[tuple(slice(size) for size in shape)]


def garbage_at(x, mask):
    """Return x with NaN, inf and 1e30 where the weight is 0, and the mask as an array."""
    if mask is None:
        return x, None
    x = np.array(x)
    out = np.broadcast_to(np.asarray(mask) == 0, x.shape)
    big = 1e30 if x.dtype.itemsize > 2 else 6e4  # the maximum of float16 is 65504
    x[out] = np.resize(np.array([np.nan, np.inf, big, -np.inf]), out.sum()).astype(x.dtype)
    return jax.device_put((x, mask))


@dataclasses.dataclass(frozen=True)
class Drawn:
    """One drawn problem; arrays are made on demand, so that the caller can enable 64 bits first."""

    shape: tuple[int, ...]
    axis: int | tuple[int, ...]
    mask: str
    weighted: bool
    dtype: str
    seed: int

    @property
    def wide(self) -> bool:
        """Whether it needs 64-bit arrays."""
        return self.dtype == "float64"

    @property
    def real_dtype(self) -> str:
        """Return the dtype of a variance."""
        return "float64" if self.wide else "float32"

    @property
    def statistics_dtype(self) -> str:
        """Return the dtype of a mean."""
        return "complex64" if self.dtype == "complex64" else self.real_dtype

    @property
    def features(self) -> tuple[int, ...]:
        """Return the shape of the statistics."""
        axes = self.axis if isinstance(self.axis, tuple) else (self.axis,)
        return tuple(self.shape[a] for a in sorted(a % len(self.shape) for a in axes))

    def rng(self, salt: int) -> np.random.Generator:
        """Return a separate generator for each purpose."""
        return np.random.default_rng([self.seed, salt])

    def make_x(self):
        """Return x with a mean of about half its standard deviation."""
        return values(self.seed, self.shape, self.dtype, mean=0.5)

    def make_mask(self) -> np.ndarray | None:
        """Return a mask of the drawn kind, or None."""
        if self.mask == "none":
            return None
        rank = len(self.shape)
        axes = self.axis if isinstance(self.axis, tuple) else (self.axis,)
        features = {a % rank for a in axes}
        reduced = [a for a in range(rank) if a not in features]
        keep = {
            "example": reduced[:1],
            "position": reduced,
            "feature": list(features),
            "full": list(range(rank)),
            "scalar": [],
            "trailing": list(range(1, rank)),
        }[self.mask]
        shape = tuple(self.shape[a] if a in keep else 1 for a in range(rank))
        rng = self.rng(1)
        mask = rng.random(shape) < 0.7
        if self.weighted:
            return np.asarray(np.where(mask, rng.uniform(0.25, 2, shape), 0.0), np.float32)
        return np.asarray(mask)


def problems(number, dtypes=DTYPES, masks=MASKS):
    """Draw shapes and feature axes, cycling through masks, dtypes and ranks.

    Each problem compiles its own program, so a few must cover much. With as few masks and dtypes
    drawn at random, most would be the same.
    """
    rng = np.random.default_rng(0)
    return [
        draw(rng, masks[i % len(masks)], dtypes[i % len(dtypes)], 2 + i % 4, i)
        for i in range(number)
    ]


def draw(rng, mask, dtype, rank, seed):
    """Draw a problem with at least two values for each feature."""
    axes = rng.permutation(rank)[: rng.integers(1, min(2, rank - 1), endpoint=True)].tolist()
    signed = tuple(a - rank if rng.random() < 0.5 else a for a in axes)
    largest = {2: 9, 3: 5, 4: 4, 5: 3}[rank]
    shape = [
        int(rng.choice((1, 3, 5, 7)) if a in axes else rng.integers(1, largest, endpoint=True))
        for a in range(rank)
    ]
    if np.prod([shape[a] for a in range(rank) if a not in axes]) < 2:
        shape[next(a for a in range(rank) if a not in axes)] = 4
    return Drawn(
        shape=tuple(shape),
        axis=signed[0] if len(signed) == 1 and rng.random() < 0.5 else signed,
        mask=mask,
        weighted=seed // 2 % 2 == 1,  # Both for each mask and each dtype.
        dtype=dtype,
        seed=seed,
    )
