"""Recurrent networks: what they remember, the adding problem, the forget bias, and clipping.

Three parts:

- jacobian: spectral norm of d state_T / d state_0, the largest factor by which a small change of
  the first state is amplified at step T, for cells as Flax initializes them, on inputs from
  N(0, 1). For an LSTM, both of the whole state (c, h) and of the memory c alone.
- adding: the adding problem of Hochreiter & Schmidhuber, "Long Short-Term Memory", 1997, in the
  form of Arjovsky et al., "Unitary Evolution Recurrent Neural Networks", 2016: each step has a
  value in [0, 1] and a marker; the answer is the sum of the two marked values, one in each half.
  Always answering 1 has a mean squared error of 1/6. The LSTM has the chrono initialization of
  Tallec & Ollivier, "Can recurrent neural networks warp time?", 2018: forget biases ln U(1, T - 1),
  input biases their negatives. All networks get the same number of steps, and each its best rate of
  the same grid.
- clipping: Pascanu et al., "On the difficulty of training recurrent neural networks", 2013; the
  adding problem with large recurrent weights and plain gradient descent.

Command: python -m experiments recurrent --preset quick

Expected: the RNN's Jacobian is below 1e-3 after 100 steps, the LSTM's far above it; the LSTM solves
T = 200, the RNN stays at chance; fewer runs diverge with clipping.

Time: smoke takes seconds; the measured time of quick is in docs/results/LEDGER.md.
"""
