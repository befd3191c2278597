"""What a person may decide about a profile."""

from dataclasses import dataclass
from typing import Literal, get_args

from groundup.accounting.optimizers import OptimizerName
from groundup.accounting.roofline import PHASES
from groundup.config import nearest

LONGEST_BY_DEFAULT = 1024
OPTIMIZERS = get_args(OptimizerName)


@dataclass(frozen=True)
class ProfileSettings:
    """Which step is profiled, and how often.

    phase: train (forward, backward, update), prefill (a prompt), decode (one more token per row)
    batch_size: rows
    context_length: tokens per row; in decode, tokens that a row holds (null: the model's own, at most 1,024)
    precision: auto (the fastest here), fp32 or bf16
    optimizer: adamw, muon_adamw, or another that `optim` has, such as lion or soap
    steps: how many are timed, without and with the profiler
    warmup: steps before that
    threads: CPU threads (null: those that the probe of the machine chooses)
    """

    phase: Literal["train", "prefill", "decode"] = "train"
    batch_size: int = 8
    context_length: int | None = None
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    optimizer: OptimizerName = "adamw"
    steps: int = 5
    warmup: int = 2
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.phase not in PHASES:
            raise ValueError(f"phase {self.phase!r} is unknown{nearest(self.phase, PHASES)}")
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer {self.optimizer!r} is unknown{nearest(self.optimizer, OPTIMIZERS)}")
        for name, least in {"batch_size": 1, "context_length": 1, "steps": 1, "warmup": 1, "threads": 1}.items():
            if (value := getattr(self, name)) is not None and value < least:
                raise ValueError(f"{name}={value}; expected at least {least}")
