"""Inference: which statistics to normalize by at test time, and what goes wrong with others.

Source: Ioffe, Szegedy, "Batch Normalization", 2015, section 3.1 and Algorithm 2; Wu, Johnson,
"Rethinking 'Batch' in BatchNorm", 2021, sections 3 and 5. Sigmoid networks with BN on gray MNIST.

One training run computes all averages at once: its layers have momentum 0, so that after a step
`batch_stats` are the batch's own, and every average is updated with them. (Training does not depend
on running statistics.) The reference, "population", is Algorithm 2 over all training images.

Command: python -m experiments inference --preset quick

Expected: moving averages are within half a point of the reference; 1,000 examples are as good as
20,000; test batches of 2 or of one class are far worse; single images in training mode are at
chance; averaging gamma and beta gains nothing; shifted images cost accuracy, and their own
statistics recover some of it.

Time: smoke takes seconds; the measured time of quick is in docs/results/LEDGER.md.
"""
