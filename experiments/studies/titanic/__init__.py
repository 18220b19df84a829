"""Titanic: what BN gains over 100 splits, from raw and from standardized inputs.

Source: note 001, "69 against 71 %" on one split of 179 passengers, whose standard error is 3.4
points. Here stratified 10-fold cross-validation is repeated by seed. Missing ages are imputed by
the median, and inputs standardized, from the training part of the fold alone. Networks without and
with BN share the fold, the seed, the initial weights and the batches; so do raw and standardized.
The accuracy is that of the final epoch, not of the best. Folds of one seed are not independent, so
they are averaged before an interval over seeds is taken. Initial weights are Glorot's, uniform; BN
is evaluated by its exponential averages, momentum .99.

Command: python -m experiments titanic --preset quick

Expected after 200 epochs, without and with BN: raw, ReLU .642, .705; raw, sigmoid .682, .694;
standardized, ReLU .703, .705; standardized, sigmoid .701, .698. Logistic regression .702, majority
.616.

Time: smoke takes seconds; that of quick, measured, is in docs/results/LEDGER.md.
"""
