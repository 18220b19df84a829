"""Inception on ImageNet: section 4.2 of the paper, its own network, on one CPU or on a pod.

Source: Ioffe, Szegedy, "Batch Normalization", 2015, section 4.2, Fig. 2 to 4. The variants are the
rows of Fig. 3: `inception` is the original; `bn_baseline` has BN alone; `bn_x5`, `bn_x30` and
`bn_x5_sigmoid` take all changes of section 4.2.1, at 5, 30 and 5 times the rate. `inception_x5`, to
diverge, and `sigmoid_without_bn`, to stay at chance, are what the text says of networks without BN.
Each change has a switch of its own.

Data are a folder of images, shards made of one by --prepare, or CIFAR-10, all by the same path.
What is trained in bfloat16 keeps its weights and statistics in float32. Statistics are those of
each device, as each worker of the paper had its own, of groups of devices, or of all.

Command: python -m experiments imagenet --variant all --preset cifar

Options that do something else have a help of their own, as --prepare --help: --prepare, --ensemble
and --compile.

Expected, of the paper: 72.2 % after 31.0, 13.3, 2.1 and 2.7 million steps (inception, bn_baseline,
bn_x5, bn_x30); best 72.2, 72.7, 73.0, 74.8 and, with sigmoids, 69.8 %.

Measured on CIFAR-10, one seed: .480, .610, .643, .661 and .634 in that order, after 6,000 steps;
the best of inception after 6,000, 3,000, 1,500, 2,500 and 3,000 (docs/results/imagenet/README.md).

Time: smoke takes seconds; cifar 94 minutes on two cores with other work, of which all steps are 59
minutes alone; imagenet is for accelerators: --compile tells what a step takes there.
"""
