"""Batches: well mixed, always the same, of two classes; statistics of a batch, and of all data.

Source: Ioffe, Szegedy, "Batch Normalization", 2015, sections 3 and 4.2.1; Ioffe, "Batch
Renormalization", 2017. Sigmoid networks on gray MNIST, at one rate that falls linearly to 0, lest
the classes of the last few batches decide.

Batches are drawn in three ways. Shuffled: from a new permutation every epoch. Fixed: always the
same examples together, the batches in a new order every epoch. Sorted: half of one class and half
of another, paired anew every epoch. All networks with normalization, however trained, are tested
with population statistics over shuffled training batches.

To normalize by all the data, every step passes the whole of a small training set through the
network; its statistics carry gradients, and the loss is that of a batch alone. Normalized by the
batch, the network sees the same batches of the same set.

Command: python -m experiments batches --preset quick

Expected: sorted batches cost accuracy with BN, more than without; batch renormalization wins some
of it back; the mean of a batch errs as the power -1/2 of its size.

Time: smoke takes seconds; that of quick, measured, is in docs/results/LEDGER.md.
"""
