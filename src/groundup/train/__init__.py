"""The trainer: one loop, objectives, checkpoints, precision and logs."""

from groundup.train import checkpoint, objectives, precision
from groundup.train.api import train
from groundup.train.guard import Guard
from groundup.train.log import MetricsLog, read_metrics
from groundup.train.objectives import Loss, masked_tokens, next_token, sequence_to_sequence
from groundup.train.rehearsal import rehearse, rehearse_config
from groundup.train.room import AtLeast
from groundup.train.run import Run
from groundup.train.scaler import LossScaler
from groundup.train.shortage import OutOfMemory
from groundup.train.sinks import TensorBoard, WeightsAndBiases, replay

__all__ = [
    "AtLeast",
    "Guard",
    "Loss",
    "LossScaler",
    "MetricsLog",
    "OutOfMemory",
    "Run",
    "TensorBoard",
    "WeightsAndBiases",
    "checkpoint",
    "masked_tokens",
    "next_token",
    "objectives",
    "precision",
    "read_metrics",
    "rehearse",
    "rehearse_config",
    "replay",
    "sequence_to_sequence",
    "train",
]
