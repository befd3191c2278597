"""The trainer: one loop, objectives, checkpoints, precision and logs."""

from groundup.train import checkpoint, objectives, precision
from groundup.train.api import train
from groundup.train.branch import cool_down
from groundup.train.guard import Guard
from groundup.train.log import MetricsLog, read_metrics
from groundup.train.objectives import Loss, masked_tokens, next_token, sequence_to_sequence
from groundup.train.recorder import Recorder, read_flight
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
    "Recorder",
    "Run",
    "TensorBoard",
    "WeightsAndBiases",
    "checkpoint",
    "cool_down",
    "masked_tokens",
    "next_token",
    "objectives",
    "precision",
    "read_flight",
    "read_metrics",
    "rehearse",
    "rehearse_config",
    "replay",
    "sequence_to_sequence",
    "train",
]
