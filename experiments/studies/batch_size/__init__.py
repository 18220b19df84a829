"""Batch size: its effect on BN, on its variants, and on networks without normalization.

A ReLU network with three hidden layers learns MNIST in batches of one to thousands of images. All
methods see the same number of examples. The learning rate grows with the batch: each method's best
rate at batches of 32, times size / 32, but at most its best rate at the largest size. Both are
chosen from grids common to all methods, by accuracy on held-out images that are used neither for
training nor for testing. There are two sweeps, because small batches need few examples and huge
batches many. At test time, population statistics from training batches of the same size are used
(Algorithm 2); renorm uses its running statistics, since it is trained with them. Runs with the same
seed share images, and batches if they are of the same size.

Huge batches are also trained for equal steps at an equal rate, where a loss of accuracy cannot come
from fewer steps.

Source: Ioffe, Szegedy, "Batch Normalization", 2015; Hoffer et al., "Train longer, generalize
better", 2017; Ioffe, "Batch Renormalization", 2017; Wu, He, "Group Normalization", 2018.

Command: python -m experiments batch_size --preset quick

Expected: a batch of one gives just beta, and a batch of two gives +-1. BN loses accuracy at batches
of 2, the other methods hardly any. Huge batches lose accuracy for lack of steps, with or without
BN, but not at equal steps.

Time: smoke takes seconds; the measured time of quick is in docs/results/LEDGER.md.
"""
