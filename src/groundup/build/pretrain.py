"""The pretraining stage: the planned model, its optimizer and its loader, and the one training loop."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from groundup import data, optim, train
from groundup.accounting.flops import training_flops_per_token
from groundup.accounting.hardware import Machine
from groundup.accounting.plan import TrainingPlan
from groundup.device import set_seed
from groundup.evaluation import Perplexity, bits_per_byte
from groundup.evaluation.perplexity import token_nats
from groundup.model import Transformer
from groundup.model.identity_start import start_as_identity
from groundup.optim.groups import split_for_muon
from groundup.tokenizer import Tokenizer
from groundup.train import objectives, precision
from groundup.train.compiling import compile_blocks

Hook = Callable[[int, Any, train.Run], None]
SINKS = {"tensorboard": train.TensorBoard, "wandb": train.WeightsAndBiases}
VECTOR_RATE = 0.01
# Documents shorter than this many contexts are kept apart by the attention mask; in longer ones a boundary is
# rare, and the plain causal mask is faster.
MASKED_DOCUMENT_CONTEXTS = 8
# Scores on the validation text during training.
CURVE_POINTS = 12
# A killed run loses at most this much: of its time, or of its training.
CHECKPOINT_SECONDS, CHECKPOINT_SHARE = 60.0, 0.1


@dataclass
class Session:
    """A model on its device, ready to train: made once, timed by a trial, then trained.

    The twin is scored while the model trains: scoring has batches of other shapes, for which a compiled model would
    be compiled anew.
    """

    model: Transformer
    twin: Transformer
    device: torch.device
    compiled: bool
    micro_batches: int = 1

    def score(self, tokenizer: Tokenizer, texts: Sequence[str]) -> Perplexity:
        """Bits per byte of the model as it is now."""
        self._copy()
        return bits_per_byte(self.twin, tokenizer, texts)

    def score_ids(self, ids: np.ndarray) -> None:
        """Go through the motions of `score` on token ids, to see what it costs."""
        self._copy()
        token_nats(self.twin, [ids], begin=0, context_length=self.model.config.context_length)

    def _copy(self) -> None:
        self.twin.load_state_dict(self.model.state_dict())
        self.twin.compute_dtype = self.model.compute_dtype


def prepare(made: TrainingPlan, machine: Machine, seed: int, compile: bool | None) -> Session:
    """Build, initialise and (unless told not to, or impossible here) compile the planned model.

    Raises ValueError when `compile=True` was asked for and the compiler does not work.
    """
    device = torch.device(machine.device)
    model = Transformer(made.model).to(device)
    start_as_identity(model, seed)
    precision.apply(model, made.products or machine.precision)
    model.recompute, model.dropout = made.recompute, made.dropout
    compiled = compile is not False and compile_blocks(model, required=compile is True)
    return Session(model, Transformer(made.model).to(device), device, compiled)


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
    dropout_seed: int,
    deadline: float,
    max_steps: int | None,
    hook: Hook,
    hook_every: int,
    saved: Callable[[], None],
    track: Sequence[str] = (),
    z_loss: float = 0.0,
) -> train.Run:
    """Train until the deadline (or `max_steps`, where more passes are not worth it), resuming what is there.

    The rate warms up, stays, and falls to zero over the last part of the time: the decay begins when the
    clock says that it must, so the run ends on time whatever the machine does meanwhile.
    """
    save_every = checkpoint_steps(made)
    set_seed(dropout_seed)  # a checkpoint holds the generators as they are then
    return train.train(
        session.model,
        make_loader(shards, made, seed),
        objectives.pretraining(session.model, z_loss),
        make_optimizer(session.model, made),
        max_steps,
        schedule=schedule(made, max_steps),
        micro_batches=train.AtLeast(made.micro_batches),
        every=_hooks((hook_every, hook), (save_every, lambda step, model, run: saved())),
        run_dir=run_dir,
        checkpoint_every=save_every,
        keep=2,
        resume=True,
        deadline=deadline,
        flops_per_token=training_flops_per_token(made.model, made.model.context_length),
        peak_flops=machine.peak_flops,
        config={"seed": seed, "dropout": made.dropout, "dropout_seed": dropout_seed}
        | ({"z_loss": z_loss} if z_loss else {}),
        sinks=[SINKS[name](run_dir) for name in track],
    )


def checkpoint_steps(made: TrainingPlan) -> int:
    """Steps between two checkpoints."""
    return max(1, round(min(CHECKPOINT_SECONDS, CHECKPOINT_SHARE * made.train_seconds) / made.seconds_per_step))


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
