"""Saturation: what normalization does to a sigmoid's inputs, and what gamma and beta do to it.

Exact: where the sigmoid is flat or nearly linear, and how large a normalized value can be. By
sampling: the shape of a distribution before and after. By training, on binary images: networks with
gamma and beta against networks with neither, each at its best rate of one grid, chosen on held-out
images; and networks with large initial weights, with and without BN, at one rate. With the same
seed, all start from the same weights and see the same batches.

Inputs of the nonlinearities are measured in training mode, on one large batch of test images.

Source: Ioffe, Szegedy, "Batch Normalization", 2015, section 3; five study notes.

Command: python -m experiments saturation --preset quick

Expected: the slope is below .01 for 5e-6 of N(0, 1), for .25 of N(0, 4^2), for .65 of N(0, 10^2); a
batch of m reaches sqrt(m - 1); skewness and kurtosis are unchanged. Learned gamma and beta help
sigmoids, which are then no longer nearly linear over their inputs, but not ReLUs, of which they
leave fewer than half active.

Time: smoke takes seconds; the measured time of quick is in docs/results/LEDGER.md.
"""
