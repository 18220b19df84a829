"""Whitening, and normalizing outside the gradient step: what the ideal costs, and what it gives.

Source: Ioffe, Szegedy, "Batch Normalization", 2015, section 2; LeCun et al., "Efficient BackProp",
1998, section 4.3. Five parts:

- decorrelation: covariance of small images after ZCA, and correlations that BN leaves; a batch of
  half as many examples as features.
- time: of ZCA and of BN, forward, by the number of features d; LAPACK with one thread.
- outside: gradient descent that takes the statistics as constants. The bias: xhat = u + b -
  E[u + b], target u + 1. The scale: xhat = (uW - mean) / std, target twice what xhat is once W
  points the right way. As xhat cannot follow, the gradient keeps pulling, b or |W| keeps growing.
- descent: logistic regression on raw, standardized and whitened pixels, full-batch gradient
  descent: steps to a training loss, each at its best rate of one grid, chosen on other subsets of
  the data. Condition number of E[xx^T].
- stuck: small sigmoid networks on raw gray levels (0 to 255) and on standardized ones, rates chosen
  likewise: share whose last training loss is more than a margin above the lowest of all.
  Pixels are averages of 4x4, the almost constant ones left out.

Command: python -m experiments whitening --preset quick

Expected: covariance = I to 1e-5; ZCA's time grows with d^3, BN's with d; b = 100.0, 0 with BN.

Time: smoke takes seconds; that of quick, measured, is in docs/results/LEDGER.md.
"""
