"""One budget of FLOPs for every size of vocabulary: which one then predicts text best, in bits per byte?

Loss per token cannot answer that, since a token is another amount of text for each. Bits per byte can.
"""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from groundup import data, optim, presets, train
from groundup.accounting import training_flops_per_token
from groundup.device import default_device, require_device, set_seed
from groundup.evaluation import bits_per_byte
from groundup.model import ModelConfig, Transformer
from groundup.tokenizer import Tokenizer
from groundup.train import objectives

LEAST_STEPS = 20
LEAST_CONTEXT = 8
WARMUP_SHARE = 0.05

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Trained:
    """One model, trained on as many bytes as the FLOPs paid for (`epochs` times the text), and its score."""

    vocab_size: int
    steps: int
    bytes_seen: int
    epochs: float
    flops: float
    seconds: float
    bits_per_byte: float


def train_at_sizes(
    tokenizers: Sequence[Tokenizer],
    texts: Sequence[str],
    held_out: Sequence[str],
    *,
    flops: float,
    d_model: int,
    num_layers: int,
    context_bytes: int,
    batch_size: int = 16,
    tied: bool = False,
    seed: int = 0,
    device: str | None = None,
    progress: Progress | None = None,
) -> list[Trained]:
    """Train one Llama-style model per tokenizer with the same FLOPs, and score each on the same held-out bytes.

    Every model has the same blocks and sees the same number of bytes in a window and in a step; what differs is the
    tables, how many tokens those bytes are, and so how many steps the FLOPs pay for. Counted are the useful ones,
    forward and backward, of `accounting`. One seed each: small differences mean nothing. `progress` is told (what,
    steps done, steps). ValueError when the FLOPs pay for fewer than 20 steps of any model.
    """
    where = require_device(device) if device else default_device()
    with tempfile.TemporaryDirectory() as folder:
        sets = [
            data.write_shards(list(texts), tokenizer, Path(folder) / str(number))
            for number, tokenizer in enumerate(tokenizers)
        ]
        configs = [_config(shards, d_model, num_layers, context_bytes, tied) for shards in sets]
        plans = [_steps(config, batch_size, flops) for config in configs]
        return [
            _train(config, steps, batch_size, shards, tokenizer, held_out, where, seed, progress)
            for config, steps, shards, tokenizer in zip(configs, plans, sets, tokenizers, strict=True)
        ]


def _config(shards: data.ShardSet, d_model: int, num_layers: int, context_bytes: int, tied: bool) -> ModelConfig:
    context = max(LEAST_CONTEXT, round(context_bytes * shards.num_tokens / shards.text_bytes))
    return presets.llama(
        vocab_size=shards.vocab_size,
        d_model=d_model,
        num_layers=num_layers,
        context_length=context,
        tie_embeddings=tied,
    )


def _flops_of_step(config: ModelConfig, batch_size: int) -> float:
    return batch_size * config.context_length * training_flops_per_token(config, config.context_length)


def _steps(config: ModelConfig, batch_size: int, flops: float) -> int:
    each = _flops_of_step(config, batch_size)
    steps = int(flops / each)
    if steps < LEAST_STEPS:
        raise ValueError(
            f"{flops:.3g} FLOPs pay for {steps} steps of the model with {config.vocab_size:,} tokens; "
            f"give at least {LEAST_STEPS * each:.3g}, a smaller model or a shorter context"
        )
    return steps


def _train(
    config: ModelConfig,
    steps: int,
    batch_size: int,
    shards: data.ShardSet,
    tokenizer: Tokenizer,
    held_out: Sequence[str],
    device: torch.device,
    seed: int,
    progress: Progress | None,
) -> Trained:
    set_seed(seed)
    model = Transformer(config).to(device)
    stage = f"training with {config.vocab_size:,} tokens"
    run = train.train(
        model,
        data.Loader(shards, batch_size, config.context_length, seed=seed, shorten=True, device=device),
        objectives.next_token,
        optim.muon_adamw(model),
        steps,
        schedule=optim.warmup_stable_decay(max(1, round(WARMUP_SHARE * steps)), steps),
        every={1: lambda step, *_: progress(stage, step, steps)} if progress else None,
        progress=False,
    )
    bytes_per_token = shards.text_bytes / shards.num_tokens
    return Trained(
        vocab_size=config.vocab_size,
        steps=run.step,
        bytes_seen=round(run.tokens * bytes_per_token),
        epochs=run.tokens / shards.num_tokens,
        flops=run.step * _flops_of_step(config, batch_size),
        seconds=run.seconds,
        bits_per_byte=bits_per_byte(model, tokenizer, held_out).bits_per_byte,
    )
