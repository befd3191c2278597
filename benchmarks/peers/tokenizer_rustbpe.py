"""rustbpe (nanochat's trainer) in the tokenizer benchmarks. Started by `groundup bench`."""

import os
from importlib.metadata import version

import rustbpe

VERSIONS = {"rustbpe": version("rustbpe")}
PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"


def train(task):
    os.environ["RAYON_NUM_THREADS"] = str(task.threads)  # read when its pool of threads is made, at the first use
    texts = task.texts

    def call():
        tokenizer = rustbpe.Tokenizer()
        tokenizer.train_from_iterator(iter(texts), task.vocab_size - 1, pattern=PATTERN)  # it has no special tokens
        return tokenizer

    return call, lambda tokenizer: [bytes(token) for token, _ in tokenizer.get_mergeable_ranks()]


WORKS = {"train": train}
