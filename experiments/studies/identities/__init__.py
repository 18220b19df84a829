"""What holds exactly: the algebra of batch normalization, its corrections, initial weights.

Each number is the largest error of an equality, over several draws, or exact arithmetic; the
estimates by chance (variances of random weights and batches) come with intervals over draws.

Source: Ioffe, Szegedy, "Batch Normalization", 2015, sections 3, 3.1 to 3.3; Glorot, Bengio, 2010;
He et al., 2015.

Command: python -m experiments identities --preset quick

Expected: errors at rounding; .9^100 = 2.7e-5, 1.5^100 = 4.1e17; Bessel's factor 2 at batches of 2.

Time: smoke takes seconds; that of quick, measured, is in docs/results/LEDGER.md.
"""
