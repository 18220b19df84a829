"""Guess why many arrays of a network do not fit: another depth, another framework, a prefix."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from jbn.convert._resnet_names import FLAX, HAIKU, KERAS, TORCH, ResNetNames

# By the end of the first convolution's key: what the source is, and what converts it.
_FIRST = {
    "conv1.weight": ("a ResNet of torch", "network_from_torch, with a ResNet"),
    "conv1_7x7_s2.weight": ("BN-Inception of torch", "network_from_torch, with a BNInception"),
    f"{KERAS.stem}/kernel": ("a ResNet of Keras", "network_from_keras, as a Keras model"),
    f"{FLAX.stem}/kernel": ("a ResNet of Flax's example", "network_from_flax"),
    f"{HAIKU.stem.format(root='')}/w": ("a ResNet of Haiku", "network_from_haiku"),
    "stem/kernel": ("a model of jbn", "model.apply as it is: nothing has to be converted"),
}
# Names in `jbn.models`, by blocks and bottleneck.
_DEPTHS: dict[tuple[tuple[int, ...], bool], str] = {
    ((2, 2, 2, 2), False): "resnet18",
    ((3, 4, 6, 3), False): "resnet34",
    ((3, 4, 6, 3), True): "resnet50",
    ((3, 4, 23, 3), True): "resnet101",
    ((3, 8, 36, 3), True): "resnet152",
}


def likely_cause(
    model: Any,
    arrays: Mapping[str, Any],
    expected: Iterable[str],
    first: str,
    kernel: str,
    table: ResNetNames | None,
    root: str,
) -> str:
    """Say why a source as a whole does not fit, or return "" if no cause is known.

    Args:
      model: a `ResNet` or `InceptionNet`.
      arrays: the source's arrays by key.
      expected: the keys that the model reads.
      first: the key of the first convolution's kernel.
      kernel: the suffix of kernels' keys.
      table, root: what the source's names are made from; `table` is None if it is not a ResNet.

    Returns:
      A sentence or two.
    """
    if not arrays:
        return "The source holds no arrays. Pass the weights of a network."
    if first not in arrays:
        other = other_source(arrays)
        if other:
            return other
        prefix = _prefix(arrays, expected, first)
        if prefix:
            return (
                f"The source's keys begin with {prefix!r}. Pass "
                f"{{key.removeprefix({prefix!r}): value for key, value in source.items() if "
                f"key.startswith({prefix!r})}}."
            )
        return ""
    if table is None:
        return ""
    if any("preact_bn" in key or "final_batchnorm" in key for key in arrays):
        return (
            "The source is a ResNet V2, which normalizes before its convolutions: jbn.models has "
            "none. Pass one of the first version."
        )
    bottleneck = _conv(table, root, 0, 0, 0, 2, True) + kernel in arrays
    stages = _stages(arrays, table, root, kernel, bottleneck)
    blocks = tuple(map(len, stages))
    ours = tuple(model.blocks), model.bottleneck
    if blocks and (blocks, bottleneck) != ours:
        named = _DEPTHS.get((blocks, bottleneck))
        return (
            f"The source is of another depth: it has blocks={blocks} and bottleneck={bottleneck}"
            f"{f', as {named}' if named else ''}, the model blocks={ours[0]} and bottleneck="
            f"{ours[1]}. Make the model as the source is."
        )
    features = -1 if table is not TORCH else 0
    shapes = [np.shape(arrays[stage[0]]) for stage in stages]
    widths = tuple(shape[features] for shape in shapes if len(shape) == 4)
    if len(widths) == len(blocks) and widths != tuple(model.widths):
        return (
            f"The source is of another width: it has widths={widths}, the model "
            f"{tuple(model.widths)}. Make the model as the source is."
        )
    return ""


def other_source(keys: Iterable[str]) -> str:
    """Say which network the keys belong to and what converts it, or return "" if unknown."""
    for key in keys:
        for first, (what, remedy) in _FIRST.items():
            if key == first or (first.startswith("/") and key.endswith(first)):
                return f"The source is {what}. Pass it to {remedy}."
    return ""


def _prefix(arrays: Mapping[str, Any], expected: Iterable[str], first: str) -> str:
    """Find the prefix whose removal makes the most expected keys match; "" if none helps."""
    expected = set(expected)
    candidates = {key.removesuffix(first) for key in arrays if key.endswith(first)}
    found = {
        prefix: sum(prefix + key in arrays for key in expected)
        for prefix in candidates
        if prefix[-1:] in (".", "/")
    }
    prefix = max(found, key=lambda prefix: found[prefix], default="")
    return prefix if found.get(prefix, 0) > sum(key in arrays for key in expected) else ""


def _conv(
    table: ResNetNames, root: str, stage: int, block: int, nth: int, conv: int, bottleneck: bool
) -> str:
    return table.conv.format(
        root=root,
        kind="BottleneckResNetBlock" if bottleneck else "ResNetBlock",
        nth=nth,
        stage=stage,
        stage1=stage + 1,
        stage2=stage + 2,
        block=block,
        block1=block + 1,
        conv=conv,
        conv1=conv + 1,
    )


def _stages(
    arrays: Mapping[str, Any], table: ResNetNames, root: str, kernel: str, bottleneck: bool
) -> list[list[str]]:
    """Find the keys of the first convolution of every block, stage by stage."""
    stages: list[list[str]] = []
    nth = 0
    if table is FLAX:  # Blocks are numbered across stages; one with a shortcut begins a stage.
        while (key := _conv(table, root, 0, 0, nth, 0, bottleneck) + kernel) in arrays:
            shortcut = f"{key.rsplit('/', 2)[0]}/{table.shortcut.rsplit('/', 1)[1]}{kernel}"
            if not stages or (nth and shortcut in arrays):
                stages.append([])
            stages[-1].append(key)
            nth += 1
        return stages
    while True:
        stage: list[str] = []
        while (
            key := _conv(table, root, len(stages), len(stage), 0, 0, bottleneck) + kernel
        ) in arrays:
            stage.append(key)
        if not stage:
            return stages
        stages.append(stage)
