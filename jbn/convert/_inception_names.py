"""Names of the layers of `jbn.models.BNInception` in PyTorch's port of the Caffe network."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

# `bninception` of pretrained-models.pytorch; a batch norm has its convolution's name plus "_bn".
_STEM = {
    "stem": "conv1_7x7_s2",
    "reduce": "conv2_3x3_reduce",
    "conv": "conv2_3x3",
}
# Within a block: in block 3a, "block_3a_one" is "inception_3a_1x1".
_BLOCK = {
    "one": "1x1",
    "reduce_3": "3x3_reduce",
    "three": "3x3",
    "reduce_double": "double_3x3_reduce",
    "double_0": "double_3x3_1",
    "double_1": "double_3x3_2",
    "pool": "pool_proj",
}
# Names of the dense layer, the newer one first.
OUTPUTS = ("last_linear", "fc")

# Attributes with which our network computes the same as the port.
ATTRIBUTES: Mapping[str, Any] = MappingProxyType(
    {"placement": "before", "local_response": False, "padding": "symmetric"}
)


def inception_names(model: Any, output: str = OUTPUTS[0]) -> dict[str, str]:
    """Map our names of all layers that an `InceptionNet` may have to the port's."""
    names = dict(_STEM)
    for block in model.blocks:
        for ours, theirs in _BLOCK.items():
            names[f"block_{block.name}_{ours}"] = f"inception_{block.name}_{theirs}"
    norms = {f"{ours}_norm": f"{theirs}_bn" for ours, theirs in names.items()}
    return {**names, **norms, "output": output}
