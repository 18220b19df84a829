"""Gradients in deep networks: where they vanish, explode, or keep their size.

At initialization: the norm of the gradient with respect to each layer's pre-activations, for all
combinations of depth, activation, initial weights and {plain, BN, residual}, with Gaussian inputs
and random labels. In training, on binary MNIST: how far each layer moves, ReLUs that die at a high
rate, gradient clipping, and plain against residual networks of 20 and 56 layers. Also
backpropagation by hand.

Source: the study notes; Glorot, Bengio, 2010; He et al., 2015 and 2016; Pascanu, Mikolov, Bengio,
2013; Yang et al., "A Mean Field Theory of Batch Normalization", 2019.

Command: python -m experiments gradients --preset quick

Expected factor of the gradient per layer, backward: Xavier with sigmoid .236, tanh .93, ReLU .707;
He with ReLU .999. Its square with BN: pi / (pi - 1) = 1.467 for ReLU, (B - 2) / (B - 3) for a
linear network and batches of B. Sigmoid networks learn only in their last layers; residual networks
of 56 layers learn, plain ones do not.

Time: smoke takes seconds; the measured time of quick is in docs/results/LEDGER.md.
"""
