"""Hardware-aware training, the baseline to compare calibration with."""

from aihwkit_nabn.training.hardware_aware import cross_entropy_loss, train_hardware_aware
from aihwkit_nabn.training.noise import TrainingNoise, matched_noise
from aihwkit_nabn.training.report import TrainedModel, TrainingReport

__all__ = [
    "TrainedModel",
    "TrainingNoise",
    "TrainingReport",
    "cross_entropy_loss",
    "matched_noise",
    "train_hardware_aware",
]
