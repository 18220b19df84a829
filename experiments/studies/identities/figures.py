"""Figures of the study `identities`, drawn from its results."""

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from experiments import plotting
from experiments.plotting import METHODS
from experiments.studies.identities.config import BATCH_SIZES

EQUALITIES = {  # What should be equal, by the name of the error.
    "bias_effect": "output, with a bias before BN and without",
    "bias_gradient": "gradient of a bias before BN, and 0",
    "scaled_output": "output, of weights W and a W",
    "scaled_gradient": "gradient, of weights W and a W",
    "radial_gradient": "gradient along the weights, and 0",
    "convolution_difference": "convolution, and its dense form",
    "mean_of_gradients": "mean of mini-batch gradients, and gradient",
    "closed_form_error": "gradient, and its closed form",
    "difference_error": "gradient, and finite differences",
    "identity_error": "input and output, gamma = sqrt(var + epsilon)",
    "identity_error_std": "input and output, gamma = deviation",
}


def plot_errors(errors: dict[str, float]) -> Figure:
    """Plot the largest error of each of `EQUALITIES`."""
    fig = plotting.figure(width=6.2, height=3.4)
    axes, names = fig.axes[0], sorted(errors, key=errors.__getitem__)
    style = METHODS["batch"]._replace(linestyle="none", label="largest error")
    axes.plot([errors[name] for name in names], range(len(names)), **style._asdict())
    axes.axvline(1e-6, color=plotting.VERMILION, linestyle="--", label="bound of most rules")
    axes.set_yticks(range(len(names)), [EQUALITIES[name] for name in names])
    plotting.log_scale(axes, "x", list(errors.values()))
    axes.set_xlabel("largest error over all draws")
    plotting.share_legend(fig)
    return fig


def plot_bessel(bessel: dict[str, Float[np.ndarray, "draws"]]) -> Figure:
    """Plot corrected and uncorrected variance against batch size."""
    fig = plotting.figure()
    axes = fig.axes[0]
    for name, method in (("corrected", "batch"), ("uncorrected", "none")):
        values = np.stack([bessel[f"{name}_{m}"] for m in BATCH_SIZES])
        plotting.bars(axes, BATCH_SIZES, values, METHODS[method]._replace(label=name))
    curve = np.linspace(2, 60, 200)
    axes.plot(curve, 1 - 1 / curve, color=plotting.GRAY, linestyle=":", label="(m - 1) / m")
    axes.set_xlabel("examples in a batch, m")
    axes.set_ylabel("batch variance / true variance")
    plotting.share_legend(fig)
    return fig
