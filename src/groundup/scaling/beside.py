"""Models that give no likelihood of a text from its beginning on: the encoder-decoder of 2017, and a masked one.

Their figures stand beside the rungs and are never ranked with them. `encdec` reads the first half of a window and is
scored on the second, and a gpt on the same tokens after the same ones. `mlm` sees both sides of each token.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from groundup import presets
from groundup.accounting import count_parameters
from groundup.device import set_seed
from groundup.model import CrossAttentionConfig, EncoderDecoder, EncoderDecoderConfig, ModelConfig, Transformer
from groundup.scaling.one_run import Material, Objective, make_loader, make_model, train_steps
from groundup.scaling.settings import AblationSettings, HistorySettings
from groundup.scaling.variants import ladder, modern
from groundup.train import masked_tokens, next_token, precision, sequence_to_sequence

SPLIT = 0.5
ROWS = 32


def beside(
    settings: HistorySettings, training: AblationSettings, material: Material, rates: dict[str, float], steps: int
) -> list[dict[str, Any]]:
    """A row for each model: bits per byte of what it is scored on, by seed, and what that is.

    Where no held-out document fills a window, there is nothing to score an encoder-decoder on, and `mlm` is alone.
    """
    vocab_size, windows = training.vocab_size, half_windows(material, training)
    gpt = modern(training)
    models = {
        "gpt, same part": (lambda seed: make_model(gpt, training, seed, material.device), next_token, rates["gpt"]),
        "encdec": (lambda seed: _make_pair(pair_config(training), training, seed, material.device),
                   partial(sequence_to_sequence, split=SPLIT), rates["gpt2017"]),
        "mlm": (lambda seed: make_model(masked_config(training), training, seed, material.device),
                partial(masked_tokens, mask_id=vocab_size), rates["gpt"]),
    }  # fmt: skip
    rows = []
    for name, (make, objective, rate) in models.items():
        if name != "mlm" and not len(windows):
            continue
        runs = [
            _run(make(training.seed + i), objective, material, training, training.seed + i, rate, steps, windows,
                 settings.masked) for i in range(settings.beside)
        ]  # fmt: skip
        rows.append({"name": name, "scored_on": _scored_on(name), "rate": rate, **_together(runs)})
    return rows


def _scored_on(name: str) -> str:
    if name == "mlm":
        return "pseudo-log-likelihood: each token masked in turn, with both sides in sight"
    return "the second half of each whole window, given the first"


def _together(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One row from the runs of all seeds."""
    return {**runs[0], "seconds": sum(run["seconds"] for run in runs) / len(runs),
            "bits_per_byte": [run["bits_per_byte"] for run in runs]}  # fmt: skip


def _run(
    model: Any, objective: Objective, material: Material, training: AblationSettings, seed: int, rate: float,
    steps: int, windows: Int64[np.ndarray, "rows columns"], masked: int,
) -> dict[str, Any]:  # fmt: skip
    """Train, and score by the kind of model."""
    set_seed(seed)
    _, seconds, fault = train_steps(model, training, make_loader(material, training, seed), rate, steps, objective)
    model.eval()
    if fault is not None:
        bits, scored = None, 0
    elif isinstance(model, Transformer) and not model.config.causal:
        bits, scored = pseudo_bits_per_byte(model, material, training, masked)
    else:
        bits, scored = half_bits_per_byte(model, material, windows), windows.shape[0] * _target(windows)
    parameters = sum(p.numel() for p in model.parameters())
    return {"parameters": parameters, "steps": steps, "seconds": round(seconds, 3), "bits_per_byte": bits,
            "scored_tokens": scored, "fault": fault}  # fmt: skip


def masked_config(training: AblationSettings) -> ModelConfig:
    """`gpt` with layers that look ahead, and one token more: the mask. Devlin et al. 2018 (arXiv:1810.04805)."""
    return replace(presets.encoder(modern(training)), vocab_size=training.vocab_size + 1)


def pair_config(training: AblationSettings) -> EncoderDecoderConfig:
    """The Transformer of 2017 with half of the layers on either side, and d_ff for about `gpt`'s parameters."""
    target, old = count_parameters(modern(training)).total, ladder(modern(training))[0].config
    one, two = (_parameters(_pair(old, d_ff)) for d_ff in (1, 2))
    return _pair(old, max(1, round(1 + (target - one) / (two - one))))


def _pair(old: ModelConfig, d_ff: int) -> EncoderDecoderConfig:
    (block,) = old.blocks
    cross = CrossAttentionConfig(block.mixer.num_heads, block.mixer.num_kv_heads, block.mixer.d_head)  # type: ignore[union-attr]
    block = replace(block, ffn=replace(block.ffn, d_ff=d_ff))  # type: ignore[type-var]
    side = replace(old, num_layers=max(1, old.num_layers // 2), blocks=(block,))
    return EncoderDecoderConfig(presets.encoder(side), replace(side, blocks=(replace(block, cross=cross),)))


def _parameters(config: EncoderDecoderConfig) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in EncoderDecoder(config).parameters())


def _make_pair(
    config: EncoderDecoderConfig, training: AblationSettings, seed: int, device: torch.device
) -> EncoderDecoder:
    model = EncoderDecoder(config).to(device)
    model.init_weights(seed)
    precision.apply(model, training.precision)
    return model


def half_windows(material: Material, training: AblationSettings) -> Int64[np.ndarray, "rows columns"]:
    """Held-out documents in whole windows as in training, each after its end_of_text or its last window; maybe none."""
    end, columns = material.tokenizer.end_of_text, training.context_length + 1
    rows = []
    for ids in material.tokenizer.encode_batch(list(material.held_out)):
        row = np.array([end, *ids, end], dtype=np.int64)
        rows += [row[i : i + columns] for i in range(0, len(row) - columns + 1, columns - 1)]
    return np.stack(rows) if rows else np.zeros((0, columns), np.int64)


def _target(windows: Int64[np.ndarray, "rows columns"]) -> int:
    return windows.shape[1] - _cut(windows.shape[1])


def _cut(columns: int) -> int:
    """Where `sequence_to_sequence` cuts a row."""
    return round(SPLIT * columns)


@torch.no_grad()
def half_bits_per_byte(
    model: Transformer | EncoderDecoder, material: Material, windows: Int64[np.ndarray, "rows columns"]
) -> float:
    """Bits per byte of the second halves, given the first."""
    cut, nats = _cut(windows.shape[1]), 0.0
    for tokens in torch.from_numpy(windows).to(material.device).split(ROWS):
        if isinstance(model, EncoderDecoder):
            nats += float(sequence_to_sequence(model, {"tokens": tokens}, split=SPLIT).total)
        else:
            nats += float(_nats(model, tokens[:, :-1], tokens[:, 1:])[:, cut - 1 :].sum())
    return nats / math.log(2) / _bytes_of(material, windows[:, cut:])


def _nats(model: Transformer, tokens: Tensor, targets: Tensor) -> Tensor:
    """-ln p of each target, from the place of the same column."""
    return -model(tokens).double().log_softmax(-1).gather(-1, targets[..., None])[..., 0]


def _bytes_of(material: Material, rows: Int64[np.ndarray, "rows columns"]) -> int:
    """Of the text of these tokens; a document's end has none."""
    end = material.tokenizer.end_of_text
    return sum(len(material.tokenizer.decode_bytes(row[row != end].tolist())) for row in rows)


@torch.no_grad()
def pseudo_bits_per_byte(
    model: Transformer, material: Material, training: AblationSettings, most: int
) -> tuple[float, int]:
    """(bits per byte of the pseudo-log-likelihood, tokens scored): -log2 p of each token masked alone, all others seen.

    No probability of a text: the factors do not multiply to one, and each knows what comes after. Wang & Cho 2019
    (arXiv:1902.04094); Salazar et al. 2020, equation 1 (arXiv:1910.14659).
    """
    nats, size, scored = 0.0, 0, 0
    for ids in _stretches(material, training.context_length, most):
        row, places = torch.from_numpy(ids).to(material.device), torch.arange(len(ids), device=material.device)
        for some in places.split(ROWS):
            rows = row.expand(len(some), -1).clone()
            rows[torch.arange(len(some)), some] = training.vocab_size
            nats += float(_nats(model, rows, row.expand(len(some), -1))[torch.arange(len(some)), some].sum())
        size, scored = size + _bytes_of(material, ids[None]), scored + len(ids)
    return nats / math.log(2) / size, scored


def _stretches(material: Material, length: int, most: int) -> Iterator[Int64[np.ndarray, "_"]]:
    """Pieces of held-out documents, `most` tokens in all."""
    for ids in material.tokenizer.encode_batch(list(material.held_out)):
        for start in range(0, len(ids), length):
            piece = np.array(ids[start : start + min(length, most)], dtype=np.int64)
            most -= len(piece)
            if len(piece):
                yield piece
