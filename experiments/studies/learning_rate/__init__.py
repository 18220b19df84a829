"""Learning rate and initial weights: where networks train, how fast, without and with BN.

Source: Ioffe, Szegedy, "Batch Normalization", 2015, sections 3.3, 4.1, 4.2.1; Bjorck et al.,
"Understanding Batch Normalization", 2018. The network is that of `mnist_mlp`: MNIST as 0 and 1,
three hidden layers of 100 units, plain SGD on batches of 60, Gaussian initial weights of deviation
sigma. Networks of one seed share initial weights (up to sigma) and batches.

BN is evaluated by population statistics (Algorithm 2), averaged afresh each time. Steps are
counted, and last accuracies taken, on test images; a best rate is chosen on training images that
were held out. A run fails if its accuracy is below .2; one that diverged to NaN predicts the first
class for all, so it fails as well. A number of steps that is never reached counts as all steps.

Command: python -m experiments learning_rate --preset quick

Expected: at sigma .05, rate .01 no progress in 20,000 steps without BN; BN trains in more of the
grid, and faster at every rate. At sigma 5, rate .01 BN gains .47 after 50,000 steps.

Time: smoke takes seconds; that of quick, measured, is in docs/results/LEDGER.md.
"""
