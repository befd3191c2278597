"""The rungs that count instead of training: unigram, n-grams of every order, and a compressor beside them."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from groundup import data
from groundup.evaluation.baselines import (
    unigram_bits_per_byte,
    zstd_bits_per_byte,
    zstd_with_training_text_bits_per_byte,
)
from groundup.files import read_json
from groundup.model.ngram import KneserNey, split_documents
from groundup.tokenizer import Tokenizer


@dataclass(frozen=True)
class Texts:
    """What counted models are fitted on and scored on: the tokens, and the texts that they are of."""

    tokenizer: Tokenizer
    training: list[Int64[np.ndarray, "_"]]
    held_out: list[str]

    @classmethod
    def load(cls, folder: Path) -> "Texts":
        """Of the folder of a comparison: the shards that its models learn from, the text that they are scored on."""
        tokenizer = Tokenizer.load(folder)
        shards = data.ShardSet.open(folder / "data" / "train", verify=False)
        ids = shards.read(0, shards.num_tokens)
        held_out = read_json(folder / "data" / "held_out.json")
        return cls(tokenizer, list(split_documents(ids, tokenizer.end_of_text)), held_out)

    @property
    def num_bytes(self) -> int:
        """Of the held-out text."""
        return sum(len(text.encode()) for text in self.held_out)

    @property
    def num_tokens(self) -> int:
        """Of the training text."""
        return sum(map(len, self.training))

    def scored(self) -> list[Int64[np.ndarray, "_"]]:
        """The held-out tokens, each document with its end_of_text."""
        end = self.tokenizer.end_of_text
        return [np.array([*ids, end], dtype=np.int64) for ids in self.tokenizer.encode_batch(self.held_out)]

    def training_texts(self) -> list[str]:
        """The text of the training tokens."""
        end = self.tokenizer.end_of_text
        return [self.tokenizer.decode(ids[ids != end].tolist()) for ids in self.training]


def ngram_orders(texts: Texts, order: int) -> list[dict[str, Any]]:
    """Kneser-Ney of each order from 1 to `order`: bits per byte, how many n-grams it keeps, seconds to count."""
    rows, scored, size = [], texts.scored(), texts.num_bytes
    KneserNey(2, vocab_size=2).fit([[0, 1]])  # loads the compiled loops, which is no part of counting
    for n in range(1, order + 1):
        began = time.monotonic()
        model = KneserNey(n, vocab_size=texts.tokenizer.vocab_size).fit(texts.training)
        seconds = time.monotonic() - began
        bits = -sum(float(model.log2_probs(document).sum()) for document in scored)
        kept = int(model.trie.levels[-1]) - 1
        rows.append({"order": n, "bits_per_byte": bits / size, "ngrams": kept, "seconds": round(seconds, 3)})
    return rows


def unigram(texts: Texts) -> dict[str, Any]:
    """Token frequencies: bits per byte, the vocabulary, seconds to count."""
    began = time.monotonic()
    vocab_size = texts.tokenizer.vocab_size
    score = unigram_bits_per_byte(texts.training, texts.scored(), texts.num_bytes, vocab_size=vocab_size)
    seconds = round(time.monotonic() - began, 3)
    return {"bits_per_byte": score.bits_per_byte, "ngrams": vocab_size, "seconds": seconds}


def compressors(texts: Texts) -> list[dict[str, Any]]:
    """zstd on the held-out text alone, and after the training text."""
    past: Sequence[str] = texts.training_texts()
    made = [zstd_bits_per_byte(texts.held_out), zstd_with_training_text_bits_per_byte(texts.held_out, past)]
    return [{"name": b.name, "bits_per_byte": b.bits_per_byte, "policy": b.policy} for b in made]
