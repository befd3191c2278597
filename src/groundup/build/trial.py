"""The trial: steps of the planned model on made-up tokens, for the time and the memory that training will take."""

import math
import statistics
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from groundup import train
from groundup.accounting.plan import TrainingPlan
from groundup.build.pretrain import Session, make_optimizer
from groundup.device import peak_memory_bytes, release_memory, reset_peak_memory, resident_bytes, synchronize
from groundup.model.identity_start import start_as_identity
from groundup.train import objectives

# The first two steps compile and warm up.
WARMUP, STEPS, MORE_STEPS = 2, 4, 6
# A step is as long as the one before it, to a few per cent, unless something else uses the machine.
STEADY = 1.3
# About as many as the validation text has.
SCORED_TOKENS = 12_000


@dataclass(frozen=True)
class Trial:
    """What was measured: `seconds` of one step, `spread` of the slowest over the fastest, seconds of one scoring on
    validation text, `peak_bytes` of memory, and `idle_bytes` of the process after it, when its steps were gone."""

    seconds: float
    spread: float
    first_step_seconds: float
    score_seconds: float
    peak_bytes: int
    idle_bytes: int = 0

    @property
    def disturbed(self) -> bool:
        return self.spread > STEADY


def try_out(session: Session, made: TrainingPlan, seed: int, patience: float = math.inf) -> Trial:
    """Train a few steps and score once, as training will. Leaves the model initialised anew, and in the session as many
    micro-batches as it took.

    After `patience` seconds no further step is tried. A machine that something else disturbs is given more steps.
    """
    release_memory()
    reset_peak_memory(session.device)
    session.micro_batches = made.micro_batches
    steps = _steps(session, made)
    seconds = _enough(steps, patience)
    start = time.perf_counter()
    session.score_ids(np.zeros(SCORED_TOKENS, dtype=np.int64))
    scoring = time.perf_counter() - start
    peak = peak_memory_bytes(session.device)
    steps.close()  # not before: while training is scored, its optimizer is in memory, too
    start_as_identity(session.model, seed)
    release_memory()
    steady = seconds[WARMUP:] or seconds[-1:]
    return Trial(typical(steady), spread_of(steady), seconds[0], scoring, peak, resident_bytes())


def _enough(steps: Iterator[float], patience: float) -> list[float]:
    """Seconds of a few steps, of more where they differ, of one where it takes all the patience."""
    began, seconds = time.perf_counter(), []
    for elapsed in steps:
        seconds.append(elapsed)
        steady = seconds[WARMUP:]
        enough = STEPS + MORE_STEPS if spread_of(steady) > STEADY else STEPS
        if len(steady) >= enough or time.perf_counter() - began > patience:
            break
    return seconds


def _steps(session: Session, made: TrainingPlan) -> Generator[float]:
    """Seconds of one training step after another."""
    optimizer = make_optimizer(session.model, made)
    shape = (made.batch_size, made.model.context_length + 1)
    tokens = torch.randint(0, made.model.vocab_size, shape, device=session.device)
    while True:
        start = time.perf_counter()
        run = train.train(
            session.model, [{"tokens": tokens}], objectives.next_token, optimizer, 1,
            micro_batches=train.AtLeast(session.micro_batches), progress=False,
        )  # fmt: skip
        session.micro_batches = run.micro_batches
        synchronize(session.device)
        if run.stopped_by == "interrupt":
            raise KeyboardInterrupt
        yield time.perf_counter() - start


def spread_of(seconds: Sequence[float]) -> float:
    return max(seconds) / min(seconds) if seconds else 1.0


def typical(seconds: Sequence[float]) -> float:
    """The median of steps that agree; of steps that do not, the lower quartile: a disturbance may pass.

    >>> typical([1.0, 1.02, 1.01]), typical([1.0, 1.1, 5.0, 9.0])
    (1.01, 1.1)
    """
    if spread_of(seconds) <= STEADY:
        return statistics.median(seconds)
    return sorted(seconds)[len(seconds) // 4]
