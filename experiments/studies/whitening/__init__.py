"""Whitening, and normalizing outside the gradient step: what they cost, and what they give.

Source: Ioffe, Szegedy, "Batch Normalization", 2015, section 2; LeCun et al., "Efficient BackProp",
1998, section 4.3. Five parts:

- decorrelation: covariance of small images after ZCA, and correlations that BN leaves; also for a
  batch with half as many examples as features.
- time: forward pass of ZCA and of BN by the number of features d, with LAPACK on one thread.
- outside: gradient descent that treats the statistics as constants. The bias: xhat = u + b -
  E[u + b], target u + 1. The scale: xhat = (uW - mean) / std, target twice the xhat of a correctly
  directed W. Since xhat cannot reach the target, the gradient persists and b or |W| keeps growing.
- descent: full-batch gradient descent for logistic regression on raw, standardized and whitened
  pixels: steps to a training loss, each at its best rate of one grid, chosen on other subsets of
  the data. Condition number of E[xx^T].
- stuck: small sigmoid networks on raw gray levels (0 to 255) and on standardized ones, with rates
  chosen likewise: share whose final training loss is more than a margin above the lowest of all.
  Pixels are averages of 4x4, without those that are almost constant.

Command: python -m experiments whitening --preset quick

Expected: covariance = I to 1e-5; ZCA's time grows with d^3, BN's with d; b = 100.0, 0 with BN.

Time: smoke takes seconds; the measured time of quick is in docs/results/LEDGER.md.
"""
