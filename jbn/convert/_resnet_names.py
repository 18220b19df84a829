"""Names of the layers of `jbn.models.ResNet` in other frameworks: one table per source.

In a name, {stage}, {block} and {conv} count from 0, {stage1}, {block1} and {conv1} from 1, {stage2}
from 2; {nth} is the block's place in the network, from 0; {root} the name of Haiku's network.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple


class ResNetNames(NamedTuple):
    """Names of the layers, and the attributes with which our network computes the same."""

    stem: str
    stem_norm: str
    conv: str
    conv_norm: str
    shortcut: str
    shortcut_norm: str
    output: str
    attributes: Mapping[str, Any]


# The defaults of `jbn.models.ResNet`, which match torch.
_PLAIN: Mapping[str, Any] = MappingProxyType(
    {
        "skip": True,
        "placement": "before",
        "padding": "symmetric",
        "stem_padding": "symmetric",
        "stride_in_1x1": False,
    }
)

# torchvision and timm.
TORCH = ResNetNames(
    stem="conv1",
    stem_norm="bn1",
    conv="layer{stage1}.{block}.conv{conv1}",
    conv_norm="layer{stage1}.{block}.bn{conv1}",
    shortcut="layer{stage1}.{block}.downsample.0",
    shortcut_norm="layer{stage1}.{block}.downsample.1",
    output="fc",
    attributes=_PLAIN,
)

# keras.applications: ResNet50, 101, 152, but not the V2 models.
KERAS = ResNetNames(
    stem="conv1_conv",
    stem_norm="conv1_bn",
    conv="conv{stage2}_block{block1}_{conv1}_conv",
    conv_norm="conv{stage2}_block{block1}_{conv1}_bn",
    shortcut="conv{stage2}_block{block1}_0_conv",
    shortcut_norm="conv{stage2}_block{block1}_0_bn",
    output="predictions",
    attributes={**_PLAIN, "stride_in_1x1": True},
)

# Flax's examples/imagenet; {kind} is ResNetBlock or BottleneckResNetBlock.
FLAX = ResNetNames(
    stem="conv_init",
    stem_norm="bn_init",
    conv="{kind}_{nth}/Conv_{conv}",
    conv_norm="{kind}_{nth}/BatchNorm_{conv}",
    shortcut="{kind}_{nth}/conv_proj",
    shortcut_norm="{kind}_{nth}/norm_proj",
    output="Dense_0",
    attributes={**_PLAIN, "padding": "same"},
)

# hk.nets.ResNet, without resnet_v2.
HAIKU = ResNetNames(
    stem="{root}/~/initial_conv",
    stem_norm="{root}/~/initial_batchnorm",
    conv="{root}/~/block_group_{stage}/~/block_{block}/~/conv_{conv}",
    conv_norm="{root}/~/block_group_{stage}/~/block_{block}/~/batchnorm_{conv}",
    shortcut="{root}/~/block_group_{stage}/~/block_{block}/~/shortcut_conv",
    shortcut_norm="{root}/~/block_group_{stage}/~/block_{block}/~/shortcut_batchnorm",
    output="{root}/~/logits",
    attributes={**_PLAIN, "padding": "same", "stem_padding": "same"},
)


def resnet_names(model: Any, table: ResNetNames, root: str = "") -> dict[str, str]:
    """Map our names of all layers that a `ResNet` of this shape may have to the source's."""
    kind = "BottleneckResNetBlock" if model.bottleneck else "ResNetBlock"
    names = {
        "stem": table.stem.format(root=root),
        "stem_norm": table.stem_norm.format(root=root),
        "output": table.output.format(root=root),
    }
    nth = 0
    for stage, blocks in enumerate(model.blocks):
        for block in range(blocks):
            place = {
                "root": root,
                "kind": kind,
                "nth": nth,
                "stage": stage,
                "stage1": stage + 1,
                "stage2": stage + 2,
                "block": block,
                "block1": block + 1,
            }
            ours = f"block_{stage}_{block}"
            names[f"{ours}_shortcut"] = table.shortcut.format(**place)
            names[f"{ours}_shortcut_norm"] = table.shortcut_norm.format(**place)
            for conv in range(3 if model.bottleneck else 2):
                place |= {"conv": conv, "conv1": conv + 1}
                names[f"{ours}_conv_{conv}"] = table.conv.format(**place)
                names[f"{ours}_conv_{conv}_norm"] = table.conv_norm.format(**place)
            nth += 1
    return names
