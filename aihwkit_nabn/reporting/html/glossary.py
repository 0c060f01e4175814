"""Words and methods, explained for people who have never seen the project."""

from __future__ import annotations

GLOSSARY = {
    "analog chip": "A chip that stores a network's weights as electrical conductances and multiplies by letting "
    "current flow through them. It saves energy, but its weights are inexact and change with time. Here it is "
    "simulated with IBM's aihwkit.",
    "digital": "The trained network on an ordinary computer: what the chip should come close to.",
    "chip": "One simulated copy of the chip. No two are alike, because writing the weights is a matter of chance; that "
    "is why several are measured.",
    "uncalibrated": "A chip as it was programmed. Drift compensation is on where the noise setting has it, except in a "
    "comparison with training: there it has a row of its own, and the uncalibrated chip is without it.",
    "calibration": "Adjusting digital numbers beside the analog arrays (scales and offsets, perhaps a small correction "
    "of each layer) with some unlabelled images. The weights stay as they are and nothing is retrained.",
    "setting": "A kind and strength of noise, at a time after programming.",
    "95% interval": "Where the mean over very many chips would lie, as far as the few that were measured tell.",
    "recovered": "The share of what the chip lost that calibration brings back.",
    "shift": "How far the values in a layer are from where the digital network has them, in standard deviations.",
    "tile": "One analog array. A layer lies on one or more of them.",
    "PCM": "Phase-change memory, a kind of analog device whose conductance drifts with time.",
}

METHODS = {
    "none": "The chip as programmed.",
    "population": "Batch normalization takes the mean and spread measured on the chip instead of those from training.",
    "ema": "Batch normalization moves from its training statistics towards the chip's, batch by batch.",
    "prior": "Batch normalization takes a mixture of the training statistics and the chip's.",
    "batch": "Batch normalization takes the statistics of the very images being classified.",
    "online": "Batch normalization follows the images that come in with a running average.",
    "paired": "Every analog layer's output is scaled and shifted so that its mean and spread match the digital "
    "network's on the same images.",
    "common_mode": "As paired; the part of the output that rises and falls with the sum of the layer's inputs is "
    "corrected, too.",
    "low_rank": "Each layer's error is corrected by a small digital term of the layer's inputs, under a budget of "
    "multiplications; then as paired.",
    "auto": "Tries several methods, doing nothing among them, and takes the one that agrees best with the digital "
    "network on calibration images that were held back; no labels are used.",
    "distill": "Starts from low_rank, then tunes scales, offsets and corrections by gradient descent so that the "
    "chip's inner signals and answers match the digital network's; no labels are used.",
}
