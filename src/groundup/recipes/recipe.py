"""What a recipe says: a model, its text, its batches and rates, when it ends, and what it should reach."""

from dataclasses import dataclass
from typing import Literal

from groundup.model import ModelConfig


@dataclass(frozen=True)
class Recipe:
    """One run, complete but for the files.

    summary: one line for a list of recipes
    text: the text that it is meant for, and who publishes it
    goal: the public result, with its source
    target: loss in nats per token (of a vocabulary of bytes: per byte) on validation text, at most; null: none set
    measured: what came of it, on what machine; empty: not yet measured
    model: the architecture; its vocab_size is the size of the vocabulary that is learnt, at least 257
    tail: share of the text's end to validate on, for a text that is one file; 0: documents are validated on
    held_out: share of the documents to validate on where no files are given for it; 0: they must be given
    batch_size: rows of context_length tokens in an update
    tokens: how many to train on; null: as many as `minutes` allow
    minutes: wall-clock time; null: however long `tokens` take
    clock: what minutes count: training, or everything from reading the text to the last update
    optimizer: muon for the blocks' matrices and AdamW for the rest, or adamw for all, which matrices in parts need
    muon_rate: peak rate of the blocks' matrices, if Muon has them
    adam_rate: peak rate of what AdamW has
    weight_decay: of the blocks' matrices
    warmup: updates until the rates are at their peak
    decay: share of the run, at its end, in which the rates fall to zero
    dropout: share of activations set to zero in training
    precision: auto (bf16 where there is hardware for it), fp32, bf16, or int8 (for a CPU that multiplies bytes)
    compile: torch.compile for the blocks; null: where it works
    curve_points: scores on some validation text on the way
    """

    summary: str
    text: str
    goal: str
    target: float | None
    model: ModelConfig
    batch_size: int
    muon_rate: float
    adam_rate: float
    optimizer: Literal["muon", "adamw"] = "muon"
    tokens: int | None = None
    minutes: float | None = None
    measured: str = ""
    tail: float = 0.0
    held_out: float = 0.0
    clock: Literal["training", "everything"] = "training"
    weight_decay: float = 0.05
    warmup: int = 20
    decay: float = 0.5
    dropout: float = 0.0
    precision: Literal["auto", "fp32", "bf16", "int8"] = "auto"
    compile: bool | None = None
    curve_points: int = 12

    def __post_init__(self) -> None:
        if (self.tokens is None) == (self.minutes is None):
            raise ValueError(
                f"recipe: tokens={self.tokens}, minutes={self.minutes}; exactly one says when the run ends, "
                "so give null for the other"
            )
        for name in ("tokens", "minutes", "batch_size", "warmup"):
            if (value := getattr(self, name)) is not None and value <= 0:
                raise ValueError(f"recipe: {name}={value}; expected more than 0")
        for name, below in (("tail", 1.0), ("held_out", 0.5), ("dropout", 1.0)):
            if not 0 <= getattr(self, name) < below:
                raise ValueError(f"recipe: {name}={getattr(self, name)}; expected 0, or more and below {below:g}")
        if self.tail and self.held_out:
            raise ValueError(
                f"recipe: tail={self.tail}, held_out={self.held_out}; a text is cut at its end or by documents: "
                "give 0 for one of them"
            )
        if not 0 < self.decay < 1:
            raise ValueError(f"recipe: decay={self.decay}; expected a share of the run, above 0 and below 1")
        if self.model.vocab_size < 257:
            raise ValueError(
                f"recipe: model.vocab_size={self.model.vocab_size}; expected at least 257, "
                "for the 256 bytes and the end of a text"
            )

    @property
    def batch_tokens(self) -> int:
        """Tokens of an update."""
        return self.batch_size * self.model.context_length

    @property
    def steps(self) -> int | None:
        """Updates, or None where the clock ends the run."""
        return None if self.tokens is None else max(1, self.tokens // self.batch_tokens)

    @property
    def outcome(self) -> str:
        """What is known of it."""
        return self.measured or "recipe, not yet measured"
