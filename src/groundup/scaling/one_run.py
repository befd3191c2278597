"""One run of a comparison: train a variant with one seed and one rate, and score it."""

import math
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from groundup import data, optim, train
from groundup.corpus import Document
from groundup.device import set_seed
from groundup.evaluation import bits_per_byte, score_lengths
from groundup.evaluation.lengths import is_rotary
from groundup.model import ModelConfig, Transformer
from groundup.optim import global_norm
from groundup.profiling.peak import measured_timeline
from groundup.scaling.settings import AblationSettings
from groundup.tokenizer import Tokenizer
from groundup.train import Guard, objectives, precision
from groundup.train.rehearsal import rehearse_config

Objective = Callable[[nn.Module, data.Batch], objectives.Loss]
CURVE_POINTS = 60
AS_TRAINED = "as trained"
MEASURED_STEPS, MEASURED_ROUNDS = 2, 6


@dataclass(frozen=True)
class Material:
    """What all runs share: token shards, the texts that are scored, and where to compute."""

    shards: Path
    tokenizer: Tokenizer
    validation: Sequence[str]
    held_out: Sequence[str]
    device: torch.device


def texts_of(documents: Sequence[Document], most_bytes: int) -> list[str]:
    """The first texts of these documents, up to so many bytes; the last one is cut."""
    kept, room = [], most_bytes
    for document in documents:
        if room <= 0:
            break
        raw = document.text.encode("utf-8", "replace")[:room]
        kept.append(raw.decode("utf-8", "ignore"))
        room -= len(raw)
    return kept


def make_model(config: ModelConfig, settings: AblationSettings, seed: int, device: torch.device) -> Transformer:
    model = Transformer(config).to(device)
    model.init_weights(seed)
    precision.apply(model, settings.precision)
    return model


def make_loader(material: Material, settings: AblationSettings, seed: int) -> data.Loader:
    return data.Loader(
        material.shards, settings.batch_size, settings.context_length, seed=seed, document_masks=False,
        device=material.device,
    )  # fmt: skip


def train_once(
    config: ModelConfig,
    settings: AblationSettings,
    material: Material,
    *,
    seed: int,
    rate: float,
    steps: int,
    final: bool,
) -> dict[str, Any]:
    """Train, then score the held-out text (`final`) or the validation text (to choose a rate).

    A step that is not finite ends the run at once, and counts as divergence; so does a loss that is not lower at the
    end than at the start, on the same batch. Ctrl-C raises KeyboardInterrupt, and nothing of the run is kept.
    """
    set_seed(seed)
    model = make_model(config, settings, seed, material.device)
    first = next(iter(make_loader(material, settings, seed)))
    norms = {"start": gradient_norms(model, first)} if final else {}
    start = loss_on(model, first)
    losses, seconds, fault = train_steps(model, settings, make_loader(material, settings, seed), rate, steps)
    diverged = fault is not None or not loss_on(model, first) < start
    bits = None
    if not diverged:
        bits = bits_per_byte(model, material.tokenizer, material.held_out if final else material.validation)
    if final and not diverged:
        norms["end"] = gradient_norms(model, first)
    peak = measured_peak(model, settings, first) if final and seed == settings.seed else None
    return {
        "seed": seed,
        "rate": rate,
        "steps": len(losses),
        "tokens": len(losses) * settings.batch_tokens,
        "bits_per_byte": bits and bits.bits_per_byte,
        **(lengths_of(model, settings, material) if final and not diverged else {}),
        "diverged": diverged,
        "fault": fault,
        "seconds": round(seconds, 3),
        "peak_bytes": peak,
        "losses": thinned(losses),
        "gradient_norms": norms,
    }


def predicted_peak(config: ModelConfig, settings: AblationSettings, device: torch.device) -> int:
    """Bytes that tensors will hold at most in a training step, before the model exists."""
    return rehearse_config(
        config, settings.batch_size, settings.context_length, precision.DTYPES[settings.precision], device=device
    ).peak_bytes


def measured_peak(model: Transformer, settings: AblationSettings, batch: data.Batch) -> int:
    """The same, recorded. The model has been scored: two steps more change what nobody reads any more."""
    optimizer = optim.AdamW(model, 1e-4, weight_decay=settings.weight_decay)
    return measured_timeline(model, objectives.pretraining(model), optimizer, batch).peak_bytes


def lengths_of(model: Transformer, settings: AblationSettings, material: Material) -> dict[str, Any]:
    """As trained, and by each scaling where the model is rotary:

    lengths    bits per byte at each of the lengths (None: cannot)
    positions  [end, bits per token] of stretches of positions, at the longest that it can
    """
    names = [AS_TRAINED, *(settings.scalings if is_rotary(model.config) else ())] if settings.lengths else []
    found: dict[str, Any] = {"lengths": {}, "positions": {}}
    for name in names:
        scores = score_lengths(
            model, material.tokenizer, material.held_out, settings.lengths,
            scaling=None if name == AS_TRAINED else name,
        )  # fmt: skip
        found["lengths"][name] = [score and score.bits_per_byte for score in scores]
        longest = max((s for s in scores if s is not None), key=lambda s: s.nats.shape[1], default=None)
        if longest is not None:
            ends = stretches(settings.context_length, longest.nats.shape[1])
            found["positions"][name] = [list(p) for p in zip(ends, longest.bits_per_token_up_to(ends), strict=True)]
    return found


def stretches(trained: int, longest: int) -> list[int]:
    """Where stretches of positions end: an eighth of the trained length, twice that, and so on to the longest.

    >>> stretches(128, 512)
    [16, 32, 64, 128, 256, 512]
    """
    ends = [end for k in range(-3, longest.bit_length()) if 0 < (end := int(trained * 2.0**k)) < longest]
    return [*dict.fromkeys(ends), longest]


def train_steps(
    model: nn.Module,
    settings: AblationSettings,
    batches: Iterable[data.Batch],
    rate: float,
    steps: int,
    objective: Objective | None = None,
) -> tuple[list[float], float, str | None]:
    """(losses, seconds, what ended it before its time). Ctrl-C raises KeyboardInterrupt."""
    optimizer = optim.AdamW(model, rate, weight_decay=settings.weight_decay)
    warmup = max(1, round(settings.warmup_share * steps))
    losses: list[float] = []
    began = time.monotonic()
    try:
        run = train.train(
            model, batches, objective or objectives.pretraining(model), optimizer, steps,
            schedule=optim.cosine(warmup, steps, final=0.1), guard=Guard(max_in_row=0, sigma=None), progress=False,
            every={1: lambda step, model, run: losses.append(run.losses[-1])},
        )  # fmt: skip
    except FloatingPointError as error:
        return losses, time.monotonic() - began, str(error).splitlines()[0]
    if run.stopped_by == "interrupt":
        raise KeyboardInterrupt
    return losses, time.monotonic() - began, None


@torch.no_grad()
def loss_on(model: Transformer, batch: data.Batch) -> float:
    """Nats per token of one batch."""
    loss = objectives.next_token(model, batch)
    return float(loss.total / loss.weight)


def gradient_norms(model: Transformer, batch: data.Batch) -> list[float | None]:
    """The L2 norm of each block's gradient on one batch, from the first block to the last (None: not finite)."""
    model.zero_grad(set_to_none=True)
    loss = objectives.next_token(model, batch)
    (loss.total / loss.weight).backward()
    norms = [float(global_norm([p.grad for p in b.parameters() if p.grad is not None])) for b in model.blocks]
    model.zero_grad(set_to_none=True)
    return [norm if math.isfinite(norm) else None for norm in norms]


def thinned(losses: Sequence[float]) -> list[list[float]]:
    """[step, mean loss] of at most CURVE_POINTS stretches of equal length."""
    size = math.ceil(len(losses) / CURVE_POINTS) or 1
    parts = [losses[i : i + size] for i in range(0, len(losses), size)]
    return [[min((i + 1) * size, len(losses)), round(statistics.fmean(part), 5)] for i, part in enumerate(parts)]


@dataclass(frozen=True)
class Timing:
    """Seconds of a variant: a training step as it usually is, the fastest slice's, and scoring one batch.

    Other work on the machine only ever adds, so the fastest says how variants compare, and the usual what a budget
    pays for.
    """

    step: float
    fastest_step: float
    scoring: float


def measure_timings(
    configs: Sequence[ModelConfig],
    settings: AblationSettings,
    device: torch.device,
    optimizer: Callable[[Transformer], Any] = lambda model: optim.AdamW(model, 1e-4),
) -> list[Timing]:
    """The variants take turns in short slices, so that what else happens on the machine hits all of them alike."""
    models = [make_model(config, settings, 0, device) for config in configs]
    optimizers = [optimizer(model) for model in models]
    shape = (settings.batch_size, settings.context_length + 1)
    tokens = torch.randint(0, settings.vocab_size, shape, device=device)
    slices: list[list[tuple[float, float]]] = [[] for _ in models]
    for _ in range(MEASURED_ROUNDS + 1):
        for model, own, measured in zip(models, optimizers, slices, strict=True):
            measured.append(_slice(model, own, tokens))
    return [_timing(measured[1:]) for measured in slices]  # the first round warms up


def _slice(model: Transformer, optimizer: Any, tokens: torch.Tensor) -> tuple[float, float]:
    """(seconds of a step, of a forward pass)."""
    batches = [{"tokens": tokens}] * MEASURED_STEPS
    run = train.train(model, batches, objectives.next_token, optimizer, MEASURED_STEPS, progress=False)
    if run.stopped_by == "interrupt":
        raise KeyboardInterrupt
    began = time.perf_counter()
    with torch.no_grad():
        model(tokens[:, :-1])
    return min(run.step_seconds), time.perf_counter() - began


def _timing(slices: Sequence[tuple[float, float]]) -> Timing:
    steps, scores = zip(*slices, strict=True)
    return Timing(statistics.median(steps), min(steps), statistics.median(scores))
