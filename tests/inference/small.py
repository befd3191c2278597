"""Small models of every kind for the engine's tests, and what a request must give whatever runs beside it."""

import random
from dataclasses import replace
from functools import cache

import torch

from groundup.inference import Engine, SamplingParams
from groundup.model import BlockConfig, Transformer
from groundup.tokenizer import Tokenizer
from tests.model.variants import FFNS, MIXERS, WHOLE_MODELS, build
from tests.model.variants import small as small_config

VOCAB = 262

MIXED = {
    "gqa": ("gqa", "gated_silu"),
    "latent": ("latent", "gated_silu"),
    "latent_queries": ("latent_queries", "gated_silu"),
    "windowed": ("windowed", "plain_gelu"),
    "sink_tokens": ("sink_tokens", "gated_silu"),
    "sinks": ("sinks", "gated_silu"),
    "alibi": ("alibi", "gated_silu"),
    "mamba2": ("mamba2", "gated_silu"),
    "gated_delta": ("gated_delta", "gated_silu"),
    "gated_linear": ("gated_linear", "gated_silu"),
    "lstm": ("lstm", "gated_silu"),
    "neural_ngram": ("neural_ngram", "gated_silu"),
    "moe": ("gqa", "moe_softmax"),
    "moe_shared": ("latent", "moe_sigmoid_shared"),
}
CONFIGS = {name: small_config(BlockConfig(MIXERS[m], FFNS[f])) for name, (m, f) in MIXED.items()} | {
    name: WHOLE_MODELS[name] for name in ("learned_positions", "local_local_global", "mamba2_mamba2_gqa")
}
RECURRENT = ("mamba2", "gated_delta", "gated_linear", "lstm", "neural_ngram", "mamba2_mamba2_gqa")


@cache
def tokenizer() -> Tokenizer:
    return Tokenizer.train_from_iterator(["the cat"], VOCAB, special_tokens=["<|endoftext|>"])


def model(name: str = "gqa") -> Transformer:
    """One of each kind for all tests, with a context of 64 tokens."""
    return _model(name)


@cache
def _model(name: str) -> Transformer:
    return new_model(name)


def new_model(name: str) -> Transformer:
    """One that a test may change."""
    return build(replace(CONFIGS[name], vocab_size=VOCAB, context_length=64))


def engine(name: str = "gqa", **options) -> Engine:
    return Engine(model(name), tokenizer(), **options)


def crowd(count: int = 4, seed: int = 0) -> list[tuple[list[int], SamplingParams]]:
    """Prompts of 1 to 39 tokens that share beginnings, greedy and sampled, with log-probabilities."""
    rng = random.Random(seed)
    beginning = [rng.randrange(VOCAB) for _ in range(20)]
    requests = []
    for i in range(count):
        prompt = beginning[: rng.choice([0, 9, 20])] + [rng.randrange(VOCAB) for _ in range(rng.randrange(1, 20))]
        temperature = 0 if i % 2 else 1.0
        requests.append(
            (prompt, SamplingParams(max_tokens=rng.randrange(4, 12), temperature=temperature, seed=i, logprobs=2))
        )
    return requests


def answers(engine: Engine, requests) -> list:
    return engine.generate([prompt for prompt, _ in requests], [params for _, params in requests])


@torch.no_grad()
def training_logprobs(name: str, ids: list[int]) -> torch.Tensor:
    """Log-probabilities of the model's plain forward pass over the whole text."""
    logits = model(name)(torch.tensor([ids]))[0]
    logits[:, tokenizer().vocab_size :] = -torch.inf
    return logits.log_softmax(-1)
