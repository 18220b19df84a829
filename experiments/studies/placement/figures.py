"""Figures of the study `placement`."""

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from experiments import plotting
from experiments.plotting import METHODS
from experiments.studies.placement.config import Config


def plot_order(
    config: Config, accuracy: dict[str, dict[str, Float[np.ndarray, "rates seeds"]]]
) -> Figure:
    """Draw test accuracy against the rate, BN before and after, for each nonlinearity."""
    made = plotting.figure(3, width=4.0)
    styles = {
        "before": METHODS["batch"]._replace(label="BN before the nonlinearity"),
        "after": METHODS["layer"]._replace(linestyle="--", label="BN after the nonlinearity"),
    }
    for axes, activation in zip(made.axes, accuracy["before"], strict=True):
        for order, style in styles.items():
            seen = accuracy[order][activation]
            axes.plot(config.learning_rates, seen.mean(1), **style._asdict())
            ends = seen.min(1), seen.max(1)
            axes.fill_between(config.learning_rates, *ends, color=style.color, alpha=0.2)
        axes.set(xscale="log", xlabel="learning rate", title=METHODS[activation].label)
        axes.set_xticks(config.learning_rates, [f"{rate:g}" for rate in config.learning_rates])
        axes.minorticks_off()
    made.axes[0].set_ylabel("test accuracy")
    made.axes[1].legend(loc="lower left")
    return made


def plot_response(found: dict[str, list[np.ndarray]]) -> Figure:
    """Draw the test accuracy of every seed, without and with LRN, without and with BN."""
    made = plotting.figure()
    (axes,) = made.axes
    for norm in ("none", "batch"):
        style = METHODS[norm]
        pairs = np.stack(found[norm])
        axes.plot([0, 1], pairs, color=style.color, marker=style.marker, linewidth=0.8, alpha=0.5)
        axes.plot([0, 1], pairs.mean(1), **style._replace(marker="")._asdict(), linewidth=2.5)
    axes.set_xticks([0, 1], ["without LRN", "with LRN"])
    axes.set(ylabel="test accuracy", xlim=(-0.3, 1.3))
    axes.legend()
    return made
