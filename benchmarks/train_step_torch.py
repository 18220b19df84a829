"""The network of the study `imagenet` for images of 32x32, in eager torch, with the same names.

XLA's SAME padding puts an odd zero at the end, while torch pads equally on both sides. With a
stride of 2 and an even size, zeros are therefore added where XLA puts them.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.common import Run
from experiments.studies.imagenet.network import COLOR_MEAN, COLOR_STD
from jbn.models.inception import Block

EPSILON, MOMENTUM = 1e-5, 0.01


class Unit(nn.Module):
    """A convolution without bias, batch normalization, ReLU."""

    def __init__(self, inputs: int, outputs: int, size: int, stride: int = 1) -> None:
        super().__init__()
        same = size // 2 if stride == 1 else 0
        self.stride = stride
        self.conv = nn.Conv2d(inputs, outputs, size, stride, same, bias=False)
        self.norm = nn.BatchNorm2d(outputs, eps=EPSILON, momentum=MOMENTUM)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute the output."""
        x = x if self.stride == 1 else F.pad(x, _behind(x))
        return F.relu(self.norm(self.conv(x)))


class InceptionNet(nn.Module):
    """`jbn.models.InceptionNet` with the small stem and batch normalization before ReLU."""

    def __init__(self, blocks: Sequence[Block], width: int, classes: int) -> None:
        super().__init__()
        self.blocks = blocks
        self.units = nn.ModuleDict()
        features = self._add("stem", 3, 192 // width, 3)
        for row in blocks:
            name, inputs = f"block_{row.name}", features
            features = self._add(f"{name}_one", inputs, row.one // width, 1) if row.one else 0
            reduced = self._add(f"{name}_reduce_3", inputs, row.reduce_3 // width, 1)
            features += self._add(f"{name}_three", reduced, row.three // width, 3, row.stride)
            reduced = self._add(f"{name}_reduce_double", inputs, row.reduce_double // width, 1)
            double = self._add(f"{name}_double_0", reduced, row.double // width, 3)
            features += self._add(f"{name}_double_1", double, row.double // width, 3, row.stride)
            if row.projection:
                features += self._add(f"{name}_pool", inputs, row.projection // width, 1)
            else:
                features += inputs
        self.output = nn.Linear(features, classes)

    def _add(self, name: str, inputs: int, outputs: int, size: int, stride: int = 1) -> int:
        self.units[name] = Unit(inputs, outputs, size, stride)
        return outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute the logits of images (N, 3, H, W)."""
        units = self.units
        x = units["stem"](x)
        for row in self.blocks:
            name = f"block_{row.name}"
            paths = [units[f"{name}_one"](x)] if row.one else []
            paths.append(units[f"{name}_three"](units[f"{name}_reduce_3"](x)))
            h = units[f"{name}_double_0"](units[f"{name}_reduce_double"](x))
            paths.append(units[f"{name}_double_1"](h))
            h = _pool(x, row)
            paths.append(units[f"{name}_pool"](h) if row.projection else h)
            x = torch.cat(paths, 1)
        return self.output(x.mean((2, 3)))


def _behind(x: torch.Tensor) -> list[int]:
    """Return the zeros that XLA pads columns and rows with, for a window of 3 and a stride of 2."""
    rows, columns = x.shape[2:]
    if rows % 2 or columns % 2:
        return [1, 1, 1, 1]
    return [0, 1, 0, 1]


def _pool(x: torch.Tensor, row: Block) -> torch.Tensor:
    if row.pool == "average":
        return F.avg_pool2d(x, 3, 1, 1)
    if row.stride == 1:
        return F.max_pool2d(x, 3, 1, 1)
    return F.max_pool2d(F.pad(x, _behind(x), value=-torch.inf), 3, 2)


def load(network: InceptionNet, variables: Any) -> None:
    """Copy the weights of the JAX network."""
    params = variables["params"]
    units: dict[str, Any] = dict(network.units.items())
    with torch.no_grad():
        for name, unit in units.items():
            kernel = np.asarray(params[name]["kernel"]).transpose(3, 2, 0, 1)
            unit.conv.weight.copy_(torch.tensor(kernel))
            unit.norm.weight.copy_(torch.tensor(np.asarray(params[f"{name}_norm"]["scale"])))
            unit.norm.bias.copy_(torch.tensor(np.asarray(params[f"{name}_norm"]["bias"])))
        network.output.weight.copy_(torch.tensor(np.asarray(params["output"]["kernel"]).T))
        network.output.bias.copy_(torch.tensor(np.asarray(params["output"]["bias"])))


def inputs(image: torch.Tensor) -> torch.Tensor:
    """Standardize images (N, H, W, 3) and move colors first; in memory they stay last."""
    x = (image / 255 - torch.tensor(COLOR_MEAN)) / torch.tensor(COLOR_STD)
    return x.permute(0, 3, 1, 2)


def train(
    network: InceptionNet, image: np.ndarray, label: np.ndarray, *, rate: float, decay: float
) -> Run:
    """Make the run of training steps: SGD with momentum .9, `decay` on the kernels only."""
    trained: Any = network.train()
    trained.to(memory_format=torch.channels_last)
    images, labels = torch.tensor(image), torch.tensor(label, dtype=torch.int64)
    kernels = [leaf for leaf in network.parameters() if leaf.ndim > 1]
    others = [leaf for leaf in network.parameters() if leaf.ndim == 1]
    groups = [{"params": kernels, "weight_decay": decay}, {"params": others}]
    optimizer = torch.optim.SGD(groups, lr=rate, momentum=0.9)

    def run(count: int) -> None:
        for _ in range(count):
            loss = F.cross_entropy(network(inputs(images)), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return run
