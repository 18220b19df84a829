"""Exact identities: the algebra of batch normalization, its corrections, and initial weights.

Each number is the largest error of an equality over several draws, or exact arithmetic; random
estimates (variances of random weights and batches) have intervals over draws.

Source: Ioffe, Szegedy, "Batch Normalization", 2015, sections 3, 3.1 to 3.3; Glorot, Bengio, 2010;
He et al., 2015.

Command: python -m experiments identities --preset quick

Expected: only rounding errors; .9^100 = 2.7e-5, 1.5^100 = 4.1e17; Bessel's factor 2 at batches of
2.

Time: smoke takes seconds; the measured time of quick is in docs/results/LEDGER.md.
"""
