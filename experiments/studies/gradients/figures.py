"""Figures of the study `gradients`, drawn from its parts."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments import plotting
from experiments.studies.gradients.config import INITS, Config, name_of
from experiments.studies.gradients.factors import layers_between, of_init

Parts = Mapping[str, np.ndarray]

SHOWN = INITS[:5]  # The others serve to measure the effect of scale with BN.
NAMES = {"sigmoid": "sigmoid", "tanh": "tanh", "relu": "ReLU", "leaky": "leaky", "linear": "linear"}


def plot_layers(shallow: Parts) -> Figure:
    """Plot heat maps of gradient norms by layer."""
    fig = plotting.figure(3, width=2.9, height=4.8)
    cmap = mpl.colormaps[plotting.SEQUENTIAL].with_extremes(bad="white")
    titles = {"none": "plain", "batch": "with BN", "residual": "residual"}
    image: Any = None
    for axes, (architecture, title) in zip(fig.axes, titles.items(), strict=True):
        rows = [
            np.mean(of_init(shallow[f"{activation}_{architecture}_gradient"], init), 0)
            for activation, init in itertools.product(NAMES, SHOWN)
        ]
        norms = np.stack(rows)
        logs = np.log10(norms, where=norms > 0, out=np.full(norms.shape, np.nan))
        layers, height = layers_between(norms) + 1, len(rows)
        image = axes.imshow(
            logs,
            aspect="auto",
            cmap=cmap,
            vmin=-9,
            vmax=3,
            extent=(0, layers + 1, height, 0),
            interpolation="nearest",
        )
        axes.set(title=title, xlabel="layer", xticks=_layer_ticks(layers))
        axes.set_yticks(np.arange(height) + 0.5)
        axes.set_yticklabels([])
        axes.grid(visible=False)
        axes.hlines(np.arange(len(SHOWN), height, len(SHOWN)), 0, layers + 1, "black", lw=1)
    fig.axes[0].set_yticklabels(
        [f"{NAMES[a]}, {init}" for a, init in itertools.product(NAMES, SHOWN)], fontsize=7.5
    )
    fig.colorbar(
        image,
        ax=fig.axes,
        label="log10 of the gradient's norm (white: 0)",
        extend="both",
        aspect=40,
    )
    return fig


def _layer_ticks(layers: int) -> list[int]:
    return [1, *range(5, layers + 1, 5 if layers < 30 else 10)]


def plot_depth(config: Config, deeper: Parts, steps: Parts) -> Figure:
    """Plot gradients and relative updates, layer by layer."""
    fig = plotting.figure(3, width=3.5, height=3.3)
    by_activation, by_architecture, of_update = fig.axes

    def gradient(axes: Axes, name: str, method: str) -> None:
        norms = of_init(deeper[f"{name}_gradient"], "Xavier").T
        layers = 1 + 2 * np.arange(len(norms))
        plotting.band(axes, layers, norms / norms[-1:], method, geometric=True)

    for activation in ("sigmoid", "tanh", "relu", "leaky"):
        gradient(by_activation, f"{activation}_none", activation)
    for architecture in ("none", "batch", "residual"):
        gradient(by_architecture, f"relu_{architecture}", architecture)
    for activation in ("sigmoid", "relu"):
        runs = steps[f"{activation}_updates"].T
        plotting.band(of_update, 2 + np.arange(len(runs)), runs, activation, geometric=True)
    by_activation.set(title=f"Gradient, Xavier, {config.residual_depth} layers")
    by_architecture.set(title=f"Gradient, ReLU, Xavier, {config.residual_depth} layers")
    of_update.set(title=f"First {config.first_steps} steps, {config.depth} layers")
    for axes in (by_activation, by_architecture):
        axes.set(ylabel="gradient norm / that of the last layer")
    of_update.set(ylabel="relative update |dW| / |W| per step")
    for axes in fig.axes:
        plotting.log_scale(axes, "y", *(line.get_ydata() for line in axes.lines))
        axes.set(xlabel="layer")
        plotting.legend_below(axes)
    return fig


def plot_dying(config: Config, dead: Parts) -> Figure:
    """Plot dead units and accuracy against the rate."""
    fig = plotting.figure(2, width=3.8)
    labels = {"dead": "share of dead units", "accuracy": "test accuracy"}
    titles = f"Dead after {plotting.counted(config.dying_steps, 'step')}", "Test accuracy"
    for axes, title, (what, label) in zip(fig.axes, titles, labels.items(), strict=True):
        for method in ("relu", "leaky"):
            plotting.band(axes, np.array(config.dying_rates), dead[f"{method}_{what}"], method)
        _against_rate(axes, config.dying_rates)
        axes.set(title=title, ylabel=label, ylim=(-0.03, 1.03))
    plotting.share_legend(fig)
    return fig


def plot_residual(config: Config, skipped: Parts) -> Figure:
    """Plot the accuracy of plain and residual networks against the rate."""
    fig = plotting.figure(2, 2, width=3.8, height=2.4)
    plain = plotting.METHODS["none"]._replace(label="plain")
    kinds = itertools.product((config.depth, config.residual_depth), (None, "batch"))
    for axes, (depth, norm) in zip(fig.axes, kinds, strict=True):
        for skip, style in ((False, plain), (True, plotting.METHODS["residual"])):
            accuracy = skipped[name_of(depth, norm, skip)][..., 1]
            plotting.band(axes, np.array(config.residual_rates), accuracy, style)
        _against_rate(axes, config.residual_rates)
        axes.set(title=f"{depth} layers, {'with' if norm else 'without'} BN")
        axes.set(ylabel="test accuracy", ylim=(0, 1))
    plotting.share_legend(fig)
    return fig


def _against_rate(axes: Axes, rates: Sequence[float]) -> None:
    axes.set(xscale="log", xlabel="learning rate")
    axes.set_xticks(rates, [f"{rate:g}" for rate in rates])
    axes.minorticks_off()
