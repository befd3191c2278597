"""tiktoken in the tokenizer benchmarks. Started by `groundup bench`."""

import base64
from functools import partial
from importlib.metadata import version

import tiktoken

VERSIONS = {"tiktoken": version("tiktoken")}
# What its own r50k_base splits with.
PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"


def load(task):
    # Not by its own loader, which leaves a copy of every file in a cache.
    lines = (line.split() for line in (task.vocabulary / "ranks.tiktoken").read_bytes().splitlines())
    ranks = {base64.b64decode(token): int(rank) for token, rank in lines}
    specials = {task.separator: task.end_of_text}
    return tiktoken.Encoding("bench", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens=specials)


def one(output):
    return [output]


def each(output):
    return output


def batch(task):
    return partial(load(task).encode_ordinary_batch, task.texts, num_threads=task.threads), each


def encode_one(task):
    return partial(load(task).encode_ordinary, task.strings[0]), one


def encode_many(task):
    encode = load(task).encode_ordinary
    return lambda: [encode(string) for string in task.strings], each


def decode_bytes(task):
    import numpy

    return partial(load(task).decode_bytes, numpy.load(task.ids_path).tolist()), one


def decode_text(task):
    import numpy

    return partial(load(task).decode, numpy.load(task.ids_path).tolist()), lambda output: [output.encode()]


WORKS = {work.__name__: work for work in (batch, encode_one, encode_many, decode_bytes, decode_text)}
