"""What a build measures: baselines before training, bits per byte and samples after it."""

import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from groundup import data
from groundup.build.chat import SENTENCE_END, passages
from groundup.corpus import read_documents
from groundup.evaluation import bits_per_byte
from groundup.evaluation.baselines import (
    kneser_ney_bits_per_byte,
    unigram_bits_per_byte,
    zstd_bits_per_byte,
)
from groundup.inference import Engine, SamplingParams
from groundup.model.ngram import split_documents
from groundup.tokenizer import Tokenizer

BASELINE_TOKENS = 8_000_000
PROMPT_WORDS, PROMPT_CHARACTERS = 8, 80
# With the white space between the words as it is: line breaks are part of the text.
FIRST_WORDS = re.compile(rf"(?:\S+\s+){{0,{PROMPT_WORDS - 1}}}\S+")
SAMPLES = 3


def baselines(shards_folder: Path, held_out: Sequence[str], tokenizer: Tokenizer) -> dict[str, dict[str, Any]]:
    """zstd, unigram and Kneser-Ney 5-gram on the same training tokens and held-out bytes: name -> figures.

    Of a very large training set the n-gram sees the first eight million tokens, and its entry says so.
    """
    shards = data.ShardSet.open(shards_folder, verify=False)
    ids = shards.read(0, min(shards.num_tokens, BASELINE_TOKENS))
    training = list(split_documents(ids, tokenizer.end_of_text))
    scored = [np.asarray([*tokenizer.encode(text), tokenizer.end_of_text]) for text in held_out]
    size = sum(len(text.encode()) for text in held_out)
    made = [
        zstd_bits_per_byte(held_out),
        unigram_bits_per_byte(training, scored, size, vocab_size=tokenizer.vocab_size),
        kneser_ney_bits_per_byte(training, scored, size, vocab_size=tokenizer.vocab_size),
    ]
    seen = {"trained_on_tokens": len(ids), "of_tokens": shards.num_tokens}
    return {b.name: {**asdict(b), **({} if b.name.startswith("zstd") else seen)} for b in made}


def prompts(held_out: Sequence[str]) -> list[str]:
    """How sentences from the middle of held-out documents begin, which the model has not seen; and the empty prompt.

    Words end at spaces, of which Chinese has none: a prompt is never longer than `PROMPT_CHARACTERS`.
    """
    beginnings = [_from_the_middle(text)[: 2 * PROMPT_CHARACTERS] for text in held_out[: SAMPLES - 1]]
    found = [FIRST_WORDS.match(text.lstrip()) for text in beginnings]
    return [*(words[0][:PROMPT_CHARACTERS].rstrip() if words else "" for words in found), ""]


def _from_the_middle(text: str) -> str:
    """The second half, from its first full sentence on: documents of one kind tend to begin all alike."""
    end = SENTENCE_END.search(text, len(text) // 2)
    return text[end.end() :] if end and end.end() < len(text) else text


def within(engine: Engine, text: str) -> str:
    """The beginning of `text` that leaves half the context for an answer."""
    while len(engine.tokenizer.encode(text)) > engine.context_length // 2:
        text = text[: len(text) // 2]
    return text


def draw_samples(engine: Engine, held_out: Sequence[str], seed: int, max_tokens: int = 120) -> list[dict[str, Any]]:
    """Seeded continuations at temperature 0.8, as records for `samples/`."""
    params = SamplingParams(max_tokens=max_tokens, temperature=0.8, top_p=0.95, seed=seed)
    asked = [within(engine, prompt) for prompt in prompts(held_out)]
    return [
        {"prompt": prompt, "text": done.text, "temperature": 0.8, "top_p": 0.95, "seed": seed}
        for prompt, done in zip(asked, engine.generate(asked, params), strict=True)
    ]


def draw_answers(engine: Engine, held_out: Sequence[str], seed: int, max_tokens: int = 120) -> list[dict[str, Any]]:
    """What the chat model answers to openings of held-out passages."""
    params = SamplingParams(max_tokens=max_tokens, temperature=0.8, top_p=0.95, seed=seed)
    found = passages(held_out)
    spread = [found[(2 * i + 1) * len(found) // (2 * SAMPLES)][0] for i in range(SAMPLES if found else 0)]
    openings = [within(engine, opening) for opening in dict.fromkeys(spread)]
    answers = [engine.chat([{"role": "user", "content": opening}], params) for opening in openings]
    return [
        {"prompt": opening, "text": done.text, "temperature": 0.8, "top_p": 0.95, "seed": seed, "chat": True}
        for opening, done in zip(openings, answers, strict=True)
    ]


def evaluate_files(
    model: str | Path,
    files: Sequence[str],
    *,
    context_length: int | None = None,
    stride: int | None = None,
    device: str | None = None,
    text_field: str | None = None,
) -> dict[str, Any]:
    """`groundup eval`: bits per byte on files, or on the run's own held-out text when none are named."""
    engine = Engine.load(model, device=device)
    paths = [Path(f) for f in files] or [Path(model) / "data" / "held_out.jsonl"]
    if not files and not paths[0].exists():
        raise ValueError(f"{model}: no held-out text in it; name the files to measure on")
    texts = [d.text for d in read_documents(paths, text_field=text_field)]
    measured = bits_per_byte(engine.model, engine.tokenizer, texts, context_length=context_length, stride=stride)
    return {"model": str(model), **asdict(measured)}
