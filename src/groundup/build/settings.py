"""What a person may decide about a build. Everything left open is planned from the machine, the text and the time."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from groundup.accounting.plan import Wishes
from groundup.config import near, override, parse_seconds

UNPLANNED = ("fp16", "fp8", "mxfp8")  # what `train.precision` knows beside what a plan does
SMALLEST_BUDGET_SECONDS = 30.0
# 256 bytes, the end of a text, and the three tokens of a conversation.
LEAST_VOCABULARY = 260
# OpenMP ends the process without a word when it cannot start them all.
# Beyond these a plan cannot even be worked out in the time of a build.
MOST = {"threads": 1024, "num_layers": 512, "d_model": 65_536, "vocab_size": 4_000_000}


@dataclass(frozen=True)
class BuildSettings(Wishes):
    """What the planner must keep to, and how to run. None means: choose what is best here.

    vocab_size: tokens in the vocabulary, at least 260
    d_model: width of the model
    num_layers: blocks of the model
    context_length: tokens that the model reads at once
    batch_size: sequences of context_length tokens in a training step
    learning_rate: peak rate of the hidden matrices, between 0 and 1
    max_epochs: most passes over the training text
    dropout: share of activations set to zero in training, below 1
    budget_seconds: --budget in seconds
    seed: --seed, of the split, the samples, the weights, the data order and dropout
    init_seed: of the weights, where it is not seed
    data_seed: of the data order, where it is not seed
    dropout_seed: of what dropout leaves out, where it is not seed
    deterministic: on a GPU, only algorithms that repeat to the bit (a CPU's do, for one number of threads)
    held_out_fraction: share of the text to measure on, at most 0.5
    text_field: field of .jsonl and .parquet records that holds the text (null: text, else content)
    precision: auto (the fastest here), fp32, bf16 or int8 (bf16, but the blocks' linear layers multiply int8)
    compile: torch.compile for the blocks, true or false
    z_loss: coefficient of log(sum of exp of logits)^2, which keeps logits from drifting; 0.0001 is usual, 0 is none
    threads: CPU threads
    chat: also tune a copy to chat, true or false
    track: also log to tensorboard, wandb or both (with a comma)
    """

    budget_seconds: float = 600.0
    seed: int = 0
    init_seed: int | None = None
    data_seed: int | None = None
    dropout_seed: int | None = None
    deterministic: bool = False
    held_out_fraction: float = 0.05
    text_field: str | None = None
    precision: Literal["auto", "fp32", "bf16", "int8"] = "auto"
    compile: bool | None = None
    z_loss: float = 0.0
    threads: int | None = None
    chat: bool = True
    track: tuple[Literal["tensorboard", "wandb"], ...] = ()

    def __post_init__(self) -> None:
        for name in ("budget_seconds", "held_out_fraction", "learning_rate", "max_epochs", "dropout", "z_loss"):
            if (value := getattr(self, name)) is not None and not math.isfinite(value):
                raise ValueError(f"{name}={value}: must be a finite number")
        if self.budget_seconds < SMALLEST_BUDGET_SECONDS:
            raise ValueError(
                f"--budget: {self.budget_seconds:g} s is too short to read text, train and measure a model; "
                f"the smallest budget is {SMALLEST_BUDGET_SECONDS:g}s"
            )
        for name in ("vocab_size", "d_model", "num_layers", "context_length", "batch_size", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value}: must be at least 1")
        for name, most in MOST.items():
            if (value := getattr(self, name)) is not None and value > most:
                raise ValueError(f"{name}={value:,}: must be at most {most:,}")
        if self.vocab_size is not None and self.vocab_size < LEAST_VOCABULARY:
            raise ValueError(
                f"vocab_size={self.vocab_size}: must be at least {LEAST_VOCABULARY}: 256 bytes and 4 special tokens"
            )
        for name in ("seed", "init_seed", "data_seed", "dropout_seed"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 2**63:
                raise ValueError(f"{name}={value}: must be from 0 to 2^63 - 1")
        if not 0 < self.held_out_fraction <= 0.5:
            raise ValueError(f"held_out_fraction={self.held_out_fraction}: must be above 0 and at most 0.5")
        if self.learning_rate is not None and not 0 < self.learning_rate < 1:
            raise ValueError(f"learning_rate={self.learning_rate}: must lie between 0 and 1")
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout}: must be at least 0 and below 1")
        if not 0 <= self.z_loss < 1:
            raise ValueError(f"z_loss={self.z_loss}: must be at least 0 and below 1; 0.0001 is usual")
        if self.max_epochs is not None and self.max_epochs <= 0:
            raise ValueError(f"max_epochs={self.max_epochs}: must be above 0")

    @property
    def weights_seed(self) -> int:
        return self.seed if self.init_seed is None else self.init_seed

    @property
    def order_seed(self) -> int:
        return self.seed if self.data_seed is None else self.data_seed

    @property
    def drop_seed(self) -> int:
        return self.seed if self.dropout_seed is None else self.dropout_seed


def settings_from(budget: str | None, seed: int | None, overrides: Sequence[str]) -> BuildSettings:
    """Settings from the command line; an unknown key is an error that names the nearest known one."""
    _refuse_unknown(overrides)
    _refuse_unplanned(overrides)
    for option, given, key in (("--budget", budget, "budget_seconds"), ("--seed", seed, "seed")):
        if given is not None and any(word.partition("=")[0] == key for word in overrides):
            raise ValueError(f"{option} and {key}= are the same setting; give one of them")
    settings = BuildSettings()
    if budget is not None:
        settings = dataclasses.replace(settings, budget_seconds=parse_seconds(budget))
    if seed is not None:
        settings = dataclasses.replace(settings, seed=seed)
    return override(settings, *overrides)


def _refuse_unplanned(overrides: Sequence[str]) -> None:
    for value in (word.removeprefix("precision=") for word in overrides if word.startswith("precision=")):
        if value in UNPLANNED:
            raise ValueError(
                f"precision={value}: a build is planned with rates that it measures, which are those of fp32, bf16 "
                f"and int8; give one of these or auto, or train in {value} from Python with train.precision.apply"
            )


def _refuse_unknown(overrides: Sequence[str]) -> None:
    known = [field.name for field in dataclasses.fields(BuildSettings)]
    for key in (word.partition("=")[0] for word in overrides):
        if key not in known:
            raise ValueError(f"unknown setting {key!r}{near(key, known)} (groundup build --help lists all)")
