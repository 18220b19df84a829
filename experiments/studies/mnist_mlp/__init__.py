"""Fig. 1 of the paper: a sigmoid network on MNIST, with and without batch normalization.

Source: Ioffe, Szegedy, "Batch Normalization", 2015, section 4.1 and Fig. 1. Binary 28x28 input,
three hidden layers of 100 sigmoid units, small Gaussian weights, cross-entropy, batches of 60. The
paper states neither the learning rate nor the width of the Gaussian: .1 and .1 here.

Both networks start from the same weights and see the same batches. At test time the normalized one
uses population statistics (Algorithm 2, recomputed at every evaluation) or, for comparison, the
exponential averages of training.

Command: python -m experiments mnist_mlp --preset paper

Expected, without and with BN: accuracy .53 / .91 / .95 / .97 and .91 / .94 / .96 / .97 after 1,000,
5,000, 10,000 and 50,000 steps. From step 1,000 on, the medians of the last sigmoids' inputs drift
by .6 and .2, and their spreads vary by a factor of 5 and 1.6.

Time: smoke takes seconds; the measured time of quick is in docs/results/LEDGER.md.
"""
