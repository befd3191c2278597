"""A model small enough to be pruned in milliseconds, and text for it."""

import torch

from groundup import presets
from groundup.model import Transformer
from groundup.optim import AdamW
from groundup.train import next_token, train

VOCAB = 37


def small_model(seed=0, **options):
    shape = dict(vocab_size=VOCAB, d_model=32, num_layers=3, num_heads=4, num_kv_heads=2, d_ff=48, context_length=32)
    model = Transformer(presets.llama(**(shape | options)))
    model.init_weights(seed)
    return model.eval()


def batch(number, rows=4, seq=16):
    """Rows that count up by 1 or 2, so that there is something to learn."""
    generator = torch.Generator().manual_seed(number)
    starts = torch.randint(0, VOCAB, (rows, 1), generator=generator)
    steps = torch.randint(1, 3, (rows, seq + 1), generator=generator).cumsum(1)
    return {"tokens": (starts + steps) % VOCAB}


def batches(first=0, count=3):
    return [batch(number) for number in range(first, first + count)]


def trained(model, steps=60, objective=next_token, first=1000, lr=1e-2, **options):
    source = (batch(number, rows=8) for number in range(first, first + steps))
    train(model, source, objective, AdamW(model, lr=lr), steps, progress=False, **options)
    return model.eval()
