"""ResNet and BN-Inception as plain torch modules, named as in public checkpoints."""

import torch
from torch import nn
from torch.nn import functional as F


class Block(nn.Module):
    """A basic block of two 3x3 convolutions, or a bottleneck with its stride in the 3x3."""

    def __init__(self, inputs, width, stride, bottleneck):
        super().__init__()
        sizes = (1, 3, 1) if bottleneck else (3, 3)
        strides = (1, stride, 1) if bottleneck else (stride, 1)
        outputs = 4 * width if bottleneck else width
        features = [inputs, *[width] * (len(sizes) - 1), outputs]
        self.depth = len(sizes)
        for i, (size, step) in enumerate(zip(sizes, strides, strict=True)):
            conv = nn.Conv2d(*features[i : i + 2], size, step, size // 2, bias=False)
            setattr(self, f"conv{i + 1}", conv)
            setattr(self, f"bn{i + 1}", nn.BatchNorm2d(features[i + 1]))
        self.downsample = None
        if stride > 1 or inputs != outputs:
            conv = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(outputs))

    def forward(self, x):
        h = x
        for i in range(1, self.depth + 1):
            h = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(h))
            h = F.relu(h) if i < self.depth else h
        return F.relu(h + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """torchvision's ResNet, with any number of stages."""

    def __init__(self, blocks, widths, bottleneck=False, classes=1000, colors=3):
        super().__init__()
        self.conv1 = nn.Conv2d(colors, widths[0], 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        features, self.stages = widths[0], len(blocks)
        for stage, (count, width) in enumerate(zip(blocks, widths, strict=True)):
            layers = []
            for i in range(count):
                stride = 2 if stage and not i else 1
                layers.append(Block(features, width, stride, bottleneck))
                features = 4 * width if bottleneck else width
            setattr(self, f"layer{stage + 1}", nn.Sequential(*layers))
        self.fc = nn.Linear(features, classes)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        for stage in range(self.stages):
            x = getattr(self, f"layer{stage + 1}")(x)
        return self.fc(x.mean((2, 3)))


# The port's features: 1x1; 3x3 reduce and 3x3; double 3x3 reduce and double 3x3; projection.
INCEPTION = {
    "3a": (64, 64, 64, 64, 96, 32),
    "3b": (64, 64, 96, 64, 96, 64),
    "3c": (0, 128, 160, 64, 96, 0),
    "4a": (224, 64, 96, 96, 128, 128),
    "4b": (192, 96, 128, 96, 128, 128),
    "4c": (160, 128, 160, 128, 160, 128),
    "4d": (96, 128, 192, 160, 192, 128),
    "4e": (0, 128, 192, 192, 256, 0),
    "5a": (352, 192, 320, 160, 224, 128),
    "5b": (352, 192, 320, 192, 224, 128),
}


class BNInception(nn.Module):
    """The torch port of the Caffe network: biases before batch norm, max pools in ceil mode."""

    def __init__(self, blocks=tuple(INCEPTION), width=1, classes=1000, output="last_linear"):
        super().__init__()
        self.blocks, self.output = blocks, output
        self.add("conv1_7x7_s2", 3, 64 // width, 7, 2)
        self.add("conv2_3x3_reduce", 64 // width, 64 // width, 1)
        self.add("conv2_3x3", 64 // width, 192 // width, 3)
        features = 192 // width
        for name in blocks:
            one, reduce_3, three, reduce_double, double, projection = (
                n // width for n in INCEPTION[name]
            )
            block, stride = f"inception_{name}", 1 if one else 2
            if one:
                self.add(f"{block}_1x1", features, one, 1)
            self.add(f"{block}_3x3_reduce", features, reduce_3, 1)
            self.add(f"{block}_3x3", reduce_3, three, 3, stride)
            self.add(f"{block}_double_3x3_reduce", features, reduce_double, 1)
            self.add(f"{block}_double_3x3_1", reduce_double, double, 3)
            self.add(f"{block}_double_3x3_2", double, double, 3, stride)
            if projection:
                self.add(f"{block}_pool_proj", features, projection, 1)
            features = one + three + double + (projection or features)
        setattr(self, output, nn.Linear(features, classes))

    def add(self, name, inputs, outputs, size, stride=1):
        setattr(self, name, nn.Conv2d(inputs, outputs, size, stride, size // 2))
        setattr(self, f"{name}_bn", nn.BatchNorm2d(outputs))

    def unit(self, name, x):
        return F.relu(getattr(self, f"{name}_bn")(getattr(self, name)(x)))

    def forward(self, x):
        x = F.max_pool2d(self.unit("conv1_7x7_s2", x), 3, 2, ceil_mode=True)
        x = self.unit("conv2_3x3", self.unit("conv2_3x3_reduce", x))
        x = F.max_pool2d(x, 3, 2, ceil_mode=True)
        for name in self.blocks:
            x = self.block(name, x)
        # The port averages over 7x7, which is all positions for an image of 224x224.
        return getattr(self, self.output)(x.mean((2, 3)))

    def block(self, name, x):
        block, halves = f"inception_{name}", not INCEPTION[name][0]
        paths = [] if halves else [self.unit(f"{block}_1x1", x)]
        paths.append(self.unit(f"{block}_3x3", self.unit(f"{block}_3x3_reduce", x)))
        h = self.unit(f"{block}_double_3x3_1", self.unit(f"{block}_double_3x3_reduce", x))
        paths.append(self.unit(f"{block}_double_3x3_2", h))
        if halves:
            paths.append(F.max_pool2d(x, 3, 2, ceil_mode=True))
        elif name == "5b":
            paths.append(self.unit(f"{block}_pool_proj", F.max_pool2d(x, 3, 1, 1)))
        else:
            paths.append(self.unit(f"{block}_pool_proj", F.avg_pool2d(x, 3, 1, 1)))
        return torch.cat(paths, 1)


def as_trained(network, seed=0):
    """Give a network weights, biases and statistics that all differ and keep activations alive."""
    generator = torch.Generator().manual_seed(seed)

    def draw(like, low, high):
        return torch.rand(like.shape, generator=generator) * (high - low) + low

    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            deviation = (2 / layer.weight[0].numel()) ** 0.5
            layer.weight.data = torch.randn(layer.weight.shape, generator=generator) * deviation
            if layer.bias is not None:
                layer.bias.data = draw(layer.bias, -1, 1)
        if isinstance(layer, nn.BatchNorm2d):
            layer.weight.data = draw(layer.weight, 0.5, 1.5)
            layer.bias.data = draw(layer.bias, -0.5, 0.5)
            layer.running_mean = draw(layer.running_mean, -0.5, 0.5)
            layer.running_var = draw(layer.running_var, 0.5, 2)
            layer.num_batches_tracked.fill_(7)
    return network.eval()
