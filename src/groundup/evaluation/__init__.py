"""Evaluation: how good is the model, against what, and by which stated rule."""

from groundup.evaluation.baselines import (
    Baseline,
    kneser_ney_bits_per_byte,
    unigram_bits_per_byte,
    zstd_bits_per_byte,
    zstd_with_training_text_bits_per_byte,
)
from groundup.evaluation.lengths import PositionScores, score_by_position, score_lengths, with_scaling
from groundup.evaluation.perplexity import Perplexity, bits_per_byte, token_nats

__all__ = [
    "Baseline", "Perplexity", "PositionScores", "bits_per_byte", "kneser_ney_bits_per_byte", "score_by_position",
    "score_lengths", "token_nats", "unigram_bits_per_byte", "with_scaling", "zstd_bits_per_byte",
    "zstd_with_training_text_bits_per_byte",
]  # fmt: skip
