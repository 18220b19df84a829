"""Overfitting on a few images: BN against dropout, L1, L2, and against BN without its noise.

A wide ReLU network learns a few hundred images of MNIST, drawn anew for every seed, until it fits
them. Gap: training - test accuracy, both in inference mode, with BN by the population statistics
of the training images (Algorithm 2). All runs of a seed share images, batches and, at equal width,
initial weights. Rates, and strengths of dropout, L1 and L2, are those of the best validation
accuracy, the mean over seeds, on images that are neither trained on nor tested. Rates
are chosen without regularizers, and without ghost batches or noise-free statistics, and kept for
them: what is added might do better at a rate of its own.

Noise-free BN normalizes by statistics of *all* training images, computed afresh at every step with
the gradient through them, while the loss is that of the batch alone: the statistics follow the
network, and do not vary with the batch.

Source: Ioffe, Szegedy, "Batch Normalization", 2015, section 3.4; Hoffer et al., "Train longer,
generalize better", 2017 (ghost batches); Zhang et al., "Understanding deep learning requires
rethinking generalization", 2017 (flipped labels).

Command: python -m experiments regularization --preset quick

Expected: BN gains test accuracy on so few images, and dropout adds little to it. Smaller ghost
batches and more noise narrow the gap, if at all, by a point or less. What is flipped is learned.

Time: smoke takes seconds; that of quick, measured, is in docs/results/LEDGER.md.
"""
