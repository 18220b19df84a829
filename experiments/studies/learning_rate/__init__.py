"""Learning rate and initial weights: where networks train and how fast, with and without BN.

Source: Ioffe, Szegedy, "Batch Normalization", 2015, sections 3.3, 4.1, 4.2.1; Bjorck et al.,
"Understanding Batch Normalization", 2018. The network is that of `mnist_mlp`: MNIST as 0 and 1,
three hidden layers of 100 units, plain SGD on batches of 60, Gaussian initial weights of standard
deviation sigma. Networks of one seed share initial weights (up to sigma) and batches.

BN is evaluated with population statistics (Algorithm 2), recomputed each time. Steps and final
accuracies are measured on test images; a best rate is chosen on held-out training images. A run
fails if its accuracy is below .2; a run that diverged to NaN predicts the first class for all
images, so it fails as well. If an accuracy is never reached, all steps are counted.

Command: python -m experiments learning_rate --preset quick

Expected: at sigma .05 and rate .01, no progress in 20,000 steps without BN; BN trains in more of
the grid, and faster at every rate. At sigma 5 and rate .01, BN gains .47 after 50,000 steps.

Time: smoke takes seconds; the measured time of quick is in docs/results/LEDGER.md.
"""
