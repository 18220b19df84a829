"""Inception on ImageNet: section 4.2 of the paper with its own network, on one CPU or a pod.

Source: Ioffe, Szegedy, "Batch Normalization", 2015, section 4.2, Fig. 2 to 4. The variants are the
rows of Fig. 3: `inception` is the original; `bn_baseline` adds only BN; `bn_x5`, `bn_x30` and
`bn_x5_sigmoid` make all changes of section 4.2.1, at 5, 30 and 5 times the rate. `inception_x5`,
which should diverge, and `sigmoid_without_bn`, which should stay at chance, test what the text says
of networks without BN. Each change also has its own option.

The data are a folder of images, shards made from one with --prepare, or CIFAR-10, all read in the
same way. Training in bfloat16 keeps weights and statistics in float32. Statistics are those of each
device, as for each worker in the paper, of groups of devices, or of all devices.

Command: python -m experiments imagenet --variant all --preset cifar

--prepare, --ensemble and --compile do something else and have their own help, as in --prepare
--help.

Expected from the paper: 72.2 % after 31.0, 13.3, 2.1 and 2.7 million steps (inception, bn_baseline,
bn_x5, bn_x30); best 72.2, 72.7, 73.0, 74.8 and, with sigmoids, 69.8 %.

Measured on CIFAR-10 with one seed: .480, .610, .643, .661 and .634 in that order after 6,000 steps;
the best accuracy of inception after 6,000, 3,000, 1,500, 2,500 and 3,000
(docs/results/imagenet/README.md).

Time: smoke takes seconds; cifar takes 77 minutes on two cores (95 beside other work); imagenet is
for accelerators: --compile estimates a step there.
"""
