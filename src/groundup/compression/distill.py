"""Distillation: a student learns the teacher's whole distribution of the next token, not one token out of it.

    logit distillation    text from a corpus      L = hard * CE + (1 - hard) * T^2 * KL(p || q)
    on-policy             the student's own text  L = D(p, q), reverse KL or JSD

p is the teacher's and q the student's softmax of logits / T. Both are the one trainer with another objective, and for
the second another source: the student writes, the teacher says at each token what it would have written. So training
meets the very mistakes that the student makes, which corpus text never has.

    forward KL   KL(p || q)                          covers all that the teacher says
    reverse KL   KL(q || p)                          leaves out what the student cannot reach
    JSD          b KL(p || m) + (1 - b) KL(q || m)   between them, m = b p + (1 - b) q

The teacher may also be a cache of its top k logits, written once (teacher_logits.py): then it need not run.

Hinton et al. 2015 (arXiv:1503.02531), section 2: T^2 keeps gradients of one size for every T. On-policy distillation
and the divergences: Agarwal et al. 2023, "GKD" (arXiv:2306.13649), who take no gradient through the sampling either.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from groundup.compression.teacher_logits import IDS, LOG_PROBS, TeacherLogits, top_classes
from groundup.config import nearest
from groundup.data.batch import Batch
from groundup.inference import Engine, SamplingParams
from groundup.model import Transformer
from groundup.tokenizer import Tokenizer
from groundup.train.objectives import Loss, check_ids
from groundup.train.step import Objective

DIVERGENCES = ("forward", "reverse", "jsd")


def distillation(
    teacher: Transformer | TeacherLogits,
    *,
    divergence: str = "forward",
    temperature: float = 1.0,
    hard: float = 0.0,
    beta: float = 0.5,
) -> Objective:
    """An objective for `train`: the student nears `teacher` on the batch's tokens.

    hard: the share of cross-entropy on the tokens themselves; 0 leaves the teacher alone. beta: of "jsd". A `mask` of
    the batch weighs each token's loss. `metrics` has both parts' sums of nats, as `divergence` and `cross_entropy`.

    The teacher stays as it is: in eval mode, without gradients, in its own compute type; it is no part of a checkpoint.
    All logits of a micro-batch are in memory, twice: `micro_batches` of the trainer limits that.

    A cache as the teacher: batches come from `cache.beside(source)`, and the divergence is that between the classes
    of the cache, its tokens and the rest as one. With k = vocabulary the loss is the running teacher's.

    ValueError for settings that make no sense or are not the cache's, and, at the first batch, for a student with
    another vocabulary, and for batches without what the cache has.
    """
    if divergence not in DIVERGENCES:
        raise ValueError(f"distillation: divergence={divergence!r}{nearest(divergence, DIVERGENCES)}")
    if not temperature > 0 or not 0 <= hard <= 1 or not 0 < beta < 1:
        raise ValueError(
            f"distillation: temperature={temperature}, hard={hard}, beta={beta}; expected a temperature above 0, a "
            "share from 0 to 1, and a beta between 0 and 1"
        )
    if isinstance(teacher, Transformer):
        teacher.eval()
    elif teacher.temperature != temperature:
        raise ValueError(
            f"distillation: temperature={temperature}, and {teacher.folder} was written at {teacher.temperature}; the "
            "rest of a distribution is known at that one alone, so pass it, or write another cache"
        )
    settings = {"divergence": divergence, "temperature": temperature, "hard": hard, "beta": beta}
    return partial(_distilled, teacher=teacher, **settings)


def _distilled(
    student: nn.Module,
    batch: Batch,
    *,
    teacher: Transformer | TeacherLogits,
    divergence: str,
    temperature: float,
    hard: float,
    beta: float,
) -> Loss:
    vocab = teacher.config.vocab_size if isinstance(teacher, Transformer) else teacher.vocab_size
    ours = student.config.vocab_size  # type: ignore[union-attr]
    if vocab != ours:
        raise ValueError(f"distillation: the teacher has {vocab} tokens and the student {ours}; they need the same")
    check_ids(batch["tokens"], vocab)
    inputs = {name: batch[name][:, :-1] for name in ("positions", "segments") if name in batch}
    tokens, targets = batch["tokens"][:, :-1], batch["tokens"][:, 1:]
    logits = student(tokens, **inputs)
    given = logits / temperature
    if isinstance(teacher, Transformer):
        with torch.no_grad():
            wanted = teacher(tokens, **inputs) / temperature
    else:
        wanted, given = _classes(batch, given)
    weights = batch["mask"][:, 1:].to(logits.dtype) if "mask" in batch else torch.ones_like(logits[..., 0])
    apart = temperature**2 * token_divergence(wanted, given, divergence, beta)
    nats = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)
    soft_sum, hard_sum = (apart * weights).sum(), (nats * weights).sum()
    metrics = {"divergence": soft_sum.detach(), "cross_entropy": hard_sum.detach()}
    return Loss((1 - hard) * soft_sum + hard * hard_sum, weights.sum(), metrics)


def _classes(batch: Batch, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities of a cache's classes: the teacher's and the student's."""
    if IDS not in batch:
        raise ValueError("distillation: the batch has no teacher's logits; give train the source cache.beside(source)")
    return batch[LOG_PROBS].to(logits.dtype), top_classes(logits.log_softmax(-1), batch[IDS])


def token_divergence(
    teacher: Float[Tensor, "*batch vocab"], student: Float[Tensor, "*batch vocab"], kind: str, beta: float = 0.5
) -> Float[Tensor, "*batch"]:
    """How far two distributions are apart, in nats, from their logits."""
    p, q = teacher.log_softmax(-1), student.log_softmax(-1)
    if kind == "forward":
        return _kl(p, q)
    if kind == "reverse":
        return _kl(q, p)
    middle = torch.logaddexp(p + math.log(beta), q + math.log1p(-beta))
    return beta * _kl(p, middle) + (1 - beta) * _kl(q, middle)


def _kl(p: Tensor, q: Tensor) -> Tensor:
    """Of log-probabilities, over the last axis."""
    return (p.exp() * (p - q)).sum(-1)


def check_same_tokens(teacher: Tokenizer, student: Tokenizer) -> None:
    """ValueError, with the first difference, unless the two tokenizers mean the same by every id."""
    ours, theirs = student.parts(), teacher.parts()
    for name in ("vocab", "merges", "special_tokens", "pattern", "ignore_merges", "normalizer"):
        if getattr(ours, name) != getattr(theirs, name):
            raise ValueError(
                f"distillation: teacher and student have different tokenizers (their {name.replace('_', ' ')}), so "
                "their distributions are over different things; train the student with the teacher's tokenizer"
            )


class OnPolicy(Iterator[Batch]):
    """A source for `train`: batches of what the student itself continues prompts with, masked to its own tokens.

    `engine` is one of the student in training; it looks at the weights anew for each batch. Batch n takes the next
    `batch_size` prompts, in order and again from the first, and draws with seeds of its own, so a run that is resumed
    goes on where it was. Rows are padded to one length; padding has weight 0.
    """

    def __init__(
        self,
        engine: Engine,
        prompts: Sequence[Sequence[int]],
        batch_size: int,
        *,
        max_tokens: int = 32,
        temperature: float = 1.0,
        seed: int = 0,
    ) -> None:
        if not prompts or batch_size < 1:
            raise ValueError(f"on-policy: {len(prompts)} prompts, {batch_size} a batch; expected at least one each")
        self.engine, self.prompts, self.batch_size = engine, [list(prompt) for prompt in prompts], batch_size
        self.max_tokens, self.temperature, self.seed = max_tokens, temperature, seed
        self._given = 0

    def __next__(self) -> Batch:
        numbers = range(self._given, self._given + self.batch_size)
        prompts = [self.prompts[n % len(self.prompts)] for n in numbers]
        settings = SamplingParams(max_tokens=self.max_tokens, temperature=self.temperature)
        seeded = [replace(settings, seed=self.seed * 1_000_003 + n) for n in numbers]
        answers = self.engine.generate(prompts, seeded)
        self._given += self.batch_size
        return _as_batch(prompts, [answer.tokens for answer in answers])

    def state(self) -> dict[str, Any]:
        """Where the stream stands."""
        return {"given": self._given, "seed": self.seed}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken."""
        self._given, self.seed = state["given"], state["seed"]


def _as_batch(prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]) -> Batch:
    """Prompt and answer in a row, with weight 1 on the answer."""
    longest = max(len(prompt) + len(answer) for prompt, answer in zip(prompts, answers, strict=True))
    tokens, mask = torch.zeros(len(prompts), longest, dtype=torch.long), torch.zeros(len(prompts), longest)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        end = len(prompt) + len(answer)
        tokens[row, :end] = torch.tensor([*prompt, *answer])
        mask[row, len(prompt) : end] = 1
    return {"tokens": tokens, "mask": mask}
