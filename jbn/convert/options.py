"""Hyperparameters: the schedules other frameworks imply, and the arguments of their layers."""

from __future__ import annotations

from typing import Any

from jbn._inputs import describe
from jbn._schedules import Debiased, FirstBatch, cumulative
from jbn.convert.common import ConversionError, Options, option_problems

# Each framework's names for momentum and epsilon, and whether its running variance is unbiased.
_LAYERS = {
    "torch": ("momentum", "eps", True),
    "keras": ("momentum", "epsilon", False),
    "linen": ("momentum", "epsilon", False),
    "nnx": ("momentum", "epsilon", False),
    "haiku": ("decay_rate", "eps", False),
    "equinox": ("momentum", "eps", False),
}


def framework_kwargs(options: Options, framework: str) -> dict[str, Any]:
    """Translate options into the arguments of a framework's own batch norm.

    Args:
      options: options in jbn's convention.
      framework: "torch", "keras", "linen", "nnx", "haiku" or "equinox". "linen" and "nnx" are
        Flax's own layers; those of jbn take `**options._asdict()` directly.

    Returns:
      Keyword arguments of the layer: {"momentum": 1 - m, "eps": e} for torch, with None for
      `cumulative`; "decay_rate" for Haiku; also "mode" for Equinox.

    Raises:
      ConversionError: options that the framework's layer does not support: a schedule, or a running
        variance with (torch: without) Bessel's correction.
      ValueError: an unknown framework.
      TypeError: options of another type.

    Example:
      >>> import jbn
      >>> options = jbn.convert.Options(momentum=0.75, epsilon=1e-5, unbiased=True)
      >>> jbn.convert.framework_kwargs(options, "torch")
      {'momentum': 0.25, 'eps': 1e-05}
    """
    if not isinstance(options, Options):
        raise TypeError(
            f"Expected `options` as jbn.convert.Options, got {describe(options)}. Pass the third "
            "result of a converter, or make one."
        )
    if not isinstance(framework, str) or framework not in _LAYERS:
        raise ValueError(
            f"Expected `framework` to be one of {', '.join(_LAYERS)}, got {describe(framework)}. "
            "Name the framework whose layer you make."
        )
    momentum_name, epsilon_name, unbiased = _LAYERS[framework]
    momentum, problems = options.momentum, option_problems(framework, options)
    if problems:
        raise ConversionError(problems)
    arguments = {}
    if framework == "torch" and momentum is cumulative:
        momentum = None
    elif framework == "haiku" and isinstance(momentum, Debiased):
        momentum = momentum.decay
    elif framework == "haiku":
        problems.append(
            f"haiku: its moving average is Debiased(decay_rate), got momentum={momentum!r}. "
            "Choose Debiased, or give Haiku's own averages another decay by hand."
        )
    elif framework == "equinox" and isinstance(momentum, Debiased | FirstBatch):
        arguments["mode"] = "batch" if isinstance(momentum, Debiased) else "ema"
        momentum = momentum.decay
    elif framework == "equinox":
        problems.append(
            f"equinox: it averages by Debiased or FirstBatch, got momentum={momentum!r}. "
            "Choose one of them."
        )
    elif callable(momentum):
        problems.append(
            f"{framework}: its layer takes no schedule, got momentum={momentum!r}. Choose a float."
        )
    else:
        momentum = 1 - momentum if framework == "torch" else momentum
    if options.unbiased != unbiased:
        problems.append(
            f"{framework}: its running variance is {'un' if unbiased else ''}biased, got "
            f"unbiased={options.unbiased}. Choose unbiased={unbiased}; evaluation does not change."
        )
    if problems:
        raise ConversionError(problems)
    return {momentum_name: momentum, epsilon_name: options.epsilon, **arguments}
