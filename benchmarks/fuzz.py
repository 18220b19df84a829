"""Compare random cases with float64: outputs and all gradients, with largest errors by regime.

A case is a signature (function, dtype, shape, axis, kind of mask, named axis), which is compiled
once, and data: scales from 1e-30 to 1e30, mean/std from 0 to 1e7, epsilon from 1e-30 to 1e-3,
masks that keep all, one or no value, float weights of any scale, and NaN, inf and 1e30 in places
without weight. `fuzz_cases.py` draws them; `exact.py` gets exactly the numbers the library gets.

An error is relative to the terms of the sum that the number is. For y this is scale * max(|xhat|,
its rms) + |bias|, that is, max(1, |y|) where epsilon is small. For a gradient by x it is the
largest term of its feature, and for sums over the batch the root of the sum of squares. The error
that rounding to the output's dtype may cause is subtracted first, and so is anything below the
dtype's smallest normal number. Numbers that the dtype cannot hold are skipped and counted, but a
state must stay finite. No bound applies to y and gradients if a feature is constant up to rounding
and epsilon is less than the square of that rounding error, because y then divides by rounding
errors. Such cases are in the last column.
"""

import dataclasses
import functools
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from benchmarks import common, exact_parts
from benchmarks.exact_parts import Known, Values
from benchmarks.fuzz_cases import Case, draw, labels, program, truth, widened
from benchmarks.fuzz_signatures import SIGNATURES, STATEFUL, Signature, differentiated
from benchmarks.modes_spreads import DEVICES

# ---- Bounds --------------------------------------------------------------------------------------

# Bounds apply up to this mean / std. Beyond it errors are only reported.
CLAIMED_RATIO = 1e5
# A feature is constant if std and sqrt(epsilon) are below this fraction of its size; see above.
CONSTANT = 2.0**-30
BOUNDS = {
    # The normalized output, with mean/std from 0 to 1e5.
    "y": 4e-6,
    # A sum over the batch and a handful of rounding errors of 6e-8.
    "state": 2e-6,
    # Two more sums over the batch and products of three vectors.
    "gradient": 2e-5,
    # Eigenvalues round relative to the largest, so the size includes the covariance's condition.
    "whiten": 4e-6,
}

# Relative rounding error of the output's dtype. JAX adds up to PARTS parts of dx in x's dtype.
HALF_ULP = {"bfloat16": 2.0**-8, "float16": 2.0**-11}
PARTS = 3
# Upper ends of the regimes.
RATIOS = (1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e8)
SCALES = (1e-20, 1e-10, 1e-2, 1e2, 1e10, 1e18, 1e37)


@dataclasses.dataclass(frozen=True)
class Options:
    """How many cases to draw, and where to write the result."""

    cases: int = 10_000
    """how many to draw"""
    seed: int = 0
    """of the first; the others follow"""
    case: int | None = None
    """run the case of this seed alone, and print all its errors"""
    output: Path | None = None
    """folder for JSON and Markdown; None is benchmarks/results for 10,000 cases, else none"""


# ---- Errors --------------------------------------------------------------------------------------


class Finding(NamedTuple):
    """One output or gradient of one case; `bound` is None if no bound applies."""

    case: int
    signature: Signature
    what: str
    error: float
    bound: float | None
    skipped: bool
    ratio: float
    scale: float

    @property
    def kind(self) -> str:
        """The key in BOUNDS."""
        if self.signature.function == "whiten":
            return "whiten"
        if self.what == "y":
            return "y"
        return "gradient" if self.what.startswith("d") else "state"

    @property
    def fails(self) -> bool:
        """Whether the error exceeds its bound; NaN counts as infinite."""
        return self.bound is not None and not self.error <= self.bound

    def __str__(self) -> str:
        """Write the command that reruns the case, and the error."""
        return (
            f"python -m benchmarks.fuzz --case {self.case}  # {self.signature}: {self.what} "
            f"{self.error:.1e} (mean/std {self.ratio:.0e}, scale {self.scale:.0e})"
        )


def examine(case: Case) -> list[Finding]:
    """Run the library on a case and compare every output and gradient."""
    signature = case.signature
    gradients = differentiated(signature)
    floats = {name: case.arrays[name] for name in gradients}
    fixed = {name: value for name, value in case.arrays.items() if name not in floats}
    got = jax.device_get(program(signature)(floats, fixed, case.cotangents))
    with np.errstate(all="ignore"):
        known = truth(case)
        constant = has_constant(case)
        ratio = math.inf if constant else ratio_of(case)
        check = functools.partial(compare, case, ratio=ratio, constant=constant)
        findings = []
        for what, value in got[0].items():
            state = signature.function in STATEFUL and what in ("mean", "var")
            findings.append(check(what, value, known.values[what], must_be_finite=state))
        for name in gradients:
            want = known.gradients[name]
            if name == "mask":
                want = without_empty_parts(case, want)
                want = summed_to(want, case.arrays["mask"].shape, case.garbage)
            elif name == "x":
                want = largest(want, labels(signature).statistic)
            findings.append(check(f"d{name}", got[1][name], want))
    return findings


def without_empty_parts(case: Case, known: Known) -> Known:
    """Skip gradients by the weights of ghost batches without weight, whose mean is undefined."""
    if case.signature.function != "ghost_batch_norm":
        return known
    x, weights, statistic = weighed(case)
    empty = (exact_parts.Batch(x, statistic, weights).count == 0)[statistic]
    return Known(known.value, np.where(empty, np.inf, known.size))


def largest(known: Known, statistic: Values) -> Known:
    """Set the size of each gradient entry to the largest among those that share its statistic."""
    size = np.zeros(int(statistic.max()) + 1)
    np.maximum.at(size, statistic, np.where(np.isnan(known.size), 0, known.size))
    return Known(known.value, size[statistic])


def summed_to(known: Known, shape: tuple[int, ...], garbage: Values) -> Known:
    """Sum over the axes along which a mask was broadcast; do not compare garbage."""
    axes = tuple(a for a, n in enumerate(shape) if n == 1)
    value = np.where(garbage, np.nan, known.value)
    return Known(value.sum(axes, keepdims=True), np.sqrt((known.size**2).sum(axes, keepdims=True)))


def compare(
    case: Case,
    what: str,
    got: Values,
    known: Known,
    *,
    ratio: float,
    constant: bool,
    must_be_finite: bool = False,
) -> Finding:
    """Measure the largest error of one output of a case; `constant` is `has_constant(case)`."""
    info = jnp.finfo(got.dtype)
    value, size = (np.reshape(v, got.shape) for v in known)
    parts = np.maximum(np.abs(value.real), np.abs(value.imag))
    limit = 0.99 * float(info.max)
    fits = np.isfinite(size) & (parts < limit)
    if what == "dx" and info.dtype != np.float32:
        fits &= PARTS * size < limit
    got = widened(got)
    half_ulp = 1.01 * HALF_ULP.get(str(info.dtype), 0.0)
    rounding = half_ulp * (PARTS * size if what == "dx" else np.abs(value))
    # Each term of a sum may be flushed to 0 if it is below the smallest normal number.
    terms = max(1, case.arrays["x"].size // max(1, got.size))
    rounding = rounding + 1.01 * terms * float(info.tiny)
    error = np.maximum(np.abs(got - value) - rounding, 0)
    error = np.where(error > 0, error / size, error)
    if must_be_finite:
        error = np.where(fits | np.isfinite(got), error, np.inf)
        fits = fits | ~np.isfinite(got)
    error = np.where(np.isnan(error), np.inf, error)[fits]
    found = Finding(
        case=case.seed,
        signature=case.signature,
        what=what,
        error=float(np.max(error, initial=0.0)),
        bound=None,
        skipped=not np.all(fits),
        ratio=ratio,
        scale=case.scale,
    )
    claimed = ratio <= CLAIMED_RATIO or ratio == math.inf or case.signature.function == "normalize"
    claimed = claimed and (found.kind == "state" or not constant)
    return found._replace(bound=BOUNDS[found.kind] if claimed else None)


def has_constant(case: Case) -> bool:
    """Tell whether a statistic's values are equal up to rounding and epsilon is even smaller."""
    x, weights, statistic = weighed(case)
    batch = exact_parts.Batch(x, statistic, weights)
    size = np.zeros(batch.count.size)
    np.maximum.at(size, statistic, np.where(weights > 0, np.abs(x), 0))
    divisor = np.sqrt(np.maximum(batch.var, case.arrays.get("epsilon", 0.0)))
    return bool(np.any(divisor < CONSTANT * size))


def weighed(case: Case) -> tuple[Values, Values, Values]:
    """Return x, its weights, and the index of each value's statistic."""
    x, mask = widened(case.arrays["x"]), case.arrays.get("mask")
    weights = np.ones(x.shape) if mask is None else np.broadcast_to(widened(mask), x.shape)
    return x, weights, labels(case.signature).statistic


def ratio_of(case: Case) -> float:
    """Compute the largest |mean| / std over statistics with positive variance; inf if none has.

    The running statistics count too if some statistic has no weight.
    """
    x, weights, statistic = weighed(case)
    batch = exact_parts.Batch(x, statistic, weights)
    ratios = np.abs(batch.mean) / np.sqrt(batch.var)
    ratios = ratios[batch.var > 0]
    if case.signature.function in STATEFUL and not np.all(batch.count > 0):
        running = np.abs(widened(case.arrays["mean"])) / np.sqrt(widened(case.arrays["var"]))
        ratios = np.append(ratios, running)
    return float(ratios.max()) if ratios.size else math.inf


# ---- Report --------------------------------------------------------------------------------------


def search(seeds: Iterable[int]) -> Iterator[Finding]:
    """Draw and examine the cases of these seeds."""
    for seed in seeds:
        yield from examine(draw(seed))


def regime(value: float, ends: Sequence[float]) -> int:
    """Return the index of a value's regime; larger values get the index after the last."""
    return next((i for i, end in enumerate(ends) if value <= end), len(ends))


def largest_errors(
    findings: Iterable[Finding], column: Callable[[Finding], int], columns: int
) -> dict[str, list[Finding | None]]:
    """Find the worst by function and dtype, and by column; failures rank before passing ones."""
    found: dict[str, list[Finding | None]] = {}
    for finding in findings:
        name = f"{finding.signature.function} {finding.signature.dtype}"
        if name not in found:
            found[name] = [None] * columns
        row, i = found[name], column(finding)
        best = row[i]
        if best is None or (finding.fails, finding.error) > (best.fails, best.error):
            row[i] = finding
    return found


def cell(finding: Finding | None) -> str:
    """Write an error, in bold if it exceeds its bound."""
    if finding is None:
        return ""
    error = "NaN" if finding.error == math.inf else f"{finding.error:.0e}"
    return f"**{error}**" if finding.fails else error


def failures(findings: Iterable[Finding]) -> list[Finding]:
    """Return the worst failure of each function, dtype and output."""
    worst: dict[tuple[str, str, str], Finding] = {}
    for finding in findings:
        key = (finding.signature.function, finding.signature.dtype, finding.what)
        if finding.fails and (key not in worst or finding.error > worst[key].error):
            worst[key] = finding
    return list(worst.values())


TABLES: dict[str, tuple[str, ...]] = {
    "y": ("y", "whiten"),
    "running statistics and moments": ("state",),
    "gradients": ("gradient",),
}


def report(result: dict[str, Any], findings: Sequence[Finding]) -> str:
    """Write the result as Markdown."""
    bounds = ", ".join(f"{bound:.0e} for {name}" for name, bound in BOUNDS.items())
    parts = [
        "# Drawn cases against float64",
        f"`python -m benchmarks.fuzz --cases {result['cases']} --seed {result['seed']}` on "
        f"{common.describe(result['env'])}.",
        f"{result['cases']:,} cases, {result['numbers']:,} outputs and gradients in "
        f"{result['seconds']:.0f} s. In {result['skipped']:,} of them numbers were left out that "
        "the dtype cannot hold. Largest errors by regime, beyond the rounding to the output's "
        f"dtype; what they are relative to is in the docstring. Bounds up to mean/std "
        f"{CLAIMED_RATIO:.0e}: {bounds}. Bold is beyond.",
    ]
    ratios = ["", *(f"<= {end:.0e}" for end in RATIOS), "constant"]
    scales = ["", *(f"<= {end:.0e}" for end in SCALES)]
    for name, kinds in TABLES.items():
        chosen = [finding for finding in findings if finding.kind in kinds]
        claimed = [finding for finding in chosen if finding.bound is not None]
        by_ratio = largest_errors(chosen, lambda f: regime(f.ratio, RATIOS), len(RATIOS) + 1)
        by_scale = largest_errors(claimed, lambda f: regime(f.scale, SCALES), len(SCALES))
        for what, header, rows in (("mean/std", ratios, by_ratio), ("scale", scales, by_scale)):
            lines = [[label, *map(cell, row)] for label, row in rows.items()]
            parts += [f"## Largest error of {name}, by {what}", common.table(header, lines)]
    if failed := failures(findings):
        parts += ["## Beyond the bounds", "\n".join(f"    {finding}" for finding in failed)]
    return "\n\n".join(parts) + "\n"


def show(case: Case, findings: Iterable[Finding]) -> None:
    """Print one case and all its errors."""
    print(f"case {case.seed}: {case.signature}, scale {case.scale:.1e}")
    for name, value in case.arrays.items():
        if np.ndim(value) == 0:
            print(f"  {name} {value:.3g}")
    if (mask := case.arrays.get("mask")) is not None:
        print(f"  mask: {np.count_nonzero(mask)} of {mask.size}, largest {float(mask.max()):.1e}")
    print(f"  zero-weight values that are not finite or 1e30: {np.count_nonzero(case.garbage)}")
    for finding in findings:
        mark = "  beyond the bound" if finding.fails else ""
        left_out = "  (some left out)" if finding.skipped else ""
        print(f"  {finding.what:10} {finding.error:.1e}{mark}{left_out}")


def main(options: Options) -> None:
    """Draw, print, write. Exit with an error if an error exceeds its bound."""
    if options.case is not None:
        case = draw(options.case)
        findings = examine(case)
        show(case, findings)
        sys.exit(any(finding.fails for finding in findings))
    began = time.perf_counter()
    findings = list(search(range(options.seed, options.seed + options.cases)))
    failed = failures(findings)
    result = {
        "env": common.environment(),
        "cases": options.cases,
        "seed": options.seed,
        "seconds": time.perf_counter() - began,
        "programs": min(options.cases, len(SIGNATURES)),
        "numbers": len(findings),
        "skipped": sum(finding.skipped for finding in findings),
        "bounds": {**BOUNDS, "mean / std": CLAIMED_RATIO},
        "failures": [str(finding) for finding in failed],
    }
    markdown = report(result, findings)
    print(f"\n{markdown}")
    whole = options.cases >= Options.cases
    if output := options.output or (common.RESULTS if whole else None):
        common.write(output, "fuzz", result, markdown)
    if failed:
        raise SystemExit(f"{len(failed)} outputs exceed the bounds of their function and dtype.")


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", DEVICES)
    main(tyro.cli(Options, description=__doc__))
