"""The pretraining stage: the planned model, its optimizer and its loader, and the one training loop."""

import functools
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from groundup import data, optim, train
from groundup.accounting.flops import training_flops_per_token
from groundup.accounting.hardware import Machine
from groundup.accounting.plan import TrainingPlan
from groundup.device import peak_memory_bytes, release_memory, reset_peak_memory, synchronize
from groundup.model import Transformer
from groundup.optim.groups import split_for_muon
from groundup.train import objectives, precision
from groundup.train.compiling import compile_blocks

Hook = Callable[[int, Any, train.Run], None]
SINKS = {"tensorboard": train.TensorBoard, "wandb": train.WeightsAndBiases}
EMBEDDING_STD = 0.1
HEAD_STD = 0.02
VECTOR_RATE = 0.01
TRIAL_STEPS = 6
# Documents shorter than this many contexts are kept apart by the attention mask; in longer ones a boundary is
# rare, and the plain causal mask is faster.
MASKED_DOCUMENT_CONTEXTS = 8
CHECKPOINT_SECONDS = 60.0


@dataclass
class Session:
    """A model on its device, ready to train: made once, timed by a trial, then trained."""

    model: Transformer
    device: torch.device
    compiled: bool
    first_step_seconds: float = 0.0
    peak_bytes: int = 0


def prepare(made: TrainingPlan, machine: Machine, seed: int, compile: bool | None) -> Session:
    """Build, initialise and (unless told not to, or impossible here) compile the planned model.

    Raises ValueError when `compile=True` was asked for and the compiler does not work.
    """
    device = torch.device(machine.device)
    model = Transformer(made.model).to(device)
    initialise(model, seed)
    precision.apply(model, machine.precision)
    model.recompute = made.recompute
    compiled = compile is not False and compile_blocks(model, required=compile is True)
    return Session(model, device, compiled)


@torch.no_grad()
def initialise(model: Transformer, seed: int) -> None:
    """Every block starts as the identity; embeddings and head start small, so the first loss is log(vocabulary)."""
    model.init_weights(seed, residual="zero")
    model.embed.weight.mul_(EMBEDDING_STD / model.embed.weight.std())
    if model.head is not None:
        model.head.weight.mul_(HEAD_STD / model.head.weight.std())


def make_optimizer(model: Transformer, made: TrainingPlan, share: float = 1.0) -> optim.Optimizers:
    """Muon for the blocks' matrices, AdamW for embeddings, head and norms; rates are `share` of the plan's.

    Only the matrices decay: with AdamW's high rate here, decay would shrink the rows of rare tokens to nothing.
    """
    matrices, rest = split_for_muon(model)
    tables = [p for _, p in rest if p.ndim > 1]
    vectors = [p for _, p in rest if p.ndim == 1]
    rate = share * made.adam_rate
    adamw = optim.AdamW(
        [{"params": tables}, {"params": vectors, "lr": min(rate, VECTOR_RATE)}], lr=rate, eps=1e-10, weight_decay=0.0
    )
    muon = optim.Muon(matrices, share * made.learning_rate, weight_decay=made.weight_decay)
    return optim.Optimizers([muon, adamw])


def time_step(session: Session, made: TrainingPlan, seed: int, patience: float = math.inf) -> float:
    """Median seconds of a training step on made-up tokens. Leaves the model initialised anew.

    After `patience` seconds no further step is tried. The first step compiles; its time is kept in
    `session.first_step_seconds`, the peak of memory beside it.
    """
    release_memory()
    reset_peak_memory(session.device)
    optimizer = make_optimizer(session.model, made)
    shape = (made.batch_size, made.model.context_length + 1)
    tokens = torch.randint(0, made.model.vocab_size, shape, device=session.device)
    seconds = []
    for _ in range(TRIAL_STEPS):
        start = time.perf_counter()
        run = train.train(
            session.model, [{"tokens": tokens}], objectives.next_token, optimizer, 1,
            micro_batches=made.micro_batches, progress=False,
        )  # fmt: skip
        synchronize(session.device)
        seconds.append(time.perf_counter() - start)
        if run.stopped_by == "interrupt":
            raise KeyboardInterrupt
        if sum(seconds) > patience:
            break
    session.first_step_seconds = seconds[0]
    session.peak_bytes = peak_memory_bytes(session.device)
    initialise(session.model, seed)
    return statistics.median(seconds[2:] or seconds[-1:])


def make_loader(folder: Path, made: TrainingPlan, seed: int) -> data.Loader:
    """Seeded windows over the shards, with document boundaries masked where documents are short."""
    shards = data.ShardSet.open(folder)
    mean_tokens = shards.num_tokens / max(1, shards.num_documents)
    masks = mean_tokens < MASKED_DOCUMENT_CONTEXTS * made.model.context_length
    return data.Loader(
        shards, made.batch_size, made.model.context_length, seed=seed, document_masks=masks, shorten=True
    )


def pretrain(
    session: Session,
    made: TrainingPlan,
    machine: Machine,
    shards: Path,
    run_dir: Path,
    *,
    seed: int,
    deadline: float,
    max_steps: int | None,
    hook: Hook,
    hook_every: int,
    saved: Callable[[], None],
    track: Sequence[str] = (),
) -> train.Run:
    """Train until the deadline (or `max_steps`, where more passes are not worth it), resuming what is there.

    The rate warms up, stays, and falls to zero over the last part of the time: the decay begins when the
    clock says that it must, so the run ends on time whatever the machine does meanwhile.
    """
    per_minute = max(1, round(CHECKPOINT_SECONDS / made.seconds_per_step))
    return train.train(
        session.model,
        make_loader(shards, made, seed),
        objectives.next_token,
        make_optimizer(session.model, made),
        max_steps,
        schedule=schedule(made, max_steps),
        micro_batches=made.micro_batches,
        every=_hooks((hook_every, hook), (per_minute, lambda step, model, run: saved())),
        run_dir=run_dir,
        checkpoint_every=per_minute,
        keep=2,
        resume=True,
        deadline=deadline,
        flops_per_token=training_flops_per_token(made.model, made.model.context_length),
        peak_flops=machine.peak_flops,
        config={"seed": seed},
        sinks=[SINKS[name](run_dir) for name in track],
    )


def _hooks(*pairs: tuple[int, Hook]) -> dict[int, Hook]:
    """{n: hook}, where hooks that come equally often share one entry."""
    table: dict[int, list[Hook]] = {}
    for often, hook in pairs:
        table.setdefault(often, []).append(hook)

    def call(hooks: list[Hook], *arguments: Any) -> None:
        for hook in hooks:
            hook(*arguments)

    return {often: functools.partial(call, hooks) for often, hooks in table.items()}


def schedule(made: TrainingPlan, max_steps: int | None) -> Callable[[int], float]:
    """By the clock when the time is what ends the run; by steps when the passes over the text are."""
    if max_steps is None:
        return optim.ClockDecay(made.warmup_steps, made.decay_fraction)
    return optim.warmup_stable_decay(min(made.warmup_steps, max_steps // 4), max_steps, made.decay_fraction)
