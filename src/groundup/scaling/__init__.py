"""Comparing models at equal cost: variants of one architecture, trained alike, over seeds, with a verdict."""

from groundup.scaling.ablation import ablate, resume
from groundup.scaling.matching import match_parameters
from groundup.scaling.settings import AblationSettings
from groundup.scaling.variants import Variant, ladder, leave_one_out, modern, named
from groundup.scaling.verdict import Difference, compare, holm, paired_difference

__all__ = [
    "AblationSettings", "Difference", "Variant", "ablate", "compare", "holm", "ladder", "leave_one_out",
    "match_parameters", "modern", "named", "paired_difference", "resume",
]  # fmt: skip
