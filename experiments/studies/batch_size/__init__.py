"""What the size of the batch does to BN, to its relatives, and to networks without any.

A ReLU network of three hidden layers learns MNIST in batches of one to thousands of images. All
methods see the same number of examples, at a rate that grows with the batch: each method's best at
batches of 32, times size / 32, but never above its best at the largest size, both chosen from grids
common to all, by accuracy on images that are neither trained on nor tested. Two sweeps, because
few examples do for small batches, and a huge batch needs many. Tests use population statistics from
training batches of the same size (Algorithm 2); renorm its own running statistics, since it is
trained with them. Runs of a seed share images, and at equal size batches.

Huge batches, too, with equal steps at an equal rate: a loss there could not come from fewer steps.

Source: Ioffe, Szegedy, "Batch Normalization", 2015; Hoffer et al., "Train longer, generalize
better", 2017; Ioffe, "Batch Renormalization", 2017; Wu, He, "Group Normalization", 2018.

Command: python -m experiments batch_size --preset quick

Expected: a batch of one gives beta alone, and a batch of two +-1. BN loses at batches of 2, the
others hardly. Huge batches lose for want of steps, with or without BN, and not at equal steps.

Time: smoke takes seconds; that of quick, measured, is in docs/results/LEDGER.md.
"""
