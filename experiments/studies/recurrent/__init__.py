"""Recurrent networks: what they remember, the adding problem, the forget bias, clipping.

Three parts:

- jacobian: spectral norm of d state_T / d state_0, the largest factor by which a small change of
  the first state is felt at step T, for cells as Flax initializes them, on inputs from N(0, 1). For
  an LSTM of the whole state (c, h), and of the memory c alone.
- adding: the adding problem of Hochreiter & Schmidhuber, "Long Short-Term Memory", 1997, in the
  form of Arjovsky et al., "Unitary Evolution Recurrent Neural Networks", 2016: at each step a value
  in [0, 1] and a marker; the answer is the sum of the two marked values, one in each half. Who
  always answers 1 has a mean squared error of 1/6. The LSTM has the chrono initialization of Tallec
  & Ollivier, "Can recurrent neural networks warp time?", 2018: forget biases ln U(1, T - 1), input
  biases their negatives. Every network gets the same steps, and its best rate of the same grid.
- clipping: Pascanu et al., "On the difficulty of training recurrent neural networks", 2013; large
  recurrent weights in the adding problem, plain gradient descent.

Command: python -m experiments recurrent --preset quick

Expected: the RNN's Jacobian is below 1e-3 after 100 steps, the LSTM's far above it; the LSTM solves
T = 200, the RNN stays at chance; with clipping fewer runs diverge.

Time: smoke takes seconds; that of quick, measured, is in docs/results/LEDGER.md.
"""
