"""nanoGPT's recipe for tinyshakespeare on a CPU, as its README has it, in plain torch. Started by `groundup bench`.

GPT-2's layers without biases, learned positions, a tied head; fp32, no torch.compile, no dropout. The numbers are those
of `config/train_shakespeare_char.py` with the README's options for a CPU (github.com/karpathy/nanoGPT).
"""

import math
import time

import torch
import torch.nn.functional as F
from torch import nn

LAYERS, HEADS, WIDTH, CONTEXT, BATCH = 4, 4, 128, 64, 12
STEPS, WARMUP, RATE, LEAST_RATE = 2000, 100, 1e-3, 1e-4
BETAS, WEIGHT_DECAY, CLIP = (0.9, 0.99), 0.1, 1.0
TRAINING_SHARE = 0.9


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention_norm = nn.LayerNorm(WIDTH, bias=False)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.attention_out = nn.Linear(WIDTH, WIDTH, bias=False)
        self.mlp_norm = nn.LayerNorm(WIDTH, bias=False)
        self.up = nn.Linear(WIDTH, 4 * WIDTH, bias=False)
        self.mlp_out = nn.Linear(4 * WIDTH, WIDTH, bias=False)

    def forward(self, x):
        rows, length, _ = x.shape
        q, k, v = (
            part.view(rows, length, HEADS, -1).transpose(1, 2) for part in self.qkv(self.attention_norm(x)).chunk(3, -1)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.attention_out(mixed.transpose(1, 2).reshape(rows, length, WIDTH))
        return x + self.mlp_out(F.gelu(self.up(self.mlp_norm(x))))


class GPT(nn.Module):
    def __init__(self, vocab_size):
        super().__init__()
        self.tokens = nn.Embedding(vocab_size, WIDTH)
        self.positions = nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm = nn.LayerNorm(WIDTH, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                branch_end = name.endswith("_out.weight")
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * LAYERS) if branch_end else 0.02)

    def forward(self, tokens):
        x = self.tokens(tokens) + self.positions(torch.arange(tokens.shape[1]))
        for block in self.blocks:
            x = block(x)
        return F.linear(self.norm(x), self.tokens.weight)


def rate(step):
    """Linear warm-up, then a cosine to a tenth."""
    if step < WARMUP:
        return RATE * (step + 1) / (WARMUP + 1)
    share = min(1.0, (step - WARMUP) / (STEPS - WARMUP))
    return LEAST_RATE + 0.5 * (1 + math.cos(math.pi * share)) * (RATE - LEAST_RATE)


def make_optimizer(model):
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=RATE, betas=BETAS)


def train(ids, vocab_size, deadline, generator):
    """The model after its 2,000 steps, or after as many as end before the deadline, and their number."""
    model = GPT(vocab_size)
    optimizer = make_optimizer(model)
    for step in range(STEPS):
        if time.monotonic() > deadline:
            return model, step
        starts = torch.randint(len(ids) - CONTEXT, (BATCH,), generator=generator)
        rows = torch.stack([ids[start : start + CONTEXT + 1] for start in starts])
        for group in optimizer.param_groups:
            group["lr"] = rate(step)
        loss = F.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return model, STEPS


@torch.no_grad()
def mean_nats(model, ids, begin, stride):
    """Every id once, the first after `begin`: windows of CONTEXT targets, of which all but the first score `stride`."""
    known = torch.cat([torch.tensor([begin]), ids])
    total, first, end = 0.0, 0, min(CONTEXT, len(ids))
    while first < len(ids):
        start = max(0, end - CONTEXT)
        log_probs = model(known[None, start:end]).log_softmax(-1)[0]
        total -= log_probs.gather(1, ids[start:end, None])[first - start :].double().sum().item()
        first, end = end, min(end + stride, len(ids))
    return total / len(ids)


def prepare(options):
    """What worker.py asks for. A unit of work is a whole training; its clock begins before the text is read."""
    torch.set_num_threads(options["threads"])
    torch.manual_seed(options["seed"])

    def run(units):
        began = time.monotonic()
        with open(options["text"], encoding="utf-8") as file:
            text = file.read()
        ids_of = {character: i for i, character in enumerate(sorted(set(text)))}
        ids = torch.tensor([ids_of[character] for character in text])
        cut = int(len(ids) * TRAINING_SHARE)
        generator = torch.Generator().manual_seed(options["seed"])
        model, steps = train(ids[:cut], len(ids_of), began + options["seconds"], generator)
        seconds = time.monotonic() - began
        begin, held_out = ids[cut - 1].item(), ids[cut:]
        return {
            "train_seconds": seconds,
            "loss": mean_nats(model, held_out, begin, CONTEXT),
            "loss_sliding": mean_nats(model, held_out, begin, CONTEXT // 4),
            "context_length": CONTEXT,
            "validation_characters": len(held_out),
            "steps": steps,
            "tokens": steps * BATCH * CONTEXT,
            "parameters": sum(p.numel() for p in model.parameters()),
        }

    facts = {"threads": torch.get_num_threads(), "versions": {"torch": torch.__version__}}
    return facts, run
