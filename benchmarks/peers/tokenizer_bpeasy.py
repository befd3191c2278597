"""bpeasy in the tokenizer benchmarks. Started by `groundup bench`."""

import os
from importlib.metadata import version

import bpeasy

VERSIONS = {"bpeasy": version("bpeasy")}
PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
MAX_TOKEN_BYTES = 128  # the default of its own tokenizer class; it has no "unlimited"


def train(task):
    os.environ["RAYON_NUM_THREADS"] = str(task.threads)  # read when its pool of threads is made, at the first use
    texts, size = task.texts, task.vocab_size - 1  # it has no special tokens
    return lambda: bpeasy.train_bpe(iter(texts), PATTERN, MAX_TOKEN_BYTES, size), lambda vocab: vocab.keys()


WORKS = {"train": train}
