"""Titanic: what BN gains over 100 splits, from raw and from standardized inputs.

Source: note 001, "69 against 71 %" on one split of 179 passengers, with a standard error of 3.4
points. Here, stratified 10-fold cross-validation is repeated for several seeds. Missing ages are
imputed by the median, and inputs are standardized, both from the training part of the fold.
Networks with and without BN share the fold, the seed, the initial weights and the batches; so do
raw and standardized inputs. Accuracy is that of the final epoch, not the best. Folds of one seed
are not independent, so they are averaged before the interval over seeds is computed. Initial
weights are Glorot uniform; BN is evaluated with its exponential averages, momentum .99.

Command: python -m experiments titanic --preset quick

Expected after 200 epochs, without and with BN: raw, ReLU .642, .705; raw, sigmoid .682, .694;
standardized, ReLU .703, .705; standardized, sigmoid .701, .698. Logistic regression .702, majority
class .616.

Time: smoke takes seconds; the measured time of quick is in docs/results/LEDGER.md.
"""
