"""Figures of `identities`, from what it found alone."""

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from experiments import plotting
from experiments.studies.identities.config import BATCH_SIZES


def plot_errors(errors: dict[str, float]) -> Figure:
    """Plot the largest error of each equality."""
    made = plotting.figure(width=6.5)
    axes, names = made.axes[0], sorted(errors, key=errors.__getitem__)
    smallest = np.finfo(np.float64).eps / 16  # An error of 0 is drawn here.
    axes.scatter(
        [max(errors[name], smallest) for name in names], range(len(names)), color=plotting.BLUE
    )
    axes.axvline(1e-6, color=plotting.VERMILION, linestyle="--", label="bound of most rules")
    axes.set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
    axes.set_xscale("log")
    axes.set_xlabel("largest error")
    axes.set_title("float64, the identity map float32; 0 at the left edge")
    axes.legend()
    return made


def plot_bessel(bessel: dict[str, Float[np.ndarray, "draws"]]) -> Figure:
    """Plot corrected and uncorrected variance against the size of the batch."""
    made = plotting.figure()
    axes = made.axes[0]
    for name, color, marker in (
        ("corrected", plotting.BLUE, "o"),
        ("uncorrected", plotting.VERMILION, "s"),
    ):
        values = np.stack([bessel[f"{name}_{m}"] for m in BATCH_SIZES])
        axes.errorbar(
            BATCH_SIZES,
            values.mean(1),
            yerr=np.abs(np.stack([values.min(1), values.max(1)]) - values.mean(1)),
            color=color,
            marker=marker,
            linestyle="none",
            label=f"{name}, mean and range over draws",
        )
    curve = np.linspace(2, 60, 200)
    axes.plot(curve, 1 - 1 / curve, color=plotting.GRAY, linestyle=":", label="(m - 1) / m")
    axes.set_xlabel("examples in a batch, m")
    axes.set_ylabel("mean batch variance / true variance")
    axes.set_title("Bessel's correction")
    axes.legend()
    return made
