"""A run small enough to be repeated hundreds of times: 2 layers, 31 tokens, milliseconds a step."""

from typing import Any

import torch

from groundup import presets
from groundup.model.transformer import Transformer
from groundup.optim import AdamW, warmup_stable_decay
from groundup.train import next_token, train

VOCAB = 31


def tiny_model(seed=0, **options):
    settings: dict[str, Any] = (
        dict(vocab_size=VOCAB, d_model=16, num_layers=2, num_heads=2, d_head=8, d_ff=32) | options
    )
    model = Transformer(presets.llama(**settings))
    model.init_weights(seed)
    return model


class Collected:
    """A sink that keeps what it is given."""

    def __init__(self):
        self.records, self.closed = [], False

    def write(self, record):
        self.records.append(record)

    def close(self):
        self.closed = True


class Batches:
    """Batch k is a function of k, so that any of them can be made again; it has a cursor as `data.Loader`."""

    tokens_per_batch = 4 * 8

    def __init__(self, length=None, changed=None, left_out=()):
        self.at, self.length, self.changed, self.left_out = 0, length, changed or {}, left_out

    def __iter__(self):
        return self

    def __next__(self):
        while self.at in self.left_out:
            self.at += 1
        if self.length is not None and self.at >= self.length:
            raise StopIteration
        self.at += 1
        return batch(self.at - 1) | self.changed.get(self.at - 1, {})

    def state(self):
        return {"at": self.at}

    def load_state(self, state):
        self.at = state["at"]


def batch(number, rows=4, seq=8):
    """Rows that count up from a random start: learnable within a few steps."""
    generator = torch.Generator().manual_seed(number)
    starts = torch.randint(0, VOCAB, (rows, 1), generator=generator)
    return {"tokens": (starts + torch.arange(seq + 1)) % VOCAB}


def tiny_run(steps: int | None = 20, *, model=None, source=None, optimizer=None, objective=next_token, **options):
    """(model, optimizer, run) after `train` with everything small by default."""
    model = tiny_model() if model is None else model
    optimizer = AdamW(model, lr=1e-2) if optimizer is None else optimizer
    settings: dict[str, Any] = dict(schedule=warmup_stable_decay(3, 40), progress=False, log_every=1) | options
    run = train(model, Batches() if source is None else source, objective, optimizer, steps, **settings)
    return model, optimizer, run


def same_weights(a, b):
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
