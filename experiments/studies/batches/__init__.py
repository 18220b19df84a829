"""Batches: shuffled, fixed, or sorted by class, and statistics of a batch or of all data.

Source: Ioffe, Szegedy, "Batch Normalization", 2015, sections 3 and 4.2.1; Ioffe, "Batch
Renormalization", 2017. Sigmoid networks on gray MNIST, with one learning rate that decays linearly
to 0, so that the classes of the last few batches do not dominate.

Batches are drawn in three ways. Shuffled: from a new permutation every epoch. Fixed: always the
same examples together, the batches in a new order every epoch. Sorted: half of one class and half
of another, with new pairs of classes every epoch. All networks with normalization are tested with
population statistics over shuffled training batches.

To normalize by all the data, every step passes the whole of a small training set through the
network. Gradients flow through its statistics, and the loss is that of one batch. The network
normalized by the batch sees the same batches of the same set.

Command: python -m experiments batches --preset quick

Expected: sorted batches cost accuracy with BN, more than without; batch renormalization recovers
some of it; the error of a batch mean falls as the power -1/2 of the batch size.

Time: smoke takes seconds; the measured time of quick is in docs/results/LEDGER.md.
"""
