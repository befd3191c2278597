"""What a person may decide about a sweep of learning rates."""

import math
from dataclasses import dataclass
from typing import Literal

from groundup.accounting.optimizers import OptimizerName
from groundup.scaling.settings import AblationSettings

MOST_RATES = 60


@dataclass(frozen=True)
class SweepSettings:
    """The model, the rates that are tried, and how long each is trained.

    d_model: width of the model
    num_layers: blocks of the model
    num_heads: heads of attention (null: of 32 channels)
    context_length: tokens that the model reads at once
    vocab_size: tokens in the vocabulary, at least 260
    optimizer: adamw, muon_adamw, or another that `optim` has, such as lion or soap
    adamw_share: with muon_adamw: AdamW's rate as a share of Muon's, which is the one that is swept
    low: lowest rate of the grid
    high: no rate of the grid is above this; the search for the edge goes on above it
    ratio: each rate of the grid over the one below it
    highest: where the search for a rate that diverges ends
    edge_factor: the edge is found when the lowest rate that diverges is at most so many times the highest that does not
    batch_sizes: sequences in a training step; several make a grid, all trained on the same number of tokens
    weight_decays: of matrices; several make a grid
    seeds: runs at each rate, each with its own weights and data order
    seed: the first of these seeds
    steps: of the first batch size (null: as many as the budget allows)
    budget_seconds: --budget in seconds
    warmup_share: share of the steps in which the rate rises
    clip: most norm of the gradient (null: not clipped)
    precision: fp32, bf16, fp16, fp8, mxfp8 or int8 (fp16, fp8 and mxfp8 are slow on a CPU)
    text_bytes: most text that is read
    scored_bytes: most held-out text that is scored
    held_out_fraction: share of the text to measure on, at most 0.5
    text_field: field of .jsonl and .parquet records that holds the text (null: text, else content)
    """

    d_model: int = 64
    num_layers: int = 2
    num_heads: int | None = None
    context_length: int = 64
    vocab_size: int = 512
    optimizer: OptimizerName = "adamw"
    adamw_share: float = 0.15
    low: float = 0.001
    high: float = 0.1
    ratio: float = 2.0
    highest: float = 10.0
    edge_factor: float = 1.25
    batch_sizes: tuple[int, ...] = (8,)
    weight_decays: tuple[float, ...] = (0.1,)
    seeds: int = 3
    seed: int = 0
    steps: int | None = None
    budget_seconds: float = 600.0
    warmup_share: float = 0.1
    clip: float | None = 1.0
    precision: Literal["fp32", "bf16", "fp16", "fp8", "mxfp8", "int8"] = "fp32"
    text_bytes: int = 4_000_000
    scored_bytes: int = 50_000
    held_out_fraction: float = 0.05
    text_field: str | None = None

    def __post_init__(self) -> None:
        if not 0 < self.low < self.high <= self.highest < math.inf:
            raise ValueError(f"low={self.low:g}, high={self.high:g}, highest={self.highest:g}: expected rising rates")
        for name in ("ratio", "edge_factor"):
            if not 1 < getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)}: a factor, so it must be above 1, such as 2 or 1.25")
        if math.log(self.high / self.low) / math.log(self.ratio) >= MOST_RATES:
            raise ValueError(f"ratio={self.ratio}: more than {MOST_RATES} rates from {self.low:g} to {self.high:g}")
        for name in ("batch_sizes", "weight_decays"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{name}={list(values)}: expected different values, at least one")
        if min(self.batch_sizes) < 1 or min(self.weight_decays) < 0:
            raise ValueError("batch_sizes must be at least 1, and weight_decays at least 0")
        if self.seeds < 1:
            raise ValueError(f"seeds={self.seeds}: must be at least 1")
        for name in ("adamw_share", "clip"):
            if (value := getattr(self, name)) is not None and not 0 < value < math.inf:
                raise ValueError(f"{name}={value}: must be a positive number")
        self.training(self.batch_sizes[0])  # which checks all that it has

    @property
    def grid(self) -> tuple[float, ...]:
        """Rates from `low` up to `high`.

        >>> SweepSettings(low=0.001, high=0.01, ratio=2.0).grid
        (0.001, 0.002, 0.004, 0.008)
        """
        count = int(math.log(self.high / self.low) / math.log(self.ratio) + 1e-9) + 1
        return tuple(float(f"{self.low * self.ratio**i:.4g}") for i in range(count))

    def training(self, batch_size: int) -> AblationSettings:
        """The same as settings of a run, for what both kinds of comparison share."""
        return AblationSettings(
            d_model=self.d_model, num_layers=self.num_layers, num_heads=self.num_heads,
            context_length=self.context_length, batch_size=batch_size, vocab_size=self.vocab_size,
            seed=self.seed, tune_share=0.0, steps=self.steps, budget_seconds=self.budget_seconds,
            warmup_share=self.warmup_share, precision=self.precision, text_bytes=self.text_bytes,
            scored_bytes=self.scored_bytes, held_out_fraction=self.held_out_fraction, text_field=self.text_field,
        )  # fmt: skip
