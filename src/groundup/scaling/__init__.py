"""Comparing models at equal cost: variants of one architecture, the history of language models, and learning rates."""

from groundup.scaling.ablation import ablate, resume
from groundup.scaling.history import history, is_history, resume_history
from groundup.scaling.matching import match_parameters
from groundup.scaling.rungs import RUNGS, neural_rungs
from groundup.scaling.settings import AblationSettings, HistorySettings
from groundup.scaling.sweep import is_sweep, resume_sweep, sweep_lr
from groundup.scaling.sweep_settings import SweepSettings
from groundup.scaling.variants import Variant, ladder, leave_one_out, modern, named
from groundup.scaling.verdict import Difference, compare, holm, paired_difference

__all__ = [
    "AblationSettings", "Difference", "HistorySettings", "RUNGS", "SweepSettings", "Variant", "ablate", "compare",
    "history", "holm", "is_history", "is_sweep", "ladder", "leave_one_out", "match_parameters", "modern", "named",
    "neural_rungs", "paired_difference", "resume", "resume_history", "resume_sweep", "sweep_lr",
]  # fmt: skip
