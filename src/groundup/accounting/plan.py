"""From text, time and machine to a training plan, with its predictions: made before anything is trained.

The planner tries every shape of a ladder. For each it works out how many tokens the time is enough for and how
often that repeats the text, asks the loss law, and keeps the best. Where text is plentiful that is the
compute-optimal shape; where it is scarce the law's repeat term makes smaller shapes and fewer passes win.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from groundup import presets
from groundup.accounting.flops import training_flops_per_token
from groundup.accounting.hardware import Machine
from groundup.accounting.law import BUILD_LAW, LossLaw
from groundup.accounting.memory import FP32_BYTES, least_recompute, training_memory
from groundup.accounting.params import count_parameters
from groundup.config import plural
from groundup.model import ModelConfig

D_HEAD = 64
ROPE_THETA = 10_000.0
SHAPES = (
    (128, 2), (128, 4), (192, 4), (256, 4), (256, 6), (320, 6), (384, 6), (384, 8), (448, 8), (512, 8), (576, 10),
    (640, 10), (768, 12), (1024, 16), (1280, 20), (1536, 24), (2048, 24),
)  # fmt: skip
"""(d_model, num_layers) from 1 M to 1.5 B parameters; width over depth grows slowly, as in published models."""

VOCABULARIES = ((300_000, 512), (1_500_000, 1024), (5_000_000, 2048), (60_000_000, 4096), (math.inf, 8192))
"""(training bytes up to, vocabulary): a token should be seen often enough to be learnt."""

EFFICIENCY = ((64, 0.29), (128, 0.41), (192, 0.465), (256, 0.50), (512, 0.49), (1024, 0.40))
"""(d_model, share of the measured matmul rate that a compiled training step reaches), before it is timed.

Of steps of 4,096 tokens with Muon, whose own products are of the order d_model^3 and take a growing part of wide models
(experiments/LOG.md, entry 021).
"""

EAGER_SHARE = 0.6
WORTHWHILE = 1.002
KEPT_PLANS = 3
# fp32 weights and gradients, Muon's moment, and the twin that is scored: below this no micro-batch helps.
BYTES_PER_PARAMETER, TWIN_BYTES = 16, 4
FREE_MEMORY_SHARE = 0.7
FRESH_EPOCHS, LEAST_DROPOUT = 6.0, 0.15
DROPOUTS = ((FRESH_EPOCHS, 0.0), (14.0, LEAST_DROPOUT), (math.inf, 0.3))
"""(passes up to, dropout)."""

# Drawing random numbers takes time: the share of the speed that is left, on a CPU.
DROPOUT_SPEED = 0.7
MUON_RATE = 0.03
ADAM_RATE = 0.02
WEIGHT_DECAY = 0.05
WARMUP_STEPS = 20
DECAY_FRACTION = 0.5


@dataclass(frozen=True)
class TextFacts:
    """What is known of the text. `ngram_bits_per_byte` (a Kneser-Ney 5-gram's, held-out) comes with the tokenizer."""

    train_bytes: int
    held_out_bytes: int
    documents: int
    zstd_bits_per_byte: float
    ngram_bits_per_byte: float | None = None
    validation_bytes: int = 0

    @property
    def difficulty(self) -> float:
        return BUILD_LAW.difficulty(self.zstd_bits_per_byte, self.ngram_bits_per_byte)


@dataclass(frozen=True)
class Wishes:
    """What the user fixed; None leaves it to the planner."""

    vocab_size: int | None = None
    d_model: int | None = None
    num_layers: int | None = None
    context_length: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    max_epochs: float | None = None
    dropout: float | None = None


@dataclass(frozen=True)
class TrainingPlan:
    """Everything that a run needs to begin, and what is expected of it.

    recompute: blocks whose activations are computed again in the backward pass, to fit into memory.
    dropout: share of activations set to zero in training, where the text is read so often that it would be learnt
    by heart.
    learning_rate: of the hidden matrices (Muon); adam_rate: of embeddings, head and norms (AdamW).
    seconds_per_step, tokens, epochs, bits_per_byte: predictions.
    products: what the blocks' linear layers multiply in training, where not the activations' type.
    """

    model: ModelConfig
    batch_size: int
    micro_batches: int
    recompute: int
    learning_rate: float
    adam_rate: float
    weight_decay: float
    dropout: float
    warmup_steps: int
    decay_fraction: float
    parameters: int
    bytes_per_token: float
    seconds_per_step: float
    train_seconds: float
    steps: int
    tokens: int
    epochs: float
    bits_per_byte: float
    peak_bytes: int
    products: Literal["int8"] | None = None

    @property
    def batch_tokens(self) -> int:
        return self.batch_size * self.model.context_length

    @property
    def nats_per_token(self) -> float:
        """The loss that the training loop would show for `bits_per_byte`."""
        return self.bits_per_byte * math.log(2) * self.bytes_per_token


def plan(
    facts: TextFacts, machine: Machine, seconds: float, wishes: Wishes | None = None, speed: float = 1.0
) -> list[TrainingPlan]:
    """The best plans for `seconds` of training on this machine that fit into its memory, the very best first.

    speed: measured over assumed speed, once a step has been timed.
    Raises ValueError when a wish cannot be granted, or no shape fits into memory.
    """
    wishes = wishes or Wishes()
    made = [_plan_shape(d, layers, facts, machine, seconds, wishes, speed) for d, layers in _shapes(wishes)]
    ranked = sorted(made, key=lambda p: p.bits_per_byte)
    fitting = (fitted for p in ranked if (fitted := _fit_memory(p, machine)))
    best = list(itertools.islice(fitting, KEPT_PLANS))
    if not best:
        raise ValueError(
            f"no planned model fits into {machine.memory_bytes / 2**30:.1f} GiB of free memory; free some, "
            "or set d_model, num_layers and batch_size to something small"
        )
    return best


def _shapes(wishes: Wishes) -> Iterator[tuple[int, int]]:
    shapes = {(wishes.d_model or d, wishes.num_layers or layers) for d, layers in SHAPES}
    if wishes.d_model and not wishes.num_layers:
        shapes = {(wishes.d_model, layers) for _, layers in shapes if layers <= max(2, wishes.d_model // 32)}
    yield from sorted(shapes)


def _plan_shape(
    d_model: int,
    layers: int,
    facts: TextFacts,
    machine: Machine,
    seconds: float,
    wishes: Wishes,
    speed: float,
) -> TrainingPlan:
    vocab_size = wishes.vocab_size or vocabulary_for(facts.train_bytes)
    bytes_per_token = guess_bytes_per_token(vocab_size)
    train_tokens = max(2.0, facts.train_bytes / bytes_per_token)
    context = wishes.context_length or _context(train_tokens)
    model = model_config(d_model, layers, vocab_size, context)
    batch = wishes.batch_size or _batch(train_tokens, context, machine)
    parameters = count_parameters(model).total
    per_token = training_flops_per_token(model, context) / (machine.peak_flops * efficiency(d_model) * speed)
    made = TrainingPlan(
        model=model,
        batch_size=batch,
        micro_batches=1,
        recompute=0,
        learning_rate=wishes.learning_rate or MUON_RATE,
        adam_rate=ADAM_RATE * (wishes.learning_rate or MUON_RATE) / MUON_RATE,
        weight_decay=WEIGHT_DECAY,
        dropout=0.0,
        warmup_steps=WARMUP_STEPS,
        decay_fraction=DECAY_FRACTION,
        parameters=parameters,
        bytes_per_token=bytes_per_token,
        seconds_per_step=per_token * batch * context,
        train_seconds=seconds,
        steps=0,
        tokens=0,
        epochs=0.0,
        bits_per_byte=math.inf,
        peak_bytes=0,
    )
    if wishes.dropout == 0:
        return fit_to_time(made, facts, seconds, wishes)
    speed = DROPOUT_SPEED if machine.device == "cpu" else 1.0
    slower = replace(made, dropout=wishes.dropout or LEAST_DROPOUT, seconds_per_step=made.seconds_per_step / speed)
    dropped = fit_to_time(slower, facts, seconds, wishes)
    if wishes.dropout:
        return dropped
    if dropped.epochs <= FRESH_EPOCHS:
        return fit_to_time(made, facts, seconds, wishes)
    return replace(dropped, dropout=dropout_for(dropped.epochs))


def dropout_for(epochs: float) -> float:
    """0 while the text is fresh; the more often it is read, the more (experiment 003)."""
    return next(dropout for most, dropout in DROPOUTS if epochs <= most)


def model_config(d_model: int, num_layers: int, vocab_size: int, context_length: int) -> ModelConfig:
    """The architecture of every planned model: Qwen3's block (pre-RMSNorm, SwiGLU, RoPE, QK-norm), untied."""
    if d_model % 16:
        raise ValueError(f"d_model={d_model}: must be a multiple of 16, so that it splits into heads")
    heads = max(1, d_model // D_HEAD)
    while d_model % heads or (d_model // heads) % 2:
        heads -= 1
    return presets.qwen3(
        vocab_size=vocab_size, d_model=d_model, num_layers=num_layers, num_heads=heads,
        context_length=context_length, rope_theta=ROPE_THETA, tie_embeddings=False,
    )  # fmt: skip


def vocabulary_for(train_bytes: int) -> int:
    """The planned vocabulary for this much text."""
    return next(size for limit, size in VOCABULARIES if train_bytes <= limit)


def guess_bytes_per_token(vocab_size: int) -> float:
    """Bytes that a token will stand for, before the vocabulary is trained; measured on English text."""
    return max(1.2, 0.66 * math.log2(max(2, vocab_size)) - 3.62)


def efficiency(d_model: int) -> float:
    """Share of the matmul rate that a step reaches, between the measured widths by the logarithm."""
    below = [(w, e) for w, e in EFFICIENCY if w <= d_model]
    above = [(w, e) for w, e in EFFICIENCY if w > d_model]
    if not below or not above:
        return (below or above)[-1 if below else 0][1]
    (w0, e0), (w1, e1) = below[-1], above[0]
    return e0 + (e1 - e0) * math.log(d_model / w0) / math.log(w1 / w0)


def worthwhile_epochs(law: LossLaw, facts: TextFacts, parameters: int) -> float:
    """Passes after which more of the same text would lower the predicted loss by less than 0.2 per cent."""

    def loss(epochs: float) -> float:
        return law.bits_per_byte(parameters, facts.train_bytes, epochs, facts.difficulty)

    limit, epochs = loss(1e6) * WORTHWHILE, 1.0
    while loss(epochs) > limit:
        epochs *= 1.25
    return epochs


def _context(train_tokens: float) -> int:
    """256 tokens, less for a text that would fill only a handful of windows."""
    return max(32, min(256, 2 ** int(math.log2(max(32, train_tokens / 16)))))


def _batch(train_tokens: float, context: int, machine: Machine) -> int:
    """Sequences per step: small batches make the most of each token; a GPU needs more to be busy."""
    target = 4096 if machine.device == "cpu" else 32_768
    return max(1, min(target, int(train_tokens / 16)) // context)


def _fit_memory(made: TrainingPlan, machine: Machine) -> TrainingPlan | None:
    """Cut the batch into as many micro-batches as it takes, then recompute as few blocks as it takes.

    None when not even a single row with every block recomputed fits.
    """
    if not machine.memory_bytes:
        return made
    limit = int(FREE_MEMORY_SHARE * machine.memory_bytes)
    if BYTES_PER_PARAMETER * made.parameters > limit:
        return None
    dtype = torch.bfloat16 if machine.precision == "bf16" else torch.float32
    context, device = made.model.context_length, machine.device
    # The twin's weights are there all the time, as if the optimizer kept them.
    states = optimizer_states(made.model) + TWIN_BYTES / FP32_BYTES
    micro = 1
    while micro <= made.batch_size:
        rows = math.ceil(made.batch_size / micro)
        peak = training_memory(made.model, rows, context, dtype, optimizer_states=states, device=device).peak
        if peak <= limit:
            return replace(made, micro_batches=micro, peak_bytes=peak)
        micro *= 2
    recompute = least_recompute(made.model, 1, context, limit, dtype, optimizer_states=states, device=device)
    if recompute is None:
        return None
    peak = training_memory(
        made.model, 1, context, dtype, optimizer_states=states, recompute=recompute, device=device
    ).peak
    return replace(made, micro_batches=made.batch_size, recompute=recompute, peak_bytes=peak)


def optimizer_states(model: ModelConfig) -> float:
    """fp32 values per parameter in `build.pretrain.make_optimizer`: Muon's one for the blocks, AdamW's two for the
    rest."""
    count = count_parameters(model)
    return 2.0 - count.blocks / count.total


def at_speed(made: TrainingPlan, facts: TextFacts, seconds_per_step: float) -> TrainingPlan:
    """The same plan with a measured step time."""
    timed = replace(made, seconds_per_step=seconds_per_step)
    return fit_to_time(timed, facts, made.train_seconds, Wishes(max_epochs=made.epochs, dropout=made.dropout))


def with_bytes_per_token(made: TrainingPlan, facts: TextFacts, bytes_per_token: float) -> TrainingPlan:
    """The same steps with the trained tokenizer's compression (and what `facts` now know): other passes and loss."""
    known = replace(made, bytes_per_token=bytes_per_token)
    return replace(known, **_outcome(known, facts, made.steps))


def fit_to_time(made: TrainingPlan, facts: TextFacts, seconds: float, wishes: Wishes) -> TrainingPlan:
    """The same shape for `seconds` of training: how many steps and passes, and what loss they buy.

    Without dropout (unless that is a wish) the passes end before the text would be learnt by heart.
    """
    train_tokens = facts.train_bytes / made.bytes_per_token
    fresh = math.inf if made.dropout or wishes.dropout == 0 else FRESH_EPOCHS
    most = min(wishes.max_epochs or math.inf, fresh, worthwhile_epochs(BUILD_LAW, facts, made.parameters))
    steps = max(1, int(min(seconds / made.seconds_per_step, most * train_tokens / made.batch_tokens)))
    return replace(made, train_seconds=steps * made.seconds_per_step, **_outcome(made, facts, steps))


def _outcome(made: TrainingPlan, facts: TextFacts, steps: int) -> dict[str, Any]:
    tokens = steps * made.batch_tokens
    epochs = tokens * made.bytes_per_token / facts.train_bytes
    loss = BUILD_LAW.bits_per_byte(made.parameters, facts.train_bytes, epochs, facts.difficulty)
    return {"steps": steps, "tokens": tokens, "epochs": epochs, "bits_per_byte": loss}


def describe(made: TrainingPlan, facts: TextFacts, runners_up: list[TrainingPlan] | None = None) -> list[str]:
    """The plan as lines for a person."""
    model = made.model
    lines = [
        f"text       {facts.train_bytes:,} bytes to train on in {plural(facts.documents, 'document')}, "
        f"{facts.validation_bytes:,} to validate on, {facts.held_out_bytes:,} held out",
        f"model      {made.parameters:,} parameters: {plural(model.num_layers, 'layer')} of width {model.d_model}, "
        f"vocabulary {model.vocab_size:,}, context {model.context_length}",
        f"training   {plural(made.steps, 'step')} of {made.batch_tokens:,} tokens at "
        f"{1e3 * made.seconds_per_step:.0f} ms: {made.tokens:,} tokens in {made.train_seconds:.0f} s, "
        f"{made.epochs:.1f} passes over the text{f', dropout {made.dropout:g}' if made.dropout else ''}"
        f"{f', products of blocks in {made.products}' if made.products else ''}",
        f"expected   {made.bits_per_byte:.3f} bits per byte (+- {error_of(made, facts):.3f}) on held-out text, "
        f"{made.nats_per_token:.2f} nats per token; peak memory {made.peak_bytes / 2**20:,.0f} MiB",
    ]
    for other in runners_up or []:
        lines.append(
            f"  not      {other.parameters:,} parameters ({other.model.num_layers} x {other.model.d_model}): "
            f"{other.bits_per_byte:.3f} after {other.epochs:.1f} passes"
        )
    return lines


def error_of(made: TrainingPlan, facts: TextFacts) -> float:
    """Half-width of the interval around the predicted bits per byte."""
    effective = BUILD_LAW.effective_bytes(facts.train_bytes, made.epochs)
    return BUILD_LAW.error(made.bits_per_byte, facts.difficulty, effective)
