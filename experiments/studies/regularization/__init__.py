"""Overfitting on a few images: BN against dropout, L1, L2, and against BN without its noise.

A wide ReLU network learns a few hundred images of MNIST, different ones for every seed, until it
fits them. The gap is training minus test accuracy, both in inference mode; BN uses the population
statistics of the training images (Algorithm 2). All runs with the same seed share images, batches
and, at equal width, initial weights. Learning rates and the strengths of dropout, L1 and L2 are
chosen by validation accuracy on held-out images, averaged over seeds. Rates are chosen without
regularizers, ghost batches and noise-free statistics and kept for these, which might do better at a
rate of their own.

Noise-free BN normalizes by the statistics of *all* training images, recomputed at every step, with
gradients through them, while the loss is that of one batch: the statistics follow the network, but
do not vary with the batch.

Source: Ioffe, Szegedy, "Batch Normalization", 2015, section 3.4; Hoffer et al., "Train longer,
generalize better", 2017 (ghost batches); Zhang et al., "Understanding deep learning requires
rethinking generalization", 2017 (flipped labels).

Command: python -m experiments regularization --preset quick

Expected: BN gains test accuracy on so few images, and dropout adds little to it. Smaller ghost
batches and more noise narrow the gap by a point or less, if at all. Flipped labels are learned.

Time: smoke takes seconds; the measured time of quick is in docs/results/LEDGER.md.
"""
