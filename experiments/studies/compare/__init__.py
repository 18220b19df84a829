"""All norms side by side: test accuracy by steps and seconds, three networks, three data sets.

An MLP, a plain CNN and ResNet-20 learn MNIST, Fashion-MNIST and CIFAR-10 without a norm, with batch
norm in float32 and in bfloat16, ghost batch norm, batch renorm, layer, group, instance and weight
norm, in batches of 8 and of 128, with the same number of examples seen. All use SGD with momentum
.9 and a cosine decay to 0, each with its own best initial rate, chosen from one grid by accuracy on
held-out images that are used neither for training nor for testing. Runs with the same seed share
initial weights, images and batches. At test time, batch norm, ghost and renorm use their running
averages, which remember the same number of examples at every batch size.

Two combinations are left out, since there is nothing to compare: instance norm in an MLP, where
each feature of an example is a single value, and ghost batches larger than half the batch. Layer
norm is that of Flax, over the features at each position. Weight norm starts from Flax's kernels of
length one, without data-dependent initialization.

All images have the same shape, so that one program serves all data sets: digits are padded, and
gray levels are repeated for the three colors. Seconds are the number of steps times the median time
of a step, measured after compilation with the norms taking turns. `quick` is reduced to run on two
cores: images of 8x8, ResNet-20 of half its width, a CNN of two stages, one pass over 10,240 images,
and rates chosen by the first seed alone.

Source: Ioffe, Szegedy, "Batch Normalization", 2015, section 4.2; Ba, Kiros, Hinton, "Layer
Normalization", 2016; Salimans, Kingma, "Weight Normalization", 2016; Ioffe, "Batch
Renormalization", 2017; Gitman, Ginsburg, "Comparison of batch normalization and weight
normalization", 2017; Wu, He, "Group Normalization", 2018; Kalamkar et al., "A study of BFLOAT16",
2019; Summers, Dinneen, "Four things everyone should know to improve batch normalization", 2020, for
ghost batches.

Command: python -m experiments compare --preset quick

Expected: at batches of 128, BN ends above no norm and needs fewer steps; at batches of 8, group
norm is as good as BN; layer and weight norm are worse in the CNNs; bfloat16 changes nothing.

Time: smoke takes half a minute, most of it for compilation; the measured time of quick is in
docs/results/LEDGER.md. `full` is for an accelerator: 30 epochs at the usual widths.
"""
