"""The entropy of English in a history: blocks counted, orders scored on other text, models that guess letters."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, Int64

from groundup.data import Batch
from groundup.evaluation.baselines import zstd_bits_per_byte
from groundup.evaluation.entropy import (
    ALPHABET,
    SHANNON,
    SHANNON_GUESSING,
    block_entropies,
    guess,
    guess_rank,
    rank_bounds,
    to_letters,
)
from groundup.model import Transformer
from groundup.model.ngram import KneserNey
from groundup.scaling.one_run import make_model, train_steps
from groundup.scaling.settings import AblationSettings, HistorySettings
from groundup.scaling.variants import modern

LEAST_LETTERS = 100
SPACE = 0


def entropy_lab(
    training_texts: Sequence[str],
    held_out_texts: Sequence[str],
    settings: HistorySettings,
    training: AblationSettings,
    *,
    rate: float,
    steps: int,
    device: torch.device,
) -> dict[str, Any] | None:
    """F_N by counting and by guessing; None where the texts hold hardly a letter of `ALPHABET`.

    A row for each order N: `plug_in` from the training letters' own frequencies, `plug_in_held_out` from those of the
    far fewer held-out ones, `scored` is a Kneser-Ney of order N on the held-out letters, `lower` and `upper` come from
    its guesses of the first `guesses` of them. `gpt` is a small model of letters that reads `context_length` of them,
    trained for `steps` at `rate`, scored and guessing on the same.
    """
    past, held_out = joined_letters(training_texts), joined_letters(held_out_texts)
    longest = min(settings.longest_block, len(held_out))
    if len(past) < max(LEAST_LETTERS, training.context_length + 1) or len(held_out) < LEAST_LETTERS:
        return None
    scored = held_out[: settings.guesses]
    plug_in, held = block_entropies(past, longest), block_entropies(held_out, longest)
    rows = [
        {"n": n, "plug_in": plug_in[n - 1], "plug_in_held_out": held[n - 1], **_counted(n, past, held_out, scored)}
        for n in range(1, longest + 1)
    ]
    text = "".join(ALPHABET[i] for i in held_out)
    return {
        "letters": len(past), "held_out_letters": len(held_out), "guesses": len(scored), "rows": rows,
        "gpt": _trained(past, held_out, len(scored), training, rate, steps, device) if steps else None,
        "zstd": zstd_bits_per_byte([text]).bits_per_byte, "shannon": SHANNON,
        "shannon_guessing": list(SHANNON_GUESSING),
    }  # fmt: skip


def joined_letters(texts: Sequence[str]) -> Int64[np.ndarray, "letters"]:
    """All texts in a row, a space between two."""
    parts = [part for text in texts if len(part := to_letters(text))]
    spaced = [piece for part in parts for piece in (part, np.array([SPACE], np.uint8))][:-1]
    return np.concatenate(spaced).astype(np.int64) if spaced else np.zeros(0, np.int64)


def _counted(
    n: int, past: Int64[np.ndarray, "_"], held_out: Int64[np.ndarray, "_"], scored: Int64[np.ndarray, "_"]
) -> dict[str, float]:
    """Kneser-Ney of order n over letters: its score of the held-out ones, and the bounds from its guesses."""
    model = KneserNey(n, vocab_size=len(ALPHABET)).fit([past])
    bounds = rank_bounds(guess(model.distribution, scored, len(scored)))
    return {"scored": -float(model.log2_probs(held_out).mean()), "lower": bounds.lower, "upper": bounds.upper}


def _trained(
    past: Int64[np.ndarray, "_"],
    held_out: Int64[np.ndarray, "_"],
    guesses: int,
    training: AblationSettings,
    rate: float,
    steps: int,
    device: torch.device,
) -> dict[str, Any]:
    """A gpt over letters: its score of the held-out ones, and what its guesses of the first of them say."""
    config = replace(modern(training), vocab_size=len(ALPHABET))
    model = make_model(config, training, training.seed, device)
    losses, seconds, fault = train_steps(model, training, letter_batches(past, training, device), rate, steps)
    p = next_letter(model, held_out)
    at_truth = p[np.arange(len(held_out)), held_out]
    if fault is not None or not np.isfinite(p).all():
        return {"fault": fault or "its probabilities are not finite", "steps": len(losses)}
    bounds = rank_bounds([guess_rank(row, int(symbol)) for row, symbol in zip(p[:guesses], held_out, strict=False)])
    return {
        "fault": None, "steps": steps, "letters_seen": steps * training.batch_tokens, "seconds": round(seconds, 3),
        "context": training.context_length, "scored": -float(np.log2(at_truth).mean()), "lower": bounds.lower,
        "upper": bounds.upper,
    }  # fmt: skip


def letter_batches(past: Int64[np.ndarray, "_"], training: AblationSettings, device: torch.device) -> Iterator[Batch]:
    """Windows of letters from anywhere in the text, without end."""
    rng = np.random.default_rng(training.seed)
    width = training.context_length + 1
    while True:
        starts = rng.integers(0, len(past) - width + 1, training.batch_size)
        rows = np.stack([past[start : start + width] for start in starts])
        yield {"tokens": torch.from_numpy(rows).to(device)}


@torch.no_grad()
def next_letter(model: Transformer, symbols: Int64[np.ndarray, "_"]) -> Float64[np.ndarray, "_ alphabet"]:
    """P of each letter given those before it, from a space on: half a context of them at least, where there are."""
    context = model.config.context_length
    half = max(1, context // 2)
    row = torch.from_numpy(np.append(SPACE, symbols[:-1])).to(model.device)
    model.eval()
    made = []
    for first in range(0, len(symbols), half):
        start, end = max(0, first + half - context), min(first + half, len(symbols))
        logits = model(row[None, start:end])[0, first - start :]
        made.append(logits.double().softmax(-1).cpu().numpy())
    return np.concatenate(made)
