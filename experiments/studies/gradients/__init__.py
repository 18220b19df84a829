"""Gradients on their way back through deep networks: where they vanish, explode, and are kept.

At initialization: depth x activation x initial weights x {plain, BN, residual}, the norm of the
gradient by each layer's pre-activations, for Gaussian inputs and random labels. In
training, on binary MNIST: how much each layer moves, ReLUs that die at a high rate, gradient
clipping, and plain against residual networks of 20 and 56 layers. And backpropagation by hand.

Source: the study notes; Glorot, Bengio, 2010; He et al., 2015 and 2016; Pascanu, Mikolov, Bengio,
2013; Yang et al., "A Mean Field Theory of Batch Normalization", 2019.

Command: python -m experiments gradients --preset quick

Expected, the gradient's factor per layer backwards: Xavier with sigmoid .236, tanh .93, ReLU .707;
He with ReLU .999. Its square with BN: pi / (pi - 1) = 1.467 for ReLU, (B - 2) / (B - 3) for a
linear network and batches of B. Sigmoid networks learn in their last layers alone; residual ones of
56 layers learn, plain ones do not.

Time: smoke takes seconds; that of quick, measured, is in docs/results/LEDGER.md.
"""
