"""What a person may decide about an ablation."""

import math
from dataclasses import dataclass
from typing import Literal

from groundup.config import nearest
from groundup.evaluation.entropy import LONGEST_BLOCK
from groundup.evaluation.lengths import SCALINGS

Match = Literal["parameters", "flops", "time"]
LEAST_VOCABULARY = 260
MOST_ORDER = 20


@dataclass(frozen=True)
class AblationSettings:
    """The size of the models, what is held equal, and how each is trained.

    d_model: width of the models
    num_layers: blocks of the models
    num_heads: heads of attention (null: of 32 channels)
    context_length: tokens that a model reads at once
    batch_size: sequences in a training step
    vocab_size: tokens in the vocabulary, at least 260
    match: what all variants have equal: parameters, flops or time
    seeds: runs of each variant, each with its own weights and data order
    seed: the first of these seeds
    rates: learning rates to choose from for each variant
    tune_share: length of a run that chooses, as a share of a full run (0: the middle rate for all)
    steps: of the base (null: as many as the budget allows)
    budget_seconds: --budget in seconds
    weight_decay: of matrices, by AdamW
    warmup_share: share of the steps in which the rate rises
    precision: fp32, bf16, fp16, fp8, mxfp8 or int8 (fp16, fp8 and mxfp8 are slow on a CPU)
    text_bytes: most text that is read
    scored_bytes: most held-out text that is scored
    held_out_fraction: share of the text to measure on, at most 0.5
    lengths: multiples of context_length to score at, e.g. [1,2,4] (default: none)
    scalings: ways to stretch rotary embeddings at these lengths, untrained: linear, ntk, yarn
    text_field: field of .jsonl and .parquet records that holds the text (null: text, else content)
    """

    d_model: int = 128
    num_layers: int = 4
    num_heads: int | None = None
    context_length: int = 128
    batch_size: int = 8
    vocab_size: int = 1024
    match: Match = "flops"
    seeds: int = 3
    seed: int = 0
    rates: tuple[float, ...] = (0.001, 0.003, 0.01)
    tune_share: float = 0.33
    steps: int | None = None
    budget_seconds: float = 600.0
    weight_decay: float = 0.1
    warmup_share: float = 0.1
    precision: Literal["fp32", "bf16", "fp16", "fp8", "mxfp8", "int8"] = "fp32"
    text_bytes: int = 4_000_000
    scored_bytes: int = 100_000
    held_out_fraction: float = 0.05
    lengths: tuple[int, ...] = ()
    scalings: tuple[str, ...] = ()
    text_field: str | None = None

    def __post_init__(self) -> None:
        for name in ("d_model", "num_layers", "context_length", "batch_size", "text_bytes", "scored_bytes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1")
        if self.vocab_size < LEAST_VOCABULARY:
            raise ValueError(f"vocab_size={self.vocab_size}: must be at least {LEAST_VOCABULARY}")
        if self.seeds < 2:
            raise ValueError(f"seeds={self.seeds}: must be at least 2: one run says nothing of how much runs differ")
        if not self.rates or not all(0 < rate < 1 for rate in self.rates):
            raise ValueError(f"rates={self.rates}: expected learning rates between 0 and 1, such as 0.001,0.003,0.01")
        for name in ("tune_share", "warmup_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be from 0 to 1")
        if not 0 < self.held_out_fraction <= 0.5:
            raise ValueError(f"held_out_fraction={self.held_out_fraction}: must be above 0 and at most 0.5")
        if not 0 < self.budget_seconds < math.inf:
            raise ValueError(f"budget_seconds={self.budget_seconds}: must be a positive number")
        if self.steps is not None and self.steps < 2:
            raise ValueError(f"steps={self.steps}: must be at least 2")
        self._check_lengths()

    def _check_lengths(self) -> None:
        if any(multiple < 1 for multiple in self.lengths) or len(set(self.lengths)) < len(self.lengths):
            raise ValueError(
                f"lengths={list(self.lengths)}: expected different multiples of context_length, as [1,2,4]"
            )
        if unknown := [name for name in self.scalings if name not in SCALINGS]:
            raise ValueError(f"scalings: {unknown[0]!r} is unknown{nearest(unknown[0], SCALINGS)}")
        if self.scalings and not self.lengths:
            raise ValueError(
                "scalings stretch rotary embeddings to the lengths that are scored: give lengths=[1,2,4] too"
            )

    @property
    def tuned_rates(self) -> tuple[float, ...]:
        """The rates among which a short run of each variant chooses; none where all take the middle one."""
        return self.rates if self.tune_share and len(self.rates) > 1 else ()

    @property
    def middle_rate(self) -> float:
        return sorted(self.rates)[len(self.rates) // 2]

    @property
    def batch_tokens(self) -> int:
        return self.batch_size * self.context_length


@dataclass(frozen=True)
class HistorySettings:
    """What a history of language models has besides the settings of its trained rungs.

    order: tokens of the longest n-gram, counted and neural, at least 2
    guesses: held-out letters that models guess for the entropy of English (0: no such part)
    longest_block: letters of the longest block that is counted there, at most 13
    letter_share: length of training of the gpt that guesses letters, as a share of a rung's run (0: none)
    beside: seeds of the models that stand beside the rungs: encdec and mlm (0: without them)
    masked: held-out tokens that mlm is scored on, one by one
    """

    order: int = 5
    guesses: int = 2000
    longest_block: int = 8
    letter_share: float = 1.0
    beside: int = 1
    masked: int = 1000

    def __post_init__(self) -> None:
        if not 2 <= self.order <= MOST_ORDER:
            raise ValueError(f"order={self.order}: must be from 2 to {MOST_ORDER}")
        for name, least in (("guesses", 0), ("beside", 0), ("masked", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least {least}")
        if not 1 <= self.longest_block <= LONGEST_BLOCK:
            raise ValueError(f"longest_block={self.longest_block}: must be from 1 to {LONGEST_BLOCK}")
        if not 0 <= self.letter_share <= 1:
            raise ValueError(f"letter_share={self.letter_share}: must be from 0 to 1")
